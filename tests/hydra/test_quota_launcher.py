"""`hydra/launcher=quota` on this machine: what people see of it, and what survives."""

import json
import signal
from pathlib import Path

import pytest
from driving import GRID_APP, fail, finish, kill, numbers, run, start, start_command, starts, wait_until

from sweeps.store.folder import SweepFolder
from sweeps.store.lease import newest_token

QUOTA = ["hydra/launcher=quota", "hydra.launcher.tick_seconds=0.05"]
GRID = ["hydra/sweeper=grid"]


def only_sweep(folder: Path) -> SweepFolder:
    (found,) = SweepFolder.all_under(folder / "multirun")
    return found


def test_a_killed_command_goes_on_and_then_starts_anew(tmp_path: Path) -> None:
    own = [numbers(4), f"gate={tmp_path}/gate-${{number}}", "hydra.sweep.dir=${now:%S-%f}"]
    words = [*QUOTA, "hydra.launcher.quota.jobs=2", *own]
    (tmp_path / "gate-0").touch()
    first = start(tmp_path, *words)
    wait_until(lambda: len(starts(tmp_path)) >= 3)
    kill(first)
    for number in range(1, 4):
        (tmp_path / f"gate-{number}").touch()
    # Another quota is no other command; the clock would name another folder.
    assert "continues a multirun" in run(tmp_path, *words, "hydra.launcher.quota.jobs=1")
    assert starts(tmp_path) == sorted(map(str, range(4)))
    (out,) = (path.parent for path in tmp_path.glob("*/multirun.yaml"))
    assert len(list(out.glob("*/square"))) == 4
    # What has ended well is not continued: Hydra's own launchers would compute it again too.
    assert "continues a multirun" not in run(tmp_path, *QUOTA, *words[2:], "hydra.launcher.quota.jobs=2")
    assert len(starts(tmp_path)) == 8


@pytest.mark.thorough
def test_after_ctrl_c_or_a_dead_host_the_command_continues(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    words = [*QUOTA, numbers(1), f"gate={gate}"]
    interrupted = start(tmp_path, *words)
    wait_until(lambda: len(starts(tmp_path)) == 1)
    interrupted.send_signal(signal.SIGINT)
    said, _ = interrupted.communicate(timeout=600)
    gate.touch()
    assert (interrupted.returncode, "Traceback" in said) == (130, False), said
    assert "the same command continues" in said
    # Somebody elsewhere controls it, and was heard of just now.
    lease_dir = only_sweep(tmp_path).lease_dir
    elsewhere = {"host": "elsewhere", "pid": 1, "started_at": 0.0}
    (lease_dir / f"{newest_token(lease_dir):06d}").write_text(json.dumps(elsewhere))
    assert "hydra.launcher.take_over=true replaces it now" in fail(tmp_path, *words)
    assert "1 done, 1 resubmitted" in run(tmp_path, *words, "hydra.launcher.take_over=true")


def test_a_failed_job_raises_and_is_alone_in_being_tried_again(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("0.2")
    words = [*QUOTA, *GRID, "model=small", "lr=0.1,0.2,0.3"]
    said = fail(tmp_path, *words, app=GRID_APP)
    assert "ZeroDivisionError: lr 0.2 is broken" in said
    assert "#1 failed" in said
    # Once more on its own account, as the orchestrator does after a crash, then held.
    assert starts(tmp_path) == ["small 0.1", "small 0.2", "small 0.2", "small 0.3"]
    log = Path(said.rpartition("The job's output: ")[2].split()[0])
    assert "in main" in log.read_text()
    (tmp_path / "broken").unlink()
    assert "3 done" in run(tmp_path, *words, app=GRID_APP)
    assert starts(tmp_path).count("small 0.2") == 3
    assert len(starts(tmp_path)) == 5


def test_a_job_asks_for_what_its_own_config_says(tmp_path: Path) -> None:
    words = ["hydra.launcher.resources.cpus_per_node=${model.cores}", "model=small,large"]
    # A key that only jobs have.
    words += ["hydra.launcher.resources.wall_minutes=${minutes}", "+minutes=7"]
    run(tmp_path, *QUOTA, *words, app=GRID_APP)
    works = only_sweep(tmp_path).read_definition().works
    assert {work.labels["model"]: work.need.cpus_per_node for work in works} == {"small": 1, "large": 2}
    assert {work.need.wall_minutes for work in works} == {7}


def test_a_setting_that_interpolates_nothing_is_one_line(tmp_path: Path) -> None:
    said = fail(tmp_path, *QUOTA, "hydra.launcher.resources.nodes=${part}", "model=small,large", app=GRID_APP)
    # Under Hydra 1.4 warnings that are Hydra's own come first.
    assert "\nhydra.launcher.resources.nodes: Interpolation key 'part' not found" in f"\n{said}"
    assert "Traceback" not in said


def test_hydras_callbacks_and_verbosity_reach_the_jobs(tmp_path: Path) -> None:
    told = tmp_path / "told"
    callback = f"+hydra.callbacks.recorder={{_target_: recorder.Recorder, file: {told}}}"
    run(tmp_path, *QUOTA, callback, "lr=0.1,0.2", "hydra.verbose=true", app=GRID_APP)
    lines = told.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("multirun starts", "multirun ends")
    assert sorted(lines[1:-1]) == [
        f"job {number} {words}" for number in (0, 1) for words in ("ends COMPLETED", "starts")
    ]
    assert "[DEBUG] - multiplies" in (tmp_path / "out" / "0" / "app.log").read_text()


# The body of an application, what its jobs ask for, and what the launcher then hands back.
ODD = {
    "several processes": ("import os; return int(os.environ['RANK'])", ["tasks_per_node=2"], "COMPLETED 0"),
    "a killed job": ("import os; os.kill(os.getpid(), 9)", [], "FAILED JobFailed"),
    "an exception that no pickle takes": ("raise Odd(1, 2)", [], "FAILED RuntimeError"),
    "a result that no pickle takes": ("import threading; return threading.Lock()", [], "COMPLETED None"),
    "an exit that is none": ("sys.exit(0)", [], "COMPLETED None"),
    "an exit with a message": ("sys.exit('no data')", [], "FAILED JobFailed"),
}
APPLICATION = """
import sys
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.utils import JobReturn

class Odd(Exception):
    def __init__(self, one, two):
        super().__init__("odd")

def task(config):
    {body}

if __name__ == "__main__":
    # The sweeper raises what a failed job raised, and so would hide what the launcher returned.
    JobReturn.return_value = property(lambda self: None, lambda self, value: setattr(self, "_return_value", value))
    hydra = Hydra.create_main_hydra2("odd", create_config_search_path(None))
    ((one,),) = hydra.multirun(None, task, sys.argv[1:])
    value = one._return_value
    print("returned", one.status.name, type(value).__name__ if isinstance(value, Exception) else value)
"""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if "pickle" in name else pytest.mark.thorough) for name in ODD]
)
def test_what_is_odd_is_told_honestly(name: str, tmp_path: Path) -> None:
    body, asks, expected = ODD[name]
    script = tmp_path / "odd.py"
    script.write_text(APPLICATION.format(body=body))
    words = [*QUOTA, *(f"hydra.launcher.resources.{ask}" for ask in asks)]
    said = finish(start_command(tmp_path, *words, app=script))
    assert f"returned {expected}" in said, said
    assert ("#0 failed: killed by SIGKILL" in said) == (name == "a killed job"), said


MISTAKES = {
    "an unknown field": ("hydra/launcher=quota hydra.launcher.quoata.nodes=2", "quoata"),
    "an unknown field, added": ("hydra/launcher=quota +hydra.launcher.quoata=2", "did you mean quota?"),
    "an unknown resource, added": (
        "hydra/launcher=quota +hydra.launcher.resources.mem=2",
        "resources.mem: no such setting",
    ),
    "a parameter of submitit": (
        "hydra/launcher=quota +hydra.launcher.timeout_min=5",
        "timeout_min: use max_wall_minutes",
    ),
    "an unknown cluster": ("hydra/launcher=quota hydra.launcher.cluster=lsf", "one of local, slurm"),
    "an unknown key of an allocation": (
        "hydra/launcher=quota +hydra.launcher.allocations.night.partion=x",
        "allocations.night.partion: no such setting",
    ),
    "more nodes than there are": ("hydra/launcher=quota hydra.launcher.resources.nodes=2", "is 1 node"),
    "more cores than there are": (
        "hydra/launcher=quota hydra.launcher.resources.cpus_per_node=9999 lr=1,2",
        "job #0 (lr=1)",
    ),
    "no node at all": ("hydra/launcher=quota hydra.launcher.resources.nodes=0", "at least 1"),
    "a name with a slash": ("hydra/launcher=quota hydra.launcher.name=a/b", "letters, digits"),
    "no such sweep": ("hydra/sweeper=grid +sweep=nope", "mixed"),
    "an empty grid": ("hydra/sweeper=grid +sweep=nothing", "every combination is excluded"),
    "a million jobs": ("hydra/sweeper=grid +sweep=huge", "allow_large=true"),
    "a misspelt grid": ("hydra/sweeper=grid +sweep=wrong", "produkt"),
    "an interval": ("hydra/sweeper=grid lr=interval(0,1)", "interval"),
    "a value that is no sweep": ("hydra/sweeper=grid hydra.sweeper.sweep=3", "hydra.sweeper.sweep=3"),
    "detaching with a launcher that waits": ("hydra/sweeper=grid hydra.sweeper.detach=true lr=1,2", "launcher=quota"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_as_hydra_tells_it_and_starts_nothing(name: str, tmp_path: Path) -> None:
    words, expected = MISTAKES[name]
    said = fail(tmp_path, *words.split(), app=GRID_APP)
    assert expected in said
    assert "Traceback" not in said
    assert not starts(tmp_path)

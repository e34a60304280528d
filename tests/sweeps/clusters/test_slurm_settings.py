"""Settings of SLURM: submitit's parameters by their names, options of sbatch, and what the engine keeps for itself."""

from __future__ import annotations

import dataclasses
import inspect
import os
import pickletools
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest
from submitit.slurm import slurm

from hydra_plugins.sweeps.quota_launcher import QuotaLauncherConf
from muloco_runner.config import ConfigError
from muloco_runner.record import ExitCode
from sweeps.clusters import read_cluster
from sweeps.clusters.slurm.batch_job import write_job
from sweeps.clusters.slurm.sbatch_options import REFUSED, REFUSED_OF_CONTROLLER
from sweeps.clusters.slurm.script import controller_script, job_script
from sweeps.clusters.slurm.slurm_cluster import SlurmCluster
from sweeps.clusters.slurm.slurm_settings import OPTION_KEYS, REFUSED_PARAMETERS, SlurmOptions, options_of
from sweeps.engine.cluster import JobRequest
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig
from sweeps.engine.work import Attempt, Need, Work
from sweeps.hydra_apps.launcher_settings import cluster_of
from sweeps.node.attempt_files import read_outcome


def read(**given: Any) -> ClusterConfig:
    entry = {"name": "a", "gpus_per_node": 8, "cpus_per_node": 4, **given}
    return read_cluster("c", {"kind": "slurm", "allocations": [entry]})


def script(excluded: tuple[str, ...] = (), gpus: int = 8, folder: Path = Path("/sweep"), **given: Any) -> str:
    request = JobRequest("t-1", "a", (Attempt(Work("w", "/w", "m:f"), 1),), 1, gpus, 4, 1.0, excluded)
    return job_script(request, read(**given).allocation("a"), [], folder)


def flags(text: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for line in text.splitlines():
        if line.startswith("#SBATCH --"):
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            assert name not in found, f"{name} twice"
            found[name] = "".join(shlex.split(value)) if value else None
    return found


def test_every_parameter_of_submitit_is_known() -> None:
    parameters = set(inspect.signature(slurm._make_sbatch_string).parameters)
    parameters |= set(slurm.SlurmExecutor._equivalence_dict()) | {"python", "max_num_timeout", "gpus_per_node"}
    assert parameters - {"gpus_per_node", "name"} <= {*OPTION_KEYS, *REFUSED_PARAMETERS}
    assert not {*OPTION_KEYS} & {*REFUSED_PARAMETERS}


def test_a_script_says_what_was_asked() -> None:
    given = {
        "partition": "gpu", "account": 17, "mem_gb": 1.5, "exclude": ["n1", "n2"], "exclusive": True,
        "gres": "gpu:h100",
        "sbatch": {"mail_type": ["END", "FAIL"], "reboot": False, "contiguous": True, "reservation": "a b"},
    }  # fmt: skip
    found = flags(script(("n3", "n1"), **given))
    assert found == {
        "account": "17", "comment": "t-1", "contiguous": None, "cpus-per-task": "4", "exclude": "n1,n2,n3",
        "exclusive": None, "gres": "gpu:h100:8", "job-name": "t-1", "mail-type": "END,FAIL", "mem": "1536MB",
        "no-requeue": None, "nodes": "1", "ntasks-per-node": "1", "open-mode": "append",
        "output": "/sweep/logs/t-1.log", "partition": "gpu", "reservation": "a b", "signal": "B:USR1@120", "time": "1",
    }  # fmt: skip


def test_each_way_to_start() -> None:
    assert re.search(r"^exec \S+ -P -u -m sweeps.clusters.slurm.runner /sweep/submitit$", script(), re.M)
    under_srun = script(srun_args=["--container-image=a b"])
    assert flags(under_srun)["signal"] == "USR1@120"
    (line,) = re.findall(r"^srun .*", under_srun, re.M)
    assert "'--container-image=a b'" in line
    after = script(teardown=["echo bye"])
    assert after.rstrip().endswith('(\necho bye\n)\nexit "$code"')
    assert "srun" not in after


def test_a_script_needs_no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert script()


def test_odd_text_reaches_sbatch_as_it_is() -> None:
    found = script(folder=Path("/a b/100%j's"), comment="a\\b")
    assert "#SBATCH --output='/a b/100%%j'\"'\"'s/logs/t-1.log'" in found
    assert "#SBATCH --comment='a\\\\b'" in found


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_needs_is_refused_with_what_to_use(name: str) -> None:
    for key in (name, name.replace("-", "_")):
        with pytest.raises(ConfigError, match=re.escape(f"sbatch.{key}: ")) as caught:
            read(sbatch={key: 1})
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", REFUSED_OF_CONTROLLER)
def test_a_controllers_job_keeps_its_own_options(name: str) -> None:
    values = {"kind": "slurm", "allocations": [{"name": "a"}], "controller": {"sbatch": {name: 1}}}
    with pytest.raises(ConfigError, match=re.escape(f"controller.sbatch.{name}: ")):
        read_cluster("c", values)


def test_a_controllers_script_has_its_users_options() -> None:
    values = {"kind": "slurm", "allocations": [{"name": "a", "partition": "gpu"}]}
    cluster = read_cluster("c", {**values, "controller": {"account": "lab", "sbatch": {"mail_type": ["END"]}}})
    found = flags(controller_script(cluster, "controller-of-x", Path("/l%j"), "17", [], ["python"], 60.0))
    assert (found["account"], found["partition"], found["mail-type"]) == ("lab", "gpu", "END")
    assert (found["dependency"], found["begin"], found["output"]) == ("afterany:17", "now+60", "/l%%j")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"time": 30}, "allocations[0].time: use max_wall_minutes"),
        ({"timeout_min": 30}, "timeout_min: use max_wall_minutes"),
        ({"tasks_per_node": 2}, "tasks_per_node: each job asks"),
        ({"job_name": "x"}, "job_name: the name of a job is its tag"),
        ({"sbatch": {"tim": 30}}, "tim: sbatch may read this as time"),
        ({"sbatch": {"part": "gpu"}}, "part: sbatch may read this as partition"),
        ({"sbatch": {"-p": "gpu"}}, "-p: give sbatch's long name"),
        ({"sbatch": {"mail_type": 1, "mail-type": 2}}, "given twice"),
        ({"sbatch": {"nice": 1}, "additional_parameters": {"nice": 2}}, "nice is given twice"),
        ({"partition": "a", "sbatch": {"partition": "b"}}, "given twice"),
        ({"sbatch": {"reservation": {"a": 1}}}, "reservation={'a': 1}"),
        ({"sbatch": {"reservation": "a\n#SBATCH --time=9"}}, "one line of text"),
        ({"sbatch": 3}, "give options with values"),
        ({"constraint": ["a", "b"]}, "constraint=['a', 'b']: give text, not a list"),
        ({"partition": True}, "partition=True"),
        ({"mem": "1G", "mem_gb": 1}, "sbatch takes one of them"),
        ({"mem_gb": "much"}, "mem_gb='much': give a number above zero"),
        ({"signal_delay_s": 0}, "signal_delay_s=0: give whole seconds"),
        ({"setup": "module load cuda"}, "setup='module load cuda': give a list of lines"),
        ({"srun_args": ["-v"], "use_srun": False}, "use_srun=False"),
        ({"python": ""}, "python=''"),
        ({"gres": "gpu:h100:4"}, "fewer GPUs than gpus_per_node=8"),
    ],
)
def test_a_mistake_is_one_line(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        read(**given)
    assert len(str(caught.value).splitlines()) == 1


def test_settings_of_the_whole_cluster_hold_in_each_allocation() -> None:
    entries = [{"name": "a"}, {"name": "b", "python": "other"}]
    cluster = read_cluster("c", {"kind": "slurm", "python": "conda", "setup": ["x"], "allocations": entries})
    assert [options_of(allocation).python for allocation in cluster.allocations] == ["conda", "other"]
    assert cluster.setup == ["x"]
    assert ClusterConfig.from_dict("c", cluster.to_dict()) == cluster
    with pytest.raises(ConfigError, match=r"cluster=c\.timeout_min: use max_wall_minutes"):
        read_cluster("c", {"kind": "slurm", "timeout_min": 5, "allocations": entries})
    with pytest.raises(ConfigError, match="give a list of lines"):
        read_cluster("c", {"kind": "slurm", "setup": "x", "allocations": entries})


def test_the_launcher_has_every_setting_unset_by_default() -> None:
    fields = {f.name for f in dataclasses.fields(QuotaLauncherConf)}
    assert set(OPTION_KEYS) <= fields
    launcher = {**dataclasses.asdict(QuotaLauncherConf()), "cluster": "slurm", "root": "r"}
    (plain,) = cluster_of(launcher, [Need()]).allocations
    assert options_of(plain) == SlurmOptions()
    (asked,) = cluster_of({**launcher, "mem_gb": 4, "setup": ["x"], "allocations": {}}, [Need()]).allocations
    assert options_of(asked) == SlurmOptions(mem_gb=4)
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.allocations\.a\.timeout_min: use max_wall_minutes"):
        cluster_of({**launcher, "allocations": {"a": {"timeout_min": 5}}}, [Need()])


def test_gpus_of_a_type_are_as_many_as_a_job_asks_for() -> None:
    assert flags(script(gpus=2))["gres"] == "gpu:2"
    assert flags(script(gpus=2, gres=["lscratch:10", "gpu:h100"]))["gres"] == "lscratch:10,gpu:h100:2"
    assert flags(script(gpus=2, gres="gpu:h100:8"))["gres"] == "gpu:h100:8"
    assert "gres" not in flags(script(gpus=0, gpus_per_node=0, gres="gpu:h100"))


def test_a_definition_of_before_means_the_same() -> None:
    allocation = AllocationConfig("a", options={"partition": None, "account": None, "qos": None, "sbatch": {"mem": 1}})
    assert options_of(allocation) == SlurmOptions(mem="1")
    refused = ClusterConfig.from_dict("c", {"kind": "slurm", "allocations": [{"name": "a", "sbatch": {"time": 9}}]})
    with pytest.raises(ConfigError, match=r"cluster=c: a\.sbatch\.time: use max_wall_minutes"):
        SlurmCluster(refused, Path("/nowhere")).start()


class SetupJob:
    """The script of a job of two attempts with these lines of setup, run by bash as SLURM does."""

    def __init__(self, root: Path, *setup: str) -> None:
        self.attempts = tuple(Attempt(Work(name, str(root / name), "m:f"), 1) for name in ("a", "b c"))
        request = JobRequest("t-1", "a", self.attempts, 1, 0, 1, 1.0)
        for name in ("submitit", "logs"):
            (root / name).mkdir()
        script = root / "slurm_script"
        script.write_text(job_script(request, AllocationConfig("a"), [*setup, "echo too far", "exit 0"], root))
        self.log = root / "logs" / "t-1.log"
        with self.log.open("a") as log:
            environment = {**os.environ, "SLURM_JOB_ID": "7"}
            self.process = subprocess.Popen(["bash", script], env=environment, stdout=log, stderr=log)

    def words(self) -> list[str]:
        """What each attempt's folder says."""
        has_failed = self.process.wait(600) == ExitCode.SETUP_FAILED
        outcomes = [read_outcome(attempt) for attempt in self.attempts]
        assert {one.ending is not None and one.ending.exit_code == ExitCode.SETUP_FAILED for one in outcomes} == {
            has_failed
        }
        return list(dict.fromkeys(one.message for one in outcomes))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["true", "false || true", "grep -q x /nowhere"], "`grep -q x /nowhere` ended with code 2: grep: /nowhere"),
        (["echo no module; (exit 3)"], " ended with code 3: no module"),
        (["echo no disk", "exit 4"], "`exit 4` ended with code 4: no disk"),
        (["set -u", 'echo "$NO_SUCH"'], "NO_SUCH: unbound variable"),
        (["if true; fi"], "syntax error near unexpected token"),
        (["no_such_command"], "`no_such_command` ended with code 127: no_such_command: command not found"),
    ],
)
def test_a_failed_setup_has_its_words_in_each_attempts_folder(tmp_path: Path, lines: list[str], words: str) -> None:
    job = SetupJob(tmp_path, *lines)
    (said,) = job.words()
    assert words in said
    assert "too far" not in job.log.read_text()


@pytest.mark.parametrize("line", ["sleep 300", "false || sleep 300"])
def test_a_setup_that_is_stopped_has_not_failed(tmp_path: Path, line: str) -> None:
    job = SetupJob(tmp_path, line)
    bash = psutil.Process(job.process.pid)
    while not (asleep := [child for child in bash.children() if child.name() == "sleep"]):
        assert job.process.poll() is None
        time.sleep(0.02)
    job.process.send_signal(signal.SIGTERM)
    assert job.words() == [""]
    assert job.process.returncode == -signal.SIGTERM
    asleep[0].kill()


def test_the_pin_is_the_installed_version() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert f'"submitit=={metadata.version("submitit")}"' in text


def test_a_plan_needs_no_slurm(tmp_path: Path) -> None:
    words = ["plan", "+sweep=demo", "cluster=h100", f"root={tmp_path}", "+cluster.mem_gb=64", "cluster.setup=[x]"]
    command = [sys.executable, "-m", "sweeps", *words]
    done = subprocess.run(command, env={**os.environ, "PATH": "/nowhere"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_payload_is_names_and_plain_values(tmp_path: Path) -> None:
    for name in ("requests", "scripts", "submitit"):
        (tmp_path / name).mkdir()
    request = JobRequest("t-1", "a", (Attempt(Work("w", "/w", "m:f"), 1),), 1, 8, 4, 1.0)
    write_job(request, read(srun_args=["-v"]).allocation("a"), [], tmp_path)
    operations = list(pickletools.genops((tmp_path / "submitit" / "t-1_submitted.pkl").read_bytes()))
    texts = [argument for operation, argument, _ in operations if operation.name == "SHORT_BINUNICODE"]
    assert texts[:2] == ["submitit.core.utils", "DelayedSubmission"]
    names = [texts[at + 1] for at, text in enumerate(texts) if text.startswith(("sweeps.", "submitit."))]
    assert names == ["DelayedSubmission", "run_request"]
    assert str(tmp_path / "requests" / "t-1.json") in texts

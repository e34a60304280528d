"""`branches:` one run's checkpoints decayed into several budgets: planned, made to wait, begun, held, and refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from killed_controllers import Killed

from muloco_runner.config import ConfigError
from muloco_runner.inference.continuation import has_begun
from muloco_runner.record import ExitCode, RunFolder, RunResult
from sweeps.__main__ import main
from sweeps.cli.explain import explain, why
from sweeps.engine.cluster import Limits
from sweeps.engine.quota import VerdictKind
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Work
from sweeps.training.budget_branches import begin_branch
from sweeps.training.entry import prepare, train
from sweeps.training.preview import preview
from sweeps.training.sweep import Sweep, read_sweep
from sweeps.training.weights import end_of_sweep
from sweeps.trials import Trials

WSD = ["model=29k", "schedule=wsd", "schedule.warmup_steps=4", "schedule.max_warmup_fraction=1"]
SMALL = [*WSD, "global_batch_tokens=2048", "algorithm=ddp_muon", "branches.tokens_per_parameter=[1,2,3]"]


def asked(root: Path, *words: str) -> tuple[Sweep, Work, list[Work]]:
    """The sweep, its trunk and its branches, the smallest first; folders are written."""
    sweep = read_sweep([*SMALL, "cluster=local", f"root={root}", *words])
    prepare(sweep.runs, sweep.root)
    branches = [work for work in sweep.definition.works if work.trunk is not None]
    (trunk,) = (work for work in sweep.definition.works if work.trunk is None)
    return sweep, trunk, branches


def killed(*_: Any) -> None:
    raise Killed


class Left(Trials):
    """Trunks have left the checkpoints of these steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def begin_branch(self, work: Work) -> bool:
        assert work.trunk is not None
        return work.trunk.step in self.steps


@pytest.mark.parametrize(
    "decay",
    [
        ("schedule.decay_steps=5", "schedule.decay_form=sqrt"),
        pytest.param(("schedule.decay_fraction=0.3",), marks=pytest.mark.thorough),
    ],
)
def test_a_branch_ends_as_if_it_had_been_asked_for_at_once(
    decay: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickly = ["execution.log_interval_steps=1", *decay, "method.num_workers=2", "method.sync_interval=7"]
    quickly.append("branches.tokens_per_parameter=[1,2]")
    _, trunk, branches = asked(tmp_path / "branched", *quickly, "algorithm=muloco")
    assert not any(begin_branch(branch) for branch in branches)
    assert train(trunk.folder, 1, **trunk.arguments) == ExitCode.FINISHED
    for branch in branches:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed)
            with pytest.raises(Killed):
                begin_branch(branch)
        assert not has_begun(RunFolder(branch.folder))
        assert begin_branch(branch)
        assert begin_branch(branch)
        assert branch.trunk is not None
        found = RunFolder(branch.folder)
        assert found.read_parent() == (trunk.name, branch.trunk.step)
        at_once = RunFolder.of(tmp_path / "at_once", branch.name)
        at_once.write_config(found.read_config())
        for folder in (found, at_once):
            assert train(str(folder.path), 1, branch.arguments["execution"]) == ExitCode.FINISHED
        one, other = (
            {key: getattr(result, key) for key in ("validation_loss", "train_loss", "num_tokens", "bytes_sent")}
            for result in (found.read_result(), at_once.read_result())
        )
        assert one == other
        assert [step.loss for step in found.read_steps()] == [step.loss for step in at_once.read_steps()]


def test_a_branch_costs_its_decay_and_waits_for_its_trunk(tmp_path: Path) -> None:
    sweep = read_sweep([*SMALL, "seed=0,1", "cluster=local", f"root={tmp_path}"])
    works = sweep.definition.works
    of_trunks = [work for work in works if work.trunk is None]
    assert [work.labels["tokens_per_parameter"] for work in of_trunks] == [3, 3]
    first, second = (work for work in works if work.trunk is not None and work.trunk.run == of_trunks[0].name)
    assert first.trunk is not None
    assert second.trunk is not None
    assert of_trunks[0].arguments["execution"]["branch_steps"] == [first.trunk.step, second.trunk.step]
    whole = of_trunks[0].need.expected_minutes
    assert second.need.expected_minutes == pytest.approx(whole * 2 / 3 * (1 - second.trunk.spared), rel=0.05)
    found = preview(sweep, Limits())
    hours = sum(run.work.need.expected_minutes for run in found.runs) / 60
    assert hours + found.spared_hours == pytest.approx(2 * (1 + 2 / 3 + 1 / 3) * whole / 60, rel=0.05)
    state = SweepState.of(works)
    run = state.runs[first.name]
    reason = why(run, state, {}, 0.0, True)
    assert reason == f"waits for the checkpoint of step {first.trunk.step} of its trunk, run {of_trunks[0].name}"
    assert f"goes on from step {first.trunk.step} of run" in "".join(explain(run, reason, "", 0.0, 60.0, 2, "ROOT"))


def test_a_branch_is_held_with_its_trunk_and_released_with_it(tmp_path: Path) -> None:
    _, trunk, (first, second) = asked(tmp_path)
    state = SweepState.of([trunk, first, second])
    assert first.trunk is not None
    waiting = lambda: sorted(run.work.name for queue in state.waiting.values() for run in queue)  # noqa: E731
    assert waiting() == [trunk.name]
    assert Left(first.trunk.step).branches_that_wait_no_longer(state) == ([], {}), "its trunk was never tried"
    state.apply({"event": "held", "time": 0.0, "runs": [trunk.name], "why": "crashed"})
    ready, held = Left(first.trunk.step).branches_that_wait_no_longer(state)
    assert ready == [first.name], "its checkpoint is there all the same"
    ((reason, names),) = held.items()
    assert names == [second.name]
    assert reason.startswith(f"its trunk {trunk.name} is held before its checkpoint of step")
    state.apply({"event": "ready", "time": 0.0, "runs": ready})
    state.apply({"event": "held", "time": 0.0, "runs": names, "why": reason})
    assert waiting() == [first.name]
    assert state.counts == {"waiting": 1, "held": 2}
    state.apply({"event": "released", "time": 0.0, "runs": [trunk.name]})
    assert waiting() == sorted([trunk.name, first.name])
    assert state.is_behind(second.name)
    state.apply({"event": "found_finished", "time": 0.0, "runs": [trunk.name]})
    (reason,) = Left().branches_that_wait_no_longer(state)[1]
    assert "has ended without a checkpoint of step" in reason
    state.apply({"event": "found_finished", "time": 0.0, "runs": [second.name]})
    assert Left().branches_that_wait_no_longer(state) == ([], {})


def finished(work: Work, *steps: int) -> RunFolder:
    """Its folder, as after its end, with empty checkpoints."""
    folder = RunFolder(work.folder)
    if not folder.result_file.exists():
        folder.write_result(RunResult(work.name, "a", False, 1.0, None, 1.0, 9, 9, 9, 1.0, 60.0, 60.0, 0, ""))
    for step in steps:
        folder.checkpoint_at(step).mkdir(parents=True)
    return folder


def test_a_trunks_checkpoints_stay_until_branches_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, trunk, (first, second) = asked(tmp_path, "execution.keep=final")
    sweep.folder.write_definition(sweep.definition)
    steps = [*trunk.arguments["execution"]["branch_steps"], 42]
    folder = finished(trunk, *steps)
    finished(first)
    found = {run.work.name: run.verdict.kind for run in preview(sweep, Limits()).runs}
    assert VerdictKind.NEVER not in found.values()
    folder.checkpoint_at(steps[1]).rename(tmp_path / "aside")
    (lost,) = (run for run in preview(sweep, Limits()).runs if run.verdict.kind is VerdictKind.NEVER)
    assert lost.work.name == second.name
    assert "has ended without a checkpoint of step" in lost.verdict.why
    (tmp_path / "aside").rename(folder.checkpoint_at(steps[1]))
    monkeypatch.setattr(sys, "argv", ["muloco-sweep", "clean", str(tmp_path), "--keep", "none", "--all"])
    with pytest.raises(SystemExit):
        main()
    assert "branches have yet to go on from it" in capsys.readouterr().out
    end_of_sweep(sweep.folder, sweep.definition.works)
    assert folder.checkpoint_steps() == steps
    RunFolder(second.folder).checkpoint_at(steps[1]).mkdir(parents=True)
    end_of_sweep(sweep.folder, sweep.definition.works)
    assert folder.checkpoint_steps() == [42]


def test_a_sweep_file_says_branches_as_the_command_line_does(tmp_path: Path) -> None:
    grid: dict[str, Any] = {"grids": [{"fixed": dict(word.split("=") for word in SMALL[:-1])}]}
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps({**grid, "branches": {"tokens_per_parameter": [1, 2, 3]}}))
    words = [f"+sweep={file}", "cluster=local", f"root={tmp_path}"]
    typed, read = asked(tmp_path)[0], read_sweep(words)
    assert list(read.definition.works) == list(typed.definition.works)
    narrower = read_sweep([*words, "branches.tokens_per_parameter=[1]", "tokens_per_parameter=3"])
    assert [run.tokens_per_parameter for run in narrower.runs] == [1, 3]
    assert [run.tokens_per_parameter for run in read_sweep([*words, "branches=null"]).runs] == [20]


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["schedule=cosine"], "schedule=cosine has no stable phase"),
        (["schedule=linear"], "schedule=linear has no stable phase"),
        (["tokens_per_parameter=2"], "3 tokens a parameter are beyond the trunk's 2: raise tokens_per_parameter to 3"),
        (["tokens_per_parameter=3,4"], r"varies tokens_per_parameter itself \(3, 4\)"),
        (["branches.tokens_per_parameter=[3]"], "alone are no branches"),
        (["branches.tokens_per_parameter=[3,-1]"], "give a list of positive numbers"),
        (["branches.tokens_per_parameter=3"], "give a list of positive numbers"),
        (["branches=[1,2]"], "give the budgets"),
        (["branches.seed=[1,2]"], "give the budgets"),
        (["branches.tokens_per_parameter=1,2"], "as one list"),
        (["schedule.max_warmup_fraction=0.1"], "set schedule.max_warmup_fraction=1"),
        (["schedule.warmup_steps=14"], "leave none that are stable"),
        (["branches.tokens_per_parameter=[2.999,3]"], "as many as its trunk"),
        (["extend=[inner_optimizer.lr]", "inner_optimizer.lr=0.01,0.02"], "adds and stops whole runs"),
    ],
)
def test_what_cannot_branch_is_refused_in_words(words: list[str], refusal: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=refusal):
        read_sweep([*SMALL, *words, f"root={tmp_path}", "cluster=local"])

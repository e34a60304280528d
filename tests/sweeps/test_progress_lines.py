"""What a launch prints while it waits, and when a person stops it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from sweeps.controller import Tick
from sweeps.engine.decide import Plan
from sweeps.engine.quota import Verdict, VerdictKind
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Work
from sweeps.progress_lines import Lines, after_interrupt
from sweeps.store.folder import SweepFolder


def test_ctrl_c_says_what_goes_on_and_how_to_end_it(tmp_path: Path) -> None:
    state = cast(Any, SimpleNamespace(jobs={"a": None, "b": None}))
    folder = SweepFolder(tmp_path / "my results", "demo")
    said = after_interrupt(state, True, folder)
    assert "2 jobs of the scheduler's go on" in said
    assert f"muloco-sweep cancel '{tmp_path}/my results' --sweep demo --all" in said
    assert after_interrupt(state, False, folder) == "stopped; the same command continues"


def test_a_launch_says_what_runs_wait_for_and_what_never_comes(tmp_path: Path) -> None:
    state = SweepState.of([Work(name, str(tmp_path / name), "m:f") for name in ("a", "b")])
    (shape,) = state.waiting
    said: list[str] = []
    lines = Lines(said.append, tmp_path)
    wait, never = Verdict(VerdictKind.WAIT, "2 of 2 nodes used"), Verdict(VerdictKind.NEVER, "it is too long")
    for verdict in (never, never, wait):
        lines(Tick(state, Plan(verdicts={shape: verdict}), complete=True, queue_read=True))
    assert said[0] == "runs wait that can never run: it is too long"
    assert len(said) == 2
    lines.printed = ""
    lines.printed_at = float("-inf")
    lines(Tick(state, Plan(verdicts={shape: wait}), complete=True, queue_read=True))
    assert said[-1].endswith("2 runs: 2 waiting; waiting for 2 of 2 nodes used")
    lines.printed_at = float("-inf")
    lines(Tick(state, Plan(), complete=True, queue_read=True, waits_for="waits for another sweep"))
    assert said[-1].endswith("2 waiting; waits for another sweep")
    state.apply({"event": "held", "runs": ["a"], "why": "by hand"})
    lines(Tick(state, Plan(), complete=True, queue_read=True))
    assert said[-1].startswith("a held: by hand; its folder is")


def test_a_slow_node_is_one_line_said_once(tmp_path: Path) -> None:
    state = SweepState.of([Work("a", str(tmp_path / "a"), "m:f")])
    said: list[str] = []
    lines = Lines(said.append, tmp_path)
    one = Tick(state, Plan(), complete=True, queue_read=True)
    lines(one)
    state.apply({"event": "slow_node", "node": "n1", "run": "a", "factor": 2.54, "time": 1.8e9})
    lines(one)
    lines(one)
    (line,) = (line for line in said if "n1" in line)
    assert line.startswith(
        "node n1: a was 2.5 times slower there than its like elsewhere; no attempt is sent there before 2"
    )

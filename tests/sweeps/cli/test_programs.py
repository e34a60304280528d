"""`muloco-sweep` as programs drive it: each command answers in JSON, says the same twice, and fails in JSON."""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.__main__ import main
from sweeps.cli.command_line import make_parser
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import Lease
from sweeps.training.sweep import Sweep, read_sweep

SWEEP = ["+sweep=demo", "model=29k", "algorithm=ddp_adamw", "global_batch_tokens=2048", "cluster=local"]
ON_RUNS = ["explain", "logs"]
LAUNCHES = ["plan", "simulate", "launch"]
OTHERS = ["status", "watch", "quota", "quota --nodes", "pause", "resume", "hold", "retry", "cancel"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sweep, launched before; its first run is not finished, and has been tried."""
    root = tmp_path_factory.mktemp("root")
    sweep = read_sweep([*SWEEP, f"root={root}"])
    sweep.folder.write_definition(sweep.definition)
    first, *others = sweep.definition.works
    (Path(first.folder) / "attempts" / "1").mkdir(parents=True)
    (Path(first.folder) / "attempts" / "1" / "stdout.log").write_text("step 1\n")
    for work in others:
        Path(work.folder).mkdir(parents=True)
        (Path(work.folder) / "result.json").write_text("{}")
    return root


def words_of(command: str, root: Path) -> list[str]:
    name = command.split(maxsplit=1)[0]
    if name == "init":
        return [name, "here", "--local"]
    if name in LAUNCHES:
        return [*command.split(), *SWEEP, f"root={root}"]
    if name in ON_RUNS:
        return [name, SweepFolder(root, "demo").read_definition().works[0].name, str(root)]
    choice = ["--all"] if name in ("hold", "retry", "cancel") else []
    return [*command.split(), *(["3"] if command == "quota --nodes" else []), str(root), *choice]


def ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[Any, Any]:
    """The exit code, and the JSON that was printed."""
    monkeypatch.setattr(sys, "argv", ["muloco-sweep", *words, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, json.loads(capsys.readouterr().out)


def documented() -> dict[str, list[str]]:
    text = (Path(__file__).parents[3] / "docs" / "programs.md").read_text()
    rows = {name: keys.split(";")[0] for name, keys in re.findall(r"^\| `(.*?)` \| (.*) \|$", text, re.MULTILINE)}
    found = {name: keys.split(", ") for name, keys in rows.items() if not keys.startswith("those of")}
    return found | {name: found["status"] for name, keys in rows.items() if keys.startswith("those of")}


def verbs() -> list[str]:
    (commands,) = (one for one in make_parser()._actions if isinstance(one, argparse._SubParsersAction))
    return list(commands.choices)


def test_each_command_is_documented() -> None:
    assert {name.split()[0] for name in documented()} == set(verbs())


@pytest.mark.parametrize("command", sorted({*LAUNCHES, *ON_RUNS, *OTHERS} - {"launch"} | set(verbs()) - {"launch"}))
def test_each_command_answers_in_json_twice(
    command: str, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)  # below which `init` writes
    (code, first), (again, second) = (ask(capsys, monkeypatch, *words_of(command, root)) for _ in range(2))
    assert code == again == 0
    assert list(first) == documented()[command]
    assert not second.get("changed")
    if "already" in first:
        assert set(first["runs"]) | set(first["already"]) == set(second["already"])
    if command == "plan":
        for answer in (first, second):
            del answer["disk"]["free_bytes"], answer["disk"]["free_files"]  # others write to this disk too
    changing = ("changed", "runs", "already", "makespan_minutes", "minutes_left")
    assert {k: v for k, v in first.items() if k not in changing} == {
        k: v for k, v in second.items() if k not in changing
    }


def test_a_launch_answers_with_the_status(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *handler: None)
    words = [*SWEEP, f"root={tmp_path}"]
    for work in read_sweep(words).definition.works:
        Path(work.folder).mkdir(parents=True)
        (Path(work.folder) / "result.json").write_text("{}")
    told = [ask(capsys, monkeypatch, "launch", *words) for _ in range(2)]
    assert told[0] == told[1]
    assert told[0][0] == 0, told
    assert list(told[0][1]) == documented()["launch"]
    assert told[0][1]["counts"] == {"done": 3}


@pytest.mark.parametrize(
    "words",
    [
        ["explode"],
        [],
        ["status", "--jsn"],
        ["status", "/nowhere"],
        ["quota", "--nodes", "many"],
        ["plan", "+sweep=no"],
        ["plan", *SWEEP, "--max-gpu-hours", "3"],
    ],
    ids=" ".join,
)
def test_mistakes_are_told_in_json(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, told = ask(capsys, monkeypatch, *words)
    assert (code, told["exit_code"]) == (2, 2)
    assert "\n" not in told["error"]


@pytest.fixture
def controlled(tmp_path: Path) -> Iterator[tuple[Sweep, Lease]]:
    """A sweep that nobody has begun, with the lease of a controller that does nothing."""
    sweep = read_sweep([*SWEEP, f"root={tmp_path}"])
    sweep.folder.write_definition(sweep.definition)
    lease = Lease(sweep.folder.lease_dir)
    yield sweep, lease
    lease.release()


def test_commands_that_wait_for_the_controller_count_as_done(
    controlled: tuple[Sweep, Lease],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep, _ = controlled
    names = [work.name for work in sweep.definition.works]
    assert ask(capsys, monkeypatch, "hold", str(tmp_path), "--all")[1]["runs"] == names
    told = ask(capsys, monkeypatch, "hold", str(tmp_path), "--all")[1]
    assert (told["runs"], told["already"], told["at_next_tick"]) == ([], names, True)
    assert len(list(sweep.folder.inbox.iterdir())) == 1
    # Given before the controller has held anything, and still the last word.
    assert ask(capsys, monkeypatch, "retry", str(tmp_path), "--all")[1]["runs"] == names
    assert ask(capsys, monkeypatch, "pause", str(tmp_path))[1]["changed"]
    assert ask(capsys, monkeypatch, "resume", str(tmp_path))[1]["changed"]
    assert not ask(capsys, monkeypatch, "resume", str(tmp_path))[1]["changed"]


def test_a_change_is_a_line_of_watch(
    controlled: tuple[Sweep, Lease],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, lease = controlled
    seen: list[float] = []

    def go_on(seconds: float) -> None:
        seen.append(seconds)
        if len(seen) == 2:
            lease.release()

    monkeypatch.setattr(time, "sleep", go_on)
    monkeypatch.setattr(sys, "argv", ["muloco-sweep", "watch", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert ended.value.code == 0
    assert (first["controlled"], len(first["runs"])) == (True, 3)
    assert not last["controlled"]

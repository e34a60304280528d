"""What people read: on terminals of usual widths lines wrap between words, elsewhere each line stays whole."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from sweeps.__main__ import main
from sweeps.cli.command_line import command_of, make_parser
from sweeps.cli.explain import explain
from sweeps.cli.status import Basis, Status
from sweeps.cli.status_table import status_table
from sweeps.cli.terminal import WIDEST, make_console, wrapped
from sweeps.engine.counters import Counters
from sweeps.engine.policy import Cause
from sweeps.engine.run_states import AttemptState, RunState
from sweeps.engine.work import Need, Work

WIDTHS = (80, 100, 120)
HELD = "config cannot run: correct the config or the data path, which is a reason that has many words"
COMMAND = "/shared/home/somebody/results --sweep demo"


def verbs() -> Iterator[str]:
    (commands,) = (one for one in make_parser()._actions if isinstance(one, argparse._SubParsersAction))
    yield from commands.choices


@pytest.mark.parametrize("verb", [None, *verbs()])
def test_help_fits_80_columns(verb: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = make_parser() if verb is None else command_of(make_parser(), verb)
    assert max(map(len, parser.format_help().splitlines())) <= 80


@pytest.mark.parametrize("width", WIDTHS)
def test_lines_are_cut_between_words(width: int) -> None:
    line = f"3 held: {HELD}; {HELD}; see {'/very/long' * 20}"
    lines = wrapped(line, width).splitlines()
    assert all(len(one) <= width or " " not in one.strip() for one in lines)
    assert all(one.startswith("  ") for one in lines[1:])
    assert " ".join(one.strip() for one in lines) == line
    assert wrapped(line, WIDEST) == line


def test_output_that_is_no_terminal_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert make_console().width == WIDEST
    monkeypatch.setenv("COLUMNS", "93")
    assert make_console().width == 93


def held_run() -> RunState:
    work = Work("3fa1b20c55d0", "/runs/3fa1b20c55d0", "m:f", need=Need(1, 8), labels={"algorithm": "MuLoCo"})
    attempt = AttemptState(1, "demo-1", "gpu", 8, 0.0, 0.0, 1.0, ("node02",), Cause.CONFIG_CANNOT_RUN, "no such folder")
    return RunState(work, attempts=[attempt], held=HELD)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_proposed_command_stands_whole_on_its_line(width: int) -> None:
    counters = Counters()
    counters.add(held_run())
    status = Status("demo", "cluster", counters, [], {}, {}, 0.0, 0.0, None, None, dict.fromkeys(Basis, 0), False, ())
    console = Console(width=width, highlight=False)
    with console.capture() as drawn:
        console.print(status_table(status, 5, COMMAND, console.width))
    lines = [line.rstrip() for line in drawn.get().splitlines()]
    assert f"  muloco-sweep explain 3fa1b20c55d0 {COMMAND}" in lines
    assert max(map(len, lines)) <= width


def test_explain_says_each_thing_once_and_the_whole_command() -> None:
    words = "no such folder; see /logs/demo-1.log"
    lines = explain(held_run(), "", words, 5.0, 60.0, 1, COMMAND)
    assert lines[1] == "It needs 1 node with 8 GPUs for about 1 h."
    assert "Its output: /logs/demo-1.log" in lines
    assert sum("no such folder" in line for line in lines) == 1
    assert lines[-2:] == [f"It is held ({HELD}). To try it again:", f"  muloco-sweep retry {COMMAND} run=3fa1b20c55d0"]


@pytest.mark.parametrize(
    ("command", "words"),
    [("watch", "no longer watching; the sweep goes on"), ("logs", "no longer reading; the run goes on")],
)
def test_an_interrupt_says_that_only_the_looking_ends(
    command: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(arguments: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    # Not in a pause: while the sweep is read.
    monkeypatch.setattr("sweeps.cli.queries.find_sweeps", interrupt)
    monkeypatch.setattr("sweeps.cli.queries.find_run", interrupt)
    monkeypatch.setattr(sys, "argv", ["muloco-sweep", command, *(["ab"] if command == "logs" else []), "root"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err) == (130, f"\n{words}\n")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_plan_fits_the_terminal(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    words = ["plan", "+sweep=demo", "model=29k", "global_batch_tokens=2048", "cluster=local", f"root={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["muloco-sweep", *words])
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    assert max(len(line.rstrip()) for line in lines) <= width

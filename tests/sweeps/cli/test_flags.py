"""A wrong flag is one line in our own words, and touches nothing: every flag of every command, new ones too."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muloco_runner.config import ConfigError
from muloco_runner.data.command import _parser as make_data_parser
from muloco_runner.flags import Parser, Value, any_number, any_path, any_text, one_of, whole_number
from sweeps.__main__ import main
from sweeps.cli.command_line import make_parser, parse


def parsers() -> Iterator[Parser]:
    for parser in (make_parser(), make_data_parser()):
        (commands,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
        yield parser
        yield from commands.choices.values()


FLAGS = [
    pytest.param(parser, action, id=f"{parser.prog} {'/'.join(action.option_strings)}")
    for parser in parsers()
    for action in parser._actions
    if action.option_strings and action.dest != "help"
]
VALUED = [flag for flag in FLAGS if flag.values[1].nargs != 0]


def refusal(parser: Parser, *words: str) -> str:
    with pytest.raises(ConfigError) as refused:
        parser.parse_known_args(list(words))
    line = str(refused.value)
    assert "\n" not in line
    assert "invalid" not in line
    assert line.endswith(f"; see {parser.prog} --help")
    return line


@pytest.mark.parametrize(("parser", "action"), VALUED)
def test_a_flag_with_a_value_says_what_is_allowed(parser: Parser, action: argparse.Action) -> None:
    name = "/".join(action.option_strings)
    assert isinstance(action.type, Value), f"{name}: give it a Value (muloco_runner/flags.py) as its type"
    assert action.choices is None, f"{name}: one_of(...) has words for a wrong choice, argparse's choices have not"
    assert refusal(parser, action.option_strings[0]).startswith(f"{name}: give it a value, {action.type.allowed}; see")
    for wrong in ("", "\x00?"):
        try:
            action.type.read(wrong)
        except ValueError:
            line = refusal(parser, f"{action.option_strings[0]}={wrong}")
            assert f": must be {action.type.allowed}; see" in line
            assert line.startswith(f"{name} ")


@pytest.mark.parametrize(("parser", "action"), [flag for flag in FLAGS if flag.values[1].nargs == 0])
def test_a_flag_without_a_value_refuses_one(parser: Parser, action: argparse.Action) -> None:
    name = "/".join(action.option_strings)
    for option in action.option_strings:
        if option.startswith("--"):
            assert refusal(parser, f"{option}=3").startswith(f"{name}: takes no value: write {name} alone; see")


@pytest.mark.parametrize("parser", [*parsers()], ids=lambda parser: parser.prog)
def test_what_is_missing_is_said_with_what_it_is(parser: Parser) -> None:
    needed = [one for one in parser._actions if one.required and one.nargs not in ("*", "?")]
    line = refusal(parser) if needed else ""
    for action in needed:
        name = "/".join(action.option_strings) or action.metavar or action.dest
        assert f"{name} (" in line, line


@pytest.mark.parametrize(
    ("value", "taken", "refused"),
    [
        (whole_number(12), {"12": 12, "0": 0, "12.0": 12, "1e3": 1000, "+3": 3},
         ["x", "", "-1", "2.5", "nan", "inf", "1e999", "0x3", "1_0.5", "1,000"]),
        (whole_number(8, least=1), {"1": 1}, ["0"]),
        (any_number(500), {"0": 0.0, "2.5": 2.5, "1e3": 1000.0}, ["x", "", "-0.1", "nan", "inf", "-inf", "1e999"]),
        (any_number(0.01, below=1, is_open=True), {"0.2": 0.2}, ["0", "1", "-1", "nan"]),
        (one_of("here", "slurm"), {"here": "here"}, ["", "Here", "there"]),
        (any_text("a name"), {"x": "x", "-": "-"}, [""]),
        (any_text("a command", may_be_empty=True), {"": ""}, []),
        (any_path("a file"), {"a b": Path("a b")}, [""]),
    ],
)  # fmt: skip
def test_each_sort_of_value(value: Value, taken: dict[str, object], refused: list[str]) -> None:
    assert {text: value(text) for text in taken} == taken
    for text in refused:
        with pytest.raises(argparse.ArgumentTypeError, match="must be"):
            value(text)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["quota", "r", "--jobs", "x"],
         "--jobs x: must be a whole number, zero or more, such as 12; see muloco-sweep quota --help"),
        (["explod"], "explod: no such command; did you mean explain?; there are plan, simulate, launch"),
        (["status", "--jsn"], "--jsn: no such option; did you mean --json?; see muloco-sweep status --help"),
        (["init", "a", "b"], "b: no such argument; see muloco-sweep init --help"),
        (["launch", "+sweep=demo", "--detach", "--controller=slurm"], "--controller and --detach exclude each other: "),
        (["launch", "demo"], "demo: give KEY=VALUE, such as model=29k; see muloco-sweep launch --help"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_mistake_ends_with_one_line_and_2(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["muloco-sweep", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert told.err.startswith(f"muloco-sweep: {line}")
    assert told.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_was_taken_before_is_taken_still() -> None:
    assert parse(["quota", "r", "--nodes", "3", "--gpu-hours", "2.5"]).gpu_hours == 2.5
    assert parse(["simulate", "+sweep=demo", "--weather", "calm", "--seed", "3"]).faults == "calm"
    assert parse(["launch", "+sweep=demo", "~seed"]).controller == "here"

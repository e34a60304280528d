"""Command lines whose mistakes are told in one line: what was given, what is allowed, where more is said.

A flag that takes a value has a `Value` for its `type`, which says in words what is allowed. Standard library only.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from muloco_runner.config import ConfigError


@dataclass(frozen=True)
class Value:
    """What a flag may be given, as argparse's `type`."""

    allowed: str
    """In words, after "must be"."""
    read: Callable[[str], Any]
    """Raises `ValueError` for what is not allowed."""

    def __call__(self, text: str) -> Any:
        try:
            return self.read(text)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"{shlex.quote(text)}: must be {self.allowed}") from None


def whole_number(example: int, least: int = 0) -> Value:
    """Return what takes a whole number that is not smaller than `least`, also as 12.0 or 1e3."""

    def read(text: str) -> int:
        number = int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
        if number != int(number) or number < least:
            raise ValueError
        return int(number)

    from_on = {0: "zero or more", 1: "one or more"}.get(least, f"{least} or more")
    return Value(f"a whole number, {from_on}, such as {example}", read)


def any_number(example: float, below: float = math.inf, is_open: bool = False) -> Value:
    """Return what takes a finite number from zero on and, where `below` is finite, smaller than that.

    `is_open`: zero itself is not allowed.
    """

    def read(text: str) -> float:
        found = float(text)
        if not (0 <= found < below) or (is_open and found == 0):
            raise ValueError
        return found

    least = "more than zero" if is_open else "zero or more"
    most = f" and less than {below:g}" if math.isfinite(below) else ""
    return Value(f"a number, {least}{most}, such as {example:g}", read)


def any_path(what: str) -> Value:
    """Return what takes the name of a file or folder, which need not exist."""
    return Value(what, lambda given: Path(given) if given else _refuse())


def _refuse() -> NoReturn:
    raise ValueError


def one_of(*names: str) -> Value:
    """Return what takes one of these words."""
    return Value(f"{', '.join(names[:-1])} or {names[-1]}", lambda given: given if given in names else _refuse())


def any_text(what: str, may_be_empty: bool = False) -> Value:
    """Return what takes any text; `what` it is, such as "a file"."""
    return Value(what, lambda given: given if given or may_be_empty else _refuse())


class Parser(argparse.ArgumentParser):
    """A mistake raises `ConfigError`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, exit_on_error=False)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        try:
            return super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            self.error(self._in_words(error))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            there = ", ".join(map(str, action.choices))
            what = f"{shlex.quote(str(value))}: no such {str(action.metavar or action.dest).lower()}"
            raise ConfigError(f"{what}{guess(str(value), list(map(str, action.choices)))}; there are {there}")

    def _in_words(self, error: argparse.ArgumentError) -> str:
        """Say what argparse says with what is allowed in its place."""
        name, message = error.argument_name, str(error.message)
        if name is None:
            return message
        action = next((one for one in self._actions if name in ("/".join(one.option_strings), one.metavar)), None)
        if message.startswith("expected") and action is not None and isinstance(action.type, Value):
            return f"{name}: give it a value, {action.type.allowed}"
        if message.startswith("ignored explicit argument"):
            return f"{name}: takes no value: write {name} alone"
        if message.startswith("not allowed with argument"):
            return f"{name} and {message.rpartition(' ')[2]} exclude each other: leave one of them out"
        return f"{name} {message}"

    def unknown(self, words: Sequence[str]) -> ConfigError:
        """Return the refusal of words that nobody has asked for."""
        there = [one for action in self._actions for one in action.option_strings]
        what = ", ".join(map(shlex.quote, words))
        kind = "option" if words[0].startswith("-") else "argument"
        return ConfigError(f"{what}: no such {kind}{guess(words[0], there)}; see {self.prog} --help")

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError`: for some mistakes argparse calls it itself."""
        _, is_missing, names = message.partition("the following arguments are required: ")
        if is_missing:
            # Positional words of which there may be none are listed too.
            wanted = [one for one in self._actions if one.nargs not in ("*", "?")]
            named = {"/".join(one.option_strings) or str(one.metavar or one.dest): one for one in wanted}
            message = "give " + " and ".join(_what(name, named[name]) for name in names.split(", ") if name in named)
        _, is_unknown, words = message.partition("unrecognized arguments: ")
        raise self.unknown(words.split()) if is_unknown else ConfigError(f"{message}; see {self.prog} --help")


def _what(name: str, action: argparse.Action) -> str:
    words = action.help or ", ".join(map(str, action.choices or ()))
    return f"{name} ({words})" if words else name


def guess(given: str, known: Sequence[str]) -> str:
    """Return "; did you mean X?" where one of the known words is near; else nothing."""
    near = difflib.get_close_matches(given.partition("=")[0], known, 1)
    return f"; did you mean {near[0]}?" if near else ""

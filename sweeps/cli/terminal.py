"""Output for people: on a terminal lines wrap between words, in a file or a pipe each line stays whole."""

from __future__ import annotations

import os
import sys
import textwrap

from rich.console import Console

WIDEST = 1000
"""Columns of what is no terminal."""


def make_console() -> Console:
    """Return the console of standard output, as wide as its terminal or as COLUMNS says."""
    is_narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if is_narrow else WIDEST)


def wrapped(line: str, width: int) -> str:
    """Return a line cut between words, further lines indented; a word that is longer than a line stays whole."""
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(line, width, subsequent_indent=f"{indent}  ", break_long_words=False, break_on_hyphens=False)

"""Text that comes from data, made harmless for each format it is written in.

Names of series, paths, titles and reasons are whatever a table, a folder or a command line held. HTML is escaped by
jinja2, SVG and PDF by matplotlib, JSON by json.
"""

from __future__ import annotations

import re
import unicodedata

from markupsafe import Markup

_UNPRINTABLE = {"Cc", "Cs", "Cn", "Zl", "Zp"}
"""Unicode's categories of control characters, lone surrogates, unassigned characters, separators of lines."""
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the direction of text, so that a reader sees another text than is there."""
_MARKDOWN = re.compile(r"[\\`*\[\]|~$#!]|(?<!\w)_|_(?!\w)")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        **{char: f"\\{char}" for char in "&%$#_{}"},
        "\u202f": r"\,",
        "\u2013": "--",
        "\u00b1": r"$\pm$",
    }
)
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r]")
"""How a cell begins that a spreadsheet computes."""


def printable(text: str) -> str:
    """The text on one line: what cannot be printed becomes its code, as `\\x1b` or `\\u202e`."""
    return "".join(_code(char) if _is_unprintable(char) else char for char in text)


def _is_unprintable(char: str) -> bool:
    return char in _BIDI or unicodedata.category(char) in _UNPRINTABLE


def _code(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def markdown(text: str) -> str:
    """The text inside a paragraph, heading, list or table of Markdown."""
    return _MARKDOWN.sub(lambda found: "\\" + found[0], text).translate(_HTML)


def markdown_markup(value: object) -> Markup:
    """What a Markdown template writes: text escaped, finished Markdown as it is."""
    return value if isinstance(value, Markup) else Markup(markdown(str(value)))


def latex(text: str) -> str:
    """The text inside a cell of a LaTeX table. Braces before `[` and `*`, which would belong to the line break."""
    return ("{}" if text.startswith(("[", "*")) else "") + text.translate(_LATEX)


def csv_cell(value: object) -> object:
    """The value for a spreadsheet: an apostrophe before text that would run as a formula; numbers as they are."""
    if not isinstance(value, str) or not _FORMULA.match(value) or _is_number(value):
        return value
    return "'" + value


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text) is not None

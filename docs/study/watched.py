"""A picture of `muloco-sweep watch` as it looks at a sweep that is running: `watch.svg` beside this file.

python docs/study/watched.py ROOT [SECONDS]
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

from muloco_sweeps import python_command

_COLUMNS, _LINES = 104, 40
_SECONDS = 20.0
_ERASED = re.compile(r"(?:\x1b\[2K(?:\x1b\[1A)?)+")
"""Between two frames."""
_FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
font-size: {char_height}px; line-height: {line_height}px; }} {styles}</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
{chrome}<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""
"""As rich's own, without fonts from elsewhere."""


def watch(words: Sequence[str]) -> str:
    """Return the last whole frame that the command, with these arguments, draws on a terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS=str(_COLUMNS), LINES=str(_LINES))
        command = [*python_command("sweeps"), "watch", *words]
        os.execv(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, _COLUMNS, 0, 0))
    drawn, end = b"", time.monotonic() + _SECONDS
    with contextlib.suppress(OSError):
        while time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                drawn += os.read(terminal, 65536)
    os.kill(pid, signal.SIGINT)
    os.waitpid(pid, 0)
    return _ERASED.split(drawn.decode())[-2].replace("\r", "")


def write_picture(frame: str, title: str, path: Path) -> None:
    """Write a frame, with the terminal's codes for colours, as an SVG file."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=_COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text.from_ansi(frame))
        svg = console.export_svg(title=title, theme=SVG_EXPORT_THEME, code_format=_FORMAT, unique_id="watch")
    path.write_text(svg)


if __name__ == "__main__":
    shown = " ".join(["muloco-sweep watch", *sys.argv[1:]])
    write_picture(watch(sys.argv[1:]), shown, Path(__file__).parent / "watch.svg")

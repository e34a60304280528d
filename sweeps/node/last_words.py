"""Why an attempt failed, in its own words, and the file with its output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sweeps.engine.policy import Cause
from sweeps.engine.run_states import RunState
from sweeps.node.reports import read_progress

_TAIL_BYTES = 8192
_LONGEST_LINE = 300


def last_words(run: RunState, cluster_dir: Path) -> str:
    """Return "what it said; see FILE" of the newest attempt, or what there is of it; empty where there is nothing.

    What it said is what it reported, else how it ended and the last line of its errors. Where it never came to write
    into its own folder the file is its job's log, in `cluster_dir`.
    """
    if not run.attempts:
        return ""
    attempt = run.attempts[-1]
    progress = read_progress(run.work)
    said = progress.message if progress is not None and progress.attempt == attempt.number else ""
    own = Path(run.work.folder) / "attempts" / str(attempt.number)
    files = [own / "stderr.log", cluster_dir / "logs" / f"{attempt.tag}.log", own / "stdout.log"]
    log = next((path for path in files if _size(path)), None)
    if log is None:
        return said or attempt.detail
    if not said:
        # What failed before the work began has said its last line already.
        last = _last_line(log) if attempt.cause is not Cause.SETUP_FAILED or not attempt.detail else ""
        said = ": ".join(dict.fromkeys(words for words in (attempt.detail, last) if words))
    return f"{said}; see {log}"


def why_not_done(run: RunState, cluster_dir: Path) -> str:
    """Return why a run has no result: what has happened to it since its newest attempt comes before that one's words.

    Empty where nothing is known.
    """
    words = last_words(run, cluster_dir)
    if run.held is None or run.is_held_by_attempt:
        return words or run.held or ""
    return f"{run.held}; its last attempt: {words}" if words else run.held


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _last_line(path: Path) -> str:
    return next(iter(_lines_from_the_end(path)), "")[:_LONGEST_LINE]


def _lines_from_the_end(path: Path) -> Iterator[str]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, _size(path) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return
    for line in reversed(text.splitlines()):
        # Notes that Python prints below an exception's own line are indented or name the log itself.
        if line.strip() and not line.startswith((" ", "The job's output:")):
            yield line.strip()

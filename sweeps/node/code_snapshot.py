"""The code that attempts run: a copy of this very source, kept beside the runs.

    <root>/code/<id>/    the packages as they were imported when a controller began, and what they were:
      source.json        version, git commit and branch, and whether anything was changed since
      changes.patch      the changes to the files that git tracks, where there are any

The id is a hash of the content, so each state of the code is written once. Jobs import from the copy: an edit of the
working tree, or an upgrade of the installed package, touches no run that waits in a queue.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from muloco_runner.record import write_folder
from muloco_sweeps import PYTHON, environment_variable

HERE = Path(__file__).resolve().parents[2]
"""What this process imports from: a working tree, site-packages, or a copy."""
_PARTS = ("muloco_sweeps.py", "muloco_runner", "sweeps", "hydra_plugins/sweeps", "conf")
"""All that an attempt may import or read; conf lies within muloco_runner where it was installed from a wheel."""
_KEPT = {".py", ".pyi", ".typed", ".yaml", ".json", ".txt", ".cu", ".cpp"}
_GIT_SECONDS = 10.0
_BLOCK_BYTES = 4096
"""What file systems give a small file at least."""


def keep_source(root: Path, base: Path = HERE) -> Path:
    """Copies the source under `base` to a folder under `root`, unless it is there; returns that folder."""
    if (base / "source.json").exists():
        return base  # a copy already
    files = {path.relative_to(base).as_posix(): path.read_bytes() for path in _files(base)}
    git = git_state(base, _PARTS)
    patch = _changes(base, _PARTS) if git and git["changed_files"] else ""
    copy = root.resolve() / "code" / _digest(files, git, patch)
    if not copy.exists():
        source = {"id": copy.name, "version": _version(), "git": git}
        changes = {"changes.patch": patch.encode()} if patch else {}
        write_folder(copy, {**files, **changes, "source.json": (json.dumps(source, indent=1) + "\n").encode()})
    return copy


def source_space(root: Path, base: Path = HERE) -> tuple[int, int]:
    """Bytes and files that `keep_source` would write under `root`; none where there are copies already."""
    if (base / "source.json").exists() or any(root.glob("code/*/source.json")):
        return 0, 0
    sizes = [-(-path.stat().st_size // _BLOCK_BYTES) * _BLOCK_BYTES for path in _files(base)]
    return sum(sizes), len(sizes) + 1


def _files(base: Path) -> Iterator[Path]:
    for part in _PARTS:
        for path in sorted((base / part).rglob("*")) if (base / part).is_dir() else [base / part]:
            if path.suffix in _KEPT and path.is_file() and "__pycache__" not in path.parts:
                yield path


def _digest(files: Mapping[str, bytes], git: Mapping[str, Any] | None, patch: str) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for name, content in [*files.items(), ("git", json.dumps(git).encode()), ("patch", patch.encode())]:
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def describe_source(base: Path = HERE) -> dict[str, Any]:
    """Version and git state of the code under `base`: from `source.json` of a copy, or as they are now."""
    try:
        known: dict[str, Any] = json.loads((base / "source.json").read_text())
    except (OSError, ValueError):
        known = {"id": None, "version": _version(), "git": git_state(base, _PARTS)}
    return {"folder": str(base), **known}


def git_state(folder: Path, parts: Sequence[str] = (".",)) -> dict[str, Any] | None:
    """Commit, branch, and the tracked files among `parts` that differ from it; None where git knows no such folder."""
    commit = _git(folder, "rev-parse", "HEAD")
    # What lies in another project's repository, as an environment's site-packages may, is not part of it.
    if not commit or not _git(folder, "ls-files", "--", *parts):
        return None
    changed = _git(folder, "diff", "--name-only", "HEAD", "--", *parts) or ""
    return {
        "commit": commit.strip(),
        "branch": (_git(folder, "rev-parse", "--abbrev-ref", "HEAD") or "").strip(),
        "changed_files": changed.splitlines(),
    }


def _changes(folder: Path, parts: Sequence[str]) -> str:
    return _git(folder, "diff", "--no-color", "--no-ext-diff", "HEAD", "--", *parts) or ""


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_GIT_SECONDS,
            check=False, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def _version() -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("muloco-sweeps")
    return None


def python_text(command: str | None) -> str:
    """The words of shell that start Python: `command`, or this very Python; it imports nothing from the folder where it
    is started."""
    return f"{command} -P" if command else shlex.join(PYTHON)


def import_lines(code: str) -> list[str]:
    """Lines of shell after which Python imports from that copy; none where there is none."""
    return [f'export PYTHONPATH={shlex.quote(code)}"${{PYTHONPATH:+:$PYTHONPATH}}"'] if code else []


@contextlib.contextmanager
def importing_from(code: str) -> Iterator[None]:
    """Processes started within import from that copy; where there is none, from where this one does."""
    path = [code, *filter(None, [os.environ.get("PYTHONPATH")])]
    with environment_variable("PYTHONPATH", os.pathsep.join(path)) if code else contextlib.nullcontext():
        yield

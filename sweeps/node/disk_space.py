"""Whether something failed for want of disk space, and in which file system."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
"""No space or no inodes left, or the user's quota is used up."""
_FREE = ", where "
_NOT_WRITTEN = re.compile(r"writ|Bus error|I/O error", re.IGNORECASE)
"""In what torch, numpy and others say of a file that they could not write, without the system's own words."""


def is_disk_full(error: OSError) -> bool:
    return error.errno in _FULL


def says_disk_full(words: str) -> bool:
    """Whether a program's own words on its failure are the system's for want of disk space."""
    return any(os.strerror(code) in words for code in _FULL)


def may_mean_disk_full(words: str) -> bool:
    """Whether words on a failure leave it open whether there was disk space: none, or of something not written."""
    return not words or _NOT_WRITTEN.search(words) is not None


def file_system_of(path: Path) -> Path:
    """Return where the file system of `path`, which need not exist, is mounted."""
    place = path.resolve()
    while not os.path.ismount(place):
        place = place.parent
    return place


def full_disk_words(folder: Path, words: str) -> str:
    """Return one line on a failure for want of disk space: the file system of `folder`, and what is free there now."""
    return f"its folder is in {_place_and_free(folder)}: {words}"


def words_for(error: OSError) -> str:
    """Return one line on an error for want of disk space: what could not be written, where, and what is free there."""
    if not isinstance(error.filename, str | bytes):
        return f"{error.strerror}"
    path = Path(os.fsdecode(error.filename))
    return f"{error.strerror}: {path}, in {_place_and_free(path)}"


def _place_and_free(path: Path) -> str:
    place = file_system_of(path)
    left = os.statvfs(place)
    return f"{place}{_FREE}{left.f_bavail * left.f_frsize / 1e9:.3g} GB are free"


def place_in(words: str) -> str:
    """Return what `full_disk_words` say of the place, without what was free there then."""
    return words.partition(_FREE)[0]

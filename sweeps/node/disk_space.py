"""Whether something failed for want of disk space, and in which file system."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
"""No space or no inodes left, or the user's quota is used up."""
_FREE = ", where "


def is_disk_full(error: OSError) -> bool:
    return error.errno in _FULL


def says_disk_full(words: str) -> bool:
    """Whether a program's own words on its failure are the system's for want of disk space."""
    return any(os.strerror(code) in words for code in _FULL)


def file_system_of(path: Path) -> Path:
    """Return where the file system of `path`, which need not exist, is mounted."""
    place = path.resolve()
    while not os.path.ismount(place):
        place = place.parent
    return place


def full_disk_words(folder: Path, words: str) -> str:
    """Return one line on a failure for want of disk space: the file system of `folder`, and what is free there now."""
    place = file_system_of(folder)
    left = os.statvfs(place)
    return f"its folder is in {place}{_FREE}{left.f_bavail * left.f_frsize / 1e9:.3g} GB are free: {words}"


def place_in(words: str) -> str:
    """Return what `full_disk_words` say of the place, without what was free there then."""
    return words.partition(_FREE)[0]

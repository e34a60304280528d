"""The records of a slice of the study, in one file that the repository keeps: `records/SLICE.tar.xz`.

In it is of the root's files what the engine and the report need: the sweep's definition, ledger and standings, of each
finished run its config, record, result and status, and of every other the config: runs that rules added are described
there alone. Without checkpoints, logs, copies of the code, and the local cluster's own files. Wherever the root lies,
it is `/study` in there. Equal records give equal bytes.
"""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path

from muloco_runner.record import RunFolder, write_atomically
from sweeps.store.folder import SweepFolder
from sweeps.store.ledger import encode, read_events
from sweeps.store.moved_root import Move

_RUN_FILES = ("config.yaml", "record.jsonl", "status.json", "result.json")
"""The last says that the run is there."""
_SWEEP_FILES = ("ledger.jsonl", "goodput.json", "tuning.json", "definition.jsonl")
"""The last says that the sweep is there."""


def pack(root: Path, name: str, archive: Path) -> int:
    """Write what the sweep `name` under `root` has recorded to `archive`, atomically, and return its size in bytes. It
    must have no controller."""
    packed = lzma.compress(content(root, name), preset=9 | lzma.PRESET_EXTREME)
    write_atomically(archive, packed)
    return len(packed)


def content(root: Path, name: str) -> bytes:
    """The archive's bytes before they are compressed."""
    out, move = io.BytesIO(), Move(str(root.resolve()), "/study")
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in _files_of(root, name):
            text = _moved(path, move)
            member = tarfile.TarInfo(path.relative_to(root).as_posix())
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    return out.getvalue()


def _moved(path: Path, move: Move) -> bytes:
    """The file's content with the root's paths in it as the move has them."""
    if path.name == "ledger.jsonl":
        # Each line has a checksum.
        return b"".join(encode(move.words(event)) for event in read_events(path).events)
    return path.read_bytes().replace(f'"{move.old}/'.encode(), f'"{move.new}/'.encode())


def unpack(root: Path, archive: Path) -> None:
    """Write the files of `archive` below `root`, but those of sweeps and runs that are there: these are as far or
    further. Killed at any instruction, the same call completes it."""
    with tarfile.open(archive, "r:xz") as tar:
        members = tar.getmembers()
        here = {_folder(one) for one in members if _is_last(one) and (root / one.name).exists()}
        for member in (one for one in members if _folder(one) not in here):
            file = tar.extractfile(member)
            assert file is not None
            write_atomically(root / member.name, file.read())


def _folder(member: tarfile.TarInfo) -> str:
    """The run's, or the sweep's."""
    return "/".join(member.name.split("/")[:2])


def _is_last(member: tarfile.TarInfo) -> bool:
    return member.name.rpartition("/")[2] in (_RUN_FILES[-1], _SWEEP_FILES[-1])


def _files_of(root: Path, name: str) -> Iterator[Path]:
    folder = SweepFolder(root, name)
    works = folder.read_definition().works
    for run_id in sorted({*(work.name for work in works), *folder.added_runs()}):
        run = RunFolder.of(root, run_id)
        files = _RUN_FILES if run.result_file.exists() else _RUN_FILES[:1]
        # Its folder is made when it is submitted, or added.
        yield from (run.path / file for file in files if (run.path / file).exists())
    # Requests of jobs that had not ended tell the next controller what was lost.
    yield from sorted((folder.path / "jobs").glob("*.json"))
    # One that was stopped in its first seconds has not all of them.
    yield from (path for file in _SWEEP_FILES if (path := folder.path / file).exists())

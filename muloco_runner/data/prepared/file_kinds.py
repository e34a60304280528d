"""What a file is: by its name, and by its first bytes where the name does not say. Standard library only."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

Compression = Literal["gzip", "zstd"]

KINDS = ("jsonl", "parquet", "arrow", "csv", "tsv", "text")
HEAD_BYTES = 8192
"""First bytes by which a file is known."""
_BY_NAME = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".csv": "csv",
    ".tsv": "tsv",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_COMPRESSED_BEGIN: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BY_FIRST_BYTES = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
_OTHER_NAMES = frozenset({
    ".7z", ".avro", ".bin", ".br", ".bz2", ".db", ".doc", ".docx", ".epub", ".gif", ".h5", ".jpeg", ".jpg", ".lz4",
    ".lzma", ".npy", ".npz", ".orc", ".pdf", ".pickle", ".pkl", ".png", ".pt", ".pth", ".pyc", ".rar", ".safetensors",
    ".sqlite", ".tar", ".tbz2", ".tfrecord", ".tgz", ".webp", ".xls", ".xlsx", ".xz", ".zip",
})  # fmt: skip
_OTHER_FIRST_BYTES = (b"BZh", b"\xfd7zXZ", b"PK\x03\x04", b"PK\x05\x06", b"7z\xbc\xaf", b"%PDF", b"\x80\x04\x95")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def compression_of(name: str, head: bytes) -> Compression | None:
    """How a file is compressed: as its name says, or as its first bytes show."""
    by_name = _COMPRESSIONS.get(PurePath(name).suffix.lower())
    return by_name or next((found for begin, found in _COMPRESSED_BEGIN.items() if head.startswith(begin)), None)


def kind_of_name(name: str) -> str | None:
    """One of `KINDS` but text, which has no name of its own; endings of compression are passed over."""
    path = PurePath(name)
    if path.suffix.lower() in _COMPRESSIONS:
        path = path.with_suffix("")
    return _BY_NAME.get(path.suffix.lower())


def kind_of_content(name: str, head: bytes) -> str | None:
    """The kind of a file whose name does not say it; None where its first bytes, decompressed, are no text."""
    for begin, kind in _BY_FIRST_BYTES.items():
        if head.startswith(begin):
            return kind
    return None if why_no_text(name, head) else "text"


def why_no_text(name: str, head: bytes) -> str | None:
    """Why a file cannot be text, from its name and first bytes; None where it may be."""
    suffix = PurePath(name.lower()).suffix
    if head.startswith(_UTF_16):
        return "UTF-16 text: convert it to UTF-8, with iconv -f UTF-16 -t UTF-8"
    if suffix in _OTHER_NAMES:
        return f"{suffix} is no kind that is read here"
    if b"\0" in head or head.startswith((*_OTHER_FIRST_BYTES, *_BY_FIRST_BYTES)):
        return "it is not text, and no kind that is read here"
    return None

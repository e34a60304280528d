"""Where the bytes of a table are: a file, plain or compressed, or one of those inside a .zip."""

from __future__ import annotations

import gzip
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from analysis.input.columns import listed, nearest
from muloco_runner.config import ConfigError

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json")
_OLD_WORKBOOK = bytes.fromhex("d0cf11e0a1b11ae1")


@dataclass(frozen=True)
class TableSource:
    """A file, or a member of an archive."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @property
    def suffix(self) -> str | None:
        """The kind of table, by the name's ending."""
        name = (self.member or self.path.name).lower().removesuffix(".gz")
        return next((one for one in SUFFIXES if name.endswith(one)), None)

    def open(self) -> Any:
        """The bytes of the table, no longer compressed."""
        raw: Any
        if self.member:
            with zipfile.ZipFile(self.path) as archive:
                raw = archive.open(self.member)
        else:
            raw = self.path.open("rb")
        return gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw

    def open_text(self, encoding: str) -> TextIO:
        return io.TextIOWrapper(self.open(), encoding=encoding, newline="")


def is_workbook(path: Path) -> bool:
    """Whether a file is a workbook (.xlsx), whatever its name; one of the older format raises `ConfigError`."""
    with path.open("rb") as file:
        if file.read(8) == _OLD_WORKBOOK:
            raise ConfigError(f"{path}: a workbook of the older format (.xls): save it as .xlsx or .csv")
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "xl/workbook.xml" in archive.namelist()


def find_source(path: Path, part: str | None) -> TableSource:
    """The table in `path`; of an archive its member `part`, or the only table. Mistakes raise `ConfigError`."""
    source = TableSource(path)
    if source.suffix in (None, ".csv", ".tsv") and zipfile.is_zipfile(path):
        return _member(path, part)
    if source.suffix is None:
        raise ConfigError(f"{path}: a table ends in {', '.join(SUFFIXES)}, each also with .gz, .zip or .xlsx")
    if part is not None and source.suffix != ".json":
        raise ConfigError(f"{path}: --part {part}: the file holds one table; drop --part")
    return source


def _member(path: Path, part: str | None) -> TableSource:
    with zipfile.ZipFile(path) as archive:
        names = [one.filename for one in archive.infolist() if not one.is_dir()]
    tables = [name for name in names if TableSource(path, name).suffix and not name.startswith(("__MACOSX/", "."))]
    if not tables:
        raise ConfigError(f"{path}: none of its members is a table ({', '.join(SUFFIXES)}); it has {listed(names)}")
    return TableSource(path, chosen(path, tables, part))


def chosen(path: Path, names: list[str], part: str | None) -> str:
    """The table that `part` names, or the only one. Raises `ConfigError` with the names where it is not clear."""
    if part is not None and part not in names:
        raise ConfigError(f"{path}: --part {part}: no such table{nearest(part, names)}; it has {listed(names)}")
    if part is None and len(names) > 1:
        raise ConfigError(f"{path}: holds several tables, {listed(names)}: say which with --part NAME")
    return part or names[0]

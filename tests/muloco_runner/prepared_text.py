"""Text to prepare, its preparation, and its result."""

import json
import random
import sys
from pathlib import Path

import pytest

from muloco_runner.data.command import main
from muloco_runner.data.prepared.input_chunk import PrepareOptions
from muloco_runner.data.prepared.inputs import find_files
from muloco_runner.data.prepared.manifest import read_manifest
from muloco_runner.data.prepared.prepare import prepare
from muloco_runner.data.prepared.read import PreparedSplit

WORDS = ["gradient", "anchor", "Nesterov", "naïve", "η", "outer", "step", "the", "of"]


def texts(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randrange(1, 60))) for _ in range(count)]


def write_jsonl(file: Path, contents: list[str]) -> Path:
    file.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(contents)))
    return file


def prepared(inputs: Path, out: Path, processes: int = 1, **options: object) -> Path:
    prepare(find_files([inputs], None), out, PrepareOptions(**options), processes, lambda done: None)  # type: ignore[arg-type]
    return out


def all_documents(folder: Path) -> list[bytes]:
    """Every document of both splits, as bytes of a byte corpus."""
    manifest = read_manifest(folder)
    found = []
    for part in (manifest.train, manifest.validation):
        split = PreparedSplit(folder, part, manifest.dtype)
        ranges = [split.document(number) for number in range(split.num_documents)]
        found += [split.read(start, end - start).tobytes() for start, end in ranges]
    return found


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["muloco-data", *map(str, words)])
    try:
        main()
    except SystemExit as ending:
        return int(ending.code or 0)
    return 0

"""Random inputs for `muloco-data prepare`: documents in random layouts, whole and damaged.

    python tests/muloco_runner/data/random_inputs.py 3000        checks that many, prints what came of them

Equal documents must give equal tokens whatever files they lie in; damage must be named by its file, in one line, and
be left out with `--bad-documents skip`; nothing may end otherwise.
"""

import argparse
import csv
import gzip
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc, parquet

from muloco_runner.config import ConfigError
from muloco_runner.data.prepared.input_chunk import PrepareOptions
from muloco_runner.data.prepared.inputs import find_files
from muloco_runner.data.prepared.manifest import read_manifest
from muloco_runner.data.prepared.prepare import prepare
from muloco_runner.data.prepared.read import PreparedSplit

PARTS = [
    "gradient",
    "naïve η",
    " ",
    "\n",
    "\n\n",
    "\r\n",
    '"',
    ",",
    "\t",
    "'",
    "\\n",
    "<|endoftext|>",
    "𝔐",
    "{}",
    "\u2028",
]
BOM = b"\xef\xbb\xbf"
Write = Callable[[random.Random, Path, list[str]], Path]


def random_documents(generator: random.Random) -> list[str]:
    """Some documents; a few empty, some with what files use to divide documents."""
    count = generator.choice([2, 5, 30, 200])
    return [f"{n} " + "".join(generator.choices(PARTS, k=generator.randrange(20))) for n in range(count)] + [""]


def rows(generator: random.Random, suffix: str, header: str, lines: list[str]) -> bytes:
    """A file of lines, sometimes as Windows writes it."""
    content = (header + "".join(lines)).encode()
    return BOM + content if generator.random() < 0.3 and suffix != ".json" else content


def write_jsonl(generator: random.Random, stem: Path, documents: list[str]) -> Path:
    suffix = generator.choice([".jsonl", ".JSONL", ".ndjson", ".json"])
    end = generator.choice(["\n", "\r\n", "\n\n"])
    is_ascii = generator.random() < 0.5
    lines = [json.dumps({"id": n, "text": text}, ensure_ascii=is_ascii) + end for n, text in enumerate(documents)]
    return write(generator, stem, suffix, rows(generator, suffix, "", lines))


def write_csv(generator: random.Random, stem: Path, documents: list[str]) -> Path:
    suffix, delimiter = generator.choice([(".csv", ","), (".CSV", ","), (".tsv", "\t")])
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=generator.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))
    writer.writerows([["id", "text"], *([n, document] for n, document in enumerate(documents))])
    return write(generator, stem, suffix, rows(generator, suffix, "", [text.getvalue()]))


def write(generator: random.Random, stem: Path, suffix: str, content: bytes) -> Path:
    """The file, compressed or not, by itself or behind a link of a cache whose files have no names."""
    compression = generator.choice(["", "", ".gz", ".GZ", ".zst", ".zstd"])
    if compression.lower() == ".gz":
        content = gzip.compress(content, mtime=0)
    elif compression:
        content = pyarrow.compress(content, "zstd", asbytes=True)
    file = stem.with_name(stem.name + suffix + compression)
    if generator.random() < 0.3:
        data = next(folder for folder in stem.parents if folder.name == "data")
        blob = data.parent / "blobs" / f"{generator.randrange(16**8):08x}"
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(content)
        file.symlink_to(blob)
    else:
        file.write_bytes(content)
    return file


def table(generator: random.Random, documents: list[str]) -> Any:
    kind = generator.choice([pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), "categorical"])
    column: Any = pyarrow.array(documents, pyarrow.string())
    column = column.dictionary_encode() if kind == "categorical" else column.cast(kind)
    return pyarrow.table({"id": list(range(len(documents))), "text": column})


def write_parquet(generator: random.Random, stem: Path, documents: list[str]) -> Path:
    file = stem.with_name(f"{stem.name}.parquet")
    parquet.write_table(
        table(generator, documents),
        file,
        row_group_size=generator.choice([3, 50, 1000]),
        compression=generator.choice(["none", "snappy", "zstd", "gzip"]),
        write_page_checksum=True,
    )
    return file


def write_arrow(generator: random.Random, stem: Path, documents: list[str]) -> Path:
    file = stem.with_name(f"{stem.name}.arrow")
    content = table(generator, documents)
    new = generator.choice([ipc.new_file, ipc.new_stream])
    with new(str(file), content.schema) as writer:
        writer.write_table(content, max_chunksize=generator.choice([4, 1000]))
    return file


def write_files(generator: random.Random, stem: Path, documents: list[str]) -> Path:
    """A file for each document."""
    stem.mkdir()
    for number, document in enumerate(documents):
        content = document.encode()
        content = BOM + content if generator.random() < 0.3 else content
        file = write(generator, stem / f"{number:05d}", generator.choice([".txt", "", ".md"]), content)
    (stem / ".hidden").mkdir()
    (stem / ".hidden" / "config").write_text("no document")
    return file


LAYOUTS: list[Write] = [write_jsonl, write_csv, write_parquet, write_arrow, write_files]


def lay_out(generator: random.Random, folder: Path, documents: list[str]) -> list[Path]:
    """The documents in their order over some files of random kinds below `folder`."""
    folder.mkdir(parents=True)
    cuts = sorted(generator.sample(range(1, len(documents)), min(len(documents) - 1, generator.randrange(4))))
    files = []
    for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(documents)], strict=True)):
        files.append(generator.choice(LAYOUTS)(generator, folder / f"{number:03d}", documents[start:end]))
    return files


def options(generator: random.Random, **changes: Any) -> PrepareOptions:
    return PrepareOptions(validation_fraction=0.3, chunk_bytes=generator.choice([300, 5000, 2**20]), **changes)


def prepared_tokens(folder: Path, out: Path, chosen: PrepareOptions) -> list[tuple[bytes, bytes]] | str:
    """Tokens and document starts of both splits, or the message with which the input was refused."""
    try:
        prepare(find_files([folder], None), out, chosen, 1, lambda done: None)
    except ConfigError as error:
        return str(error)
    manifest = read_manifest(out)
    found = []
    for part in (manifest.train, manifest.validation):
        split = PreparedSplit(out, part, manifest.dtype)
        starts = [split.document(number)[0] for number in range(split.num_documents)]
        found.append((split.read(0, split.num_tokens).tobytes(), repr(starts).encode()))
    return found


def check_layouts(generator: random.Random, work: Path) -> str:
    """Two layouts of the same documents."""
    documents = random_documents(generator)
    results = []
    for name in ("one", "two"):
        lay_out(generator, work / name / "data", documents)
        results.append(prepared_tokens(work / name / "data", work / f"{name}-out", options(generator, by_file=True)))
    assert results[0] == results[1]
    return "refused whole: " + results[0] if isinstance(results[0], str) else "equal"


def cut(generator: random.Random, content: bytes) -> bytes:
    return content[: generator.randrange(1, max(2, len(content)))]


def flip(generator: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.choice([1, 3, 20])):
        changed[generator.randrange(len(changed))] = generator.randrange(256)
    return bytes(changed)


def blank(generator: random.Random, content: bytes) -> bytes:
    start = generator.randrange(len(content))
    return content[:start] + bytes(min(64, len(content) - start)) + content[start + 64 :]


def garbage(generator: random.Random, content: bytes) -> bytes:
    return b"\0" + generator.randbytes(len(content))


DAMAGES = [cut, flip, blank, garbage]


def check_damage(generator: random.Random, work: Path) -> str:
    """One file of a layout is damaged: it is named, or the damage cannot be told from other text."""
    documents = random_documents(generator)
    files = lay_out(generator, work / "data", documents)
    file, damage = generator.choice(files), generator.choice(DAMAGES)
    content = file.read_bytes()
    if not content:
        return "empty file"
    changed = damage(generator, content)
    file.write_bytes(changed)
    said = prepared_tokens(work / "data", work / "out", options(generator))
    if isinstance(said, str):
        assert "\n" not in said
        assert file.name in said or "no document is left" in said, said
        result = "named"
    else:
        # Rows and files that lost letters are rows and files still; what carries a sum or a footer is not.
        assert file.suffix.lower() not in (".gz",) or changed == content or damage is flip, (file, damage)
        assert damage is not garbage, file
        result = "reads as other text"
    left = prepared_tokens(work / "data", work / "left", options(generator, bad_documents="skip"))
    if isinstance(left, str):
        assert "no document is left" in left or "give --column" in left, left
    return f"{result} ({damage.__name__})"


def check_one(seed: int) -> str:
    """One random input; raises `AssertionError`, or what crashed."""
    generator = random.Random(seed)
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    work = Path(tempfile.mkdtemp(prefix="random-inputs-", dir=base))
    try:
        return generator.choice([check_layouts, check_damage])(generator, work)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    outcomes: Counter[str] = Counter()
    for seed in range(arguments.first, arguments.first + arguments.count):
        try:
            outcomes[check_one(seed)] += 1
        except BaseException:
            print(f"seed {seed}", file=sys.stderr)
            raise
    for outcome, number in outcomes.most_common():
        print(f"{number:6} {outcome}")

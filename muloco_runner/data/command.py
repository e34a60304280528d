"""`muloco-data`: prepares text for training, and shows what was prepared."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from muloco_runner.config import ConfigError
from muloco_runner.data.prepared.file_kinds import KINDS
from muloco_runner.data.prepared.manifest import Manifest, damaged_files, read_manifest
from muloco_runner.flags import Parser, any_number, any_path, any_text, one_of, whole_number
from muloco_runner.record import ExitCode

if TYPE_CHECKING:
    from muloco_runner.data.prepared.documents import InputFile

EXAMPLES = """\
  muloco-data prepare books/ --out data/books                      every file below books/, one document each, as bytes
  muloco-data prepare web.jsonl.gz --tokenizer llama3/tokenizer.json --out data/web
  muloco-data prepare dump.parquet --column content --out data/dump
  muloco-data prepare hf://datasets/NAME --split train --columns title,text --out data/named
  muloco-data inspect data/web                                     what is there, and the beginning of some documents
  muloco-data inspect data/web --verify                            reads everything again and compares hashes

  muloco-train data=prepared data.path=data/books                  trains on it
"""
_PREPARE = """\
Reads .jsonl (.json, .ndjson), .parquet, .arrow, .csv, .tsv and text, compressed as .gz or .zst too, each by what it is;
other files are refused, links followed, hidden files left out. Writes tokens with document boundaries, a held-out share
for validation chosen by content, and a manifest. Memory stays bounded by the longest document or row group.
Interrupted or killed, the same command continues. Exit codes: 0 done, 2 a mistake in the command or in the
input, reported in one line.
"""
_SECONDS_BETWEEN_LINES = 5.0


def main() -> None:
    """The console script."""
    try:
        arguments = _parser().parse_args()
        arguments.run(arguments)
    except ConfigError as error:
        _end(ExitCode.USAGE, f"muloco-data: {error}")
    except OSError as error:
        _end(ExitCode.CRASH, f"muloco-data: {error.filename or ''}: {error.strerror}: the same command continues")
    except KeyboardInterrupt:
        _end(130, "muloco-data: interrupted; the same command continues")


def _end(code: int, line: str) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(code)


def _parser() -> Parser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="muloco-data", description=f"Prepares text for training.\n\n{EXAMPLES}", formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    prepare = commands.add_parser(
        "prepare", help="text to memory-mapped tokens", description=_PREPARE, formatter_class=raw
    )
    prepare.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders of them, or hf://datasets/NAME")
    prepare.add_argument(
        "--out", required=True, type=any_path("a new folder"), metavar="FOLDER", help="new folder for the result"
    )
    prepare.add_argument(
        "--tokenizer",
        type=any_text("a tokenizer's file, or bytes"),
        default="bytes",
        metavar="FILE",
        help="a Hugging Face tokenizer.json, or Llama 3's tokenizer.model; default: bytes",
    )
    prepare.add_argument(
        "--special-tokens",
        type=one_of("text", "token"),
        metavar="{text,token}",
        default="text",
        help="what a special token's name means that is spelled in a document; default: text like any other",
    )
    prepare.add_argument(
        "--end-of-document",
        type=any_text("a token, or none"),
        metavar="TOKEN",
        help="token appended to each document, or none; default: the usual one, if the tokenizer has one",
    )
    prepare.add_argument(
        "--column",
        type=any_text("a column's name"),
        default="text",
        help="key (jsonl) or column (tables) that holds the text",
    )
    named = prepare.add_argument_group("of hf://datasets/NAME, through the datasets library")
    named.add_argument(
        "--config",
        type=any_text("a configuration's name"),
        metavar="NAME",
        help="the configuration, where there are several",
    )
    named.add_argument("--split", type=any_text("a split's name"), help="default: train")
    named.add_argument(
        "--columns", type=any_text("names of columns, with commas between"), metavar="A,B",
        help="columns whose texts make a document; default: --column",
    )  # fmt: skip
    named.add_argument(
        "--revision",
        type=any_text("a branch, tag or commit"),
        help="branch, tag or commit; the manifest holds the commit",
    )
    named.add_argument(
        "--mirror", type=any_path("a folder of data sets"), metavar="FOLDER",
        help="holds data sets by name: read there, no network",
    )  # fmt: skip
    prepare.add_argument(
        "--format", type=one_of(*KINDS), metavar=f"{{{','.join(KINDS)}}}", help="default: what each file is"
    )
    prepare.add_argument(
        "--documents",
        type=one_of("file", "paragraph"),
        metavar="{file,paragraph}",
        help="of text: each file is one, or each paragraph; default: file, paragraph where there is one file",
    )
    prepare.add_argument(
        "--validation-fraction", type=any_number(0.01, below=1, is_open=True), default=0.01, metavar="F",
        help="share of documents held out; default 0.01",
    )  # fmt: skip
    prepare.add_argument(
        "--bad-documents", type=one_of("fail", "skip"), metavar="{fail,skip}", default="fail",
        help="what cannot be read; default: fail",
    )  # fmt: skip
    prepare.add_argument("--processes", type=whole_number(8, least=1), metavar="N", help="default: one for each core")
    prepare.add_argument(
        "--chunk-megabytes",
        "--shard-megabytes",  # its earlier name
        type=whole_number(256, least=1),
        default=256,
        metavar="N",
        help="input read at a time by one process, which becomes one pair of files; default 256",
    )
    prepare.set_defaults(run=_prepare)
    inspect = commands.add_parser("inspect", help="what a prepared folder holds", formatter_class=raw)
    inspect.add_argument("folder", type=Path, metavar="FOLDER", help="what `prepare` wrote")
    inspect.add_argument(
        "--split",
        type=one_of("train", "validation"),
        metavar="{train,validation}",
        default="train",
        help="default: train",
    )
    inspect.add_argument("--samples", type=whole_number(3), default=3, metavar="N", help="documents to show; default 3")
    inspect.add_argument("--verify", action="store_true", help="read every file and compare it with its hash")
    inspect.set_defaults(run=_inspect)
    return parser


def _prepare(arguments: argparse.Namespace) -> None:
    from muloco_runner.data.prepared.input_chunk import PrepareOptions
    from muloco_runner.data.prepared.prepare import prepare

    cores = len(os.sched_getaffinity(0))
    processes = cores if arguments.processes is None else arguments.processes
    files = _find_inputs(arguments)
    options = PrepareOptions(
        tokenizer=arguments.tokenizer,
        end_of_document=arguments.end_of_document,
        column=arguments.column,
        validation_fraction=arguments.validation_fraction,
        bad_documents=arguments.bad_documents,
        by_file=arguments.documents == "file" or (arguments.documents is None and len(files) > 1),
        chunk_bytes=arguments.chunk_megabytes * 2**20,
        special_tokens=arguments.special_tokens,
    )
    with _progress(sum(file.size for file in files)) as on_bytes:
        manifest = prepare(files, arguments.out, options, processes, on_bytes)
    for line in _summary(manifest):
        print(line)
    print(f"{arguments.out}  {manifest.content_hash}  train on it with: data=prepared data.path={arguments.out}")


def _find_inputs(arguments: argparse.Namespace) -> list[InputFile]:
    """Files and data sets in the order of the command line."""
    from muloco_runner.data.prepared.inputs import find_files
    from muloco_runner.data.prepared.named_datasets import PREFIX, NamedDataset, find_dataset

    given = {name: getattr(arguments, name) for name in ("config", "split", "columns", "revision", "mirror")}
    useless = [name for name, value in given.items() if value is not None]
    if useless and not any(text.startswith(PREFIX) for text in arguments.inputs):
        raise ConfigError(f"--{useless[0]} has no effect without an input {PREFIX}NAME: drop it")
    if arguments.mirror is not None and arguments.revision is not None:
        raise ConfigError("--revision has no effect with --mirror, which holds one state: drop it")
    found = []
    for text in arguments.inputs:
        name = text.removeprefix(PREFIX)
        if name == text:
            found += find_files([Path(text)], arguments.format)
            continue
        folder = None if arguments.mirror is None else arguments.mirror / name
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"--mirror {arguments.mirror}: no folder {name} there")
        columns = tuple((arguments.columns or arguments.column).split(","))
        split = arguments.split or "train"
        mirror = None if folder is None else str(folder.resolve())
        found.append(find_dataset(NamedDataset(name, split, columns, arguments.config, arguments.revision, mirror)))
    return found


def _summary(manifest: Manifest) -> Iterator[str]:
    for name, split in (("train", manifest.train), ("validation", manifest.validation)):
        yield (
            f"{name:11}{split.num_tokens:>15,} tokens {split.num_documents:>11,} documents "
            f"{split.num_bytes:>15,} bytes {len(split.files):>5} files"
        )
    tokenizer = manifest.tokenizer
    end = f", each document ends with {tokenizer.end_of_document}" if tokenizer.end_of_document else ""
    yield f"{tokenizer.kind}, vocabulary {manifest.vocab_size:,} ({manifest.dtype}){end}"
    if manifest.num_skipped:
        yield f"{manifest.num_skipped:,} documents could not be read and were left out"


def _inspect(arguments: argparse.Namespace) -> None:
    from muloco_runner.data.prepared.read import PreparedSplit
    from muloco_runner.data.prepared.tokenizer import tokenizer_in

    folder = arguments.folder
    manifest = read_manifest(folder)
    print(f"{folder}  {manifest.content_hash}")
    for line in _summary(manifest):
        print(line)
    if arguments.verify:
        damaged = damaged_files(folder, manifest)
        if damaged:
            raise ConfigError(f"{folder}: not as they were written: {', '.join(damaged)}: prepare the data again")
        print("every file is as it was written")
    tokenizer = tokenizer_in(folder, manifest.tokenizer)
    split = PreparedSplit(folder, getattr(manifest, arguments.split), manifest.dtype)
    for number in range(min(arguments.samples, split.num_documents)):
        # Evenly over the split, so that every kind of input is likely to be seen.
        start, end = split.document(number * split.num_documents // arguments.samples)
        text = tokenizer.decode(split.read(start, min(end - start, 100)))
        print(f"\ndocument at token {start:,}, {end - start:,} tokens:\n  {text[:300]!r}")


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line now and then in a log."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=total)
            yield lambda done: bar.update(task, completed=min(done, total))
        return
    started_at = printed_at = time.monotonic()

    def line(done: int) -> None:
        nonlocal printed_at
        now = time.monotonic()
        if now - printed_at >= _SECONDS_BETWEEN_LINES:
            printed_at = now
            share = min(1.0, done / max(1, total))
            print(f"{share:.1%} of {total / 1e6:,.0f} MB, {now - started_at:.0f} s", file=sys.stderr, flush=True)

    yield line


if __name__ == "__main__":
    main()

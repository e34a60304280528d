"""Prepares text with several processes, bounded memory, and nothing lost when killed.

Processes work on input chunks; the chunks that a killed run finished are kept. The manifest is written last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from muloco_runner.config import ConfigError
from muloco_runner.data.prepared.documents import FileRange, InputFile
from muloco_runner.data.prepared.input_chunk import (
    PrepareOptions,
    TokenWriter,
    chunk_name,
    prepare_chunk,
    refuse,
    summary_file,
    token_dtype,
)
from muloco_runner.data.prepared.input_hashes import changed_since, contents, hash_files, read_hashes, write_hashes
from muloco_runner.data.prepared.inputs import plan_chunks
from muloco_runner.data.prepared.manifest import FILE_NAME, Manifest, SplitManifest, TokenFiles, read_manifest
from muloco_runner.data.prepared.named_datasets import KIND, described
from muloco_runner.data.prepared.tokenizer import open_tokenizer, tokenizer_file
from muloco_runner.record import write_atomically

PLAN = "plan.json"


class Stopped(Exception):
    """Another chunk failed, or the user interrupted."""


def prepare(
    files: list[InputFile], folder: Path, options: PrepareOptions, processes: int, on_bytes: Callable[[int], None]
) -> Manifest:
    """The manifest of `folder`, prepared from `files`; `on_bytes` is called with the input bytes done so far.

    A prepared folder is left as it is, an interrupted one is finished; other inputs or options raise `ConfigError`.
    """
    tokenizer = open_tokenizer(options.tokenizer, options.end_of_document, options.special_tokens)
    plan = _plan(files, options)
    if (folder / FILE_NAME).exists():
        return _same_as_there(folder, files, plan)
    chunks = plan_chunks(files, options.chunk_bytes, options.by_file)
    for file_range in (file_range for chunk in chunks for file_range in chunk):
        if file_range.problem is not None:
            refuse(file_range.problem, options)
    hashes = hash_files(files)
    _begin(folder, {**plan, "contents": contents(hashes)})
    with _alone_in(folder):
        try:
            summaries = _prepare_chunks(folder, chunks, options, processes, on_bytes)
        except ConfigError:
            if not any((folder / "parts").glob("*.json")):
                # Nothing was done yet: the corrected command may have other options.
                shutil.rmtree(folder)
            raise
        if (name := changed_since(hashes)) is not None:
            shutil.rmtree(folder)
            raise ConfigError(f"{name} was changed while it was read: the same command begins again")
        _require_documents(folder, summaries)
        write_hashes(folder, hashes)
        manifest = _finish(folder, summaries, options, plan, tokenizer.vocab_size)
        shutil.rmtree(folder / "parts")
        (folder / PLAN).unlink()
    return manifest


def _same_as_there(folder: Path, files: list[InputFile], plan: dict[str, Any]) -> Manifest:
    """The manifest of a prepared folder; other options, or inputs of other content, raise `ConfigError`."""
    manifest = read_manifest(folder)
    there: dict[str, Any] = {"inputs": manifest.inputs, "options": manifest.options}
    hashes = read_hashes(folder)
    if hashes is None:
        # Prepared by a version that did not hash its inputs: names and sizes are all that is known of them.
        same = there == plan
    else:
        now = hash_files(files, known=hashes)
        there["contents"], plan = contents(hashes), {**plan, "contents": contents(now)}
        same = _without_names(there) == _without_names(plan)
    if not same:
        raise ConfigError(f"{folder} was prepared from {_difference(there, plan)}: choose another --out")
    return manifest


def _without_names(plan: dict[str, Any]) -> dict[str, Any]:
    return {**plan, "inputs": [[file["kind"], file["bytes"]] for file in plan["inputs"]]}


def _require_documents(folder: Path, summaries: list[dict[str, Any]]) -> None:
    """Takes the folder away and raises `ConfigError` where a split would be empty."""
    counts = {split: sum(summary[split]["num_documents"] for summary in summaries) for split in ("train", "validation")}
    if all(counts.values()):
        return
    shutil.rmtree(folder)
    if not any(counts.values()):
        raise ConfigError("no document is left: all that was given is empty or was left out")
    name = "validation" if counts["train"] else "training"
    raise ConfigError(f"no document is left for {name}: give more, or change --validation-fraction")


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Holds the plan's lock, which the kernel releases when the process dies, and clears what a killed one left."""
    with open(folder / PLAN) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder}: another process is preparing it: wait for it, or stop it") from None
        for left_over in [*folder.glob(".*.partial"), *folder.glob("parts/.*.partial")]:
            left_over.unlink(missing_ok=True)
        yield


def _plan(files: list[InputFile], options: PrepareOptions) -> dict[str, Any]:
    settings = dataclasses.asdict(options)
    # The name under which folders prepared earlier hold it.
    settings["shard_bytes"] = settings.pop("chunk_bytes")
    if options.special_tokens == "text":
        del settings["special_tokens"]  # came later; folders prepared earlier do not hold it
    if options.tokenizer != "bytes":
        tokenizer = open_tokenizer(options.tokenizer, options.end_of_document, options.special_tokens).describe()
        settings |= {"tokenizer": tokenizer.sha256, "end_of_document": tokenizer.end_of_document}
    return {"inputs": [_described(file) for file in files], "options": settings}


def _described(file: InputFile) -> dict[str, Any]:
    if file.kind == KIND:
        # How many bytes it has is what its library estimates.
        return {"name": file.name, "bytes": 0, "kind": file.kind, **described(file)}
    return {"name": file.name, "bytes": file.size, "kind": file.kind}


def _difference(there: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first thing in which two plans differ."""
    for name, value in there["options"].items():
        if value != wanted["options"].get(name):
            return f"{name}={value}, now it is {wanted['options'].get(name)}"
    if len(there["inputs"]) != len(wanted["inputs"]):
        return f"{len(there['inputs'])} input files, now there are {len(wanted['inputs'])}"
    pairs = zip(there["inputs"], wanted["inputs"], there.get("contents", ()), wanted.get("contents", ()), strict=False)
    other = next(
        (now["name"] for then, now, before, after in pairs if (before, then["kind"]) != (after, now["kind"])), ""
    )
    return f"other input files: {other} is another now" if other else "other input files"


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    try:
        if (folder / PLAN).exists():
            begun = json.loads((folder / PLAN).read_text())
            if {"contents": plan["contents"], **begun} != plan:
                other = _difference(begun, plan)
                raise ConfigError(f"{folder} was started with {other}: remove it or choose another --out")
            return
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and was not made by this command: choose another --out")
        write_atomically(folder / PLAN, json.dumps(plan, indent=1))
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error.strerror}") from None


def _prepare_chunks(
    folder: Path,
    chunks: list[list[FileRange]],
    options: PrepareOptions,
    processes: int,
    on_bytes: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Summaries of all chunks, in order."""
    found: dict[int, dict[str, Any]] = {}
    done = 0
    for number, chunk in enumerate(chunks):
        if summary_file(folder, number).exists():
            found[number] = json.loads(summary_file(folder, number).read_text())
            done += sum(file_range.size for file_range in chunk)
    on_bytes(done)
    missing = [number for number in range(len(chunks)) if number not in found]
    if processes == 1 or len(missing) <= 1:
        for number in missing:

            def advance(count: int) -> None:
                nonlocal done
                done += count
                on_bytes(done)

            found[number] = prepare_chunk(folder, number, chunks[number], options, advance)
    else:
        missing_chunks = {number: chunks[number] for number in missing}
        found |= _in_processes(folder, missing_chunks, options, processes, lambda count: on_bytes(done + count))
    return [found[number] for number in range(len(chunks))]


def _in_processes(
    folder: Path,
    chunks: dict[int, list[FileRange]],
    options: PrepareOptions,
    processes: int,
    on_bytes: Callable[[int], None],
) -> dict[int, dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    count, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(min(processes, len(chunks)), context, initializer=_enter, initargs=(count, stop))
    futures: dict[Future[dict[str, Any]], int] = {}
    try:
        for number, chunk in chunks.items():
            futures[pool.submit(_chunk_in_process, folder, number, chunk, options)] = number
        waiting = set(futures)
        while waiting:
            finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
            on_bytes(count.value)
            for future in finished:
                future.result()
    except BrokenProcessPool:
        raise ConfigError(
            "a process was killed, perhaps for want of memory: the same command continues, with fewer --processes"
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    return {number: future.result() for future, number in futures.items()}


_shared: list[Any] = []
"""The counter of bytes read and the event that says stop, in a worker process."""


def _enter(count: Any, stop: Any) -> None:
    # The parent process receives the interrupt and stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _shared[:] = [count, stop]
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """Ends this process when its parent was killed: nothing else would end it while it waits for work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _chunk_in_process(folder: Path, number: int, chunk: list[FileRange], options: PrepareOptions) -> dict[str, Any]:
    count, stop = _shared

    def advance(size: int) -> None:
        if stop.is_set():
            raise Stopped
        with count.get_lock():
            count.value += size

    return prepare_chunk(folder, number, chunk, options, advance)


def _finish(
    folder: Path, summaries: list[dict[str, Any]], options: PrepareOptions, plan: dict[str, Any], vocab_size: int
) -> Manifest:
    dtype = token_dtype(vocab_size)
    validation = _merge_validation(folder, summaries, dtype)
    train = [summary["train"] for summary in summaries]
    for part in train:
        if not part["num_documents"]:
            for suffix in ("tokens", "documents"):
                (folder / f"{part['name']}.{suffix}").unlink(missing_ok=True)
    manifest = Manifest(
        vocab_size=vocab_size,
        dtype=dtype.name,
        tokenizer=open_tokenizer(options.tokenizer, options.end_of_document, options.special_tokens).describe(),
        train=_split([part for part in train if part["num_documents"]]),
        validation=_split([validation]),
        options=plan["options"],
        inputs=plan["inputs"],
        num_skipped=sum(summary["num_skipped"] for summary in summaries),
    )
    manifest.content_hash = manifest.hash_of_content()
    if options.tokenizer != "bytes":
        name = {"huggingface": "tokenizer.json", "tiktoken": "tokenizer.model"}[manifest.tokenizer.kind]
        write_atomically(folder / name, tokenizer_file(Path(options.tokenizer)).read_bytes())
    write_atomically(folder / FILE_NAME, manifest.to_json())
    return manifest


def _split(parts: list[dict[str, Any]]) -> SplitManifest:
    sums = {key: sum(part[key] for part in parts) for key in ("num_tokens", "num_documents", "num_bytes")}
    return SplitManifest(**sums, files=[TokenFiles(**{k: v for k, v in p.items() if k != "num_bytes"}) for p in parts])


def _merge_validation(folder: Path, summaries: list[dict[str, Any]], dtype: np.dtype[Any]) -> dict[str, Any]:
    """All held-out documents in the order of their hashes, so that the first ones are a mixture of all inputs."""
    counts = [len(summary["order"]) for summary in summaries]
    digests = np.concatenate([np.array(summary["order"], dtype=np.uint64) for summary in summaries])
    chunks = np.repeat(np.arange(len(summaries)), counts)
    positions = np.concatenate([np.arange(count) for count in counts])
    parts = [folder / "parts" / f"{chunk_name(number)}.validation" for number in range(len(summaries))]
    starts = [np.fromfile(part.parent / f"{part.name}.documents", dtype="<i8") for part in parts]
    with TokenWriter(folder / "validation-00000", dtype) as writer:
        for index in np.argsort(digests, kind="stable"):
            chunk, position = chunks[index], positions[index]
            end = (
                starts[chunk][position + 1]
                if position + 1 < len(starts[chunk])
                else summaries[chunk]["validation"]["num_tokens"]
            )
            start = starts[chunk][position]
            part = parts[chunk]
            tokens = np.fromfile(
                part.parent / f"{part.name}.tokens", dtype, int(end - start), offset=int(start) * dtype.itemsize
            )
            writer.add(tokens, 0)
        merged = writer.close()
    return {**merged, "num_bytes": sum(summary["validation"]["num_bytes"] for summary in summaries)}

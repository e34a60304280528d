"""A split of prepared data, read as it is needed: files are mapped, not loaded.

Axes: B sequences, T time.
"""

from __future__ import annotations

import functools
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muloco_runner.data.prepared.manifest import SplitManifest

_MOST_MAPPED = 256
"""Pairs of files mapped at a time: a process may have about a thousand files open."""


class PreparedSplit:
    """The tokens of all files as one row, and their documents."""

    def __init__(self, folder: Path, manifest: SplitManifest, dtype: str) -> None:
        self._paths = [folder / files.name for files in manifest.files]
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._first_token = np.cumsum([0, *(files.num_tokens for files in manifest.files)])
        self._first_document = np.cumsum([0, *(files.num_documents for files in manifest.files)])
        self._mapped = functools.lru_cache(_MOST_MAPPED)(self._map)

    @property
    def num_tokens(self) -> int:
        return int(self._first_token[-1])

    @property
    def num_documents(self) -> int:
        return int(self._first_document[-1])

    def document(self, number: int) -> tuple[int, int]:
        """First token of a document, counted from 0 over all files, and the one after its last."""
        file = int(np.searchsorted(self._first_document, number, side="right")) - 1
        starts = self._mapped(file)[1]
        within = number - int(self._first_document[file])
        first = int(self._first_token[file])
        end = int(starts[within + 1]) + first if within + 1 < len(starts) else int(self._first_token[file + 1])
        return int(starts[within]) + first, end

    def read(self, start: int, count: int) -> NDArray[np.integer[Any]]:
        """Tokens start .. start+count, shape (count,)."""
        found = np.empty(count, self._dtype)
        filled = 0
        while filled < count:
            file, offset = self._locate(start + filled)
            tokens = self._mapped(file)[0][offset : offset + count - filled]
            found[filled : filled + len(tokens)] = tokens
            filled += len(tokens)
        return found

    def gather(self, starts: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Reads sequences: see `muloco_runner.data.corpus.Split.gather`."""
        tokens_BT = np.empty((len(starts), length + 1), np.int64)
        documents_BT = np.empty((len(starts), length), np.int64)
        for row, start in enumerate(starts.tolist()):
            file, offset = self._locate(start)
            tokens = self._mapped(file)[0]
            if offset + length < len(tokens):
                tokens_BT[row] = tokens[offset : offset + length + 1]
            else:
                tokens_BT[row] = self.read(start, length + 1)
            self._number_documents(start, documents_BT[row])
        return tokens_BT, documents_BT

    def will_need(self, starts: NDArray[np.int64], length: int) -> None:
        """Asks the kernel to fetch the sequences' pages; returns at once."""
        for start in starts.tolist():
            file, offset = self._locate(start)
            memory = self._mapped(file)[2]
            first = offset * self._dtype.itemsize // mmap.PAGESIZE * mmap.PAGESIZE
            end = min((offset + length + 1) * self._dtype.itemsize, len(memory))
            _advise(memory, "MADV_WILLNEED", first, end - first)

    def _number_documents(self, start: int, documents_T: NDArray[np.int64]) -> None:
        """Fills in the number of the document that holds each of the tokens from `start` on."""
        filled, count = 0, len(documents_T)
        while filled < count:
            file, offset = self._locate(start + filled)
            tokens, document_starts, _ = self._mapped(file)
            size = min(count - filled, len(tokens) - offset)
            first, last = np.searchsorted(document_starts, (offset, offset + size - 1), side="right")
            part = documents_T[filled : filled + size]
            part[:] = self._first_document[file] + first
            for boundary in document_starts[first:last]:
                part[boundary - offset :] += 1
            filled += size

    def _locate(self, token: int) -> tuple[int, int]:
        """Number of the pair of files that holds the token, and the token's offset there."""
        file = int(np.searchsorted(self._first_token, token, side="right")) - 1
        return file, token - int(self._first_token[file])

    def _map(self, number: int) -> tuple[NDArray[np.integer[Any]], NDArray[np.int64], mmap.mmap]:
        path = self._paths[number]
        with open(path.parent / f"{path.name}.tokens", "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Sequences are read in a shuffled order: nothing beside one will be needed.
        _advise(memory, "MADV_RANDOM", 0, len(memory))
        tokens = np.frombuffer(memory, self._dtype)
        documents = np.memmap(path.parent / f"{path.name}.documents", "<i8", mode="r")
        return tokens, documents, memory


def _advise(memory: mmap.mmap, advice: str, start: int, length: int) -> None:
    """Advises the kernel, on systems that take advice."""
    if hasattr(mmap, advice):
        memory.madvise(getattr(mmap, advice), start, length)

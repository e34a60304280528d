"""Tokenizers turn text into token numbers: bytes as they are, tokenizer.json, or tiktoken's tokenizer.model."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from muloco_runner.config import ConfigError
from muloco_runner.data.prepared import tiktoken_file
from muloco_runner.data.prepared.manifest import TokenizerManifest
from muloco_runner.data.prepared.tiktoken_file import read_encoding

_USUAL_ENDS = ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>")
_LONGEST_PIECE = 2_000_000
"""Characters. A longer document is cut at line ends before it is encoded: the encoder needs some hundred times its
size in memory."""


class Tokenizer(Protocol):
    vocab_size: int
    """Largest token number plus one."""

    def encode(self, texts: list[bytes]) -> list[NDArray[np.integer[Any]]]:
        """Token numbers of each document, the end-of-document token included where there is one."""

    def decode(self, tokens: NDArray[np.integer[Any]]) -> str: ...

    def describe(self) -> TokenizerManifest: ...


class Bytes:
    """A token is a byte; documents need no end, since where each starts is known."""

    vocab_size = 256

    def encode(self, texts: list[bytes]) -> list[NDArray[np.integer[Any]]]:
        return [np.frombuffer(text, dtype=np.uint8) for text in texts]

    def decode(self, tokens: NDArray[np.integer[Any]]) -> str:
        return tokens.astype(np.uint8).tobytes().decode(errors="replace")

    def describe(self) -> TokenizerManifest:
        return TokenizerManifest("bytes")


class HuggingFace:
    """`tokenizer.json` of the tokenizers library. No start token, no truncation, no padding; an end to each document.

    `end_of_document`: the token's text, "none", or None for the first of the usual ones; a tokenizer without any raises
    `ConfigError`. `special_tokens`: what becomes of their names in a document, "text" or the "token".
    """

    def __init__(self, file: Path, end_of_document: str | None = None, special_tokens: str = "text") -> None:
        try:
            library = importlib.import_module("tokenizers")
        except ImportError:
            raise ConfigError(f"{file}: reading it needs tokenizers: pip install 'muloco-sweeps[data]'") from None
        try:
            content = file.read_bytes()
            self._tokenizer = library.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises Exception itself
            raise ConfigError(f"tokenizer {file}: {' '.join(str(error).split())}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._sha256 = hashlib.sha256(content).hexdigest()
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self._end, self._end_id = _end_of_document(file, vocabulary, end_of_document)
        self._broken: re.Pattern[str] | None = None
        if special_tokens == "text":
            self._tokenizer.encode_special_tokens = True
            self._broken = _names_to_break(self._tokenizer, self._end)

    def encode(self, texts: list[bytes]) -> list[NDArray[np.integer[Any]]]:
        pieces = [[part for p in _pieces(text.decode()) for part in self._apart(p)] for text in texts]
        encoded = iter(self._tokenizer.encode_batch_fast([p for one in pieces for p in one], add_special_tokens=False))
        end = [] if self._end_id is None else [self._end_id]
        found: list[NDArray[np.integer[Any]]] = []
        for one in pieces:
            ids: list[int] = []
            for _ in one:
                ids.extend(next(encoded).ids)
            found.append(np.array(ids + end, dtype=np.uint32))
        return found

    def _apart(self, text: str) -> list[str]:
        """The text in parts, none of which holds a special token's whole name."""
        if self._broken is None:
            return [text]
        cuts = [0, *(match.start() + 1 for match in self._broken.finditer(text)), len(text)]
        return [text[start:end] for start, end in itertools.pairwise(cuts)]

    def decode(self, tokens: NDArray[np.integer[Any]]) -> str:
        text: str = self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        return text

    def describe(self) -> TokenizerManifest:
        return TokenizerManifest("huggingface", self._sha256, self._end, self._end_id)


class Tiktoken:
    """`tokenizer.model` of tiktoken, with the arguments of `HuggingFace`."""

    def __init__(self, file: Path, end_of_document: str | None = None, special_tokens: str = "text") -> None:
        self._encoding = read_encoding(file)
        self._sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        self.vocab_size = int(self._encoding.n_vocab)
        names = {name: self._encoding.encode_single_token(name) for name in self._encoding.special_tokens_set}
        self._end, self._end_id = _end_of_document(file, names, end_of_document)
        self._allowed = self._encoding.special_tokens_set if special_tokens == "token" else set()

    def encode(self, texts: list[bytes]) -> list[NDArray[np.integer[Any]]]:
        end = [] if self._end_id is None else [self._end_id]
        return [np.array([*self._ids(text.decode()), *end], dtype=np.uint32) for text in texts]

    def _ids(self, text: str) -> Iterator[int]:
        for piece in _pieces(text):
            yield from self._encoding.encode(piece, allowed_special=self._allowed, disallowed_special=())

    def decode(self, tokens: NDArray[np.integer[Any]]) -> str:
        text: str = self._encoding.decode(tokens.tolist())
        return text

    def describe(self) -> TokenizerManifest:
        return TokenizerManifest("tiktoken", self._sha256, self._end, self._end_id)


def _end_of_document(file: Path, vocabulary: dict[str, int], wanted: str | None) -> tuple[str | None, int | None]:
    """The token that ends documents and its number, None for none; one that is not there raises `ConfigError`."""
    usual = ", ".join(_USUAL_ENDS)
    if wanted is None:
        wanted = next((token for token in _USUAL_ENDS if token in vocabulary), None)
    if wanted is None:
        raise ConfigError(
            f"tokenizer {file} has none of the usual ends of a document ({usual}): "
            "give --end-of-document TOKEN, or --end-of-document none to go without"
        )
    if wanted == "none":
        return None, None
    if wanted not in vocabulary:
        raise ConfigError(
            f"--end-of-document {wanted}: not a token of {file}; usual ones are {usual}, and `none` goes without"
        )
    return wanted, vocabulary[wanted]


def _names_to_break(tokenizer: Any, end: str | None) -> re.Pattern[str] | None:
    """Names of special tokens that the tokenizer takes for the token even in text: some stand in its own vocabulary, or
    are added without being marked as special."""
    added = tokenizer.get_added_tokens_decoder()
    special = {token.content: number for number, token in added.items() if token.special}
    if end is not None:
        special[end] = tokenizer.token_to_id(end)
    names = [name for name, number in special.items() if number in tokenizer.encode(name, add_special_tokens=False).ids]
    longest_first = sorted((re.escape(name) for name in names if len(name) > 1), key=len, reverse=True)
    return re.compile("|".join(longest_first)) if longest_first else None


def _pieces(text: str) -> list[str]:
    pieces = []
    while len(text) > _LONGEST_PIECE:
        cut = text.rfind("\n", 0, _LONGEST_PIECE) + 1 or _LONGEST_PIECE
        pieces.append(text[:cut])
        text = text[cut:]
    return [*pieces, text]


def open_tokenizer(name: str, end_of_document: str | None, special_tokens: str = "text") -> Tokenizer:
    """`bytes`, or the path of a tokenizer.json or tokenizer.model, or of the folder that holds one."""
    if name == "bytes":
        if special_tokens != "text":
            raise ConfigError("--special-tokens has no effect on bytes: drop it, or give --tokenizer FILE")
        if end_of_document not in (None, "none"):
            raise ConfigError("--end-of-document has no effect on bytes: drop it, or give --tokenizer FILE")
        return Bytes()
    file = tokenizer_file(Path(name))
    if not file.is_file():
        raise ConfigError(f"--tokenizer {name}: no such file; give a tokenizer.json, a tokenizer.model, or `bytes`")
    kind = Tiktoken if file.suffix in (".model", ".tiktoken") else HuggingFace
    return kind(file, end_of_document, special_tokens)


def tokenizer_file(given: Path) -> Path:
    """The file of a tokenizer, which is given itself or by its folder."""
    if not given.is_dir():
        return given
    names = ("tokenizer.json", tiktoken_file.FILE_NAME)
    return next((given / name for name in names if (given / name).exists()), given / names[0])


def tokenizer_in(folder: Path, tokenizer: TokenizerManifest) -> Tokenizer:
    """The tokenizer with which a folder was prepared."""
    end = tokenizer.end_of_document or "none"
    match tokenizer.kind:
        case "bytes":
            return Bytes()
        case "huggingface":
            return HuggingFace(folder / "tokenizer.json", end)
        case "tiktoken":
            return Tiktoken(folder / tiktoken_file.FILE_NAME, end)
        case other:
            raise ConfigError(
                f"{folder}: prepared with a tokenizer of kind {other!r}, which this program does not know"
            )

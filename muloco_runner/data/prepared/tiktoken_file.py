"""tiktoken's `tokenizer.model`, as Llama 3 ships it: lines of a token, in base64, and its rank.

The file holds neither the pattern by which text is cut nor the special tokens: both are Llama 3's.
"""

from __future__ import annotations

import base64
import binascii
import importlib
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError

FILE_NAME = "tokenizer.model"
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMED = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
_NUM_SPECIAL = 256


def special_tokens() -> list[str]:
    """Llama 3's special tokens in the order of their numbers, which follow those of the file's."""
    names, reserved = [], 0
    for number in range(_NUM_SPECIAL):
        if number in _NAMED:
            names.append(f"<|{_NAMED[number]}|>")
        else:
            names.append(f"<|reserved_special_token_{reserved}|>")
            reserved += 1
    return names


def read_encoding(file: Path) -> Any:
    """The file's `tiktoken.Encoding`. Another kind of file raises `ConfigError`."""
    try:
        library = importlib.import_module("tiktoken")
    except ImportError:
        raise ConfigError(f"{file}: reading it needs tiktoken: pip install 'muloco-sweeps[data]'") from None
    ranks: dict[bytes, int] = {}
    try:
        for line in file.read_bytes().splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error):
        raise ConfigError(
            f"tokenizer {file}: no lines of tokens and ranks as tiktoken writes them; a SentencePiece model is to be "
            "converted to a tokenizer.json"
        ) from None
    special = {name: len(ranks) + number for number, name in enumerate(special_tokens())}
    return library.Encoding(file.stem, pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens=special)

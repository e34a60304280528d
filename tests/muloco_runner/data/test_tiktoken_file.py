"""Llama 3's tokenizer.model: text comes back, special tokens are text unless asked, other files are refused."""

import base64
from pathlib import Path

import pytest
from prepared_text import command, texts, write_jsonl

from muloco_runner.config import ConfigError
from muloco_runner.data.prepared.manifest import read_manifest
from muloco_runner.data.prepared.read import PreparedSplit
from muloco_runner.data.prepared.tiktoken_file import special_tokens
from muloco_runner.data.prepared.tokenizer import open_tokenizer, tokenizer_in

MERGES = [b"st", b"ou", b"out", b"ste", b"step"]


def model_file(folder: Path) -> Path:
    tokens = [bytes([byte]) for byte in range(256)] + MERGES
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    return folder / "tokenizer.model"


def test_special_tokens_stand_where_llama_3_has_them() -> None:
    names = special_tokens()
    assert len(set(names)) == 256
    assert names[:3] == ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"]
    assert names[6:10] == ["<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"]
    assert names[-1] == "<|reserved_special_token_250|>"


def test_text_comes_back_and_special_names_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tiktoken")
    file, out, contents = model_file(tmp_path), tmp_path / "out", [*texts(200), "a <|end_of_text|> b"]
    source = write_jsonl(tmp_path / "in.jsonl", contents)
    words = ["--tokenizer", file, "--validation-fraction", "0.2", "--processes", "1"]
    assert command(monkeypatch, "prepare", source, "--out", out, *words) == 0
    manifest = read_manifest(out)
    assert (manifest.tokenizer.kind, manifest.tokenizer.end_of_document) == ("tiktoken", "<|end_of_text|>")
    assert (manifest.vocab_size, manifest.tokenizer.end_of_document_id) == (256 + 5 + 256, 256 + 5 + 1)
    tokenizer, found = tokenizer_in(out, manifest.tokenizer), []
    for part in (manifest.train, manifest.validation):
        split = PreparedSplit(out, part, manifest.dtype)
        for start, end in map(split.document, range(split.num_documents)):
            tokens = split.read(start, end - start)
            assert tokens.tolist().index(262) == len(tokens) - 1
            found.append(tokenizer.decode(tokens[:-1]))
    assert sorted(found) == sorted(contents)
    (tokens,) = open_tokenizer(str(tmp_path), None, "token").encode([b"a <|end_of_text|> b"])
    assert tokens.tolist().count(262) == 2
    assert command(monkeypatch, "inspect", out) == 0


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tiktoken")
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    with pytest.raises(ConfigError, match="SentencePiece"):
        open_tokenizer(str(tmp_path / "tokenizer.model"), None)

"""A run's weights as a Hugging Face folder, written with safetensors alone; see `muloco_runner.model.huggingface`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muloco_runner.config import ConfigError, ModelConfig
from muloco_runner.data.mixture import read_parts
from muloco_runner.inference.load import LoadedRun
from muloco_runner.model.foreign_config import foreign_config
from muloco_runner.model.huggingface import (
    EXACT,
    INDEX,
    WEIGHTS,
    digest_of,
    exact_differences,
    foreign_name,
    foreign_weight,
    parameter_of,
    safetensors,
)
from muloco_runner.record.config_text import config_text
from muloco_runner.training.precision import DTYPES

MAX_FILE_BYTES = 5 * 10**9


def export_run(loaded: LoadedRun, out: Path, dtype: str = "float32", max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Write the folder `out`, complete once it has its name.

    dtype: of the weights, float32 or bfloat16 (rounded to nearest even). max_file_bytes: weights of more are cut into
    several files. A folder that holds anything, and what cannot be written, raise `ConfigError`.
    """
    if not isinstance(loaded.config.model, ModelConfig):
        raise ConfigError(
            f"{loaded.folder.path} holds a model from outside ({loaded.config.model.label}), which transformers does "
            "not know: load_run gives you the model itself"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: there is something already: give a new folder")
    library = safetensors()
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        for name, values in _json_files(loaded, dtype).items():
            (draft / name).write_text(json.dumps(values, indent=2) + "\n")
        _write_tokenizer(loaded, draft)
        (draft / "README.md").write_text(_model_card(loaded, dtype))
        (draft / "muloco").mkdir()
        (draft / "muloco" / "config.yaml").write_text(config_text(loaded.config.to_dict()))
        weights = dict(loaded.model.named_parameters())
        _write_weights(library, {n: w.detach().cpu() for n, w in weights.items()}, draft, DTYPES[dtype], max_file_bytes)
        draft.chmod(0o755)
        draft.replace(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_weights(
    library: Any, weights: Mapping[str, Tensor], folder: Path, dtype: torch.dtype, max_file_bytes: int
) -> None:
    groups = list(_groups(weights, dtype, max_file_bytes))
    names = [f"model-{n:05d}-of-{len(groups):05d}.safetensors" for n in range(1, len(groups) + 1)]
    names = names if len(groups) > 1 else [WEIGHTS]
    digests: dict[str, str] = {}
    for file, group in zip(names, groups, strict=True):
        theirs = {name: foreign_weight(name, weights[name]).to(dtype).contiguous() for name in group}
        digests |= {name: digest_of(weight) for name, weight in theirs.items()}
        library.torch.save_file({foreign_name(n): w for n, w in theirs.items()}, folder / file, {"format": "pt"})
    if len(groups) > 1:
        total = sum(weight.numel() * dtype.itemsize for weight in weights.values())
        where = {foreign_name(name): file for file, group in zip(names, groups, strict=True) for name in group}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    # Rounded to bfloat16 they are other weights on purpose.
    exact = exact_differences(weights) if dtype == torch.float32 else {}
    if exact:
        of = {key: digests[parameter_of(key)] for key in exact}
        library.torch.save_file(exact, folder / EXACT, of)


def _groups(weights: Mapping[str, Tensor], dtype: torch.dtype, max_file_bytes: int) -> Iterator[list[str]]:
    """Names of the weights of each file, in the model's order."""
    group: list[str] = []
    size = 0
    for name, weight in weights.items():
        own = weight.numel() * dtype.itemsize
        if group and size + own > max_file_bytes:
            yield group
            group, size = [], 0
        group.append(name)
        size += own
    yield group


def _json_files(loaded: LoadedRun, dtype: str) -> dict[str, dict[str, Any]]:
    model = loaded.config.model
    assert isinstance(model, ModelConfig)
    tokens = {"bos_token_id": None, "eos_token_id": loaded.end, "pad_token_id": None}
    end = loaded.tokenizer.describe().end_of_document
    return {
        "config.json": {**foreign_config(model), **tokens, "torch_dtype": dtype},
        "generation_config.json": {"do_sample": True, **tokens},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": loaded.config.model.sequence_length,
            "clean_up_tokenization_spaces": False,
            **({} if end is None else {"eos_token": end}),
        },
    }


def _write_tokenizer(loaded: LoadedRun, folder: Path) -> None:
    """`tokenizer.json`, which gives the tokens of the run's own tokenizer without its end of a document."""
    kind = loaded.tokenizer.describe().kind
    if kind == "bytes":
        (folder / "tokenizer.json").write_text(json.dumps(_byte_tokenizer(), ensure_ascii=False) + "\n")
        return
    if kind != "huggingface":
        raise ConfigError(
            f"{loaded.folder.path}: its data was prepared with a tokenizer.model of {kind}, which is not written as a "
            "tokenizer.json: prepare the data with a tokenizer.json to export the model"
        )
    values = json.loads((read_parts(loaded.config.data)[0].folder / "tokenizer.json").read_text())
    # Training neither cuts nor fills up documents, and sets no token before them.
    values |= {"truncation": None, "padding": None, "post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(values, ensure_ascii=False) + "\n")


def _byte_tokenizer() -> dict[str, Any]:
    """A tokenizer.json whose tokens are bytes: a byte-level BPE without merges."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    # The characters by which byte-level tokenizers write bytes (GPT-2's table).
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {characters[byte]: byte for byte in range(256)},
            "merges": [],
        },
    }


def _model_card(loaded: LoadedRun, dtype: str) -> str:
    run, result = loaded.config, loaded.result
    whose = "the synchronised model" if loaded.worker is None else f"worker {loaded.worker}"
    rows = {
        "run": run.run_id,
        "algorithm": run.algorithm,
        "parameters": f"{run.num_params:,}",
        "weights": f"of {whose} after step {loaded.step:,} of {run.num_steps:,}, in {dtype}",
        "tokens": f"{loaded.step * run.global_batch_tokens:,}",
        "batch": f"{run.global_batch_tokens:,} tokens",
        "peak learning rate": f"{run.inner_optimizer.lr:g}",
        "data": f"{run.data.source} {run.data.content_hash or ''}".strip(),
    }
    if result is not None and result.validation_loss is not None:
        note = "" if loaded.step == result.num_steps else f" (at the end, step {result.num_steps:,})"
        per_byte = "" if result.bits_per_byte is None else f", {result.bits_per_byte:.4f} bits per byte"
        rows["validation loss"] = f"{result.validation_loss:.4f} nats per token{per_byte}{note}"
        for name, found in (result.named_validation or {}).items():
            if found["validation_loss"] is not None:
                rows[f"validation loss, {name}"] = f"{found['validation_loss']:.4f} nats per token{note}"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n"
        f"# {run.algorithm}, {run.num_params:,} parameters\n\n| | |\n|---|---|\n{table}\n\n"
        "Trained and exported by muloco-sweeps, after arXiv 2505.23725. The architecture is `Gemma3ForCausalLM`; "
        "`muloco/config.yaml` says how the run was trained.\n"
    )

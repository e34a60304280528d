"""What parameter_groups puts on Muon: hidden matrices, no head however it is named, and fused ones cut into parts."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from muloco_runner.config import ModelConfig
from muloco_runner.model.transformer import build_model
from muloco_runner.optimizers import Muon, describe_groups, parameter_groups


class Block(nn.Module):
    """Fused projections, as many models have them."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)


class Model(nn.Module):
    def __init__(self, head: Callable[[], nn.Module] | None, name: str = "head", first: bool = False) -> None:
        super().__init__()
        if head is not None and first:
            self.add_module(name, head())
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        if head is not None and not first:
            self.add_module(name, head())


def on_muon(model: nn.Module) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [group for group in parameter_groups(model) if group["algorithm"] == "muon"]
    return {names[id(parameter)].removesuffix(".weight") for group in groups for parameter in group["params"]}


HIDDEN = {f"blocks.{block}.{name}" for block in (0, 1) for name in ("qkv", "out_proj", "up", "down")}


@pytest.mark.parametrize(
    "model",
    [
        lambda: Model(lambda: nn.Linear(8, 11), "lm_head"),
        lambda: Model(lambda: nn.Linear(8, 11), "to_tokens"),
        lambda: Model(lambda: nn.Linear(8, 11), "to_tokens", first=True),
        lambda: Model(lambda: nn.Linear(8, 64), "padded"),  # wider than the vocabulary
        lambda: Model(lambda: nn.Linear(8, 10), "classes"),
        lambda: Model(lambda: nn.Linear(8, 1), "value_head", first=True),
        lambda: Model(lambda: nn.ModuleList(nn.Linear(8, 10) for _ in range(3)), "heads", first=True),
        lambda: Model(lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 10)), "classes"),
        lambda: Model(None),
    ],
    ids=["named", "unnamed", "first", "padded", "classes", "value", "several", "sequential", "none"],
)
def test_a_head_however_named_is_not_muons(model: Callable[[], nn.Module]) -> None:
    assert on_muon(model()) == HIDDEN


def test_attentions_lists_of_heads_are_hidden() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key, self.value = nn.Linear(8, 4), nn.Linear(8, 4)

    model = nn.ModuleDict(
        {"heads": nn.ModuleList(Head() for _ in range(2)), "proj": nn.Linear(8, 8), "lm_head": nn.Linear(8, 11)}
    )
    assert on_muon(model) == {*(f"heads.{n}.{name}" for n in (0, 1) for name in ("key", "value")), "proj"}


def test_a_tied_head_and_what_is_frozen_are_left_out() -> None:
    model = Model(lambda: nn.Linear(8, 11, bias=False), "to_tokens")
    model.to_tokens.weight = model.embedding.weight
    model.blocks[0].up.weight.requires_grad = False
    assert on_muon(model) == HIDDEN - {"blocks.0.up"}


def test_a_model_of_one_linear_layer_trains_it_with_muon() -> None:
    assert parameter_groups(nn.Linear(8, 4, bias=False))[0]["algorithm"] == "muon"


def test_the_trainers_groups_are_what_they_were() -> None:
    model = build_model(
        ModelConfig(width=32, num_layers=2, head_width=16, vocab_size=88, sequence_length=16), 0, torch.device("cpu")
    )
    muon, adamw = parameter_groups(model)
    hidden = [p for name, p in model.named_parameters() if name.startswith("blocks") and p.ndim == 2]
    assert [id(p) for p in muon["params"]] == [id(p) for p in hidden]
    assert len(muon["params"]) + len(adamw["params"]) == len(list(model.parameters()))


def test_a_table_says_what_is_where_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    model = Model(lambda: nn.Linear(8, 10), "classes")
    parameter_groups(model)
    assert capsys.readouterr().out == ""
    parameter_groups(model, verbose=True)
    lines = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["optimizer", "parameter", "shape", "values", "why"]
    assert ["Muon", "blocks.*.qkv.weight", "2 of 24 x 8", "384", "hidden matrix"] in lines
    assert ["AdamW", "classes.weight", "1 of 10 x 8", "80", "head: last, and no layer takes its outputs"] in lines
    assert ["AdamW", "embedding.weight", "1 of 11 x 8", "88", "embedding"] in lines
    assert ["AdamW", "blocks.*.up.bias", "2 of 32", "64", "vector"] in lines
    assert "no weight of a linear layer" in describe_groups(nn.Conv1d(3, 4, 2))


def test_fused_projections_get_a_group_of_their_own() -> None:
    model = Model(None)
    split, plain, adamw = parameter_groups(model, split={"qkv": 3})
    assert (split["split"], [tuple(p.shape) for p in split["params"]]) == (3, [(24, 8)] * 2)
    assert "split" not in plain
    assert adamw["algorithm"] == "adamw"
    Muon([split, plain, adamw])
    with pytest.raises(ValueError, match="no hidden matrix has 'c_attn' in its name"):
        parameter_groups(model, split={"c_attn": 3})

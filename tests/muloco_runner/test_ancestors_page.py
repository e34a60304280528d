"""docs/ancestors.md: each row's options, tried on ours: what works works, what is refused is refused, defaults hold."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from torch import nn

from muloco_runner.compose import AppConfig, compose_tree, to_app_config
from muloco_runner.config import ConfigError
from muloco_runner.config.keys import known_keys, no_such_setting
from muloco_runner.optimizers import MuLoCo1, Muon
from muloco_runner.optimizers.ancestors import Ancestor

if find_spec("optax") is not None:
    import jax  # noqa: F401  # sets environment variables, which no test may leave behind

ROOT = Path(__file__).parents[2]
VERDICTS = ("works", "other name", "always", "refused", "not here", "out of scope")


class Row(NamedTuple):
    section: str
    there: str
    default_there: str
    here: str
    default: str
    verdict: str

    @property
    def is_refused(self) -> bool:
        return self.verdict.startswith("refused")


def rows() -> Iterator[Row]:
    """Rows of five columns, backticks taken off where a cell is one piece of code."""
    section = ""
    for line in (ROOT / "docs" / "ancestors.md").read_text().splitlines():
        if line.startswith("## "):
            section = line[3:]
        cells = [re.sub(r"^`([^`]*)`$", r"\1", cell.strip()) for cell in line.split("|")[1:-1]]
        if len(cells) == 5 and cells[0] != "there" and "---" not in cells[0]:
            yield Row(section, *cells)


ROWS = list(rows())
OPTIMIZERS: dict[str, tuple[Ancestor, type[Muon]]] = {
    "muloco-1: Muon": ("muloco-1", Muon),
    "muloco-1: MuLoCo1": ("muloco-1", MuLoCo1),
    "Keller Jordan: Muon": ("keller_jordan", Muon),
    "torch.optim.Muon": ("torch", Muon),
    "nanochat: Muon and DistMuon": ("nanochat", Muon),
    "nanochat: MuonAdamW": ("nanochat", Muon),
    "modded-nanogpt: NorMuonAndAdam": ("nanochat", Muon),
}
JAX, EXAMPLE = "muloco-1: JAX", "muloco-1: examples/train_lm.py"


def of(*sections: str) -> Any:
    chosen = [row for row in ROWS if row.section in sections]
    return pytest.mark.parametrize("row", chosen, ids=lambda row: f"{row.section}-{row.there}-{row.default_there}")


def configs() -> Any:
    return of(*({row.section for row in ROWS} - OPTIMIZERS.keys() - {JAX, EXAMPLE}))


def test_every_row_has_a_verdict_of_at_most_ten_words() -> None:
    assert len(ROWS) > 250
    for row in ROWS:
        assert row.verdict.startswith(VERDICTS), row
        assert len(row.verdict.split()) <= 10, row
        assert bool(row.here) or not row.verdict.startswith("works"), row


@of(*OPTIMIZERS)
def test_an_optimizers_option(row: Row) -> None:
    ancestor, kind = OPTIMIZERS[row.section]

    def group(like: bool, **settings: Any) -> dict[str, Any]:
        in_group = {name: settings.pop(name) for name in ("algorithm", "use_muon") if name in settings}
        params = [{"params": [nn.Parameter(torch.eye(12, 8))], **in_group}]
        optimizer = kind.like(ancestor, params, **settings) if like else kind(params, **settings)
        return {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}

    value = ast.literal_eval(row.default_there)
    if not row.verdict.startswith("works"):
        with pytest.raises((TypeError, ValueError), match=row.there):
            group(like=True, **{row.there: value})
    else:
        asked = group(like=True, **{row.there: value})
        if row.section.startswith(("nanochat: MuonAdamW", "modded")):
            assert asked[row.here] == value
        else:
            named = {"coefficients": "keller_jordan"} if row.here == "coefficients" else {}
            assert asked | named == group(like=True), "it is the default of that implementation"
    if row.here:
        assert group(like=False)[row.here] == ast.literal_eval(row.default)


def test_arguments_for_jax() -> None:
    ours = pytest.importorskip("muloco_runner.jax")
    for row in (row for row in ROWS if row.section == JAX):
        function, _, argument = row.here.partition(".")
        assert row.here == row.there
        default = inspect.signature(getattr(ours, function)).parameters[argument].default
        if row.default:
            assert default == ast.literal_eval(row.default) == ast.literal_eval(row.default_there)
        else:
            assert default is inspect.Parameter.empty


@of(EXAMPLE)
def test_a_flag_of_the_example(
    row: Row, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    setup = importlib.import_module("lm_setup")
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 2000)
    words = ["--dataset", str(text), row.there, *([row.default_there] if row.default_there else [])]
    if row.is_refused:
        with pytest.raises(SystemExit, match="2"):
            setup.arguments("", words)
        assert f"{row.there}" in capsys.readouterr().err.splitlines()[-1]
    else:
        asked, default = (vars(setup.arguments("", given)) for given in (words, words[:2]))
        name = row.there.removeprefix("--").replace("-", "_")
        assert asked[name] == (yaml.safe_load(row.default_there) if row.default_there else True)
        assert default[name] == (yaml.safe_load(row.default) if row.default else False)


TOGETHER = (
    (),
    ("model=150m", "schedule=wsd", "method/compression=statistical", "method/outer_optimizer=adam"),
    ("model=ladder", "method/compression=linear", "method/outer_optimizer=muon"),
    ("model=416m", "method/compression=top_k", "method/outer_optimizer=muloco", "inner_optimizer=adamw"),
    ("model=42k", "data=python_source", "inner_optimizer=muon"),
)
"""Choices that are composed at once: that takes a good part of a second."""


@cache
def composed(choices: tuple[str, ...]) -> DictConfig:
    return compose_tree(choices if any(c.startswith("algorithm=") for c in choices) else ["algorithm=muloco", *choices])


def asked_for(row: Row) -> tuple[DictConfig, dict[str, Any]]:
    """A tree that has a row's choices, and the values that it sets besides."""
    choices, values = [], {}
    for override in OverridesParser.create().parse_overrides(shlex.split(row.here)):
        key = override.get_key_element()
        if key == "algorithm" or isinstance(OmegaConf.select(composed(()), key.replace("/", ".")), DictConfig):
            choices.append(f"{key}={override.value()}")
        else:
            values[key] = override.value()
    return composed(next((group for group in TOGETHER if {*choices} <= {*group}), tuple(choices))), values


@configs()
def test_an_option_of_a_run(row: Row) -> None:
    assert row.there not in known_keys(AppConfig) or row.is_refused, "it would be taken for ours"
    if not row.here:
        return
    tree, values = asked_for(row)
    first = next(iter(values), "")
    if "." in row.there and not row.is_refused:
        ours = [word.partition("=")[0].replace("/", ".") for word in shlex.split(row.here)]
        said = no_such_setting(row.there, AppConfig, ["algorithm"])
        assert said.endswith(tuple(f"did you mean {key}?" for key in ours)), said
    if row.default:
        assert OmegaConf.select(tree, first) == as_value(row.default)
    changed = tree.copy()
    for key, value in values.items():
        OmegaConf.update(changed, key, value, merge=False)
    if row.is_refused:
        with pytest.raises(ConfigError, match=re.escape(f"{first}=")):
            to_app_config(changed)
    else:
        to_app_config(changed)


def as_value(cell: str) -> Any:
    value = yaml.safe_load(cell)
    return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value) else value

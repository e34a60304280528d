"""JAX's optimizers and torch's: the same gradients, the same parameters after 100 steps, with every setting."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from muloco_runner.optimizers import MuLoCo1, Muon
from muloco_runner.optimizers.ancestors import defaults_of

jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
jnp, ours_for_jax = pytest.importorskip("jax.numpy"), pytest.importorskip("muloco_runner.jax")
paper_muon, paper_muloco = ours_for_jax.paper_muon, ours_for_jax.paper_muloco
paper_adamw, paper_diloco = ours_for_jax.paper_adamw, ours_for_jax.paper_diloco

STEPS = 100
SHAPES = {"wide": (6, 15), "tall": (12, 6), "qkv": (12, 4), "filters": (6, 2, 4), "embed": (7, 4), "gain": (5,)}
"""As torch has them: fan-out first."""
MATRICES = {name: name in ("wide", "tall", "qkv", "filters") for name in SHAPES}
IN_OUT = {name: tuple(reversed(range(len(shape)))) for name, shape in SHAPES.items()}
"""Of each its axes for JAX, so that the last is the fan-out: of (O, I, k) filters (k, I, O)."""


def numbers(step: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(step)
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def with_torch(make: Any, schedule: Any) -> dict[str, np.ndarray]:
    parameters = {name: nn.Parameter(torch.from_numpy(value)) for name, value in numbers(1000).items()}
    matrices = [(name, parameter) for name, parameter in parameters.items() if MATRICES[name]]
    others = [(name, parameter) for name, parameter in parameters.items() if not MATRICES[name]]
    optimizer = make([{"params": matrices}, {"params": others, "algorithm": "adamw"}])
    for step in range(STEPS):
        for name, gradient in numbers(step).items():
            parameters[name].grad = torch.from_numpy(gradient)
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


def with_jax(optimizer: Any, axes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    def laid(values: dict[str, np.ndarray]) -> Any:
        return {name: value.transpose(axes[name]) for name, value in values.items()}

    def step(carry: Any, gradients: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = laid(numbers(1000))
    every = [laid(numbers(step)) for step in range(STEPS)]
    stacked = {name: np.stack([gradients[name] for gradients in every]) for name in SHAPES}
    params = jax.tree.map(jnp.asarray, params)
    (params, _), _ = jax.jit(lambda *given: jax.lax.scan(step, *given))((params, optimizer.init(params)), stacked)
    return {name: np.asarray(value).transpose(np.argsort(axes[name])) for name, value in params.items()}


def agree(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    for name in SHAPES:
        difference = np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name])
        assert difference < 1e-5, (name, difference)


AS_THEY_ARE = {name: tuple(range(len(shape))) for name, shape in SHAPES.items()}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.5, "nesterov": True, "lr_scale": "keller_jordan", "coefficients": "keller_jordan"},
    {"momentum_form": "ema", "lr_scale": "moonlight", "coefficients": "polar_express", "num_iterations": 4},
    {"momentum_form": "ema", "nesterov": True, "lr_scale": "none", "coefficients": (3.4, -4.7, 2.0)},
    {"momentum_form": "ema", "nesterov": "corrected", "coefficients": "keller_jordan", "num_iterations": 3},
    {"epsilon": 0.5, "batched": True, "split": {"qkv": 3}, "weight_decay": 0.0},
    {"norm_floor": 20.0, "split": 3, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3},
]


def constant(step: Any) -> float:
    return 0.02


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_muon_is_torchs(settings: dict[str, Any]) -> None:
    theirs = with_torch(lambda params: Muon.like("paper", params, backend="reference", **settings), constant)
    optimizer = paper_muon(0.02, matrices=MATRICES, orientation="out_in", **settings)
    agree(with_jax(optimizer, AS_THEY_ARE), theirs)


def test_the_other_orientation_is_the_same_transposed() -> None:
    for settings in SETTINGS[5], SETTINGS[6]:
        theirs = with_torch(lambda params, s=settings: Muon.like("paper", params, backend="reference", **s), constant)
        # Where it is no batch a filter's inputs lie in another order, which changes nothing.
        axes = {**IN_OUT, "filters": (0, 2, 1)} if settings.get("batched") else IN_OUT
        agree(with_jax(paper_muon(0.02, matrices=MATRICES, **settings), axes), theirs)


def test_muloco_is_muloco1_also_with_a_schedule() -> None:
    theirs = with_torch(
        lambda params: MuLoCo1.like("paper", params, backend="reference"), lambda step: 0.02 * 0.98**step
    )
    optimizer = paper_muloco(lambda step: 0.02 * 0.98**step, matrices=MATRICES, orientation="out_in")
    agree(with_jax(optimizer, AS_THEY_ARE), theirs)
    theirs = with_torch(lambda params: MuLoCo1(params, 0.02, 0.9, 0.8, 7, nesterov=True, backend="reference"), constant)
    optimizer = paper_muloco(
        0.02, 0.9, 0.8, 7, nesterov=True, matrices=MATRICES, orientation="out_in", epsilon=0.0, weight_decay=0.0
    )
    agree(with_jax(optimizer, AS_THEY_ARE), theirs)


def test_adamw_and_diloco_are_torchs() -> None:
    def all_adamw(kind: type[Muon], **more: Any) -> Any:
        return lambda groups: kind(
            [{**group, "algorithm": "adamw"} for group in groups], weight_decay=0.1, betas=(0.8, 0.9), **more
        )

    settings: Any = {"weight_decay": 0.1, "betas": (0.8, 0.9)}
    agree(with_jax(paper_adamw(0.02, **settings), AS_THEY_ARE), with_torch(all_adamw(Muon), constant))
    theirs = with_torch(all_adamw(MuLoCo1, outer_momentum=0.8), constant)
    agree(with_jax(paper_diloco(0.02, **settings), AS_THEY_ARE), theirs)


def test_defaults_are_the_papers() -> None:
    paper = defaults_of("paper")
    ours = {name: p.default for name, p in inspect.signature(paper_muon).parameters.items()}
    assert {name: ours.get(name, ours["learning_rate"]) for name in paper} == paper
    known = set(inspect.signature(Muon.__init__).parameters) - {"self", "params", "others"}
    of_torch = {"lr", "backend", "process_group", "average", "traffic", "arena", "cuda_graph", "weight_decay_form"}
    assert known - of_torch < set(ours), "every other setting of Muon"


def test_a_matrix_of_any_scale_is_orthogonalised() -> None:
    optimizer = paper_muon(1.0, matrices=True, epsilon=0.0, weight_decay=0.0)
    x = jnp.asarray(numbers(0)["wide"])
    for dtype, scales in ((jnp.float32, (1e-30, 1e-6, 1.0, 1e30)), (jnp.bfloat16, (1.0, 2.0**100))):
        results = [
            optimizer.update({"w": (x * scale).astype(dtype)}, optimizer.init({"w": x}), {"w": x})[0]["w"]
            for scale in scales
        ]
        for result in results:
            np.testing.assert_allclose(result, results[0], rtol=1e-4, atol=1e-5)
    assert not jnp.any(optimizer.update({"w": x * 0}, optimizer.init({"w": x}), {"w": x})[0]["w"])


def test_hidden_matrices_are_known_by_their_names() -> None:
    tree = {
        "embed": {"embedding": np.zeros((5, 4))},
        "pos_emb": np.zeros((5, 4)),
        "embedder": {"mlp": {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)}},
        "blocks": [{"query": {"w": np.zeros((4, 4))}, "conv": np.zeros((3, 3, 4))}],
        "lm_head": {"kernel": np.zeros((4, 5))},
        "heads": [np.zeros((4, 5))],
        # By these names a head; a value beside a query is a projection, alone it is how NNX holds an array.
        "attention_head": {"query": np.zeros((4, 4)), "value": np.zeros((4, 4))},
        "other_head": {"query": {"kernel": np.zeros((4, 4))}, "value": {"kernel": np.zeros((4, 4))}},
        "output": {"kernel": {"value": np.zeros((4, 5))}},
    }
    hidden = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, is_hidden in jax.tree_util.tree_flatten_with_path(ours_for_jax.hidden_matrices(tree))[0]
        if is_hidden
    ]
    projections = ["attention_head.query", "attention_head.value", "other_head.query.kernel", "other_head.value.kernel"]
    assert hidden == [*projections[:2], "blocks.0.query.w", "embedder.mlp.kernel", *projections[2:]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"momentum": 1.5}, r"momentum=1\.5: must be at least 0 and below 1"),
        ({"lr_scale": "spectrum"}, "lr_scale='spectrum': must be one of spectral"),
        ({"orientation": "io"}, "orientation='io': must be one of in_out, out_in"),
        ({"coefficients": "mine"}, "coefficients='mine': must be one of muloco"),
        ({"num_iterations": 3}, "num_iterations=3: coefficients=muloco are five"),
        ({"nesterov": "corrected"}, "give momentum_form='ema'"),
        ({"split": {"kqv": 3}}, "no matrix of Muon's has 'kqv' in its name"),
        ({"split": 4}, "split=4: does not divide the 15 rows"),
        ({"matrices": {"w": True, "b": True}}, "b of shape .3,. is no matrix"),
        ({"matrices": {"w": 1, "b": False}}, "matrices=1 of w: must be True or False"),
        ({"matrices": False}, "no matrix for Muon among b, w"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        paper_muon(**settings).init({"w": jnp.zeros((4, 15)), "b": jnp.zeros(3)})

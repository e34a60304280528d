"""`muloco_runner.jax`: outer steps around any optimizer of Optax, of one worker and of K."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
jnp, ours_for_jax = pytest.importorskip("jax.numpy"), pytest.importorskip("muloco_runner.jax")
muloco, diloco, muloco_wrapper = ours_for_jax.muloco, ours_for_jax.diloco, ours_for_jax.muloco_wrapper
paper_muloco, paper_diloco = ours_for_jax.paper_muloco, ours_for_jax.paper_diloco
paper_muon = ours_for_jax.paper_muon
MuLoCoState = ours_for_jax.MuLoCoState
jax.config.update("jax_num_cpu_devices", 4)
Params = Any


def start(dtype: Any = jnp.float32) -> Params:
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "embed": jax.random.normal(keys[0], (5, 4), dtype),
        "mlp": [{"kernel": jax.random.normal(keys[1], (4, 6), dtype), "bias": jnp.zeros(6, dtype)}],
        "head": jax.random.normal(keys[2], (6, 5), dtype),
    }


def gradients(step: int, dtype: Any = jnp.float32, seed: int = 1) -> Params:
    keys = iter(jax.random.split(jax.random.fold_in(jax.random.key(seed), step), 4))
    return jax.tree.map(lambda param: jax.random.normal(next(keys), param.shape, dtype), start())


def trained(optimizer: Any, steps: int, dtype: Any = jnp.float32, update: Any = None) -> tuple[Params, Any]:
    params, state = start(dtype), None
    state = optimizer.init(params)
    update = update or jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(gradients(step, dtype), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def agree(ours: Params, theirs: Params, tolerance: float = 1e-6) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype
        assert jnp.linalg.norm((one - other).astype(jnp.float32)) <= tolerance * jnp.linalg.norm(other), (one, other)


OPTIMIZERS = {
    "muloco": lambda **more: muloco(0.02, sync_interval=3, **more),
    "diloco": lambda **more: diloco(0.01, sync_interval=3, **more),
    "wrapper": lambda **more: muloco_wrapper(optax.sgd(0.1, momentum=0.9), 0.5, 0.5, 3, **more),
    "paper_muloco": lambda **more: paper_muloco(sync_interval=3, **more),
    "paper_diloco": lambda **more: paper_diloco(sync_interval=3, **more),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_shapes_and_dtypes_are_kept_with_float32_state(name: str, dtype: Any) -> None:
    params = start(dtype)
    optimizer = OPTIMIZERS[name]()
    state = optimizer.init(params)
    updates, after = jax.eval_shape(optimizer.update, params, state, params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("int32"), jnp.dtype("float32")}


def test_the_state_has_the_published_fields() -> None:
    assert MuLoCoState._fields == ("inner_state", "inner_count", "param_snapshot", "outer_momentum_buffer")
    optimizer = muloco_wrapper(optax.sgd(0.1), sync_interval=3)
    params, state = trained(optimizer, 2)
    assert isinstance(state, MuLoCoState)
    assert int(state.inner_count) == 2
    agree(state.param_snapshot, start(), 0)
    assert not any(jax.tree.leaves(jax.tree.map(jnp.any, state.outer_momentum_buffer)))
    params, state = trained(optimizer, 3)
    assert int(state.inner_count) == 0
    agree(state.param_snapshot, params)
    again = optimizer.init(start())
    assert all(a is not b for a, b in zip(jax.tree.leaves(again.param_snapshot), jax.tree.leaves(start()), strict=True))


def test_between_outer_steps_it_is_its_inner_optimizer_to_the_bit() -> None:
    for inner, ours in (
        (optax.adamw(0.01, 0.9, 0.999, weight_decay=0.0, nesterov=True), diloco(0.01)),
        (optax.contrib.muon(0.02), muloco(0.02)),
        (optax.sgd(0.1), muloco_wrapper(optax.sgd(0.1))),
    ):
        agree(trained(ours, 4)[0], trained(inner, 4)[0], 0)


@pytest.mark.parametrize("name", ["diloco", "paper_muloco"])
def test_jit_equals_eager(name: str) -> None:
    optimizer = OPTIMIZERS[name]()
    for ours, theirs in zip(trained(optimizer, 4), trained(optimizer, 4, update=optimizer.update), strict=True):
        agree(ours, theirs, 1e-5)


def test_outer_steps_are_nesterov_on_the_pseudogradient() -> None:
    inner, outer = optax.adam(0.01), optax.sgd(0.7, momentum=0.6, nesterov=True)
    params, anchor, state = start(), start(), inner.init(start())
    outer_state = outer.init(anchor)
    for step in range(9):
        updates, state = inner.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
        if step % 3 == 2:
            delta = jax.tree.map(jnp.subtract, anchor, params)
            updates, outer_state = outer.update(delta, outer_state, anchor)
            params = anchor = optax.apply_updates(anchor, updates)
    agree(trained(muloco_wrapper(optax.adam(0.01), sync_interval=3), 9)[0], params)
    # Plain averaging of one worker leaves the inner optimizer as it is.
    agree(trained(muloco_wrapper(optax.adam(0.01), 1.0, 0.0, 2), 7)[0], trained(optax.adam(0.01), 7)[0])


def test_losses_fall_in_a_chain_with_a_schedule_in_bfloat16() -> None:
    x, y = jax.random.normal(jax.random.key(3), (32, 4)), jax.random.normal(jax.random.key(4), (32, 5))

    def loss(params: Params) -> Any:
        hidden = jnp.tanh(x @ params["mlp"][0]["kernel"] + params["mlp"][0]["bias"])
        return jnp.mean(jnp.square(hidden @ params["head"] - y))

    for dtype, make in ((jnp.float32, paper_muloco), (jnp.bfloat16, paper_muloco), (jnp.float32, paper_diloco)):
        schedule = optax.warmup_cosine_decay_schedule(0, 0.03, 5, 40)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), make(schedule, sync_interval=5))
        params = start(dtype)
        state = optimizer.init(params)

        @jax.jit
        def step(params: Params, state: Any, optimizer: Any = optimizer) -> Any:
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

        losses = []
        for _ in range(40):
            params, state, value = step(params, state)
            losses.append(float(value))
        assert losses[-1] < 0.6 * losses[0], (dtype, make)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}


@functools.cache
def by_hand(num_workers: int, steps: int, outer_lr: float, mu: float) -> Params:
    inner = optax.adam(0.01)
    params = [start() for _ in range(num_workers)]
    states = [inner.init(p) for p in params]
    anchor, momentum = start(), jax.tree.map(jnp.zeros_like, start())
    for step in range(steps):
        for k in range(num_workers):
            updates, states[k] = inner.update(gradients(step, seed=k), states[k], params[k])
            params[k] = optax.apply_updates(params[k], updates)
        if step % 3 == 2:
            mean = jax.tree.map(lambda *workers: sum(workers) / num_workers, *params)
            delta = jax.tree.map(jnp.subtract, anchor, mean)
            momentum = jax.tree.map(lambda u, d: mu * u + outer_lr * d, momentum, delta)
            anchor = jax.tree.map(lambda a, u, d: a - mu * u - outer_lr * d, anchor, momentum, delta)
            params = [anchor] * num_workers
    return jax.tree.map(lambda *workers: jnp.stack(workers), *params)


@pytest.mark.parametrize("over", ["shard_map", "vmap"])
def test_workers_along_an_axis_average_at_outer_steps(over: str) -> None:
    """Seven steps: two outer ones, and one more, in which workers differ."""
    optimizer = muloco_wrapper(optax.adam(0.01), 0.9, 0.8, 3, axis_name="workers")
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), start())
    state = jax.vmap(optimizer.init)(stacked)

    def one(gradient: Params, state: Any, params: Params) -> tuple[Params, Any]:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    if over == "vmap":
        step = jax.jit(jax.vmap(one, axis_name="workers"))
    else:

        def of_shard(*trees: Any) -> Any:
            done = one(*jax.tree.map(lambda leaf: leaf[0], trees))
            return jax.tree.map(lambda leaf: leaf[None], done)

        spec = jax.sharding.PartitionSpec("workers")
        mesh = jax.sharding.Mesh(jax.devices(), ("workers",))
        step = jax.jit(jax.shard_map(of_shard, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec))
    params = stacked
    for number in range(7):
        each = [gradients(number, seed=k) for k in range(4)]
        params, state = step(jax.tree.map(lambda *leaves: jnp.stack(leaves), *each), state, params)
    agree(params, by_hand(4, 7, 0.9, 0.8), 1e-5)
    head = params["head"]
    assert not jnp.allclose(head[0], head[1]), "workers have stepped apart since"


def test_settings_in_the_state_change_between_steps() -> None:
    fixed = ("num_iterations", "split", "norm_floor")
    given = optax.inject_hyperparams(paper_muon, static_args=fixed)(learning_rate=0.02)
    optimizer = muloco_wrapper(given, sync_interval=2)
    state = optimizer.init(start())
    state.inner_state.hyperparams["learning_rate"] = jnp.float32(0.0)
    updates, _ = jax.jit(optimizer.update)(gradients(0), state, start())
    assert not any(map(jnp.any, jax.tree.leaves(updates)))
    agree(trained(optimizer, 3)[0], trained(paper_muloco(sync_interval=2), 3)[0], 1e-5)


def test_gradients_accumulate_around_it_in_bfloat16() -> None:
    """`optax.MultiSteps` takes no transformation that changes the dtype of updates."""
    optimizer = optax.MultiSteps(paper_muloco(sync_interval=2), 2)
    params, state = trained(optimizer, 4, jnp.bfloat16)
    assert int(state.inner_opt_state.inner_count) == 0
    assert int(state.gradient_step) == 2
    snapshot = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.inner_opt_state.param_snapshot)
    agree(params, snapshot, 1e-2)


def test_donated_parameters_and_state_do_not_share_memory() -> None:
    optimizer = paper_muloco(sync_interval=2)
    params = start()
    state = optimizer.init(params)
    step = jax.jit(optimizer.update, donate_argnums=(1, 2))
    step(gradients(0), state, params)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: muloco_wrapper(optax.sgd(0.1), sync_interval=0), "sync_interval=0: must be a whole number"),
        (lambda: muloco(0.1, outer_momentum=1.0), r"outer_momentum=1\.0: must be at least 0 and below 1"),
        (lambda: diloco(0.1, outer_lr=-1.0), r"outer_lr=-1\.0: must be at least 0"),
        (lambda: muloco(0.1).update(start(), muloco(0.1).init(start())), "the parameters are needed"),
    ],
    ids=["interval", "momentum", "lr", "parameters"],
)
def test_what_cannot_be_meant_is_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


ALONE = """
import sys
sys.modules["torch"] = None
import jax, jax.numpy as jnp, optax
from muloco_runner.jax import diloco, muloco, paper_diloco, paper_muloco
for make in (lambda: muloco(0.02), lambda: diloco(0.02), paper_muloco, paper_diloco):
    params = {"kernel": jnp.eye(4, 6)}
    optimizer = make()
    updates, _ = optimizer.update({"kernel": jnp.ones((4, 6))}, optimizer.init(params), params)
    assert float(jnp.abs(updates["kernel"]).max()) > 0
assert not any(name.startswith("torch.") for name in sys.modules)
"""


def test_it_trains_where_there_is_no_torch_and_as_documented() -> None:
    root = Path(__file__).parents[3]
    documented = (root / "docs" / "library.md").read_text().partition("## JAX")[2]
    code = ALONE + documented.partition("```python")[2].partition("```")[0] + "assert loss < 0.5"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""DiLoCo runs drawn at random from all that can be composed: two settings that nobody tries together may clash."""

import random
from collections.abc import Callable, Iterator
from typing import Any

from muloco_runner.config import (
    OUTER_OPTIMIZERS,
    AdamWConfig,
    CompressionConfig,
    ConfigError,
    InnerOptimizerConfig,
    ModelConfig,
    MuonConfig,
    QuantisationConfig,
    RunConfig,
    StreamingConfig,
    TopKConfig,
)


def random_runs(seed: int, count: int, tiny_run: Callable[..., RunConfig]) -> list[RunConfig]:
    """Runs that pass validation, all different."""
    draws = _draws(random.Random(seed), tiny_run)
    found: dict[str, RunConfig] = {}
    while len(found) < count:
        run = next(draws)
        found[run.run_id] = run
    return list(found.values())


def _draws(chance: random.Random, tiny_run: Callable[..., RunConfig]) -> Iterator[RunConfig]:
    while True:
        compression = _compression(chance)
        try:
            yield tiny_run(
                "diloco",
                num_workers=chance.choice([1, 2, 4]),
                sync_interval=chance.choice([1, 2, 3, 5, 7, 10]),
                num_steps=chance.choice([7, 13, 20]),
                global_batch_tokens=chance.choice([256, 512]),
                inner_optimizer=_inner_optimizer(chance),
                outer_optimizer=chance.choice(list(OUTER_OPTIMIZERS.values()))(),
                model=_model(chance),
                precision=chance.choice(["float32", "bfloat16"]),
                seed=chance.randrange(5),
                streaming=StreamingConfig(chance.randint(1, 3), chance.randint(0, 3), chance.choice([0.0, 0.1, 0.9])),
                **({} if compression is None else {"compression": compression}),
            )
        except ConfigError:
            continue  # such as fragments that would overtake one another


def _compression(chance: random.Random) -> CompressionConfig | None:
    memory = chance.choice([1.0, 0.9, None])
    match chance.choice(["none", "quantised", "sparse"]):
        case "quantised":
            return QuantisationConfig(
                chance.choice(["statistical", "linear"]),
                bits=chance.choice([2, 4, 8]),
                granularity=chance.choice(["tensor", "row"]),
                exchange=chance.choice(["all_gather", "reduce_scatter"]),
                error_feedback=memory,
            )
        case "sparse":
            values: dict[str, Any] = chance.choice([{}, {"values": "linear", "bits": 4}])
            return TopKConfig(fraction=chance.choice([0.01, 0.1, 0.5]), error_feedback=memory, **values)
    return None


def _inner_optimizer(chance: random.Random) -> InnerOptimizerConfig:
    decay: dict[str, Any] = {"weight_decay": 0.1, "weight_decay_rule": "constant"}
    if chance.random() < 0.3:
        return AdamWConfig(**decay)
    return MuonConfig(
        momentum_form=chance.choice(["sum", "ema"]),
        nesterov=chance.choice([True, False]),
        lr_scale=chance.choice(["spectral", "keller_jordan", "moonlight"]),
        coefficients=chance.choice(["muloco", "keller_jordan", "polar_express"]),
        **decay,
    )


def _model(chance: random.Random) -> ModelConfig:
    return ModelConfig(
        width=chance.choice([16, 24, 32]),
        num_layers=chance.randint(1, 3),
        head_width=8,
        vocab_size=256,
        sequence_length=32,
        ffn_ratio=2.75,
        rope_theta=1e4,
    )

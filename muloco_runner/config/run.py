"""One run: its axes composed, the numbers that follow from them, and its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, assert_never, cast, get_args

from muloco_runner.config.checks import ConfigError, require, require_choice, require_positive
from muloco_runner.config.compression import COMPRESSIONS, CompressionConfig
from muloco_runner.config.data import DATA, DataConfig
from muloco_runner.config.inner_optimizer import (
    INNER_OPTIMIZERS,
    AdamWConfig,
    InnerOptimizerConfig,
    WeightDecayRule,
)
from muloco_runner.config.method import METHODS, DataParallelConfig, MethodConfig
from muloco_runner.config.model import MODELS, AnyModelConfig, ModelConfig
from muloco_runner.config.names import names_in_hash, names_now
from muloco_runner.config.one_value import as_field_takes_it
from muloco_runner.config.outer_optimizer import OUTER_OPTIMIZERS, OuterOptimizerConfig
from muloco_runner.config.outside import FromOutside
from muloco_runner.config.plain import UNNAMED_AT_DEFAULT, Variants, from_plain, hints_of, to_plain
from muloco_runner.config.schedule import SCHEDULES, CosineConfig, ScheduleConfig
from muloco_runner.config.variants import require_variant

Precision = Literal["float32", "bfloat16"]
VARIANTS: Variants = {
    AnyModelConfig: MODELS,
    DataConfig: DATA,
    MethodConfig: METHODS,
    InnerOptimizerConfig: INNER_OPTIMIZERS,
    OuterOptimizerConfig: OUTER_OPTIMIZERS,
    CompressionConfig: COMPRESSIONS,
    ScheduleConfig: SCHEDULES,
}
_CONTENT_OF = {
    "data.source": "content_hash",
    "data.path": "content_hash",
    "data.mixture": "content_hash",
    "data.validation_fraction": "content_hash",
    "data.validation": "validation_hash",
    "init_from": "init_hash",
}
"""Settings that say where content lies -> the hash beside each, which names the run by that content."""


@dataclass
class RunConfig:
    """All that decides a run's result, and nothing else."""

    model: AnyModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig = field(default_factory=DataParallelConfig)
    inner_optimizer: InnerOptimizerConfig = field(default_factory=AdamWConfig)
    schedule: ScheduleConfig = field(default_factory=CosineConfig)
    global_batch_tokens: int = 1_048_576
    """B, tokens in one inner step summed over all workers."""
    tokens_per_parameter: float = 20.0
    """Token budget D over N."""
    gradient_clip_norm: float = 1.0
    """Each worker's gradient is scaled down to this norm before its inner step."""
    precision: str = "float32"
    """Forward and backward pass; master weights, gradient reductions and optimizer state are float32."""
    seed: int = 0
    init_from: str | None = field(default=None, metadata=UNNAMED_AT_DEFAULT)
    """Weights that the model starts from: a run's folder (its newest checkpoint), a checkpoint's own, or a Hugging Face
    folder that `muloco-model export` wrote. Optimizers begin anew. Null for random weights."""
    init_exclude: list[str] = field(default_factory=list, metadata=UNNAMED_AT_DEFAULT)
    """Patterns of parameters that start at random all the same, such as head.*; and settings of the model that are to
    be others than those of the weights, though no shape shows it: model.rope_theta, norm_eps, head_width, num_layers.
    """
    init_hash: str | None = field(default=None, metadata=UNNAMED_AT_DEFAULT)
    """Content of these weights, 16 hex digits, filled in when a run is composed: it names the run in place of the path,
    and other weights are refused."""

    def __post_init__(self) -> None:
        require_variant("model", self.model, MODELS)
        require_variant("data", self.data, DATA)
        require_variant("method", self.method, METHODS)
        require_variant("inner_optimizer", self.inner_optimizer, INNER_OPTIMIZERS)
        require_variant("schedule", self.schedule, SCHEDULES)
        require_positive(
            "",
            global_batch_tokens=self.global_batch_tokens,
            tokens_per_parameter=self.tokens_per_parameter,
            gradient_clip_norm=self.gradient_clip_norm,
        )
        require_choice("precision", self.precision, get_args(Precision))
        require(0 <= self.seed < 2**63, f"seed={self.seed}: must be zero or positive, and below 2^63")
        unit = self.model.sequence_length * self.num_workers
        fits = max(1, round(self.global_batch_tokens / unit)) * unit
        require(
            self.global_batch_tokens % unit == 0,
            f"global_batch_tokens={self.global_batch_tokens} does not split into sequences of "
            f"{self.model.sequence_length} tokens for {self.num_workers} worker(s): "
            f"use a multiple of {unit}, such as {fits}",
        )
        require(
            self.init_from is not None or not (self.init_exclude or self.init_hash),
            f"init_exclude={self.init_exclude} has no effect without init_from: name the weights to start from",
        )
        self.schedule.check(self.num_steps)
        self.method.check(self.num_steps, self.model.num_layers)

    # Derived numbers: computed here once, never typed in.

    @property
    def algorithm(self) -> str:
        """Method times inner optimizer, by the name the field uses."""
        return self.method.algorithm(self.inner_optimizer.label)

    @property
    def num_workers(self) -> int:
        """K."""
        return self.method.workers

    @property
    def num_params(self) -> int:
        """N."""
        return self.model.num_params

    @property
    def global_batch_sequences(self) -> int:
        return self.global_batch_tokens // self.model.sequence_length

    @property
    def worker_batch_sequences(self) -> int:
        return self.global_batch_sequences // self.num_workers

    @property
    def worker_batch_tokens(self) -> int:
        """B/K."""
        return self.global_batch_tokens // self.num_workers

    @property
    def num_steps(self) -> int:
        """Inner steps: the token budget over B, rounded to the nearest step."""
        return max(1, round(self.tokens_per_parameter * self.num_params / self.global_batch_tokens))

    @property
    def num_tokens(self) -> int:
        """D, tokens really trained on: steps times batch."""
        return self.num_steps * self.global_batch_tokens

    @property
    def flops(self) -> float:
        """C = 6ND, or what the model states for a token times D."""
        return float(self.model.flops_per_token * self.num_tokens)

    @property
    def hardware_flops(self) -> float:
        """What devices compute: see `AnyModelConfig.hardware_flops_per_token`."""
        return float(self.model.hardware_flops_per_token * self.num_tokens)

    @property
    def warmup_steps(self) -> int:
        return min(self.schedule.warmup_steps, int(self.schedule.max_warmup_fraction * self.num_steps))

    @property
    def weight_decay(self) -> float:
        """Decoupled weight decay after `weight_decay_rule`."""
        inner = self.inner_optimizer
        match cast(WeightDecayRule, inner.weight_decay_rule):
            case "constant":
                return inner.weight_decay
            case "worker_batch":
                return inner.weight_decay * self.worker_batch_tokens / inner.weight_decay_reference_tokens
            case "independent":
                return inner.weight_decay / inner.lr
            case unknown:
                assert_never(unknown)

    @property
    def weight_decay_timescale(self) -> float | None:
        """tau = B/(lr wd D) at the peak lr: the share of the run over which weights are averages of updates; None
        without decay (arXiv 2405.13698)."""
        decay = self.inner_optimizer.lr * self.weight_decay * self.num_tokens
        return self.global_batch_tokens / decay if decay else None

    @property
    def from_outside(self) -> dict[str, FromOutside]:
        """What of it is not in the package, by the path of its settings."""
        names = ("model", "data", "inner_optimizer", "schedule")
        parts: dict[str, Any] = {name: getattr(self, name) for name in names}
        parts |= {f"method.{f.name}": getattr(self.method, f.name) for f in fields(self.method)}
        return {part: config for part, config in parts.items() if isinstance(config, FromOutside)}

    @property
    def targets(self) -> dict[str, list[str]]:
        """Classes and functions from outside the package that it names, by the path of the settings that name them."""
        return {part: config.targets for part, config in self.from_outside.items()}

    @property
    def run_id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON (sorted keys, no spaces), names as first given.

        Data that is known by its content is named by that and not by where it lies.
        """
        import hashlib  # Two milliseconds of every `--help`, which names no run.

        values = names_in_hash(self.to_dict())
        for path, config in self.from_outside.items():
            part: Any = values
            for name in path.split("."):
                part = part[name]
            for left_out in config.not_in_hash:
                part.pop(left_out)
        if self.data.content_hash is not None:
            # A mixture's weights are part of that content.
            values["data"] = {key: value for key, value in values["data"].items() if key not in ("path", "mixture")}
        if self.data.validation_hash is not None:
            values["data"] = {key: value for key, value in values["data"].items() if key != "validation"}
        if self.init_hash is not None:
            del values["init_from"]
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, as written to `config.yaml`."""
        values: dict[str, Any] = to_plain(self)
        return values

    def with_values(self, values: Mapping[str, Any]) -> RunConfig:
        """Return the run with other values of some keys, named as a sweep file names them (inner_optimizer.lr).

        Values that make no run, and keys that this one has not, raise `ConfigError`. Where they say other data or
        weights, the hash of the content is left out: `named_by_content` and `named_by_weights` fill it in.
        """
        plain = self.to_dict()
        for key, value in values.items():
            *path, last = key.split(".")
            there: Any = plain
            part: Any = self
            for name in path:
                there = there.get(name) if isinstance(there, dict) else None
                part = getattr(part, name, None)
            # At their defaults some fields are not among the plain values.
            known = isinstance(there, dict) and (last in there or last in getattr(part, "__dataclass_fields__", ()))
            if not known:
                raise ConfigError(f"{key}: {self.algorithm} has no such setting")
            kind: type = type(part)
            hint = hints_of(kind).get(last) if is_dataclass(kind) else None
            there[last] = as_field_takes_it(key, value, hint, there.get(last))
            # It would name the run by the content that it had.
            if stale := _CONTENT_OF.get(key):
                there.pop(stale, None)
        return RunConfig.from_dict(plain)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """The inverse of `to_dict`, also under names since changed; an unknown or missing key raises `ConfigError`."""
        run: RunConfig = from_plain(cls, names_now(values), VARIANTS, "run")
        return run

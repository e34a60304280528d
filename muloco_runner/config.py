"""The vocabulary of one run: every choice that decides its result, checked, and every number that follows from them.

Standard library only, so that the trainer, the sweeps and a login node without torch speak the same language.
The axes are small dataclasses (`ModelConfig`, `DataConfig`, `MethodConfig`, `InnerOptimizerConfig`, `ScheduleConfig`)
composed into `RunConfig`; values live in `conf/`. What must not change a result (device, micro-batch, paths, logging)
is `ExecutionConfig` and is no part of a run's name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints


class ConfigError(ValueError):
    """A user's mistake in a configuration: says what was given, what is allowed and what to change."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_positive(owner: str, **values: float) -> None:
    for name, value in values.items():
        _require(math.isfinite(value) and value > 0, f"{owner}.{name}={value}: must be a positive number")


def _require_choice(name: str, value: str | int | None, allowed: tuple[str | int, ...]) -> None:
    _require(value in allowed, f"{name}={value!r}: must be one of {', '.join(map(str, allowed))}")


_UNNAMED_AT_DEFAULT = {"unnamed_at_default": True}
"""Of a field that came after runs had been named: at its default it is no part of `to_dict`, so that names stand."""


@dataclass
class ModelConfig:
    """A decoder-only transformer of the study's shape (SwiGLU, QK-norm, pre- and post-norm, untied head)."""

    width: int = 512
    """Residual width D."""
    num_layers: int = 6
    head_width: int = 128
    """Width of one attention head; the number of heads is width / head_width."""
    vocab_size: int = 128_256
    sequence_length: int = 2048
    """Tokens in one training sequence."""
    ffn_ratio: float = 2.75
    """SwiGLU hidden width over D."""
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _require_positive(
            "model",
            width=self.width,
            num_layers=self.num_layers,
            head_width=self.head_width,
            vocab_size=self.vocab_size,
            sequence_length=self.sequence_length,
            ffn_ratio=self.ffn_ratio,
            rope_theta=self.rope_theta,
            norm_eps=self.norm_eps,
        )
        _require(
            self.head_width % 2 == 0,
            f"model.head_width={self.head_width}: rotary embeddings need an even width",
        )
        _require(
            self.width % self.head_width == 0,
            f"model.width={self.width} is not a multiple of model.head_width={self.head_width}: "
            f"choose a width such as {max(1, self.width // self.head_width) * self.head_width}",
        )
        _require(
            float(self.width * self.ffn_ratio).is_integer(),
            f"model.width={self.width} times model.ffn_ratio={self.ffn_ratio} is not a whole number: change one",
        )

    @property
    def num_heads(self) -> int:
        return self.width // self.head_width

    @property
    def ffn_width(self) -> int:
        return round(self.width * self.ffn_ratio)

    @property
    def num_params(self) -> int:
        """Exact parameter count N, embedding and head included."""
        matrices = 4 * self.width**2 + 3 * self.width * self.ffn_width
        gains = 4 * self.width + 2 * self.head_width
        return 2 * self.vocab_size * self.width + self.num_layers * (matrices + gains) + self.width


DataSource = Literal["python_source", "text", "shards"]


@dataclass
class DataConfig:
    """Where tokens come from; the content itself is pinned by the corpus hash in each record."""

    source: str = "python_source"
    """python_source: the interpreter's own standard library, as bytes; text: files under `path`, as bytes;
    shards: a folder written by `muloco-data prepare`."""
    path: str | None = None
    """A file or folder for `text`, a prepared folder for `shards`; unused, and so refused, for `python_source`."""
    validation_fraction: float = 0.05
    """Share of the documents held out, chosen by the hash of their names. Fixed by the manifest for `shards`."""
    validation_tokens: int = 65_536
    """Tokens of held-out text in the fixed evaluation set."""

    def __post_init__(self) -> None:
        _require_choice("data.source", self.source, get_args(DataSource))
        _require_positive("data", validation_tokens=self.validation_tokens)
        _require(
            0 < self.validation_fraction < 1,
            f"data.validation_fraction={self.validation_fraction}: must lie between 0 and 1",
        )
        if self.source == "python_source":
            _require(
                self.path is None,
                f"data.path={self.path!r} has no effect with data.source=python_source: "
                "drop it, or use data=text data.path=FOLDER",
            )
        else:
            _require(bool(self.path), f"data.source={self.source} needs data.path: name the folder that holds the text")
        default = DataConfig.__dataclass_fields__["validation_fraction"].default
        _require(
            self.source != "shards" or self.validation_fraction == default,
            f"data.validation_fraction={self.validation_fraction} has no effect with data.source=shards: "
            "drop it, or give it to `muloco-data prepare`",
        )


@dataclass
class OuterOptimizerConfig:
    """SGD on the pseudogradient: theta <- anchor - mu*u - lr*delta with u <- mu*u + lr*delta when `nesterov`.

    Without `nesterov` it is heavy ball, anchor - u; with lr=1 and momentum=0 the workers' plain average.
    """

    name: str = field(default="sgd", metadata=_UNNAMED_AT_DEFAULT)
    lr: float = 0.7
    momentum: float = 0.6
    nesterov: bool = True

    def __post_init__(self) -> None:
        _require_positive("method.outer_optimizer", lr=self.lr)
        _require(
            0 <= self.momentum < 1,
            f"method.outer_optimizer.momentum={self.momentum}: must be at least 0 and below 1",
        )


@dataclass
class OuterMuonConfig(OuterOptimizerConfig):
    """Muon on the hidden matrices' pseudogradients, M <- matrix_momentum*M + delta; SGD, as above, on all others."""

    name: str = "muon"
    matrix_lr: float = 0.05
    """On the orthogonalised momentum, times sqrt(fan_out/fan_in)."""
    matrix_momentum: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive("method.outer_optimizer", matrix_lr=self.matrix_lr)
        _require(
            0 <= self.matrix_momentum < 1,
            f"method.outer_optimizer.matrix_momentum={self.matrix_momentum}: must be at least 0 and below 1",
        )


@dataclass
class CompressionConfig:
    """Pseudogradients are sent as they are. Each subclass is a way to send less; norm gains are always exact."""

    name: str = "none"


Bits = Literal[2, 4, 8]
Granularity = Literal["tensor", "row"]
Exchange = Literal["all_gather", "reduce_scatter"]


@dataclass
class LossyCompressionConfig(CompressionConfig):
    """What all lossy ways share. The outer lr plays no part in what is sent."""

    name: str = "???"
    error_feedback: float | None = 0.9
    """Decay d of each worker's error memory: e <- d*e + delta, send Q(e), e <- e - Q(e). 1 forgets nothing; null keeps
    no memory."""
    exact_embeddings: bool = False
    """Token embedding and head are sent as they are, like the norm gains."""

    def __post_init__(self) -> None:
        _require(
            self.error_feedback is None or 0 < self.error_feedback <= 1,
            f"method.compression.error_feedback={self.error_feedback}: must be above 0 and at most 1, or null for none",
        )


@dataclass
class QuantisationConfig(LossyCompressionConfig):
    """Each value as one of 2^bits levels. Two names, one a scheme:

    statistical: bins over six standard deviations around the mean, each read back as the mean of what fell into it;
    linear: evenly spaced levels from the smallest to the largest value.
    """

    name: str = "statistical"
    bits: int = 4
    granularity: str = "tensor"
    """What shares one set of levels: a tensor or a row of it."""
    exchange: str = "all_gather"
    """all_gather: every worker gets every other's payload; reduce_scatter: each averages its share of them, quantises
    that average again and sends it to all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_choice("method.compression.name", self.name, ("statistical", "linear"))
        _require_choice("method.compression.bits", self.bits, get_args(Bits))
        _require_choice("method.compression.granularity", self.granularity, get_args(Granularity))
        _require_choice("method.compression.exchange", self.exchange, get_args(Exchange))


@dataclass
class TopKConfig(LossyCompressionConfig):
    """The largest values of each tensor by magnitude, with their places; nothing of the others."""

    name: str = "top_k"
    fraction: float = 0.01
    """Share of a tensor's values that is sent."""
    values: str = "exact"
    """How those values are written: exact, statistical or linear (one set of levels a tensor)."""
    bits: int | None = None
    """Of a quantised value; null for exact ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 < self.fraction < 1, f"method.compression.fraction={self.fraction}: must lie between 0 and 1")
        _require_choice("method.compression.values", self.values, ("exact", "statistical", "linear"))
        if self.values == "exact":
            _require(
                self.bits is None,
                f"method.compression.bits={self.bits} has no effect with method.compression.values=exact: "
                "drop it, or use values=statistical",
            )
        else:
            _require_choice("method.compression.bits", self.bits, get_args(Bits))


@dataclass
class StreamingConfig:
    """The model in fragments of consecutive layers, shared once in H steps at its own offset (arXiv 2501.18512)."""

    num_fragments: int = 1
    """Fragment i of F is shared where the step is (i+1)*H/F modulo H; one fragment is the whole model."""
    delay_steps: int = 0
    """tau: inner steps that go on while a fragment is on its way."""
    mixing: float = 0.0
    """alpha: share of a worker's own parameters that stays when a fragment arrives; 0 takes the synchronised ones."""

    def __post_init__(self) -> None:
        _require_positive("method.streaming", num_fragments=self.num_fragments)
        _require(
            self.delay_steps >= 0,
            f"method.streaming.delay_steps={self.delay_steps}: must be zero or positive",
        )
        _require(
            0 <= self.mixing < 1,
            f"method.streaming.mixing={self.mixing}: must be at least 0 and below 1",
        )


@dataclass
class MethodConfig:
    """How workers share what they learn. One subclass a method; `num_workers` is K."""

    name: str = "???"

    @property
    def workers(self) -> int:
        """K, the number of replicas that train apart between outer steps (1 for data parallel)."""
        return 1


@dataclass
class DataParallelConfig(MethodConfig):
    """Gradients averaged over all ranks at every step."""

    name: str = "data_parallel"


@dataclass
class DiLoCoConfig(MethodConfig):
    """K workers apart for H inner steps, then one outer step (arXiv 2311.08105)."""

    name: str = "diloco"
    num_workers: int = 1
    """K."""
    sync_interval: int = 30
    """H, inner steps between two outer steps."""
    outer_optimizer: OuterOptimizerConfig = field(default_factory=OuterOptimizerConfig)
    compression: CompressionConfig = field(default_factory=CompressionConfig, metadata=_UNNAMED_AT_DEFAULT)
    streaming: StreamingConfig = field(default_factory=StreamingConfig, metadata=_UNNAMED_AT_DEFAULT)

    def __post_init__(self) -> None:
        _require_positive("method", num_workers=self.num_workers, sync_interval=self.sync_interval)
        streaming = self.streaming
        _require(
            streaming.num_fragments <= self.sync_interval,
            f"method.streaming.num_fragments={streaming.num_fragments}: at most one fragment is shared at a step, so "
            f"use at most method.sync_interval={self.sync_interval}",
        )
        _require(
            streaming.delay_steps < self.sync_interval,
            f"method.streaming.delay_steps={streaming.delay_steps}: a fragment must arrive before it is shared again, "
            f"so use less than method.sync_interval={self.sync_interval}",
        )

    @property
    def workers(self) -> int:
        return self.num_workers


WeightDecayRule = Literal["constant", "worker_batch"]


@dataclass
class InnerOptimizerConfig:
    """What both inner optimizers share. One subclass an optimizer."""

    name: str = "???"
    lr: float = 0.01
    """Peak learning rate of the inner steps."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    """AdamW's betas, for the parameters that AdamW updates (all of them, or embedding, head and gains under Muon)."""
    eps: float = 1e-8
    weight_decay: float = 0.01
    """Decoupled decay before `weight_decay_rule` scales it."""
    weight_decay_rule: str = "worker_batch"
    """worker_batch: decay * (B/K) / weight_decay_reference_tokens, which keeps lr*decay*steps constant at K=1;
    constant: as given."""
    weight_decay_reference_tokens: int = 512 * 2048
    """Worker batch, in tokens, at which the rule leaves the decay as given (512 sequences of 2048 in the study)."""

    def __post_init__(self) -> None:
        _require_positive("inner_optimizer", lr=self.lr, eps=self.eps)
        _require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"inner_optimizer.betas={self.betas}: must be two numbers, at least 0 and below 1",
        )
        _require(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            f"inner_optimizer.weight_decay={self.weight_decay}: must be zero or positive",
        )
        _require_choice("inner_optimizer.weight_decay_rule", self.weight_decay_rule, get_args(WeightDecayRule))
        _require_positive("inner_optimizer", weight_decay_reference_tokens=self.weight_decay_reference_tokens)


@dataclass
class AdamWConfig(InnerOptimizerConfig):
    """AdamW on every parameter, weight decay on every parameter, as in the study."""

    name: str = "adamw"
    lr: float = 0.004


MomentumForm = Literal["sum", "ema"]
LrScale = Literal["spectral", "keller_jordan", "moonlight"]
Coefficients = Literal["muloco", "keller_jordan", "polar_express"]


@dataclass
class MuonConfig(InnerOptimizerConfig):
    """Muon on the matrices of attention and feed-forward; AdamW, same lr and decay, on embedding, head and gains."""

    name: str = "muon"
    lr: float = 0.02
    momentum: float = 0.9
    momentum_form: str = "sum"
    """sum: M <- momentum*M + G (the study); ema: M <- momentum*M + (1-momentum)*G."""
    nesterov: bool = False
    lr_scale: str = "spectral"
    """spectral: sqrt(fan_out/fan_in); keller_jordan: sqrt(max(1, out/in)); moonlight: 0.2*sqrt(max(out, in))."""
    coefficients: str = "muloco"
    """Newton-Schulz polynomial by name."""
    num_iterations: int = 5
    """Newton-Schulz steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            0 <= self.momentum < 1,
            f"inner_optimizer.momentum={self.momentum}: must be at least 0 and below 1",
        )
        _require_choice("inner_optimizer.momentum_form", self.momentum_form, get_args(MomentumForm))
        _require_choice("inner_optimizer.lr_scale", self.lr_scale, get_args(LrScale))
        _require_choice("inner_optimizer.coefficients", self.coefficients, get_args(Coefficients))
        _require_positive("inner_optimizer", num_iterations=self.num_iterations)
        if self.coefficients == "muloco":
            _require(
                self.num_iterations == 5,
                f"inner_optimizer.num_iterations={self.num_iterations}: coefficients=muloco are five per-step triples; "
                "use num_iterations=5 or coefficients=keller_jordan",
            )


@dataclass
class ScheduleConfig:
    """Learning rate over the run: linear warm-up, then one subclass's decay to `final_lr_fraction` of the peak."""

    name: str = "???"
    warmup_steps: int = 500
    """Steps of linear warm-up, where the run is long enough."""
    max_warmup_fraction: float = 0.1
    """Warm-up never takes more than this share of a run's steps."""
    final_lr_fraction: float = 0.1

    def __post_init__(self) -> None:
        _require(
            self.warmup_steps >= 0,
            f"schedule.warmup_steps={self.warmup_steps}: must be zero or positive",
        )
        for name in ("max_warmup_fraction", "final_lr_fraction"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"schedule.{name}={value}: must lie between 0 and 1")


@dataclass
class CosineConfig(ScheduleConfig):
    """Half a cosine from the peak to the final fraction."""

    name: str = "cosine"


@dataclass
class WarmupStableDecayConfig(ScheduleConfig):
    """Constant at the peak, then linear decay over the last `decay_fraction` of the run."""

    name: str = "wsd"
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            0 < self.decay_fraction <= 1,
            f"schedule.decay_fraction={self.decay_fraction}: must be above 0 and at most 1",
        )


Precision = Literal["float32", "bfloat16"]


@dataclass
class RunConfig:
    """All that decides a run's result, and nothing else."""

    model: ModelConfig = field(default_factory=ModelConfig)
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
    """Of the forward and backward pass; master weights, gradient reductions and optimizer state are float32."""
    seed: int = 0

    def __post_init__(self) -> None:
        _require_positive(
            "run",
            global_batch_tokens=self.global_batch_tokens,
            tokens_per_parameter=self.tokens_per_parameter,
            gradient_clip_norm=self.gradient_clip_norm,
        )
        _require_choice("precision", self.precision, get_args(Precision))
        _require(self.seed >= 0, f"seed={self.seed}: must be zero or positive")
        unit = self.model.sequence_length * self.num_workers
        fits = max(1, round(self.global_batch_tokens / unit)) * unit
        _require(
            self.global_batch_tokens % unit == 0,
            f"global_batch_tokens={self.global_batch_tokens} does not split into sequences of "
            f"{self.model.sequence_length} tokens for {self.num_workers} worker(s): "
            f"use a multiple of {unit}, such as {fits}",
        )
        if isinstance(self.method, DiLoCoConfig):
            _require(
                self.num_steps >= self.method.sync_interval,
                f"method.sync_interval={self.method.sync_interval} is longer than the run of {self.num_steps} steps, "
                "so no outer step would happen: lower it, lower global_batch_tokens or raise tokens_per_parameter",
            )
            _require(
                self.method.streaming.num_fragments <= self.model.num_layers,
                f"method.streaming.num_fragments={self.method.streaming.num_fragments}: a fragment holds whole layers, "
                f"so use at most model.num_layers={self.model.num_layers}",
            )

    # Derived numbers: computed here once, never typed in.

    @property
    def algorithm(self) -> str:
        """Method times inner optimizer, by the name the field uses."""
        names = {
            ("data_parallel", "adamw"): "DDP-AdamW",
            ("data_parallel", "muon"): "DDP-Muon",
            ("diloco", "adamw"): "DiLoCo",
            ("diloco", "muon"): "MuLoCo",
        }
        key = (self.method.name, self.inner_optimizer.name)
        return names.get(key, f"{key[0]}-{key[1]}")

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
        """C = 6ND."""
        return 6.0 * self.num_params * self.num_tokens

    @property
    def warmup_steps(self) -> int:
        return min(self.schedule.warmup_steps, int(self.schedule.max_warmup_fraction * self.num_steps))

    @property
    def weight_decay(self) -> float:
        """Decoupled weight decay after `weight_decay_rule`."""
        base = self.inner_optimizer.weight_decay
        if self.inner_optimizer.weight_decay_rule == "constant":
            return base
        return base * self.worker_batch_tokens / self.inner_optimizer.weight_decay_reference_tokens

    @property
    def run_id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON (sorted keys, no spaces)."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, as written to `config.yaml`."""
        values: dict[str, Any] = _normalise(self)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """The inverse of `to_dict`; an unknown or missing key raises `ConfigError`."""
        run: RunConfig = _build(cls, values, "run")
        return run


MuonBackend = Literal["auto", "reference", "cpu", "triton", "triton_bfloat16"]
AttentionKernel = Literal["auto", "sdpa", "flex"]
Sharding = Literal["auto", "none", "full"]
Reduction = Literal["auto", "ordered", "overlapped"]


@dataclass
class ExecutionConfig:
    """How and where a run is carried out. None of it may change the result, so none of it is in `run_id`."""

    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    micro_batch_sequences: int | None = None
    """Sequences in one forward pass; None chooses the largest that fits."""
    memory_halvings: int = 0
    """How often the chosen micro-batch is halved: set by a sweep after an attempt ran out of memory."""
    muon_backend: str = "auto"
    """Which code orthogonalises: auto (the fastest for the device and shape), reference, cpu, triton (Hopper GPUs, in
    float16) or triton_bfloat16. They differ by less than two seeds do."""
    attention: str = "auto"
    """sdpa; flex, which skips what the document mask leaves empty; auto: flex on a GPU."""
    compile: bool | None = None
    """Whether transformer blocks are compiled; null: on a GPU."""
    activation_checkpointing: bool | None = None
    """Whether a block's activations are computed again in the backward pass; null: where they would not fit."""
    sharding: str = "auto"
    """none: each replica of a worker holds the whole model; full: each holds rows of every parameter (FSDP), gathered
    block by block; auto: full where the whole would not fit."""
    reduction: str = "auto"
    """ordered: a worker's gradient is a pairwise sum of its micro-batches' in one fixed order, the same on any number
    of replicas; overlapped: they accumulate as they come and replicas average while still computing (DDP);
    auto: ordered on a CPU."""
    wandb_project: str | None = None
    """Weights & Biases project that receives the records too, under the run_id; offline where there is no key."""
    log_interval_steps: int = 10
    evaluate_interval_steps: int | None = None
    """Steps between evaluations on the held-out set; None evaluates at the end only."""
    checkpoint_interval_seconds: float = 300.0
    final_checkpoint: bool | None = None
    """Whether a finished run keeps its last state; null: one trained by itself does, one of a sweep does not, where
    hundreds of large models would fill a disk."""
    wall_minutes: float | None = None
    """Minutes from its start after which an attempt checkpoints and asks for more time; None for no deadline."""
    link_megabits_per_second: float | None = None
    """Emulated link of each rank: what it sends or receives takes at least as long as on a link of this bandwidth, each
    way. None for the network as it is."""
    link_latency_milliseconds: float = 0.0
    """Emulated time from the first bit's leaving to its arrival, added once to each exchange."""

    def __post_init__(self) -> None:
        _require_choice("execution.device", self.device, ("auto", "cpu", "cuda"))
        _require_choice("execution.muon_backend", self.muon_backend, get_args(MuonBackend))
        _require_choice("execution.attention", self.attention, get_args(AttentionKernel))
        _require_choice("execution.sharding", self.sharding, get_args(Sharding))
        _require_choice("execution.reduction", self.reduction, get_args(Reduction))
        _require_positive(
            "execution",
            log_interval_steps=self.log_interval_steps,
            checkpoint_interval_seconds=self.checkpoint_interval_seconds,
        )
        _require(
            math.isfinite(self.link_latency_milliseconds) and self.link_latency_milliseconds >= 0,
            f"execution.link_latency_milliseconds={self.link_latency_milliseconds}: must be zero or positive",
        )
        optional = ("micro_batch_sequences", "evaluate_interval_steps", "wall_minutes", "link_megabits_per_second")
        for name in optional:
            value = getattr(self, name)
            _require(value is None or value > 0, f"execution.{name}={value}: must be a positive number or null")


METHODS: dict[str, type[MethodConfig]] = {
    "data_parallel": DataParallelConfig,
    "diloco": DiLoCoConfig,
}
INNER_OPTIMIZERS: dict[str, type[InnerOptimizerConfig]] = {"adamw": AdamWConfig, "muon": MuonConfig}
OUTER_OPTIMIZERS: dict[str, type[OuterOptimizerConfig]] = {"sgd": OuterOptimizerConfig, "muon": OuterMuonConfig}
COMPRESSIONS: dict[str, type[CompressionConfig]] = {
    "none": CompressionConfig,
    "statistical": QuantisationConfig,
    "linear": QuantisationConfig,
    "top_k": TopKConfig,
}
SCHEDULES: dict[str, type[ScheduleConfig]] = {"cosine": CosineConfig, "wsd": WarmupStableDecayConfig}

# A field that may hold one of several dataclasses is told apart by its `name`.
_VARIANTS: dict[type, dict[str, Any]] = {
    MethodConfig: METHODS,
    InnerOptimizerConfig: INNER_OPTIMIZERS,
    OuterOptimizerConfig: OUTER_OPTIMIZERS,
    CompressionConfig: COMPRESSIONS,
    ScheduleConfig: SCHEDULES,
}


def _normalise(value: Any) -> Any:
    """Dataclasses to dictionaries; numbers in a float field become floats, so that 1 and 1.0 name the same run."""
    if dataclasses.is_dataclass(value):
        out = {}
        for f in dataclasses.fields(value):
            item = getattr(value, f.name)
            if f.metadata == _UNNAMED_AT_DEFAULT and item == _default_of(f):
                continue
            if f.type == "float":
                item = float(item)
            elif f.type == "float | None":
                item = None if item is None else float(item)
            elif f.type == "list[float]":
                item = [float(number) for number in item]
            out[f.name] = _normalise(item)
        return out
    return value


def _default_of(f: dataclasses.Field[Any]) -> Any:
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def _build(cls: type, values: dict[str, Any], where: str) -> Any:
    if cls in _VARIANTS:
        variants = _VARIANTS[cls]
        name = values.get("name", next(_default_of(f) for f in dataclasses.fields(cls) if f.name == "name"))
        _require(name in variants, f"{where}.name={name!r}: must be one of {', '.join(variants)}")
        cls = variants[str(name)]
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        _require(key in known, f"{where}.{key}: no such setting; known here: {', '.join(known)}")
    hints = get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        hint = hints[key]
        is_config = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        arguments[key] = _build(hint, value, f"{where}.{key}") if is_config else value
    return cls(**arguments)

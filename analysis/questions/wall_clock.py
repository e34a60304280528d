"""Hours of training under a bandwidth: what synchronising less often, or less, is worth.

Two models. `idealised`: devices grow with the batch, so that a step computes for `step_seconds` whatever its batch, and
an exchange of N values of `bits_per_value` bits takes N * bits / bandwidth. `charles`: a fixed number of devices R of Q
flop/s each computes for 6ND/(R Q), and an all-reduce moves 2N(1 - 1/R) values and waits for a latency (Charles et al.
2025, arXiv 2503.09799, section on wall-clock time). In both, data parallel and DiLoCo with one worker exchange across
the slow link every step, K > 1 workers every H steps; compression divides an outer exchange, a delay hides it behind
steps. Replicas that share Muon's work exchange as much: a matrix's gradient goes to its owner alone, what that makes of
it comes back, and each way is half of an all-reduce.

Where records hold bytes and step times, `Measured` puts them in the place of the assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass

GIGABIT = 1e9
DEFAULT_BANDWIDTHS_GBITS = (0.1, 1.0, 10.0, 100.0, 1000.0, 6400.0)


@dataclass(frozen=True)
class Assumptions:
    """What no record says about the machine that is asked about."""

    step_seconds: float = 1.0
    """Compute of one inner step in the idealised model, seconds."""
    bits_per_value: float = 16.0
    """Bits of one value in an exchange without compression."""
    num_devices: int = 1024
    """R."""
    device_flops: float = 4e14
    """Q, flop/s that a device really reaches."""
    latency_seconds: float = 1e-4
    """Latency of one exchange."""


@dataclass(frozen=True)
class Training:
    """One run as the models see it."""

    num_params: int
    num_tokens: float
    global_batch_tokens: float
    num_workers: int = 1
    """K."""
    sync_interval: int = 1
    """H; without meaning for one worker, which exchanges every step."""
    compression: float = 1.0
    """Bits without compression over bits sent in an outer exchange."""
    num_fragments: int = 1
    """Fragments of the model, each exchanged once in H steps."""
    delay_steps: int = 0
    """Inner steps that go on while an exchange is on its way."""

    @property
    def num_steps(self) -> float:
        return self.num_tokens / self.global_batch_tokens

    @property
    def num_exchanges(self) -> float:
        """Exchanges across the slow link."""
        if self.num_workers == 1:
            return self.num_steps
        return self.num_steps / self.sync_interval * self.num_fragments

    @property
    def bits_divisor(self) -> float:
        """One worker exchanges gradients, which nothing compresses."""
        return self.compression if self.num_workers > 1 else 1.0


@dataclass(frozen=True)
class Measured:
    """What a run's record says of itself."""

    step_seconds: float
    """Training time a step without waiting for communication where that is recorded, seconds."""
    bytes_per_step: float
    """Bytes across the slow link: what one of several workers sent, or what replicas of the only one exchange."""


def idealised_seconds(run: Training, bandwidth: float, assume: Assumptions) -> float:
    """Seconds of training; `bandwidth` in bits a second."""
    exchange = assume.bits_per_value * run.num_params / run.num_fragments / (run.bits_divisor * bandwidth)
    return run.num_steps * assume.step_seconds + _waiting(run, exchange, assume.step_seconds)


def charles_seconds(run: Training, bandwidth: float, assume: Assumptions) -> float:
    """Seconds of training; `bandwidth` in bits a second."""
    compute = 6 * run.num_params * run.num_tokens / (assume.num_devices * assume.device_flops)
    values = 2 * run.num_params / run.num_fragments * (1 - 1 / assume.num_devices)
    exchange = assume.bits_per_value * values / (run.bits_divisor * bandwidth) + assume.latency_seconds
    return compute + _waiting(run, exchange, compute / run.num_steps)


def _waiting(run: Training, exchange_seconds: float, step_seconds: float) -> float:
    """Seconds in which nothing is computed: what of each exchange the steps beside it do not hide."""
    return run.num_exchanges * max(0.0, exchange_seconds - run.delay_steps * step_seconds)


def measured_seconds(run: Training, bandwidth: float, measured: Measured) -> float:
    """Seconds of the run as recorded, were its bytes to cross a link of `bandwidth` bits a second."""
    return run.num_steps * (measured.step_seconds + 8 * measured.bytes_per_step / bandwidth)

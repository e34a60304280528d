"""MuLoCo with four workers on one device: no inner step may make the host wait for the device."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch

from muloco_runner.machine_check.findings import Findings
from muloco_runner.machine_check.timing import Machine
from muloco_runner.machine_check.trainers import models, muloco, run_of, trainer_of

_WORKERS, _INTERVAL, _STEPS = 4, 3, 13
_WARM_UP = 7
"""Steps that may wait: kernels compile, and the first outer steps make what they keep."""


def check(machine: Machine, findings: Findings) -> None:
    """Take 13 inner steps and four outer ones, and evaluate."""
    _, model = next(iter(models(machine).items()))
    run = run_of(model, (65536 if machine.is_gpu else 256) * _WORKERS, method=muloco(_WORKERS, _INTERVAL))
    waits: dict[str, int] = {}
    losses = []
    with trainer_of(run, machine) as trainer:
        state = trainer.state
        for step in range(_STEPS):
            for message in _watched(machine, trainer.step_workers, step >= _WARM_UP):
                waits[message] = waits.get(message, 0) + 1
            outer_ms = machine.once(lambda: trainer.method.after_inner_step(state.step))
            if state.step % _INTERVAL == 0 and step >= _WARM_UP:
                findings.add(f"outer step after {state.step}", outer_ms, "ms")
            losses.append(float(state.losses[:, state.step - 1].mean()))
        for message, count in waits.items():
            findings.add("the host waited in an inner step", f"{count} times: {message}", verdict="wrong")
        findings.holds("inner steps without a wait", not waits)
        findings.holds("losses are finite and fall", all(map(math.isfinite, losses)) and losses[-1] < losses[0])
        findings.add("losses", " ".join(f"{loss:.3f}" for loss in losses))
        loss = trainer.evaluation.of_synchronised_model(state.workers[0], trainer.method.synchronised_parameters()).main
        findings.add("validation loss", loss, "nats per token")


def _watched(machine: Machine, call: Callable[[], object], is_measured: bool) -> list[str]:
    """Run the step; return where the host waited, one line a place."""
    if not (machine.is_gpu and is_measured):
        call()
        return []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [
        f"{str(w.message).splitlines()[0][:80]} ({w.filename.rsplit('/', 1)[-1]}:{w.lineno})"
        for w in caught
        if "synchroniz" in str(w.message)
    ]

"""How fast this machine trains: step time, MFU, memory beside the estimate, and where a GPU's time goes."""

from __future__ import annotations

import time

import torch

from muloco_runner.machine_check.findings import Findings
from muloco_runner.machine_check.timing import Machine
from muloco_runner.machine_check.trainers import models, run_of, trainer_of
from muloco_runner.memory import estimate_memory
from muloco_runner.model.cross_entropy import adds_within_product
from muloco_runner.training.devices import choose_placement_on
from muloco_runner.training.loop import Trainer
from muloco_runner.training.mfu import utilisations

_BATCH_TOKENS = 65536
_HOPED_MFU = 0.5
"""In 6N a token; published in the same counting at larger sizes: .38 to .44."""
_MOST_OF_ESTIMATE = 1.0
"""Peak memory over the estimate: beyond it, a placement that was to fit may not."""
_KERNELS = 14


def check(machine: Machine, findings: Findings) -> None:
    """Train each model for ten steps at 65,536 tokens."""
    for name, model in models(machine).items():
        batch_tokens = _BATCH_TOKENS if machine.is_gpu else 512
        run = run_of(model, batch_tokens)
        if machine.is_gpu:
            torch.cuda.reset_peak_memory_stats(machine.device)
        began = time.perf_counter()
        with trainer_of(run, machine) as trainer:
            if machine.is_gpu:
                trainer.inner_step.shrink_to_memory(trainer.state.workers[0])
            machine.wait()
            findings.add(f"{name}, built and compiled", time.perf_counter() - began, "s")
            seconds = machine.milliseconds(trainer.step_workers, 8) / 1e3
            findings.add(f"{name}, step", 1e3 * seconds, f"ms of {batch_tokens} tokens, at once"
                         f" {trainer.inner_step.micro_batch_sequences} sequences")  # fmt: skip
            findings.add(f"{name}, tokens a second", batch_tokens / seconds)
            found = utilisations(run, batch_tokens / seconds, machine.device, 1)
            if found:
                findings.hoped(f"{name}, MFU (6N a token)", found["mfu"], _HOPED_MFU)
                findings.add(f"{name}, MFU (flops computed)", found["hardware_mfu"])
            if machine.is_gpu:
                _check_memory(name, trainer, machine, findings)
                _show_kernels(name, trainer, machine, findings)


def _check_memory(name: str, trainer: Trainer, machine: Machine, findings: Findings) -> None:
    placement = choose_placement_on(machine.device, trainer.run, trainer.session.execution, 1)
    estimate = estimate_memory(trainer.run, placement)
    peak = torch.cuda.max_memory_allocated(machine.device)
    findings.add(f"{name}, estimate of memory", estimate.total / 1e9, f"GB, at its peak in: {estimate.peak_phase}")
    findings.at_most(f"{name}, peak over the estimate", peak / estimate.total, _MOST_OF_ESTIMATE)
    findings.add(f"{name}, logits at once", placement.most_chunk, "tokens, where 0 stands for the least")
    within = adds_within_product(machine.device, torch.bfloat16)
    findings.add(
        f"{name}, the head's gradient is summed", "within the product" if within else "after a rounded product"
    )
    findings.add(f"{name}, reserved", torch.cuda.max_memory_reserved(machine.device) / 1e9, "GB")


def _show_kernels(name: str, trainer: Trainer, machine: Machine, findings: Findings) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        trainer.step_workers()
        trainer.step_workers()
        machine.wait()
    events = sorted(profiler.key_averages(), key=lambda event: -event.device_time_total)
    total = sum(event.device_time_total for event in events)
    findings.add(f"{name}, GPU busy", total / 2e3, f"ms a step, {sum(e.count for e in events) // 2} kernels")
    for event in events[:_KERNELS]:
        share = event.device_time_total / total
        findings.add(f"{name}, {event.key[:80]}", 100 * share, f"% of it, {event.count // 2} launches")

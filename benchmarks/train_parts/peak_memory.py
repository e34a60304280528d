"""The most memory that torch's allocator had handed out at once while a function ran."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler import profile


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Bytes beyond those held before. On a CPU every allocation is traced, which slows the function down.

    What other threads hold counts too, as it stands when this thread allocates: gloo's give memory back, and an
    exchange beside training has its own.
    """
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    _count_on_all_threads()
    with profile(use_kineto=True, profile_memory=True) as trace:
        function()
    # Its table of events by name, which takes most of the time, is never asked for.
    changes = sorted(_changes(trace.kineto_results.experimental_event_tree()))
    _, held, change = changes[0]
    return max(held for _, held, _ in changes) - (held - change)


def _count_on_all_threads() -> None:
    """The profiler hears of this thread's allocations alone; the allocator's own sum, which comes with each, is then
    over all threads."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage").value = True


def _changes(events: list[Any]) -> Iterator[tuple[int, int, int]]:
    """Time, bytes held after it, and bytes taken or given back, of each change."""
    for event in events:
        if event.name == "[memory]":
            _, allocation = event.typed
            yield event.start_time_ns, allocation.total_allocated, allocation.alloc_size
        yield from _changes(event.children)

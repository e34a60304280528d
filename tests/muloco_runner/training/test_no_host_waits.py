"""What would make a host wait for a GPU in an inner step, found by running it on a CPU: results that depend on data."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from muloco_runner.config import ExecutionConfig, QuantisationConfig, RunConfig, TopKConfig
from muloco_runner.data.corpus import load_corpus
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.record import RunFolder
from muloco_runner.training.loop import Trainer
from muloco_runner.training.session import Session

WAITING_OPERATORS = {
    "_assert_async", "_local_scalar_dense", "_unique2", "bincount", "equal", "is_nonzero", "masked_select", "nonzero",
    "repeat_interleave", "unique_consecutive", "unique_dim",
}  # fmt: skip
"""Operators whose result's size or value the host must know."""
TO_THE_HOST = ("__bool__", "__float__", "__index__", "__int__", "cpu", "item", "numpy", "tolist")


class Waits(TorchDispatchMode):
    """Notes each operation that waits, and the lines of this project that lead to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.is_on = False
        for name in TO_THE_HOST:
            monkeypatch.setattr(Tensor, name, self._noting(name, getattr(Tensor, name)))

    def _noting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def noting(tensor: Tensor, *arguments: Any, **keywords: Any) -> Any:
            if self.is_on:
                self._note(name)
            return method(tensor, *arguments, **keywords)

        return noting

    def _note(self, name: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "muloco_runner/" in frame.filename]
        lines = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames if "tests" not in frame.filename]
        self.found.add(f"{name} at {' < '.join(reversed(lines[-3:]))}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func._schema.name.split("::")[-1]
        by_mask = name.strip("_").startswith("index") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8)
            for index in (args[1] if isinstance(args[1], list | tuple) else ())
        )
        if self.is_on and (name in WAITING_OPERATORS or by_mask):
            self._note(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    return Waits(monkeypatch)


CONFIGURATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "adamw": ("data_parallel", "adamw", {}),
    "muloco": ("diloco", "muon", {"num_workers": 4}),
    "muloco_4_bits": (
        "diloco", "muon", {"num_workers": 4, "compression": QuantisationConfig(name="statistical", bits=4)},
    ),
    "muloco_topk": ("diloco", "muon", {"num_workers": 4, "compression": TopKConfig()}),
}  # fmt: skip


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_an_inner_step_never_waits_for_the_device(
    configuration: str, waits: Waits, tiny_run: Callable[..., RunConfig], new_folder: Callable[..., RunFolder]
) -> None:
    method, optimizer, changes = CONFIGURATIONS[configuration]
    run = tiny_run(method, optimizer, num_steps=7, sync_interval=3, precision="bfloat16", **changes)
    execution = ExecutionConfig(
        device="cpu", muon_backend="reference", reduction="overlapped", compile=False, micro_batch_sequences=1,
        log_interval_steps=2,
    )  # fmt: skip
    session = Session(new_folder(run), execution, Communicator(Topology(1)), torch.device("cpu"))
    trainer = Trainer(run, load_corpus(run.data), session)
    with waits:
        for step in range(1, 6):  # an outer step among them, which may wait
            waits.is_on = True
            trainer.step_workers()
            waits.is_on = step % 3 != 0
            trainer.method.after_inner_step(step)
            waits.is_on = False
    assert trainer.state.losses.isfinite().all()
    assert not waits.found


def test_a_wait_is_found(waits: Waits) -> None:
    x, numbers = torch.ones(3), torch.tensor([0, 1])
    waits.is_on = True
    with waits:
        for wait in (x[0].item, x.nonzero, x.tolist, lambda: x[x > 0], lambda: bool(x[0])):
            waits.found.clear()
            wait()
            assert waits.found
        waits.found.clear()
        x[numbers].sum()
        assert not waits.found

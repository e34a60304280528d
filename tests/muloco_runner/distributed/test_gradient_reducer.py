"""Replicas that share Muon's work: a matrix's gradient goes to its owner alone, beside the backward pass.

In as many messages as a large model's, so that matrices are cut where one ends.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import ForkedProcess

from muloco_runner.config import ExecutionConfig, RunConfig
from muloco_runner.distributed import message_sizes
from muloco_runner.distributed.gradient_reducer import total_norm
from muloco_runner.distributed.owner_buffers import OwnerBuffers
from muloco_runner.job import run_job
from muloco_runner.record import RunFolder

SCRIPT = Path(__file__).parent / "gradient_reducer_script.py"
STEPS = 22
CLIP = 0.5
ROUNDING = 2e-4
"""Relative bound on losses where the order of a sum differs, as for other placements."""
EXECUTION = {"device": "cpu", "log_interval_steps": 1, "reduction": "overlapped", "micro_batch_sequences": 1}


@pytest.fixture(scope="module")
def runs(tiny_run: Callable[..., RunConfig]) -> list[RunConfig]:
    """Data parallel, and MuLoCo with all ranks in one worker: clipped at every step."""
    common = {"num_steps": STEPS, "gradient_clip_norm": CLIP}
    return [tiny_run(method, "muon", sync_interval=5, **common) for method in ("data_parallel", "diloco")]


@pytest.fixture(scope="module")
def alone(runs: list[RunConfig], tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    """What one process that has every gradient makes of them."""
    folders = [prepared(run, tmp_path_factory.mktemp("alone")) for run in runs]
    for folder in folders:
        assert run_job(folder, ExecutionConfig(**{**EXECUTION, "reduction": "ordered"})) == 0
    return folders


def prepared(run: RunConfig, root: Path) -> RunFolder:
    folder = RunFolder.of(root, run.run_id)
    folder.write_config(run.to_dict())
    return folder


def train(count: int, root: Path, jobs: list[tuple[RunFolder, dict[str, Any], int | None]]) -> list[int]:
    """Exit codes of that many ranks."""
    file = root / f"jobs-{len(list(root.glob('jobs-*')))}.json"
    settings = [
        {
            "folder": str(folder.path),
            "execution": dataclasses.asdict(ExecutionConfig(**{**EXECUTION, **changes})),
            "killed_after": killed_after,
        }
        for folder, changes, killed_after in jobs
    ]
    file.write_text(json.dumps(settings))
    processes = []
    for rank in range(count):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MULOCO_RDZV_ID": file.stem}
        processes.append(ForkedProcess(SCRIPT, [str(file)], {**os.environ, **place}))
    codes = [process.wait() for process in processes]
    assert set(codes) <= {0, -signal.SIGKILL}, "\n".join(process.errors() for process in processes)
    return codes


def losses_of(folder: RunFolder) -> list[float]:
    result = folder.read_result()
    assert result is not None
    assert result.validation_loss is not None
    return [*(step.loss for step in folder.read_steps()), result.validation_loss]


@pytest.mark.parametrize("count", [2, 4])
def test_gradients_sent_to_owners_alone_equal_full_ones(
    count: int, runs: list[RunConfig], alone: list[RunFolder], tmp_path: Path
) -> None:
    # MuLoCo's inner steps are those of data parallel: once is enough.
    folders = [prepared(run, tmp_path / "whole") for run in (runs if count == 2 else runs[:1])]
    jobs: list[tuple[RunFolder, dict[str, Any], int | None]] = [(folder, {}, None) for folder in folders]
    if count == 2:
        cut = prepared(runs[0], tmp_path / "cut")
        codes = train(count, tmp_path, [*jobs, (cut, {"checkpoint_interval_seconds": 1e-9}, 13)])
        assert codes == [-signal.SIGKILL] * count
        assert train(count, tmp_path, [(cut, {}, None)]) == [0] * count
        assert losses_of(cut) == losses_of(folders[0])
        resumed = json.loads((cut.path / "parameters-0.json").read_text())
        assert 0 < len(resumed) < STEPS
        assert resumed == json.loads((folders[0].path / "parameters-0.json").read_text())[-len(resumed) :]
    else:
        assert train(count, tmp_path, jobs) == [0] * count
    for folder, reference in zip(folders, alone, strict=False):
        assert losses_of(folder) == pytest.approx(losses_of(reference), rel=ROUNDING)
        norms = [step.gradient_norm for step in folder.read_steps()]
        assert norms == pytest.approx([step.gradient_norm for step in reference.read_steps()], rel=1e-3)
        assert min(norm or 0.0 for norm in norms) > CLIP
        digests = [json.loads((folder.path / f"parameters-{rank}.json").read_text()) for rank in range(count)]
        assert len(digests[0]) == STEPS
        assert digests == [digests[0]] * count
    check_bytes(runs[0], count, folders[0])


def check_bytes(run: RunConfig, count: int, folder: RunFolder) -> None:
    """All that is no matrix, loss and norms are summed on all; matrices go to owners, whose largest share counts."""
    model = run.model
    num_parameters = 13 * model.num_layers + 3
    summed = run.num_params - model.num_hidden_params + 1 + num_parameters
    square, wide = model.width**2, model.width * model.ffn_width
    # Six wide matrices and eight square ones: three and four for each of two ranks; of four, two and one for the worst.
    largest = {2: 3 * wide + 4 * square, 4: 2 * wide + square}[count]
    num_messages = -(-count * largest // 2000)
    assert num_messages > 2
    buffer = num_messages * -(-largest // num_messages)
    # Sums cross twice but for a rank's own part; matrices' gradients and results once each, in float32 at this size.
    a_step = (count - 1) * (2 * 4 * summed // count + 2 * 4 * buffer) + 2 * (count - 1) * 16 // count
    assert folder.read_steps()[-1].rank_bytes_sent == [STEPS * a_step] * count


def test_lanes_hold_every_value_once_and_pad_only_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_sizes, "OWNER_MESSAGE_VALUES", 30)
    sizes, owners = [7, 0, 30, 3, 5, 1], [0, 1, 1, 0, 2, 0]
    cut = OwnerBuffers(sizes, owners, 3)
    # Ten values a buffer in each message would do, in whole vectors sixteen: two messages, none of them empty.
    assert (cut.num_messages, cut.width, cut.length) == (2, 16, 32)
    values = [torch.arange(size) + 100.0 * index for index, size in enumerate(sizes)]
    messages = torch.full((cut.num_messages, 3, cut.width), torch.nan)
    for index, parts in enumerate(cut.parts):
        for message, part in parts.items():
            place = messages[message, owners[index], part.in_buffer]
            assert place.isnan().all()
            place.copy_(values[index][part.in_matrix])
    assert int(messages.isnan().sum()) == 3 * 32 - sum(sizes)
    whole = messages.transpose(0, 1).reshape(3, -1)
    for index, value in enumerate(values):
        assert torch.equal(whole[owners[index], cut.in_buffer(index)], value)
    for message, content in enumerate(cut.contents):
        assert content == [(index, parts[message]) for index, parts in enumerate(cut.parts) if message in parts]


def test_the_norm_of_norms_is_torchs_to_the_bit() -> None:
    parameters = [torch.zeros(size) for size in (3, 1000, 17, 1)]
    gradients = [torch.randn(parameter.shape) for parameter in parameters]
    expected = torch.nn.utils.get_total_norm(gradients)
    assert torch.equal(total_norm(dict(zip(parameters, gradients, strict=True)), {}, None), expected)

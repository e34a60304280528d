"""What records say of an inner step's update, of the flops that devices compute and of the decay's timescale."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from muloco_runner.config import ConfigError, ExecutionConfig, ModelConfig, MuonConfig, RunConfig
from muloco_runner.diloco.worker import Worker
from muloco_runner.job import run_job
from muloco_runner.model.transformer import build_model
from muloco_runner.record import RunFolder
from muloco_runner.training import update_sizes
from muloco_runner.training.mfu import utilisations_at
from muloco_runner.training.update_sizes import KINDS, UpdateSizes, kind_of, sizes_of

OURS = KINDS[:5]
"""Those of the built-in model."""
MODEL = ModelConfig(width=32, num_layers=2, head_width=16, vocab_size=50, sequence_length=16)
LADDER_150M = ModelConfig(width=512, num_layers=6)


def moved(samples: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, dict[str, tuple[float, float]]]:
    """Measured sizes (2, M) of a random update, and those of all values."""
    monkeypatch.setattr(update_sizes, "_SAMPLED_VALUES", samples)
    model = build_model(MODEL, 0, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters())
    sizes = UpdateSizes(Worker(0, model, optimizer, list(model.parameters())), list(model.parameters()))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sizes.begin()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    measured = sizes_of(sizes.end())
    expected = {}
    for kind in OURS:
        updates = [
            (p.detach() - before[name]).flatten() for name, p in model.named_parameters() if kind_of(name) == kind
        ]
        weights = [before[name].flatten() for name in before if kind_of(name) == kind]
        update, weight = (torch.cat(those).double().square().mean().sqrt() for those in (updates, weights))
        expected[kind] = (float(update), float(update / weight))
    return measured, expected


@pytest.mark.parametrize(("samples", "tolerance"), [(1 << 20, 1e-5), (8192, 0.05)])
def test_sizes_of_an_update_are_those_of_all_values(
    samples: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, expected = moved(samples, monkeypatch)
    for index, kind in enumerate(OURS):
        assert measured[:, index].tolist() == pytest.approx(expected[kind], rel=tolerance), kind


def test_a_runs_records_hold_them_every_interval(
    tiny_run: Callable[..., RunConfig],
    new_folder: Callable[..., RunFolder],
    execution: ExecutionConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tiny_run("diloco", "muon", num_steps=9)
    folder = new_folder(run)
    run_job(folder, dataclasses.replace(execution, log_interval_steps=4, evaluate_interval_steps=3))
    steps = {step.step: step for step in folder.read_steps()}
    assert {number for number, step in steps.items() if step.update_rms} == {1, 4, 8}
    for number in (1, 4, 8):
        rms, ratio = steps[number].update_rms, steps[number].update_ratio
        assert rms is not None
        assert ratio is not None
        assert rms.keys() == ratio.keys() == set(OURS)
        assert all(0 < value < 1 for value in rms.values())
    result = folder.read_result()
    assert result is not None
    assert result.hardware_flops == run.hardware_flops
    assert result.weight_decay_timescale == run.weight_decay_timescale
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Muon") and line.endswith("hidden matrix") for line in lines)
    assert any(line.startswith("AdamW") and line.endswith("head: named head") for line in lines)


def test_the_hardware_view_counts_attention_and_no_embedding() -> None:
    shares = utilisations_at(RunConfig(model=LADDER_150M), 1e6, 1e15)
    assert shares["mfu"] / shares["hardware_mfu"] == pytest.approx(1.63, abs=0.005)
    n, v, width, layers, length = LADDER_150M.num_params, 128_256, 512, 6, 2048
    assert LADDER_150M.hardware_flops_per_token == 6 * (n - v * width) + 7 * layers * length * width


def with_decay(rule: str, decay: float = 0.01, lr: float = 0.02, batch: int = 4096) -> RunConfig:
    inner = MuonConfig(lr=lr, weight_decay=decay, weight_decay_rule=rule, weight_decay_reference_tokens=8192)
    return RunConfig(model=MODEL, inner_optimizer=inner, global_batch_tokens=batch, tokens_per_parameter=1000)


def test_decay_is_coupled_to_lr_or_independent_of_it_or_the_studys() -> None:
    assert with_decay("constant").weight_decay == 0.01
    assert with_decay("worker_batch").weight_decay == 0.005
    for lr in (0.02, 0.1):
        assert lr * with_decay("independent", lr=lr).weight_decay == pytest.approx(0.01)
    assert with_decay("coupled").run_id == with_decay("constant").run_id
    assert with_decay("coupled").to_dict() == with_decay("constant").to_dict()
    with pytest.raises(ConfigError, match="constant, worker_batch, independent"):
        with_decay("decoupled")


def test_the_timescale_is_that_of_the_average_that_weights_are() -> None:
    run = with_decay("constant")
    assert run.weight_decay_timescale == pytest.approx(1 / (0.02 * 0.01 * run.num_steps))
    assert run.weight_decay_timescale == pytest.approx(4096 / (0.02 * 0.01 * run.num_tokens))
    assert with_decay("constant", decay=0.0).weight_decay_timescale is None


def test_a_default_run_keeps_its_id() -> None:
    assert RunConfig().run_id == "052f0b0bb6f9"

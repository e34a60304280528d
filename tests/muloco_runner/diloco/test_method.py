"""DiLoCo's outer step: its formula, the workers' agreement, and the end of a run."""

from collections.abc import Callable

import pytest
import torch

from muloco_runner.config import OuterAdamConfig, OuterMuonConfig, OuterSgdConfig, RunConfig
from muloco_runner.diloco.flat import flatten
from muloco_runner.diloco.method import build_method
from muloco_runner.diloco.outer_optimizer import SharedTensors, build_outer_optimizer, nesterov_outer_step
from muloco_runner.diloco.worker import Worker
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.model.transformer import build_model
from muloco_runner.muon_rule.polynomial import named_polynomial
from muloco_runner.optimizers.orthogonalize.reference import orthogonalize_reference

CPU = torch.device("cpu")


def untrained_workers(run: RunConfig) -> list[Worker]:
    models = [build_model(run.model, run.seed, CPU) for _ in range(run.num_workers)]
    return [Worker(i, m, torch.optim.SGD(m.parameters()), list(m.parameters())) for i, m in enumerate(models)]


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.6, False), (0.6, True), (0.9, True)])
def test_the_outer_step_is_torchs_sgd_on_the_pseudogradient(momentum: float, nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    anchor = torch.randn(50, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(anchor.clone())
    sgd = torch.optim.SGD([parameter], lr=0.7, momentum=momentum, nesterov=nesterov)
    velocity = torch.zeros_like(anchor)
    config = OuterSgdConfig(lr=0.7, momentum=momentum, nesterov=nesterov)
    for _ in range(5):
        delta = torch.randn(50, generator=generator, dtype=torch.float64)
        parameter.grad = delta.clone()
        sgd.step()
        nesterov_outer_step(anchor, velocity, delta, config)
        torch.testing.assert_close(anchor, parameter.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("betas", "eps"), [([0.9, 0.99], 1e-8), ([0.0, 0.5], 1e-3), ([0.9, 0.999], 0.1)])
def test_outer_adam_is_torchs_adam_on_the_pseudogradient(betas: list[float], eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # Longer than what is worked on at once.
    anchor = torch.randn(70_000, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(anchor.clone())
    adam = torch.optim.Adam([parameter], lr=0.03, betas=(betas[0], betas[1]), eps=eps)
    shared = SharedTensors([anchor], [], Communicator(Topology(1)))
    outer = build_outer_optimizer(OuterAdamConfig(lr=0.03, betas=betas, eps=eps), shared)
    for number in range(1, 6):
        delta = torch.randn(70_000, generator=generator, dtype=torch.float64)
        parameter.grad = delta.clone()
        adam.step()
        outer.step(anchor, delta, number)
        torch.testing.assert_close(anchor, parameter.detach(), rtol=1e-12, atol=1e-12)
    state = adam.state[parameter]
    torch.testing.assert_close(outer.state["first_moment"], state["exp_avg"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outer.state["second_moment"], state["exp_avg_sq"], rtol=1e-12, atol=1e-12)


def test_workers_agree_after_a_sync_on_the_formulas_result(tiny_run: Callable[..., RunConfig]) -> None:
    run = tiny_run("diloco", num_workers=4, outer_optimizer=OuterSgdConfig(lr=0.5, momentum=0.8))
    workers = untrained_workers(run)
    method = build_method(run, workers, Communicator(Topology(4)))
    anchor = flatten(method.synchronised_parameters())
    with torch.no_grad():
        for worker in workers:
            for parameter in worker.tensors:
                parameter.add_(0.01 * (worker.index + 1))
    assert method.after_inner_step(4) is None
    outer = method.after_inner_step(5)
    # Mean pseudogradient -0.025; first velocity 0.5 * that; step (1 + 0.8) * 0.5 of it.
    expected = anchor + 0.025 * 0.5 * 1.8
    for worker in workers:
        moved = torch.cat([parameter.detach().flatten() for parameter in worker.tensors])
        torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(moved, flatten(method.synchronised_parameters()))
    assert outer is not None
    assert outer.pseudogradient_cosine == pytest.approx(1.0, abs=1e-4)  # float32 parameters of size 1 moved by 0.01
    assert outer.pseudogradient_norm == pytest.approx(0.025 * anchor.numel() ** 0.5, rel=1e-4)


def test_outer_muon_is_the_formula_and_sgd_for_all_but_matrices(
    tiny_run: Callable[..., RunConfig],
) -> None:
    outer = OuterMuonConfig(lr=0.7, momentum=0.8, matrix_lr=0.3, matrix_momentum=0.6)
    run = tiny_run("diloco", num_workers=2, outer_optimizer=outer)
    workers = untrained_workers(run)
    method = build_method(run, workers, Communicator(Topology(2)), "reference")
    names = [name for name, _ in workers[0].model.named_parameters()]
    anchors = [tensor.detach().double() for tensor in workers[0].tensors]
    velocities = [torch.zeros_like(anchor) for anchor in anchors]
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 16):
        for worker in workers:
            for tensor in worker.tensors:
                tensor.data.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        if step % 5 == 0:
            deltas = [
                anchor - (one.detach().double() + other.detach().double()) / 2
                for anchor, one, other in zip(anchors, workers[0].tensors, workers[1].tensors, strict=True)
            ]
            for place, (name, delta) in enumerate(zip(names, deltas, strict=True)):
                if name.startswith("blocks.") and delta.ndim == 2:
                    velocities[place] = 0.6 * velocities[place] + delta
                    direction = orthogonalize_reference(velocities[place], named_polynomial("muloco", 5))
                    rows, columns = delta.shape
                    anchors[place] = anchors[place] - 0.3 * (rows / columns) ** 0.5 * direction
                else:
                    velocities[place] = 0.8 * velocities[place] + 0.7 * delta
                    anchors[place] = anchors[place] - 0.8 * velocities[place] - 0.7 * delta
        method.after_inner_step(step)
    for name, ours, expected in zip(names, method.synchronised_parameters(), anchors, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5, msg=name)


def test_the_last_step_of_a_run_is_shared_whatever_the_interval(tiny_run: Callable[..., RunConfig]) -> None:
    run = tiny_run("diloco", sync_interval=5, num_steps=23)
    method = build_method(run, untrained_workers(run), Communicator(Topology(1)))
    synced = [step for step in range(1, 24) if method.after_inner_step(step) is not None]
    assert synced == [5, 10, 15, 20, 23]

"""What fragments and a delay are worth in the wall-clock models."""

import dataclasses

import pytest

from analysis.questions.wall_clock import Assumptions, Training, charles_seconds, idealised_seconds

RUN = Training(1_000_000, 1e8, 1e5, num_workers=4, sync_interval=10)
ASSUME = Assumptions(step_seconds=0.1, bits_per_value=32, num_devices=4, device_flops=1.5e12, latency_seconds=0)
MODELS = [idealised_seconds, charles_seconds]


@pytest.mark.parametrize("model", MODELS)
def test_fragments_alone_move_the_same_bytes(model) -> None:
    assert model(dataclasses.replace(RUN, num_fragments=5), 1e8, ASSUME) == pytest.approx(model(RUN, 1e8, ASSUME))


@pytest.mark.parametrize("model", MODELS)
def test_a_delay_hides_an_exchange_as_far_as_steps_go_beside_it(model) -> None:
    bandwidth = 1e8
    compute = model(RUN, float("inf"), ASSUME)
    step, exchange = compute / RUN.num_steps, (model(RUN, bandwidth, ASSUME) - compute) / RUN.num_exchanges
    assert exchange > step
    partly = model(dataclasses.replace(RUN, delay_steps=1), bandwidth, ASSUME)
    assert partly == pytest.approx(compute + RUN.num_exchanges * (exchange - step))
    assert model(dataclasses.replace(RUN, delay_steps=9), bandwidth, ASSUME) == pytest.approx(compute)

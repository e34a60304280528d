from collections.abc import Callable

import pytest

from muloco_runner.config import CosineConfig, RunConfig, WarmupStableDecayConfig
from muloco_runner.training.learning_rate import lr_fraction


def test_cosine_warms_up_then_falls_to_the_final_fraction(tiny_run: Callable[..., RunConfig]) -> None:
    run = tiny_run(num_steps=100, schedule=CosineConfig(warmup_steps=10, final_lr_fraction=0.1))
    fractions = [lr_fraction(run, step) for step in range(100)]
    assert fractions[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert fractions[10] == 1
    assert fractions[55] == pytest.approx(0.55)
    assert sorted(fractions[10:], reverse=True) == fractions[10:]
    assert fractions[-1] == pytest.approx(0.1, abs=1e-3)


def test_wsd_stays_then_falls_in_a_line(tiny_run: Callable[..., RunConfig]) -> None:
    run = tiny_run(num_steps=100, schedule=WarmupStableDecayConfig(warmup_steps=10, decay_fraction=0.2))
    fractions = [lr_fraction(run, step) for step in range(100)]
    assert set(fractions[10:81]) == {1.0}
    assert fractions[90] == pytest.approx(0.55)


def test_warm_up_never_takes_more_than_its_share(tiny_run: Callable[..., RunConfig]) -> None:
    assert tiny_run(num_steps=100, schedule=CosineConfig(warmup_steps=500)).warmup_steps == 10

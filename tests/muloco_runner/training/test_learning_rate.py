from collections.abc import Callable

import pytest

from muloco_runner.config import ConfigError, CosineConfig, LinearConfig, RunConfig, WarmupStableDecayConfig
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


def test_linear_falls_in_a_line_from_the_end_of_warm_up(tiny_run: Callable[..., RunConfig]) -> None:
    run = tiny_run(num_steps=100, schedule=LinearConfig(warmup_steps=10, final_lr_fraction=0.2))
    fractions = [lr_fraction(run, step) for step in range(100)]
    assert fractions[9:11] == [1, 1]
    assert fractions[10:] == pytest.approx([1 - 0.8 * n / 90 for n in range(90)])


def test_wsd_may_decay_by_one_minus_the_root(tiny_run: Callable[..., RunConfig]) -> None:
    schedule = WarmupStableDecayConfig(warmup_steps=10, final_lr_fraction=0.0, decay_form="sqrt")
    run = tiny_run(num_steps=100, schedule=schedule)
    fractions = [lr_fraction(run, step) for step in range(100)]
    assert set(fractions[10 : schedule.stable_until(100)]) == {1.0}
    assert fractions[80:] == pytest.approx([1 - (n / 20) ** 0.5 for n in range(20)])


def test_the_default_form_of_decay_is_not_named(tiny_run: Callable[..., RunConfig]) -> None:
    runs = [tiny_run(schedule=WarmupStableDecayConfig(decay_form=form)) for form in ("linear", "sqrt")]
    assert [run.to_dict()["schedule"].get("decay_form") for run in runs] == [None, "sqrt"]
    with pytest.raises(ConfigError, match=r"schedule\.decay_form='root': must be one of linear, sqrt"):
        WarmupStableDecayConfig(decay_form="root")


def test_warm_up_never_takes_more_than_its_share(tiny_run: Callable[..., RunConfig]) -> None:
    assert tiny_run(num_steps=100, schedule=CosineConfig(warmup_steps=500)).warmup_steps == 10

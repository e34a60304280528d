"""`tune: coordinates` on planted loss surfaces: where it ends, what it costs, and what it says."""

import math
import os
from dataclasses import replace

import pytest
from planted_surfaces import group_of

from sweeps.engine.sweep_state import SweepState
from sweeps.engine.tuning.coordinates import tuning_verdict
from sweeps.engine.tuning.group_verdict import Verdict
from sweeps.engine.tuning.growth import Growth
from sweeps.engine.tuning.study import Axis, Group, Place, Results, Setting, Study, TuneRule, moved
from sweeps.simulation.surface import Surface

SURFACES = int(os.environ.get("MULOCO_SURFACES", "20"))
RULE = TuneRule(0.003)
VALUES = 13
START = Setting(6, (6, 6))


def group(batches_grow: bool = True) -> Group:
    """Two keys and the batch, thirteen values of each, the file's run in the middle."""
    axes = [Axis(key, tuple(2.0**n for n in range(VALUES)), 6, 6) for key in ("lr", "decay")]
    batches = Axis("global_batch_tokens", tuple(2.0**n for n in range(VALUES)), 6, 6, batches_grow)
    return Group("g", "MuLoCo", batches, tuple(axes), (0,))


def play(surface: Surface, given: Group, rule: TuneRule = RULE) -> tuple[Results, Verdict]:
    results, asked = Results(), [START]
    while asked:
        for setting in asked:
            assert setting not in results.losses
            loss = surface.measured(setting, 0)
            results.losses[setting] = {0: loss if loss < math.inf else None}
        verdict = tuning_verdict(given, results, {START}, rule)
        asked = [one.setting for one in verdict.wanted]
    return results, verdict


def neighbours(setting: Setting) -> list[Setting]:
    found = [setting._replace(batch=setting.batch + step) for step in (-1, 1)]
    found += [moved(setting, number, setting.at[number] + step) for number in (0, 1) for step in (-1, 1)]
    return [one for one in found if all(0 <= at < VALUES for at in (one.batch, *one.at))]


def losses_of(results: Results) -> dict[Setting, float]:
    return {one: math.inf if found[0] is None else found[0] for one, found in results.losses.items()}


def test_ends_where_no_key_improves_by_the_threshold() -> None:
    num_runs = close = 0
    for seed in range(SURFACES):
        surface = Surface.planted(seed, group())
        if surface.true_loss(START) == math.inf:
            surface = replace(surface, cliff=math.inf)
        results, verdict = play(surface, group())
        losses = losses_of(results)
        num_runs += len(losses)
        # Some setting stands whose neighbours were all tried, none better by more than the threshold.
        ends = [
            one
            for one in losses
            if all(other in losses and losses[one] - losses[other] <= RULE.threshold for other in neighbours(one))
        ]
        assert ends, seed
        assert not verdict.bounds
        whole = min(surface.true_loss(Setting(b, (x, y))) for b in range(13) for x in range(13) for y in range(13))
        close += min(surface.true_loss(one) for one in ends) <= 1.01 * whole
    print(f"{SURFACES} surfaces: {num_runs / SURFACES:.1f} runs each of {VALUES**3}, {close} within 1 %")
    assert num_runs <= 40 * SURFACES
    # Keys depend on each other there, which no walk over one at a time gets around.
    assert close >= 0.7 * SURFACES


def losses(found: dict[tuple[int, int], float | None]) -> Results:
    return Results({Setting(6, at): {0: loss} for at, loss in found.items()})


def test_one_key_at_a_time_around_the_best_so_far() -> None:
    given = group(batches_grow=False)
    first = tuning_verdict(given, losses({(6, 6): 3.0}), {START}, RULE)
    assert [one.setting.at for one in first.wanted] == [(5, 6), (7, 6)]
    assert first.wanted[0].why == "lr=32 is the next value beside the best so far (lr=64, decay=64: loss 3.0000)"
    # The better side is followed before the next key has its turn.
    tried = {(6, 6): 3.0, (5, 6): 3.1, (7, 6): 2.9}
    assert [one.setting.at for one in tuning_verdict(given, losses(tried), {START}, RULE).wanted] == [(8, 6)]
    tried[8, 6] = None
    assert [one.setting.at for one in tuning_verdict(given, losses(tried), {START}, RULE).wanted] == [(7, 5), (7, 7)]
    # Once another key has moved, the first is looked at anew.
    tried |= {(7, 5): 2.8, (7, 7): 3.0, (7, 4): 2.9}
    assert [one.setting.at for one in tuning_verdict(given, losses(tried), {START}, RULE).wanted] == [(6, 5), (8, 5)]


def test_an_improvement_within_the_threshold_is_not_followed() -> None:
    given = replace(group(batches_grow=False), axes=group().axes[:1])
    results = Results({Setting(6, (at,)): {0: 3.0 - 0.002 * (at - 6)} for at in (5, 6, 7)})
    stays = tuning_verdict(given, results, {Setting(6, (6,))}, RULE)
    assert not stays.wanted
    assert stays.settled == "no value beside the best (lr=64) improves the loss by more than 0.003"
    assert tuning_verdict(given, results, {Setting(6, (6,))}, TuneRule(0.001)).wanted


def test_the_end_of_a_keys_values_is_named() -> None:
    given = replace(group(batches_grow=False), axes=(Axis("lr", (1.0, 2.0), 0, 1),))
    results = Results({Setting(6, (at,)): {0: 3.0 - at} for at in (0, 1)})
    found = tuning_verdict(given, results, {Setting(6, (0,))}, RULE)
    assert found.settled.endswith("; at the end of its values: lr=2")


@pytest.mark.parametrize(("most", "asked"), [(2, 0), (4, 4)])
def test_a_step_is_added_whole_or_not_at_all(most: int, asked: int) -> None:
    given = replace(group_of(), seeds=(0, 1), batches=replace(group_of().batches, grows=False))
    start = Setting(30, (30,))
    study = Study((given,), {f"{n}": Place("g", start, n) for n in (0, 1)}, tune=TuneRule(0.003, most))

    state = SweepState.of([])
    state.losses = {"0": 3.0, "1": 3.1}
    growth = Growth(study)
    assert len(growth.additions(state).get("g", [])) == asked
    if not asked:
        assert "open: tune.max_runs=2 reached" in next(iter(growth.lines(state)))


def test_where_nothing_trains_that_is_said() -> None:
    found = tuning_verdict(group(), Results({START: {0: None}}), {START}, RULE)
    assert found.bounds == ["no run of the file has a loss to begin from"]

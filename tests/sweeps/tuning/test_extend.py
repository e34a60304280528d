"""`extend` on planted loss surfaces: where it ends, what it costs, and what it says."""

import os
from dataclasses import replace

import pytest
from planted_surfaces import box_of, group_of, optimum_of, planted, play, seed_grid

from sweeps.engine.tuning.extend import verdict_on
from sweeps.engine.tuning.quadratic import minimum
from sweeps.engine.tuning.study import ExtendRule, Results, Setting
from sweeps.simulation.surface import Surface

SURFACES = int(os.environ.get("MULOCO_SURFACES", "20"))
"""As many random ones; 500 take half a minute of one core."""
PLAIN = Surface(0, (30.0,), 30.0, 0.0, 0.02, 0.006, 0.0, float("inf"), 0.0)


def test_planted_optima_end_interior_at_the_cost_of_their_box() -> None:
    interior = close = num_runs = num_box = 0
    for seed in range(SURFACES):
        surface = planted(seed)
        played = play(surface, group_of(), ExtendRule())
        interior += played.is_interior
        close += surface.true_loss(played.chosen) <= 1.005 * optimum_of(surface)
        num_runs += played.num_runs
        num_box += len(box_of(surface, 1))
    print(f"{SURFACES} surfaces: {interior} interior, {close} within .5 %, {num_runs / num_box:.2f} times the box")
    assert interior >= 0.99 * SURFACES
    assert close >= 0.95 * SURFACES
    # The file's own grid and the way to the optimum are counted too.
    assert num_runs <= 1.35 * num_box


def test_a_quadratic_leaps_to_an_optimum_far_away() -> None:
    surface = replace(PLAIN, rates=(25.0,), batch=34.0)
    group, results = group_of(), Results()
    for setting in seed_grid(group):
        results.losses[setting] = {0: surface.measured(setting, 0)}
    # Twice as far as the grid reaches, in either.
    (wanted,) = verdict_on(group, results, ExtendRule()).wanted
    assert wanted.setting == Setting(34, (25,))
    assert wanted.why.startswith(
        "global_batch_tokens=2,147,483,648 with inner_optimizer.lr=0.000488281 was best and is"
    )
    # Where that diverged the grid goes on step by step.
    results.losses[wanted.setting] = {0: None}
    assert Setting(34, (25,)) not in [one.setting for one in verdict_on(group, results, ExtendRule()).wanted]
    assert verdict_on(group, results, ExtendRule()).wanted


def test_the_minimum_of_a_quadratic_is_found() -> None:
    points = [(x, y) for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0)]
    values = [2 * (x - 3) ** 2 + (x - 3) * (y + 1) + (y + 1) ** 2 + 7 for x, y in points]
    assert minimum(points, values) == pytest.approx([3.0, -1.0])
    # No minimum, and not enough points for one.
    assert minimum(points, [-value for value in values]) is None
    assert minimum(points, [x * y for x, y in points]) is None
    assert minimum(points[:5], values[:5]) is None
    assert minimum(points[:3] * 3, values) is None


def test_a_wider_margin_is_kept_on_each_side() -> None:
    played = play(PLAIN, group_of(), ExtendRule(margin=2))
    chosen = played.chosen
    assert (chosen.batch, chosen.at) == (30, (30,))
    for distance in (-2, -1, 1, 2):
        assert chosen._replace(at=(30 + distance,)) in played.results.losses
        assert any(one.batch == 30 + distance for one in played.results.losses)


def losses_of(group_results: dict[tuple[int, int], float | None]) -> Results:
    return Results({Setting(batch, (at,)): {0: loss} for (batch, at), loss in group_results.items()})


def test_an_edge_is_moved_by_one_step_and_says_why() -> None:
    group = group_of(30, 31, batches_grow=False)
    found = verdict_on(group, losses_of({(30, 30): 3.1, (30, 31): 3.0}), ExtendRule())
    assert [one.setting for one in found.wanted] == [Setting(30, (32,))]
    rate, batch = group.axes[0].text(31), group.batches.text(30)
    assert found.wanted[0].why == f"{rate} was best at {batch} and is the grid's edge"
    assert not found.is_interior


def test_a_cliff_is_an_edge_that_brackets() -> None:
    group = group_of(30, 31, batches_grow=False)
    results = losses_of({(30, 29): 3.1, (30, 30): 3.0, (30, 31): None})
    assert verdict_on(group, results, ExtendRule()).is_interior
    # Where everything diverged, rates go down.
    results = losses_of({(30, 30): None, (30, 31): None})
    assert [one.setting.at for one in verdict_on(group, results, ExtendRule()).wanted] == [(29,)]


def test_a_bound_is_named_where_it_keeps_an_edge_open() -> None:
    group = group_of(0, 1, batches_grow=False)
    found = verdict_on(group, losses_of({(0, 0): 3.0, (0, 1): 3.1}), ExtendRule())
    assert not found.wanted
    assert found.bounds == [f"{group.axes[0].text(0)} was best at {group.batches.text(0)} and is the smallest that the "
                            "bounds allow"]  # fmt: skip


def test_a_flat_curve_is_followed_until_it_has_risen() -> None:
    group = group_of()
    risen = play(PLAIN, group, ExtendRule())
    batches = {setting.batch for setting in risen.results.losses}
    # 1.01 = 1 + .006 d^2 at d = 1.3: the second batch above the best is the first that is bad enough.
    assert batches == {29, 30, 31, 32}


@pytest.mark.parametrize("margin", [1, 2])
def test_what_is_asked_for_does_not_depend_on_the_order(margin: int) -> None:
    group, surface = group_of(), planted(3)
    forwards, backwards = Results(), Results()
    for results, settings in ((forwards, seed_grid(group)), (backwards, seed_grid(group)[::-1])):
        for setting in settings:
            results.losses[setting] = {0: surface.measured(setting, 0)}
    wanted = [verdict_on(group, results, ExtendRule(margin)).wanted for results in (forwards, backwards)]
    assert sorted(one.setting for one in wanted[0]) == sorted(one.setting for one in wanted[1])

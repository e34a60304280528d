"""`replicate` and `decide`: seeds where they count, and error rates as stated."""

import os
import random
from collections import Counter
from dataclasses import replace

import pytest
from planted_surfaces import group_of, seed_grid

from sweeps.cli.study_lines import study_as_dict
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig, QuotaConfig
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.tuning.growth import Growth
from sweeps.engine.tuning.sequential import Outcome, PairResult, PairRule, judge
from sweeps.engine.tuning.study import DecideRule, ExtendRule, Place, ReplicateRule, Study
from sweeps.engine.work import Adapter, Need, Work
from sweeps.simulation.faults import FaultModel
from sweeps.simulation.simulate import simulate
from sweeps.simulation.surface import PlantedTrials, Surface

SEQUENCES = int(os.environ.get("MULOCO_SEQUENCES", "100"))
"""As many random ones; 1,000 in the soak."""
RULE = PairRule(gap=0.004)
SD = 0.0018
"""Of differences of two runs whose own standard deviation is .0013 nat, as measured at 124M parameters."""
FIRST, SECOND = (replace(group_of(), id=name, label=f"{name} at 1m", series=name, scale="1m") for name in "AB")


def ended(mean: float, seed: int, rule: PairRule) -> PairResult:
    """The end of a sequence of differences, looked at after each."""
    draw = random.Random(seed)
    differences: list[float] = []
    while True:
        differences.append(draw.gauss(mean, SD))
        result = judge(differences, rule)
        if result.outcome is not Outcome.OPEN:
            return result


def outcomes(mean: float, rule: PairRule) -> Counter[Outcome]:
    return Counter(ended(mean, seed, rule).outcome for seed in range(SEQUENCES))


@pytest.mark.parametrize("gap", [0.0, 0.004])
def test_equal_pairs_end_as_ties_as_often_as_is_stated(gap: float) -> None:
    found = outcomes(0.0, PairRule(gap))
    print(f"equal, gap {gap}: {found}")
    assert found[Outcome.FIRST] + found[Outcome.SECOND] <= 0.05 * SEQUENCES
    assert found[Outcome.TIE] >= 0.95 * SEQUENCES


@pytest.mark.parametrize("mean", [0.002, 0.004, 0.008])
def test_a_difference_is_hardly_ever_taken_for_its_opposite(mean: float) -> None:
    found = outcomes(mean, RULE)
    print(f"{mean}: {found}")
    assert found[Outcome.FIRST] <= 0.05 * SEQUENCES
    # One of the gap or more is told.
    assert mean < RULE.gap or found[Outcome.SECOND] >= 0.95 * SEQUENCES


def test_intervals_hold_the_mean_at_every_look() -> None:
    missed = 0
    for seed in range(SEQUENCES):
        draw = random.Random(seed)
        differences = [draw.gauss(0.003, SD) for _ in range(20)]
        looks = [judge(differences[:num], PairRule(gap=0.0, max_seeds=99)).interval for num in range(2, 21)]
        missed += any(not low <= 0.003 <= high for low, high in looks)
    assert missed <= 0.05 * SEQUENCES


def test_few_seeds_decide_nothing() -> None:
    assert judge([], RULE).outcome is Outcome.OPEN
    assert judge([0.5], RULE).outcome is Outcome.OPEN
    assert judge([0.5, 0.5001], replace(RULE, gap=0.0)).interval[0] < 0


def test_an_interval_is_named_once_there_is_one() -> None:
    few, enough = (judge([-0.05, -0.06] * times, RULE).to_text("A", "B") for times in (1, 2))
    assert few == "A against B is open: difference -0.0550 without an interval yet, sigma 0.0071, 2 seeds"
    assert "difference -0.0550 within -0" in enough


def played(study: Study, surfaces: dict[str, Surface]) -> SweepState:
    nodes = AllocationConfig("a", gpus_per_node=8, cpus_per_node=96, quota=QuotaConfig(nodes=8))
    need, adapter = Need(1, 8, 8, 0.0, 10.0), Adapter(speaks_exit_codes=True)
    works = [Work(name, f"/nowhere/{name}", "m:f", need=need, adapter=adapter) for name in study.places]
    trials = PlantedTrials(study, 0)
    trials.surfaces |= surfaces
    return simulate(works, ClusterConfig("c", "slurm", [nodes]), FaultModel(), trials=trials).state


def study_of(**rules: object) -> Study:
    places = {
        f"{group.id}-{setting.batch}-{setting.at[0]}": Place(group.id, setting, 0)
        for group in (FIRST, SECOND)
        for setting in seed_grid(group)
    }
    return Study((FIRST, SECOND), places, **rules)  # type: ignore[arg-type]


def surface(rate: float, noise: float = 0.0004) -> Surface:
    return Surface(1, (rate,), 30.0, 0.0, 0.02, 0.006, 0.0, float("inf"), noise)


def test_the_best_settings_get_their_seeds_and_no_others() -> None:
    given = study_of(replicate=ReplicateRule(best=2, seeds=3))
    state = played(given, {"A": surface(30), "B": surface(31)})
    places = [given.place_of(one.at) for one in state.added.values()]
    settings = Counter((place.group, place.setting) for place in places if place is not None)
    assert len(state.added) == 8
    assert set(settings.values()) == {2}
    assert ("A", seed_grid(FIRST)[4]) in settings
    assert {one.at.seed for one in state.added.values()} == {1, 2}
    assert all("replicate" in one.why for one in state.added.values())


def test_the_best_of_each_batch_gets_its_seeds() -> None:
    given = study_of(replicate=ReplicateRule(best=2, seeds=3, each_batch=5))
    state = played(given, {"A": surface(30), "B": surface(31)})
    places = [given.place_of(one.at) for one in state.added.values()]
    settings = Counter((place.group, place.setting) for place in places if place is not None)
    batches = len({setting.batch for setting in seed_grid(FIRST)})
    # Each of the two best settings is the best of its batch, or gets the two seeds more of its own.
    assert sorted(settings.values()) == sorted([*[4] * 2 * batches, *[2] * (len(settings) - 2 * batches)])
    assert {(group, setting.batch) for (group, setting), count in settings.items() if count == 4} == {
        (group, setting.batch) for group in "AB" for setting in seed_grid(FIRST)
    }
    assert state.added.keys() == played(given, {"A": surface(30), "B": surface(31)}).added.keys()


def test_a_pair_gets_seeds_until_it_is_decided() -> None:
    given = study_of(decide=DecideRule((("A", "B"),), RULE), extend=ExtendRule())
    # B's best is out of reach of its file, so that it is extended first.
    state = played(given, {"A": surface(30), "B": replace(surface(33), seed=2)})
    growth = Growth(given)
    assert growth.additions(state) == {}
    (contest,) = growth.contests()
    result = contest.result
    assert [group.series for group in contest.groups] == ["A", "B"]
    assert result.outcome in (Outcome.TIE, Outcome.FIRST, Outcome.SECOND)
    assert 4 <= result.num_seeds <= RULE.max_seeds
    seeds = {
        name: {one.at.seed for one in state.added.values() if one.at.group == name and "(decide)" in one.why}
        for name in "AB"
    }
    # The same for both, and none that had a part in the choice of the settings.
    assert seeds["A"] == seeds["B"]
    assert 0 not in seeds["A"]
    assert any("B" in line and "seeds" in line for line in growth.lines(state))


def alone(*seeds: int) -> Study:
    """One setting of each series, of which nothing was chosen."""
    places = {f"{g.id}{seed}": Place(g.id, seed_grid(g)[4], seed) for g in (FIRST, SECOND) for seed in seeds}
    return Study((FIRST, SECOND), places, decide=DecideRule((("A", "B"),), RULE))


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2), (7,)])
def test_where_nothing_was_chosen_all_seeds_count(seeds: tuple[int, ...]) -> None:
    state = played(alone(*seeds), {"A": surface(30), "B": replace(surface(30), seed=2, batch=34)})
    growth = Growth(alone(*seeds))
    assert growth.additions(state) == {}
    (contest,) = growth.contests()
    assert contest.result.outcome is not Outcome.OPEN
    assert contest.result.num_seeds <= len(seeds) + len(state.added) // 2
    assert {one.at.seed for one in state.added.values() if one.at.group == "A"}.isdisjoint(seeds)
    assert len(state.added) <= 2 * max(0, 6 - len(seeds))


def test_seeds_are_added_beyond_all_that_chose() -> None:
    both = {group.id: seed_grid(group)[3:5] for group in (FIRST, SECOND)}
    places = {
        f"{id}{n}{seed}": Place(id, one, seed) for id in "AB" for n, one in enumerate(both[id]) for seed in (0, 1, 2)
    }
    given = Study((FIRST, SECOND), places, decide=DecideRule((("A", "B"),), RULE))
    state = played(given, {"A": surface(30), "B": replace(surface(30), seed=2, batch=34)})
    (contest,) = growth_of(given, state).contests()
    assert contest.result.outcome is Outcome.FIRST
    assert {one.at.seed for one in state.added.values()} >= {3, 4, 5, 6}


def test_what_can_never_be_decided_says_why_and_adds_nothing() -> None:
    places = {f"{id}{seed}": Place(id, seed_grid(FIRST)[3 + seed], seed) for id in "AB" for seed in (0, 1)}
    given = Study((FIRST, SECOND), places, decide=DecideRule((("A", "B"),), RULE))
    state = played(given, {"A": surface(30), "B": surface(31)})
    assert not state.added
    assert "nothing is added: settings of A at 1m have no seed in common" in growth_of(given, state).contests()[0].text


def test_a_limit_is_said_to_be_reached_where_it_is() -> None:
    state = SweepState.of([])
    given = study_of(extend=ExtendRule(max_runs=5))
    state.losses = {name: 3.0 + place.setting.at[0] for name, place in given.places.items()}
    assert ": goes on: " in next(iter(Growth(given).lines(state)))


def test_each_contest_of_a_size_is_told_in_json() -> None:
    third = replace(FIRST, id="C", label="C at 2m", series="C", scale="2m")
    places = {one.id: Place(one.id, seed_grid(one)[4], 0) for one in (FIRST, SECOND, third)}
    decide = DecideRule((("A", "B"), ("B", "A"), ("A", "C")), RULE)
    found = study_as_dict(Study((FIRST, SECOND, third), places, decide=decide), SweepState.of([]))
    assert list(found["groups"]) == ["A at 1m", "B at 1m", "C at 2m"]
    assert [one["groups"] for one in found["contests"]] == [
        ["A at 1m", "B at 1m"],
        ["B at 1m", "A at 1m"],
        ["A at 1m", "C at 2m"],
    ]
    assert [one["scale"] for one in found["contests"]] == ["1m", "1m", "1m against 2m"]


def growth_of(given: Study, state: SweepState) -> Growth:
    growth = Growth(given)
    growth.additions(state)
    return growth

"""The one rule of best, edge and bracketed."""

import pytest

from muloco_runner.record import (
    ONLY_ONE_BATCH,
    Tried,
    batch_edge_of,
    best_of,
    bracket_batches,
    choosing_seeds,
    edge_of,
)


def test_the_best_on_an_end_of_what_was_tried_is_on_the_edge() -> None:
    assert edge_of(0.1, 0.1, 0.4) == "low"
    assert edge_of(0.4, 0.1, 0.4) == "high"
    assert edge_of(0.2, 0.1, 0.4) is None
    assert edge_of(0.1, 0.1, 0.1) is None
    assert batch_edge_of(256, 256, 256) == ONLY_ONE_BATCH
    assert best_of({"a": 2.0, "b": 1.0, "c": 1.0}) == "b"
    assert best_of({}) is None


@pytest.mark.parametrize(
    ("losses", "good", "risen", "censored"),
    [
        ([3.1, 3.0, 3.02, 3.2], 2, 3, None),
        ([3.1, 3.0, 3.02], 2, None, "right"),
        ([3.0, 3.1], 0, 1, "left"),
        ([3.0], 0, None, "left and right"),
        # The last batch within 1 %, whatever lies between.
        ([3.1, 3.0, 3.2, 3.01, 3.3], 3, 4, None),
    ],
)
def test_batches_bracket_the_critical_one(
    losses: list[float], good: int, risen: int | None, censored: str | None
) -> None:
    found = bracket_batches(losses)
    assert (found.largest_good, found.first_risen, found.censored) == (good, risen, censored)


def test_settings_are_compared_by_seeds_that_they_share() -> None:
    both, one = Tried(frozenset({0, 1}), False), Tried(frozenset({0}), False)
    apart = Tried(frozenset({7}), False)
    cliff = Tried(frozenset({0}), True)
    choices, is_whole = choosing_seeds({256: {"a": both, "b": one}, 512: {"c": both, "cliff": cliff}})
    assert is_whole
    assert choices == {256: {"a": {0}, "b": {0}}, 512: {"c": {0}}}
    choices, is_whole = choosing_seeds({256: {"a": both, "b": one}, 512: {"c": apart}})
    assert not is_whole
    assert choices == {256: {"a": {0}, "b": {0}}, 512: {"c": {7}}}
    # Where all of a batch diverged at some seed, the seeds with a loss are all there is.
    assert choosing_seeds({256: {"cliff": cliff}})[0] == {256: {"cliff": {0}}}

"""Every interval that a report prints holds the truth about as often as it says: 95 of 100 times.

Each family of intervals is counted on studies with known laws. 20 studies cannot tell .95 from .9: they stand against
intervals that are far too narrow, and the soak, with 200, holds every interval to the bar of .90 to .99.
"""

import os

import numpy as np
import planted_laws
import pytest
from scipy.stats import binom

STUDIES = int(os.environ.get("MULOCO_STUDIES", "20"))
"""Studies a check; 200 for a soak."""
_COST = {"joint": 4, "batch_curves": 4, "ratios": 2, "size_and_data": 2, "crossing": 2}
"""Studies are fewer by this in the tests, where one takes long."""


@pytest.mark.parametrize("study", planted_laws.STUDIES, ids=lambda study: study.__name__)
def test_intervals_cover_what_was_planted(study) -> None:
    soak = STUDIES >= 200
    number = STUDIES if soak else STUDIES // _COST.get(study.__name__, 1)
    held: dict[str, list[bool]] = {}
    for seed in range(number):
        for name, covered in study(np.random.default_rng(seed)):
            held.setdefault(name, []).append(covered)
    assert held
    for name, covered in held.items():
        assert len(covered) >= 0.9 * number, f"{name}: printed {len(covered)} times in {number}"
        share = float(np.mean(covered))
        if soak:
            assert 0.90 <= share <= 0.99, f"{name}: {share}"
        else:
            # Fewer in one of ten thousand tests of an interval that covers .93.
            assert sum(covered) >= binom.ppf(1e-4, len(covered), 0.93), f"{name}: {share}"

"""Loss surfaces whose optimum is known, and a group of settings that plays `extend` on one to its end."""

import math
from dataclasses import dataclass

from muloco_runner.record import PLATEAU, best_of, bracket_batches, edge_of
from sweeps.engine.tuning.extend import verdict_on
from sweeps.engine.tuning.group_verdict import Verdict
from sweeps.engine.tuning.study import Axis, ExtendRule, Group, Results, Setting
from sweeps.simulation.surface import Surface

LATTICE = 61
"""Positions of each axis; the middle one is where the optimum may be near."""


def planted(seed: int) -> Surface:
    """An optimum up to ten rates and five batches from the middle of the file's grid."""
    return Surface.planted(seed, group_of(), 10, 5)


def best_at(surface: Surface, batch: int) -> tuple[float, int]:
    """Lowest true loss at a batch, and where."""
    return min((surface.true_loss(Setting(batch, (at,))), at) for at in range(LATTICE))


def optimum_of(surface: Surface) -> float:
    return min(best_at(surface, batch)[0] for batch in range(LATTICE))


def box_of(surface: Surface, margin: int) -> list[tuple[int, int]]:
    """Rate and batch of all runs of one that knew the box: the rectangle that has the optimum inside, from the batches
    before it to the first that is bad enough."""
    lowest = min(range(LATTICE), key=lambda batch: best_at(surface, batch)[0])
    good = PLATEAU * optimum_of(surface)
    risen = next(batch for batch in range(lowest, LATTICE) if best_at(surface, batch)[0] > good)
    batches = range(lowest - margin, max(risen, lowest + margin) + 1)
    rates = [best_at(surface, batch)[1] for batch in batches]
    return [(rate, batch) for batch in batches for rate in range(min(rates) - margin, max(rates) + margin + 1)]


def group_of(first: int = LATTICE // 2 - 1, last: int = LATTICE // 2 + 1, batches_grow: bool = True) -> Group:
    """Rates and batches of the file at those positions, the lattice going far beyond."""
    powers = tuple(2.0 ** (n - 40) for n in range(LATTICE))
    sizes = tuple(2.0**n for n in range(LATTICE))
    batches = Axis("global_batch_tokens", sizes, first, last, batches_grow)
    return Group("g", "MuLoCo", batches, (Axis("inner_optimizer.lr", powers, first, last),), (0,))


def seed_grid(group: Group) -> list[Setting]:
    (rates,), batches = group.axes, group.batches
    return [
        Setting(batch, (rate,))
        for batch in range(batches.first, batches.last + 1)
        for rate in range(rates.first, rates.last + 1)
    ]


@dataclass
class Played:
    """How `extend` ended."""

    results: Results
    last: Verdict
    rounds: int

    @property
    def num_runs(self) -> int:
        return len(self.results.losses)

    @property
    def chosen(self) -> Setting:
        best = best_of({one: loss for found in self.results.compared().values() for one, loss in found.items()})
        assert best is not None
        return best

    @property
    def is_interior(self) -> bool:
        """By the rule of the report: no edge, and a critical batch that is bracketed."""
        chosen, compared = self.chosen, self.results.compared()
        rates = [one.at[0] for one in self.results.losses if one.batch == chosen.batch]
        best = [min(compared[batch].values()) for batch in sorted(compared) if compared[batch]]
        edge = edge_of(chosen.at[0], min(rates), max(rates))
        return edge is None and len(rates) > 1 and bracket_batches(best).censored is None


def play(surface: Surface, group: Group, rule: ExtendRule, most: int = 200) -> Played:
    """Runs the seed grid, and what is asked for, round by round."""
    results = Results()
    asked = seed_grid(group)
    for round_number in range(most):
        for setting in asked:
            assert setting not in results.losses
            loss = surface.measured(setting, 0)
            results.losses[setting] = {0: loss if loss < math.inf else None}
        verdict = verdict_on(group, results, rule)
        asked = [one.setting for one in verdict.wanted]
        if not asked:
            return Played(results, verdict, round_number)
    raise AssertionError(f"surface {surface.seed} does not end")

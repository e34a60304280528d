"""Sizes of models that would make the interval of an exponent as narrow as is wanted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.confidence import t_quantile
from analysis.page.numbers import count, number
from analysis.questions.going_on.wishes import KEYS, Unwritten, Wish, alike, beyond, ratio_of
from analysis.questions.iso_loss import MIN_SCALES, TRUSTED_SCALES, IsoLoss
from analysis.questions.question import Inputs
from analysis.runs import POINT
from muloco_runner.config import ConfigError, RunConfig

_MOST_SIZES = 4
"""That are asked for at once."""
_APART = 1.1
"""Sizes closer than this say nothing new."""
_NEAR = 1.3
"""A shape serves for a size that is no farther from it."""


def sizes_wanted(sizes: Sequence[int], width: float | None, wanted: float) -> int | None:
    """How many sizes between those there are make an interval of `width` no wider than `wanted`; None beyond
    `_MOST_SIZES`.

    As for a straight line in logs of two parameters: Student's quantile over the root of the sum of squares of log N,
    with the residuals seen so far. `width` is None where there is no interval: then sizes for a law, `MIN_SCALES`.
    """
    if width is None:
        return max(0, MIN_SCALES - len(sizes))
    if width <= wanted:
        return 0
    now = _reach(sizes)
    more = (n for n in range(1, _MOST_SIZES + 1) if width * _reach([*sizes, *between(sizes, n)]) / now <= wanted)
    return next(more, None)


def _reach(sizes: Sequence[float]) -> float:
    logs = np.log(np.array(sizes, dtype=float))
    return t_quantile(max(1, len(sizes) - 2)) / float(np.sqrt(((logs - logs.mean()) ** 2).sum()))


def between(sizes: Sequence[float], number_of: int) -> list[float]:
    """New sizes, one after the other in the middle, in logs, of the widest gap; of a single size, its double."""
    all_sizes = sorted(map(float, sizes))
    new = []
    for _ in range(number_of):
        if len(all_sizes) == 1:
            found = 2 * all_sizes[0]
        else:
            low, high = max(itertools.pairwise(all_sizes), key=lambda pair: pair[1] / pair[0])
            found = math.sqrt(low * high)
        new.append(found)
        all_sizes = sorted([*all_sizes, found])
    return new


def shape_near(run: RunConfig, target: float, sizes: Sequence[int], widest: int, deepest: int) -> dict[str, int] | None:
    """Width, at most `widest`, and layers, at most `deepest`, of a model like that of `run` with about `target`
    parameters; None where there is none beside `sizes`."""
    step = getattr(run.model, "head_width", None)
    if step is None:
        return None
    found: list[tuple[float, dict[str, int]]] = []
    for width in range(step, widest + 1, step):
        for layers in range(1, deepest + 1):
            values = {"model.width": width, "model.num_layers": layers}
            try:
                made = run.with_values(values).num_params
            except ConfigError:
                continue
            is_near = max(made / target, target / made) <= _NEAR
            if is_near and all(max(made / own, own / made) >= _APART for own in sizes):
                found.append((abs(math.log(made / target)), values))
    return min(found, key=lambda one: one[0], default=(0.0, None))[1]


def sizes(inputs: Inputs, wanted: float, configs: Sequence[RunConfig]) -> Iterator[Wish | Unwritten]:
    """Sizes for the law of loss against compute. `configs`: of the rows of `inputs.best`, in their order."""
    there = sorted({int(n) for n in inputs.best["num_params"]})
    needed, why = _needed(inputs.iso_loss, there, wanted)
    if why is None:
        return
    if needed is None:
        needed, why = _MOST_SIZES, f"{why}, more than {_MOST_SIZES} would be needed, which are a beginning"
    # A single size has none between it and another.
    most = 2 if len(there) == 1 else 1
    widest, deepest = (
        most * max(int(getattr(run.model, name, 1)) for run in configs) for name in ("width", "num_layers")
    )
    deepest += 1
    known = list(there)
    for target in between(there, needed):
        nearest = min(there, key=lambda size: abs(math.log(size / target)))
        of_size = [(row, run) for row, run in zip(inputs.best.to_dict("records"), configs, strict=True)
                   if row["num_params"] == nearest]  # fmt: skip
        shape = shape_near(of_size[0][1], target, known, widest, deepest)
        if shape is None:
            missing = f"no shape like those tried has about {count(target)} parameters: add a model's file for one"
            yield Unwritten(f"{why}: {missing}")
            continue
        made = of_size[0][1].with_values(shape).num_params
        known.append(made)
        for row, _ in of_size:
            values: dict[str, Sequence[float]] = {
                **{key: [value] for key, value in shape.items()},
                KEYS["lr"]: _rates(inputs, row),
            }
            yield Wish("size", f"{row['series']} at {count(made)}, a new size: {why}", row, values)


def _needed(laws: IsoLoss | str, there: Sequence[int], wanted: float) -> tuple[int | None, str | None]:
    """How many new sizes, and why; None and None where the laws are as narrow as is wanted."""
    if isinstance(laws, str):
        needed = sizes_wanted(there, None, wanted)
        return (needed, f"a law needs {MIN_SCALES} sizes") if needed else (0, None)
    widths = {
        name: found.ci[1] - found.ci[0]
        for name in laws.series
        if (found := laws.fit.parameters[f"alpha[{name}]"]).ci is not None
    }
    few = max(0, TRUSTED_SCALES - len(there))
    name = max(widths, key=lambda one: widths[one], default="")
    needed = sizes_wanted(there, widths[name], wanted) if widths else 0
    if needed is not None and needed <= few:
        return few, f"intervals of laws of fewer than {TRUSTED_SCALES} sizes are too narrow" if few else None
    return needed, (
        f"the interval of {name}'s exponent of loss against compute is {number(widths[name])} wide, and "
        f"{number(wanted)} is wanted"
    )


def _rates(inputs: Inputs, row: Mapping[Any, Any]) -> list[float]:
    """The best rate and its neighbours."""
    of_point = alike(inputs.optima.settings, row, POINT)
    ratio = ratio_of(sorted(of_point["lr"].astype(float).unique()))
    best = float(row["lr"])
    return [best] if ratio is None else [beyond(best, ratio, -1), best, beyond(best, ratio, 1)]

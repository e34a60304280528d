"""Which seeds choose between settings, which show the loss of the chosen one, and series compared seed by seed.

The loss of a setting is a mean over seeds. The lowest of several noisy means lies below what its setting gives on
average, so the seeds that choose are not the seeds that are shown: settings are compared on the seeds that all of them
have, and the loss shown is the mean over the other seeds of a setting, where it has others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.confidence import t_quantile
from analysis.runs import POINT, SCALE, SETTING, Study
from muloco_runner.record import RunFolder, Tried, choosing_seeds

LEAST_SPREAD = 1e-12
"""Standard error of a difference of logs up to which differences are equal but for their own rounding: losses that were
written with few digits, or copied, tell nothing of the noise between seeds."""


@dataclass(frozen=True)
class Settings:
    """Losses of the settings that may be chosen."""

    means: pd.DataFrame
    """One row a setting, index `SETTING`.

    loss, loss_se, seeds: what is shown, its standard error (NaN for one seed) and how many seeds are behind it.
    selection_loss, selection_seeds: what settings are compared by.
    shared_seeds: whether all settings of the scale have those seeds.
    unbiased: whether the seeds shown took no part in the choice.
    """
    by_seed: pd.DataFrame
    """One row a setting and seed: `SETTING`, seed, loss, and whether it is `shown`."""


def losses_of_settings(runs: pd.DataFrame) -> Settings:
    """Means over seeds. Several runs at one seed are one, their mean.

    `muloco_runner.record.choosing_seeds` says which settings may be chosen, and by which seeds they are compared.
    """
    by_seed = _with_choices(runs)
    chooses, whole_scale = by_seed["chooses"], by_seed["whole_scale"]
    setting, scale = (
        by_seed.groupby(keys, observed=True, sort=False).ngroup() for keys in (SETTING, ["series", *SCALE])
    )
    alone = setting.groupby(scale).transform("nunique") == 1
    spared = ~chooses
    shown = spared | ~spared.groupby(setting).transform("any")
    by_seed = by_seed.drop(columns=["chooses", "whole_scale"]).assign(shown=shown)
    keys = [by_seed[name] for name in SETTING]
    losses = by_seed["loss"]
    means = pd.DataFrame(
        {
            "loss": losses.where(shown).groupby(keys, observed=True).mean(),
            "seeds": shown.groupby(keys, observed=True).sum(),
            "selection_loss": losses.where(chooses).groupby(keys, observed=True).mean(),
            "selection_seeds": chooses.groupby(keys, observed=True).sum(),
            "shared_seeds": whole_scale.groupby(keys, observed=True).all(),
            "unbiased": (spared.groupby(setting).transform("any") | alone).groupby(keys, observed=True).all(),
        }
    )
    spread = losses.where(shown).groupby(keys, observed=True).std()
    return Settings(means.assign(loss_se=spread / np.sqrt(means["seeds"])), by_seed)


def run_folders(study: Study, settings: pd.DataFrame) -> list[RunFolder]:
    """The run behind each row of `settings` (columns `SETTING`): of its seeds that with the lowest loss.

    The study must have been read from run folders.
    """
    assert study.folder is not None
    finished = study.runs[~study.runs["diverged"]].sort_values(["loss", "run_id"], kind="stable")
    run_ids = finished.drop_duplicates(SETTING).set_index(SETTING)["run_id"]
    return [RunFolder(study.folder / run_ids[key]) for key in settings[SETTING].itertuples(index=False, name=None)]


def _with_choices(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a setting and seed with its mean loss, of settings that may be chosen; whether the seed `chooses`, and
    whether all settings of its series and scale have it (`whole_scale`)."""
    grouped = runs.groupby([*SETTING, "seed"], observed=True, sort=True)
    by_seed = grouped.agg(loss=("loss", "mean"), diverged=("diverged", "any")).reset_index()
    scales = by_seed.groupby(["series", *SCALE], observed=True, sort=False).ngroup()
    points = by_seed.groupby(POINT, observed=True, sort=False).ngroup()
    settings = by_seed.groupby(SETTING, observed=True, sort=False).ngroup()
    choices = _choices(scales, points, settings, by_seed)
    keys = zip(scales, points, settings, by_seed["seed"], strict=True)
    seeds = [(choices[scale][0][point].get(setting), seed) for scale, point, setting, seed in keys]
    found = by_seed.drop(columns="diverged").assign(
        chooses=[own is not None and seed in own for own, seed in seeds],
        whole_scale=[choices[scale][1] for scale in scales],
    )
    takes_part = np.array([own is not None for own, _ in seeds])
    return found[takes_part & found["loss"].notna()].reset_index(drop=True)


def _choices(
    scales: pd.Series[int], points: pd.Series[int], settings: pd.Series[int], by_seed: pd.DataFrame
) -> dict[int, tuple[dict[int, dict[int, frozenset[int]]], bool]]:
    """`choosing_seeds` of each scale; scales, points and settings are numbers, row by row of `by_seed`."""
    tried: dict[int, dict[int, dict[int, Tried]]] = {}
    columns = (scales, points, settings, by_seed["seed"], by_seed["loss"].notna(), by_seed["diverged"])
    for scale, point, setting, seed, has_loss, diverged in zip(*columns, strict=True):
        of_point = tried.setdefault(scale, {}).setdefault(point, {})
        before = of_point.get(setting, Tried(frozenset(), False))
        of_point[setting] = Tried(before.seeds | ({seed} if has_loss else set()), before.diverged or bool(diverged))
    return {scale: choosing_seeds(found) for scale, found in tried.items()}


@dataclass(frozen=True)
class Comparison:
    """One mean loss over another, minus one."""

    relative: float
    se: float | None
    """Standard error; None where a side has one seed."""
    paired_seeds: int
    """Seeds that both have and that were compared one by one; 0 where none is shared, and means were compared."""
    distinct: bool | None
    """Whether the 95% interval (Student's t) excludes zero; None without a standard error, and where that is zero:
    seeds that agree to the last digit tell nothing of noise."""


def compare_seeds(losses: Mapping[int, float], reference: Mapping[int, float]) -> Comparison:
    """`losses` over `reference`, both by seed. Noise that two runs of one seed share cancels."""
    shared = sorted(set(losses) & set(reference))
    if shared:
        logs = np.log([losses[seed] / reference[seed] for seed in shared])
        mean, se, freedom = float(logs.mean()), _standard_error(logs), len(shared) - 1
    else:
        sides = [np.log(list(values.values())) for values in (losses, reference)]
        mean, freedom = float(sides[0].mean() - sides[1].mean()), min(map(len, sides)) - 1
        errors = [error for side in sides if (error := _standard_error(side)) is not None]
        se = float(np.hypot(errors[0], errors[1])) if len(errors) == 2 else None
    if se is None:
        return Comparison(float(np.expm1(mean)), None, len(shared), None)
    distinct = abs(mean) > t_quantile(freedom) * se if se > LEAST_SPREAD else None
    return Comparison(float(np.expm1(mean)), float(np.exp(mean) * se), len(shared), distinct)


def _standard_error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None

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
from analysis.runs import POINT, SCALE, Study
from muloco_runner.record import RunFolder

SETTING = [*POINT, "hyper_parameters"]
"""What runs share that differ in their seed alone."""


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

    A setting that diverged at any seed has no mean loss; it takes part only where no other of its batch finished.
    Settings of one series and scale are compared on the seeds that all of them have, else on those that all of one
    batch have, else each on its own.
    """
    by_seed = _candidates(runs)
    setting, point, scale = (
        by_seed.groupby(keys, observed=True, sort=False).ngroup() for keys in (SETTING, POINT, ["series", *SCALE])
    )
    by_scale, by_point = (_have_all(setting, group, by_seed["seed"]) for group in (scale, point))
    whole_scale = by_scale.groupby(scale).transform("any")
    whole_point = by_point.groupby(point).transform("any")
    chooses = by_scale.where(whole_scale, by_point | ~whole_point)
    alone = setting.groupby(scale).transform("nunique") == 1
    spared = ~chooses
    shown = spared | ~spared.groupby(setting).transform("any")
    by_seed = by_seed.assign(shown=shown)
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


def _candidates(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a setting and seed with its mean loss, of settings that may be chosen."""
    grouped = runs.groupby([*SETTING, "seed"], observed=True, sort=True)
    by_seed = grouped.agg(loss=("loss", "mean"), diverged=("diverged", "any")).reset_index()
    diverged = by_seed.groupby(SETTING, observed=True)["diverged"].transform("any")
    clean = (~diverged).groupby([by_seed[name] for name in POINT], observed=True).transform("any")
    return by_seed[(~diverged | ~clean) & by_seed["loss"].notna()].drop(columns="diverged").reset_index(drop=True)


def _have_all(setting: pd.Series[int], group: pd.Series[int], seed: pd.Series[int]) -> pd.Series[bool]:
    """Whether all settings of a row's group have the row's seed. There is one row a setting and seed."""
    return setting.groupby([group, seed]).transform("size") == setting.groupby(group).transform("nunique")


@dataclass(frozen=True)
class Comparison:
    """One mean loss over another, minus one."""

    relative: float
    se: float | None
    """Standard error; None where a side has one seed."""
    paired_seeds: int
    """Seeds that both have and that were compared one by one; 0 where none is shared, and means were compared."""
    distinct: bool | None
    """Whether the 95% interval (Student's t) excludes zero; None without a standard error."""


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
    reach = t_quantile(freedom) * se
    return Comparison(float(np.expm1(mean)), float(np.exp(mean) * se), len(shared), abs(mean) > reach)


def _standard_error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None

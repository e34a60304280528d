"""Best hyper-parameters for each series, scale and batch, with a flag where the best lies on the edge of its grid.

A scale is a model size and a token budget (N, D/N). Seeds of one setting are averaged before settings are compared, so
that a lucky seed wins nothing (`analysis.seeds` says which seeds choose and which are shown).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.runs import POINT, SCALE, TUNED, Study
from analysis.seeds import SETTING, losses_of_settings

PLATEAU = 1.01
"""Settings within 1% of the best loss are as good for most purposes."""


@dataclass(frozen=True)
class Optima:
    """`points`: the best setting at each batch. `best`: the best batch of each series and scale.

    `settings`: all that were compared. Each has the losses of `analysis.seeds.Settings`; `best` also `seed_losses`, the
    losses shown by seed.
    """

    settings: pd.DataFrame
    points: pd.DataFrame
    best: pd.DataFrame
    seed_sd: float | None
    """Standard deviation of log loss between seeds of one setting, pooled; None without repeated seeds."""
    seed_settings: int
    """Settings that were run with two seeds or more."""


def find_optima(study: Study) -> Optima:
    """Means over seeds, then minima over hyper-parameters, then over batches."""
    finished = study.runs[~study.runs["diverged"]]
    losses = losses_of_settings(study.runs)
    grouped = finished.groupby(SETTING, sort=True, observed=True)
    settings = grouped.agg(
        num_tokens=("num_tokens", "first"),
        num_steps=("num_steps", "first"),
        flops=("flops", "first"),
        train_seconds=("train_seconds", "mean"),
        bytes_sent=("bytes_sent", "mean"),
        pseudogradient_cosine=("pseudogradient_cosine", "mean"),
        algorithm=("algorithm", "first"),
        num_workers=("num_workers", "first"),
        sync_interval=("sync_interval", "first"),
        bits_per_value=("bits_per_value", "first"),
        num_fragments=("num_fragments", "first"),
        delay_steps=("delay_steps", "first"),
        gathered_values=("gathered_values", "first"),
        wait_seconds=("wait_seconds", "mean"),
        **{name: (name, "first") for name in TUNED},
    )
    settings = losses.means.join(settings).reset_index()
    tried = study.runs.groupby(POINT, observed=True)
    rows = []
    for key, group in settings.groupby(POINT, sort=True, observed=True):
        everything = tried.get_group(key)
        winner = group.iloc[int(group["selection_loss"].to_numpy().argmin())].to_dict()
        winner["settings"] = everything["hyper_parameters"].nunique()
        winner["diverged"] = int(everything["diverged"].sum())
        winner["edges"] = edges_of(winner, everything)
        winner["single"] = [n for n in TUNED if _values(everything[n]) == 1]
        plateau = group[group["selection_loss"] <= PLATEAU * winner["selection_loss"]]
        winner["plateau_lr"] = (float(plateau["lr"].min()), float(plateau["lr"].max()))
        rows.append(winner)
    points = pd.DataFrame(rows)
    chosen = points.loc[points.groupby(["series", *SCALE], observed=True)["selection_loss"].idxmin()]
    best = chosen.sort_values(["series", *SCALE]).reset_index(drop=True)
    best["batch_edge"] = [_batch_edge(row, points) for row in best.to_dict("records")]
    best["seed_losses"] = _losses_by_seed(best, losses.by_seed)
    logs = np.log(losses.by_seed.set_index(SETTING)["loss"])
    repeated = logs.groupby(level=SETTING, observed=True).agg(["count", "var"])
    several = repeated[repeated["count"] > 1]
    pooled = float(np.sqrt(np.average(several["var"], weights=several["count"] - 1))) if len(several) else None
    return Optima(settings, points.reset_index(drop=True), best, pooled, len(several))


def _losses_by_seed(best: pd.DataFrame, by_seed: pd.DataFrame) -> pd.Series[Any]:
    """The losses shown of each row, by seed."""
    shown = by_seed[by_seed["shown"]].set_index(SETTING).sort_index()
    out: list[Any] = []
    for key in best[SETTING].itertuples(index=False, name=None):
        rows = shown.loc[[key]]
        out.append(dict(zip(rows["seed"].tolist(), rows["loss"].tolist(), strict=True)))
    return pd.Series(out, index=best.index, dtype=object)


def edges_of(winner: dict[Any, Any], tried: pd.DataFrame) -> list[str]:
    """`lr low` and the like: hyper-parameters whose best value is the smallest or largest tried at this batch."""
    edges = []
    for name in TUNED:
        values = sorted(v for v in tried[name].unique().tolist() if not pd.isna(v))
        if len(values) < 2:
            continue
        if winner[name] == values[0]:
            edges.append(f"{name} low")
        elif winner[name] == values[-1]:
            edges.append(f"{name} high")
    return edges


def main_budget(best: pd.DataFrame) -> float:
    """The tokens per parameter at which most sizes were trained: the budget that laws over compute use."""
    sizes = best.groupby("tokens_per_parameter")["num_params"].nunique()
    points = best.groupby("tokens_per_parameter").size()
    return float(max(sizes.index, key=lambda budget: (sizes[budget], points[budget], -abs(budget - 20))))


def _values(column: Sequence[Any] | pd.Series[Any]) -> int:
    return int(pd.Series(column).dropna().nunique())


def _batch_edge(row: dict[Any, Any], points: pd.DataFrame) -> str | None:
    """Whether the best batch is the smallest or the largest tried."""
    same = points[
        (points["series"] == row["series"])
        & (points["num_params"] == row["num_params"])
        & (points["tokens_per_parameter"] == row["tokens_per_parameter"])
    ]["global_batch_tokens"]
    if same.nunique() < 2:
        return "only one batch"
    if row["global_batch_tokens"] == same.min():
        return "low"
    return "high" if row["global_batch_tokens"] == same.max() else None

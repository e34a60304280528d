"""Best hyper-parameters for each series, scale and batch, with a flag where the best lies on the edge of its grid.

A scale is a model size and a token budget (N, D/N). Seeds of one setting are averaged before settings are compared, so
that a lucky seed wins nothing (`analysis.seeds` says which seeds choose and which are shown).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.budgets import nearest_budget
from analysis.runs import POINT, SCALE, SETTING, TUNED, Study
from analysis.seeds import losses_of_settings
from muloco_runner.config import ConfigError
from muloco_runner.record import PLATEAU, batch_edge_of, edge_of


@dataclass(frozen=True)
class RunsBehind:
    """Runs of the settings behind a result, of all used runs of their series."""

    runs: int
    of: int


@dataclass(frozen=True)
class Optima:
    """`points`: the best setting at each batch. `best`: the best batch of each series and scale.

    `settings`: all that were compared. Each has the losses of `analysis.seeds.Settings`; `points` and `best` also
    `seed_losses`, the losses shown by seed.
    """

    settings: pd.DataFrame
    points: pd.DataFrame
    best: pd.DataFrame
    seed_sd: float | None
    """Standard deviation of log loss between seeds of one setting, pooled; None without repeated seeds."""
    seed_settings: int
    """Settings that were run with two seeds or more."""
    unusable: Mapping[str, str] = field(default_factory=dict)
    """Columns from which no law may be fitted, and why."""

    def reason_against(self, *columns: str) -> str | None:
        """Why no law may rest on these columns; None where it may."""
        return next((self.unusable[name] for name in columns if name in self.unusable), None)

    def runs_behind(self, rows: pd.DataFrame) -> RunsBehind:
        """The runs of `rows`, of any of the three tables, each setting once."""
        chosen = rows.drop_duplicates(SETTING)
        of_series = self.settings["series"].isin(chosen["series"].unique())
        return RunsBehind(int(chosen["runs"].sum()), int(self.settings.loc[of_series, "runs"].sum()))


def find_optima(study: Study) -> Optima:
    """Means over seeds, then minima over hyper-parameters, then over batches.

    Raises `ConfigError` where no run has a loss.
    """
    finished = study.runs[~study.runs["diverged"]]
    if finished.empty:
        raise ConfigError(
            f"{study.source}: all {len(study.runs)} runs diverged, so there is no loss to compare: add runs that "
            "train, at lower learning rates"
        )
    losses = losses_of_settings(study.runs)
    grouped = finished.groupby(SETTING, sort=True, observed=True)
    settings = grouped.agg(
        runs=("loss", "size"),
        num_tokens=("num_tokens", "first"),
        num_steps=("num_steps", "first"),
        flops=("flops", "first"),
        hardware_flops=("hardware_flops", "first"),
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
        memory_bytes=("memory_bytes", "max"),
        num_ranks=("num_ranks", "min"),
        most_ranks=("num_ranks", "max"),
        device=("device", "min"),
        other_device=("device", "max"),
        **{name: (name, "first") for name in TUNED},
    )
    alike = (settings["num_ranks"] == settings["most_ranks"]) & (settings["device"] == settings["other_device"])
    settings["num_ranks"] = settings["num_ranks"].where(alike)
    settings = losses.means.join(settings.drop(columns=["most_ranks", "other_device"])).reset_index()
    points = _best_at_each_batch(settings, study.runs)
    points["seed_losses"] = _losses_by_seed(points, losses.by_seed)
    chosen = points.loc[points.groupby(["series", *SCALE], observed=True)["selection_loss"].idxmin()]
    best = chosen.sort_values(["series", *SCALE]).reset_index(drop=True)
    logs = np.log(losses.by_seed.set_index(SETTING)["loss"])
    repeated = logs.groupby(level=SETTING, observed=True).agg(["count", "var"])
    several = repeated[repeated["count"] > 1]
    pooled = float(np.sqrt(np.average(several["var"], weights=several["count"] - 1))) if len(several) else None
    return Optima(settings, points, best, pooled, len(several), study.unusable)


def _best_at_each_batch(settings: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """One row a point, with what was tried there (`settings`, `diverged`), `edges`, `plateau_lr` and `batch_edge`."""
    lowest = settings.groupby(POINT, observed=True)["selection_loss"]
    good = settings[settings["selection_loss"] <= PLATEAU * lowest.transform("min")]
    tried = runs.astype(dict.fromkeys(TUNED, float)).groupby(POINT, observed=True).agg(
        settings=("hyper_parameters", "nunique"),
        diverged=("diverged", "sum"),
        **{f"{name} low": (name, "min") for name in TUNED},
        **{f"{name} high": (name, "max") for name in TUNED},
    )  # fmt: skip
    plateau = good.astype({"lr": float}).groupby(POINT, observed=True)["lr"].agg(["min", "max"])
    points = settings.loc[lowest.idxmin()].set_index(POINT).join(tried).join(plateau).sort_index().reset_index()
    points["plateau_lr"] = list(zip(points["min"], points["max"], strict=True))
    points["edges"] = pd.Series([edges_of(row) for row in points.to_dict("records")], dtype=object)
    points["batch_edge"] = _batch_edges(points)
    ends = [f"{name} {end}" for name in TUNED for end in ("low", "high")]
    return points.drop(columns=["min", "max", *ends])


def edges_of(row: Mapping[Any, Any]) -> list[str]:
    """`lr low` and the like: hyper-parameters whose best value is the smallest or largest tried at this batch.

    `row` has each hyper-parameter and, under `lr low` and `lr high`, its smallest and largest value.
    """
    found = [(name, edge_of(row[name], row[f"{name} low"], row[f"{name} high"])) for name in TUNED]
    return [f"{name} {edge}" for name, edge in found if edge is not None]


def _batch_edges(points: pd.DataFrame) -> pd.Series[Any]:
    """Whether a batch is the smallest or the largest tried at its scale."""
    batch = points["global_batch_tokens"]
    groups = batch.groupby([points[name] for name in ("series", *SCALE)], observed=True)
    ends = zip(batch, groups.transform("min"), groups.transform("max"), strict=True)
    return pd.Series([batch_edge_of(*one) for one in ends], index=points.index, dtype=object)


def _losses_by_seed(points: pd.DataFrame, by_seed: pd.DataFrame) -> pd.Series[Any]:
    """The losses shown of each row, by seed."""
    numbered = points[SETTING].assign(row=range(len(points)))
    shown = by_seed[by_seed["shown"]].merge(numbered, on=SETTING).groupby("row", sort=True)
    losses = [dict(zip(rows["seed"].tolist(), rows["loss"].tolist(), strict=True)) for _, rows in shown]
    return pd.Series(losses, index=points.index, dtype=object)


def main_budget(best: pd.DataFrame, wanted: float | None = None) -> float:
    """The tokens per parameter that laws over compute use: `wanted`, else that at which most sizes were trained.

    Raises `ConfigError` where no run was trained near `wanted`.
    """
    sizes = best.groupby("tokens_per_parameter")["num_params"].nunique()
    if wanted is not None:
        found = nearest_budget(sizes.index.to_numpy(), wanted)
        if found is None:
            have = ", ".join(f"{budget:g} ({count} sizes)" for budget, count in sizes.items())
            raise ConfigError(f"--budget {wanted:g}: no runs near it; tokens per parameter here: {have}")
        return found
    points = best.groupby("tokens_per_parameter").size()
    return float(max(sizes.index, key=lambda budget: (sizes[budget], points[budget], -abs(budget - 20))))

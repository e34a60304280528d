"""Which rows of a table repeat a run, and which only seem to: losses along one run, settings that nobody declared.

Each `why_...` returns why nothing may be ranked, or None.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.input.cells import OK
from analysis.input.columns import listed
from analysis.input.mapping import Reader
from analysis.runs import SETTING

_TRAINED = ("num_tokens", "tokens_per_parameter", "num_steps", "flops", "hardware_flops")
"""Columns that say how long a run trained: at one setting and seed they differ along a curve."""


def why_unranked(
    runs: pd.DataFrame, reader: Reader, undeclared: tuple[str, ...], unlabelled_repeats: bool
) -> tuple[str | None, list[str]]:
    """Why nothing may be ranked, or None, and cautions about repeated runs and columns that vary inside a setting."""
    finished, cells = runs[~runs["diverged"]], reader.frame
    setting = finished.groupby(SETTING, observed=True, sort=False).ngroup()
    at_seed = finished.groupby([*SETTING, "seed"], observed=True, sort=False).ngroup()
    cautions = []
    vary = [name for name in undeclared if _varies(cells.loc[finished.index, name], setting)]
    if vary:
        cautions.append(
            f"Runs of one setting differ in columns that nothing was read from: {listed(vary, 12)}. Say --identity, "
            "--setting or --bookkeeping COLUMN."
        )
    repeated = at_seed.duplicated(keep=False)
    if not repeated.any():
        return None, cautions
    groups = at_seed[repeated].nunique()
    hidden = [name for name in vary if _varies(cells.loc[at_seed[repeated].index, name], at_seed[repeated])]
    if hidden:
        return (
            f"{groups} setting(s) have several losses at one seed, and these runs differ in {listed(hidden, 12)}. Say "
            "what each column is: --identity COLUMN tells series apart, --setting COLUMN is tuned, --bookkeeping "
            "COLUMN says nothing; or map `seed`."
        ), cautions
    if unlabelled_repeats:
        return None, cautions
    trained = {name: "num_tokens" if name == "tokens_per_parameter" else name for name in _TRAINED}
    at = at_seed[repeated]
    differ = [
        name for name, ours in trained.items() if name in reader.origins and _varies(finished.loc[at.index, ours], at)
    ]
    if differ:
        budgets = "; a smaller --budget-tolerance makes two budgets of one" if "num_tokens" in differ else ""
        return (
            f"{groups} setting(s) have several losses at one seed, and these rows differ in {listed(differ)}. Where "
            "they are one run as it trained, keep its last row; where each is a run of its own, map `seed`, or say "
            f"--repeats unlabelled{budgets}."
        ), cautions
    seeds = "and in their seed" if "seed" in reader.origins else "and no column has their seeds"
    cautions.append(
        f"{int(repeated.sum())} runs of {groups} setting(s) agree in every column that says what was trained, {seeds}: "
        "they are averaged, and say nothing of the noise between seeds unless --repeats unlabelled."
    )
    return None, cautions


def without_seeds(runs: pd.DataFrame, reader: Reader) -> pd.Series[bool]:
    """The rows with an empty seed in a table whose other rows have one."""
    if "seed" not in reader.origins:
        return pd.Series(False, index=runs.index)
    empty = pd.Series(reader.numbers("seed").states != OK, index=reader.frame.index)[runs.index]
    return empty & (not empty.all())


def why_partly_seeded(runs: pd.DataFrame, seedless: pd.Series[bool]) -> str | None:
    """Why nothing may be ranked where rows without a seed stand beside rows of their setting that have one."""
    finished = runs.assign(seedless=seedless)[~runs["diverged"]]
    if not finished["seedless"].any():
        return None
    of_setting = finished.groupby(SETTING, observed=True, sort=False)["seedless"]
    beside = finished["seedless"] & ~of_setting.transform("all")
    if not beside.any():
        return None
    return (
        f"{int(beside.sum())} row(s) have an empty `seed` beside rows of their setting with one, such as "
        f"{finished.loc[beside, 'run_id'].iloc[0]}: fill in `seed`, leave these rows out, or say --repeats unlabelled "
        "where each is a run of its own."
    )


def why_curves(runs: pd.DataFrame, reader: Reader) -> str | None:
    """Why nothing may be ranked where rows are losses along runs: of one name, or with tokens at even distances."""
    names = reader.texts("run_id") if "run_id" in reader.origins else pd.Series("", index=reader.frame.index)
    finished = runs.assign(own_id=names)[~runs["diverged"]]
    curve = [name for name in (*SETTING, "seed") if name != "tokens_per_parameter"]
    repeated = finished[(finished["own_id"] != "") & finished.duplicated([*curve, "own_id"], keep=False)]
    if len(repeated):
        return (
            f"{len(repeated)} rows are several losses of {repeated['own_id'].nunique()} run(s), such as "
            f"{repeated['own_id'].iloc[0]!r}: keep the last row of each run, map `seed` or `run_id`, or say "
            "--repeats unlabelled."
        )
    rows, even = _evenly_spaced(finished[finished["own_id"] == ""], curve)
    if not even:
        return None
    return (
        f"{rows} rows stand at even distances in num_tokens and differ in nothing else ({even} curve(s)), as losses "
        "along runs do: keep the last row of each run; where each row is a run of its own, map `run_id` to its name, "
        "or say --repeats unlabelled."
    )


_STEPS_OF_A_CURVE = 4
"""A curve has at least so many equal distances, and three quarters of all; the last is often shorter."""


def _evenly_spaced(runs: pd.DataFrame, curve: list[str]) -> tuple[int, int]:
    """(rows, curves) of the groups by `curve` whose tokens rise by one and the same number."""
    tokens = runs.drop_duplicates([*curve, "num_tokens"]).sort_values("num_tokens")
    group = tokens.groupby(curve, observed=True, dropna=False).ngroup()
    distance = tokens["num_tokens"].groupby(group).diff().dropna()
    usual = distance.groupby(group).transform("median")
    equal = ((distance / usual - 1).abs() < 0.01).groupby(group).agg(["sum", "size"])
    even = equal[(equal["sum"] >= _STEPS_OF_A_CURVE) & (equal["sum"] >= 0.75 * equal["size"])]
    return int(even["size"].sum()) + len(even), len(even)


def _varies(cells: pd.Series[Any], groups: pd.Series[int]) -> bool:
    """Whether a column has two values inside a group."""
    codes, _ = pd.factorize(cells, use_na_sentinel=True)
    first = np.empty(int(groups.max()) + 1, dtype=np.int64)
    first[groups.to_numpy()] = codes
    return bool((first[groups.to_numpy()] != codes).any())


def number_repeats(runs: pd.DataFrame, seedless: pd.Series[bool]) -> None:
    """Give rows that agree in everything, and those whose seed is unknown, seeds that no other row has.

    Nothing says which of them belongs to which row of another setting: with seeds in common they would be compared one
    by one, and settings on the lowest losses of each.
    """
    repeated = runs.duplicated([*SETTING, "seed"], keep=False) | seedless
    order = runs[repeated].sort_values([*SETTING, "seed", "loss"], kind="stable").index
    runs.loc[order, "seed"] = np.arange(len(order)) + int(runs["seed"].max()) + 1

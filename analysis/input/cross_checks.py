"""Columns of a table against each other: steps x batch and tokens, 6 N D and flops, tokens per parameter, losses.

What differs a little is a caution with the ratio found. Where no cause explains the ratio, the column is unusable: no
law is fitted from it, and the reason says what to change. A single row that contradicts all others is left out by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.input.cells import UNITS

_AGREES = 0.02
_ROW_FACTOR = 4.0
"""A row further from its size's median than this contradicts the others."""
_BUDGET_FACTOR = 1e4
_MOST_LOSS = 12.5
"""Nats per token of guessing among a quarter of a million tokens: no model is worse."""
_HIGH_LOSS = 5.5
_LEAST_LOSS = 1.2
"""Nats per token; below, losses of text are mostly bits per byte or shares."""
_FLOPS_RANGE = (0.5, 4.0)
"""flops over 6 N D that recomputation, embeddings and attention explain at any size."""
_TOKENS_RANGE = (0.5, 2.0)
"""num_tokens over tokens_per_parameter x num_params that may be rounding, or another count of tokens, at all sizes."""
_MOST_EMBEDDINGS = 2.0
"""N with embeddings over N without at the largest size: there embeddings are as large as all the rest."""
_FLOPS_MOST = 10.0
"""The same where the ratio falls as models grow, as attention's share does."""


@dataclass
class Findings:
    """What the checks found."""

    cautions: list[str] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)
    """Our column -> the reason and the remedy."""
    rows: pd.Series[str] = field(default_factory=lambda: pd.Series(dtype=object))
    """Rows that contradict all others -> the reason."""


def check_runs(runs: pd.DataFrame, given: set[str]) -> Findings:
    """`runs` has our columns with NaN where a cell is missing; `given` names those that the table has."""
    found = Findings()
    runs = _without_odd_budgets(runs, found)
    tokens = runs["num_tokens"].fillna(runs["tokens_per_parameter"] * runs["num_params"])
    if {"num_steps", "global_batch_tokens"} <= given:
        _check_steps(runs, tokens, "num_tokens" in given, found)
    if "flops" in given:
        _check_flops(runs, tokens, found)
    if {"num_tokens", "tokens_per_parameter"} <= given:
        _check_tokens_per_parameter(runs, found)
    elif "num_tokens" in given:
        _check_drift(runs, found)
    _check_magnitudes(runs, tokens, found)
    _check_losses(runs, found)
    return found


def _without_odd_budgets(runs: pd.DataFrame, found: Findings) -> pd.DataFrame:
    """Leave out rows whose tokens per parameter no study mixes with those of the others: a cell in another unit."""
    per_parameter = runs["num_tokens"].fillna(runs["tokens_per_parameter"] * runs["num_params"]) / runs["num_params"]
    usual = float(per_parameter.median())
    odd = per_parameter[(np.log(per_parameter / usual)).abs() > math.log(_BUDGET_FACTOR)]
    if odd.empty:
        return runs
    if len(odd) >= 0.25 * len(runs):
        middle = math.sqrt(float(per_parameter.min()) * float(per_parameter.max()))
        low, high = per_parameter[per_parameter <= middle], per_parameter[per_parameter > middle]
        found.unusable["num_params"] = (
            f"tokens per parameter are {_ratio(float(low.median()))} in {len(low)} rows and "
            f"{_ratio(float(high.median()))} in {len(high)}: num_params, or the tokens, are in two units; give all "
            "rows one unit"
        )
        return runs
    reasons = {
        row: f"damaged: tokens per parameter are {_ratio(value)} here and {_ratio(usual)} elsewhere"
        for row, value in odd.items()
    }
    found.rows = pd.Series(reasons, dtype=object)
    return pd.DataFrame(runs.drop(index=odd.index))


def _check_steps(runs: pd.DataFrame, tokens: pd.Series[float], counted: bool, found: Findings) -> None:
    """`counted`: the tokens have a column of their own; otherwise they are tokens_per_parameter x num_params."""
    whole = "num_tokens" if counted else "tokens_per_parameter x num_params"
    ratio = _leave_out_rows(
        runs, runs["num_steps"] * runs["global_batch_tokens"] / tokens, found,
        "num_steps x global_batch_tokens is {ratio} of " + whole + " here and {usual} elsewhere",
    )  # fmt: skip
    if ratio.empty:
        return
    usual = float(ratio.median())
    if abs(usual - 1) <= _AGREES and ratio.between(1 - 5 * _AGREES, 1 + 5 * _AGREES).all():
        return
    span = f"from {_ratio(ratio.min())} to {_ratio(ratio.max())}"
    said = f"num_steps x global_batch_tokens is {_ratio(usual)} of {whole} ({span})"
    length = 2 ** round(math.log2(1 / usual))
    if 64 <= length <= 2**20 and abs(usual * length - 1) < 0.05:
        found.unusable["global_batch_tokens"] = (
            f"{said}: the batch seems to be in sequences of {length} tokens; map "
            f"global_batch_tokens: {{column: ..., factor: {length}}}"
        )
    elif (power := _power_of_thousand(usual)) is not None:
        name = "num_tokens" if counted else "num_params"
        found.unusable[name] = (
            f"{said}: {name} seems to be in units of {power:g}; map {name}: {{column: ..., factor: {power:g}}}"
        )
    elif not 0.5 <= usual <= 2:
        found.unusable["global_batch_tokens"] = (
            f"{said}, and nothing explains that: map num_steps, global_batch_tokens and "
            f"{whole.replace(' x ', ' and ')} to columns that agree"
        )
    else:
        found.cautions.append(f"{said}: one of the three does not say what was trained.")


def _check_flops(runs: pd.DataFrame, tokens: pd.Series[float], found: Findings) -> None:
    ratio = _leave_out_rows(
        runs, runs["flops"] / (6.0 * runs["num_params"] * tokens), found,
        "flops are {ratio} times 6 N D here and {usual} times elsewhere",
    )  # fmt: skip
    if ratio.empty:
        return
    by_size = ratio.groupby(runs["num_params"]).median().sort_index()
    largest, smallest = float(by_size.iloc[-1]), float(by_size.iloc[0])
    falls = len(by_size) > 1 and bool((by_size.diff().dropna() <= 0.01 * by_size.iloc[:-1].to_numpy()).all())
    said = f"flops are {_ratio(largest)} times 6 N D at the largest size" + (
        f" and {_ratio(smallest)} times at the smallest" if len(by_size) > 1 else ""
    )
    low, high = _FLOPS_RANGE
    if low <= largest <= (_FLOPS_MOST if falls and largest < smallest / 1.1 else high):
        if abs(largest - 1) > 0.1 or abs(smallest - 1) > 0.1:
            found.cautions.append(f"{said}: attention, embeddings or recomputation may explain it.")
        _compare_series(runs, ratio, found)
        return
    unit = next((name for name, size in _FLOP_UNITS.items() if low <= largest * size <= high), None)
    remedy = (
        f"they seem to be {unit}; map flops: {{column: ..., unit: {unit}}}"
        if unit
        else "nothing explains that; map flops to a column that counts training, or leave it out: then it is 6 N D"
    )
    found.unusable["flops"] = f"{said}: {remedy}"


_FLOP_UNITS = {
    "GFLOPs": 1e9, "TFLOPs": 1e12, "PFLOPs": 1e15, "EFLOPs": 1e18, "ZFLOPs": 1e21, "MFLOPs": 1e6,
    "PF-days": UNITS["flops"]["pf-days"],
}  # fmt: skip


def _compare_series(runs: pd.DataFrame, ratio: pd.Series[float], found: Findings) -> None:
    """Algorithms whose flops are counted in different ways are compared by counting."""
    if "algorithm" not in runs:
        return
    table = ratio.groupby([runs["num_params"], runs["algorithm"]]).median().unstack()
    if table.shape[1] < 2:
        return
    spread = (table.max(axis=1) / table.min(axis=1)).max()
    if spread > 1.05:
        means = ", ".join(f"{name} {_ratio(value)}" for name, value in table.median().items())
        found.cautions.append(
            f"flops over 6 N D differ between algorithms at one size ({means}): ratios of compute are partly ratios of "
            "counting."
        )


def _check_tokens_per_parameter(runs: pd.DataFrame, found: Findings) -> None:
    """A constant ratio is another count of tokens; one that nears 1 as models grow is of embeddings."""
    ratio = (runs["num_tokens"] / (runs["tokens_per_parameter"] * runs["num_params"])).dropna()
    if ratio.empty:
        return
    by_size = ratio.groupby(runs["num_params"]).median().sort_index()
    small, large = float(by_size.iloc[0]), float(by_size.iloc[-1])
    usual = float(ratio.median())
    off = np.log(by_size.to_numpy())
    if max(small, large) / min(small, large) <= 1.03 and by_size.max() / by_size.min() <= 1.2:
        if not _TOKENS_RANGE[0] <= usual <= _TOKENS_RANGE[1]:
            found.unusable["num_tokens"] = (
                f"num_tokens are {_ratio(usual)} times tokens_per_parameter x num_params: map columns that agree"
            )
        elif abs(usual - 1) > _AGREES:
            found.cautions.append(f"num_tokens are {_ratio(usual)} times tokens_per_parameter x num_params.")
        return
    said = (
        f"num_tokens over tokens_per_parameter x num_params drifts from {_ratio(small)} at the smallest size to "
        f"{_ratio(large)} at the largest"
    )
    one_sided = bool((off > -_AGREES).all() or (off < _AGREES).all())
    if one_sided and bool((np.diff(np.abs(off)) < _AGREES).all()) and abs(off[-1]) <= math.log(_MOST_EMBEDDINGS):
        found.cautions.append(
            f"{said}: num_params and tokens_per_parameter seem to count embeddings differently, so laws of size are "
            "those of num_params as the column counts it; map num_params to the other count, or to a sum of columns."
        )
        return
    found.unusable["num_params"] = (
        f"{said}, and embeddings, whose share falls as models grow, do not explain that: map num_params, num_tokens "
        "and tokens_per_parameter to columns that agree, or leave tokens_per_parameter out"
    )


def _check_drift(runs: pd.DataFrame, found: Findings) -> None:
    """One budget a size that drifts ever less as models grow: N without embeddings, or with those that D leaves out.

    A law of tokens against size, such as the same tokens for all, is a straight line in logs and was meant.
    """
    own = (runs["num_tokens"] / runs["num_params"]).groupby(runs["num_params"])
    middle = own.median().sort_index()
    if len(middle) < 3 or not (own.max() / own.min() < 1.03).all():
        return
    slopes = np.diff(np.log(middle.to_numpy())) / np.diff(np.log(middle.index.to_numpy(dtype=float)))
    first, last = float(middle.iloc[0]), float(middle.iloc[-1])
    if (
        abs(np.sign(slopes).sum()) == len(slopes)
        and abs(slopes[0]) > 1.5 * abs(slopes[-1])
        and (abs(math.log(first / last)) > math.log(1.05))
    ):
        found.cautions.append(
            f"Tokens per parameter drift from {first:.3g} at the smallest size to {last:.3g} at the largest, "
            f"{_ratio(first / last)} times, as if num_params left embeddings out or counted them: only sizes of one "
            "budget are compared. Map num_params to the other count, or to a sum of columns; --budget-tolerance makes "
            "budgets one."
        )


def _check_magnitudes(runs: pd.DataFrame, tokens: pd.Series[float], found: Findings) -> None:
    largest, most = float(runs["num_params"].max()), float(tokens.max())
    if largest < 2e3:
        found.unusable.setdefault(
            "num_params",
            f"the largest num_params is {largest:g}: it seems to be in millions or billions; map num_params: "
            "{column: ..., factor: 1e6} or 1e9",
        )
    if most < 1e5:
        found.unusable.setdefault(
            "num_tokens",
            f"the largest num_tokens is {most:g}: it seems to be in millions or billions; map num_tokens: "
            "{column: ..., factor: 1e9} or 1e6",
        )
    share = float((tokens / runs["num_params"]).median())
    if not found.unusable and math.isfinite(share) and not 1e-2 <= share <= 1e6:
        found.unusable["num_tokens"] = (
            f"num_tokens over num_params is {_ratio(share)}: one of the two is in another unit; map it with a factor"
        )
    steps = float((tokens / runs["global_batch_tokens"]).median())
    if "global_batch_tokens" not in found.unusable and "num_tokens" not in found.unusable:
        if steps < 1:
            found.unusable["global_batch_tokens"] = (
                f"a batch holds {_ratio(1 / steps)} times the tokens of a run: map global_batch_tokens in tokens"
            )
        elif steps > 5e5:
            found.cautions.append(
                f"num_tokens over global_batch_tokens is {steps:.3g} steps: a batch in sequences looks like that."
            )


def _check_losses(runs: pd.DataFrame, found: Findings) -> None:
    losses = runs.loc[~runs["diverged"], "loss"].dropna()
    if losses.empty:
        return
    usual, lowest = float(losses.median()), float(losses.min())
    if usual > _MOST_LOSS and lowest > _MOST_LOSS / 4:
        found.unusable["loss"] = (
            f"the median loss is {usual:.3g}, above {_MOST_LOSS} nats per token, where guessing stands: it looks like "
            "a perplexity or a sum; map loss: log(COLUMN) for a perplexity"
        )
        return
    if lowest > _HIGH_LOSS:
        found.cautions.append(
            f"The lowest loss is {lowest:.3g}: models that were trained are rarely above {_HIGH_LOSS} nats per token, "
            "perplexities are; map loss: log(COLUMN) for a perplexity."
        )
    if usual < _LEAST_LOSS:
        found.cautions.append(
            f"The median loss is {usual:.3g}: nats per token of text are rarely below {_LEAST_LOSS}; bits per byte and "
            "shares are. Laws of loss stand in the column's own unit."
        )
    of_size = losses.groupby([runs["num_params"], runs["tokens_per_parameter"].fillna(0).round(3)])
    usual_here = of_size.transform("median")
    odd = losses[(of_size.transform("size") >= 4) & (losses < 0.6 * usual_here)]
    if len(odd):
        names = ", ".join(f"{runs['run_id'][row]} ({odd[row]:g})" for row in odd.index[:3])
        found.cautions.append(f"{len(odd)} loss(es) lie below 0.6 of the median of their size: {names}. Look at them.")


def _leave_out_rows(runs: pd.DataFrame, ratio: pd.Series[float], found: Findings, text: str) -> pd.Series[float]:
    """Leave out rows that contradict all others of their size, where those agree; return the other ratios."""
    ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
    if len(ratio) < 4:
        return ratio
    of_size = ratio.groupby(runs["num_params"])
    several = of_size.transform("size") >= 4
    usual = of_size.transform("median").where(several, float(ratio.median()))
    off = (np.log(ratio) - np.log(usual)).abs()
    odd = off > np.where(several, math.log(_ROW_FACTOR), math.log(4 * _FLOPS_MOST))
    if odd.mean() < 0.25:
        reasons = {
            row: "damaged: " + text.format(ratio=_ratio(ratio[row]), usual=_ratio(usual[row]))
            for row in ratio.index[odd]
        }
        found.rows = pd.concat([found.rows, pd.Series(reasons, dtype=object)])
        found.rows = found.rows[~found.rows.index.duplicated()]
        return pd.Series(ratio[~odd])
    return ratio


def _power_of_thousand(ratio: float) -> float | None:
    power = 1000.0 ** round(math.log(ratio, 1000))
    return power if power >= 1e3 and abs(ratio / power - 1) < 0.1 else None


def _ratio(value: float) -> str:
    """1.02, 1/2048, 3.1e+09."""
    if 1e-6 < value < 0.01 and abs(round(1 / value) * value - 1) < 0.01:
        return f"1/{round(1 / value)}"
    return f"{value:.3g}"

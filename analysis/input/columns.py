"""The vocabulary of a table of runs: our columns, what they hold, and the names that others give them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.input.cells import Kind
from muloco_runner.config import ConfigError


@dataclass(frozen=True)
class Column:
    """One of our columns."""

    kind: Kind | None
    """None: text, or yes and no."""
    default: float | None = None
    """What stands for a missing cell or a missing column; None for nothing."""
    others: str = ""
    """Names that others give it, in lower case with _ for every other sign."""
    sign: Literal["any", "not negative", "positive"] = "any"

    @property
    def positive(self) -> bool:
        return self.sign == "positive"


_N = "n params parameters num_parameters n_params n_parameters model_size model_params model_parameters"
_D = "d tokens training_tokens train_tokens n_tokens dataset_size data_size dataset_tokens"
_C = "c flop compute training_flop training_flops train_flops total_flops training_compute"
_L = "l eval_loss validation_loss val_loss valid_loss final_loss test_loss final_eval_loss eval_loss_final"

COLUMNS: dict[str, Column] = {
    "algorithm": Column(None, others="algo method optimizer optimiser"),
    "num_params": Column("count", others=_N, sign="positive"),
    "global_batch_tokens": Column(
        "count", others="batch_tokens tokens_per_batch batch_size_tokens tokens_per_step", sign="positive"
    ),
    "num_tokens": Column("count", others=_D, sign="positive"),
    "tokens_per_parameter": Column("number", others="tokens_per_param tpp", sign="positive"),
    "loss": Column("loss", others=_L, sign="positive"),
    "num_workers": Column("count", 1, "workers", sign="positive"),
    "sync_interval": Column("count", sign="not negative"),
    "num_fragments": Column("count", 1, sign="positive"),
    "delay_steps": Column("count", 0, sign="not negative"),
    "bits_per_value": Column("bits", math.nan, sign="positive"),
    "gathered_values": Column("count", 0, sign="not negative"),
    "lr": Column("number", others="learning_rate peak_lr max_lr inner_lr", sign="positive"),
    "outer_lr": Column("number", others="outer_learning_rate", sign="not negative"),
    "outer_momentum": Column("number", sign="not negative"),
    "weight_decay": Column("number", others="wd", sign="not negative"),
    "seed": Column("number", 0, "random_seed"),
    "num_steps": Column("count", others="steps train_steps total_steps", sign="positive"),
    "flops": Column("flops", others=_C, sign="positive"),
    "hardware_flops": Column("flops", math.nan),
    "train_seconds": Column("seconds", math.nan),
    "wait_seconds": Column("seconds", math.nan),
    "wall_seconds": Column("seconds", math.nan),
    "bytes_sent": Column("bytes", math.nan),
    "memory_bytes": Column("bytes", math.nan, "peak_memory peak_memory_bytes max_memory_bytes", sign="positive"),
    "num_ranks": Column("count", math.nan, "gpus num_gpus n_gpus devices num_devices world_size", sign="positive"),
    "pseudogradient_cosine": Column("number", math.nan),
    "diverged": Column(None, others="is_diverged"),
    "state": Column(None, others="status run_state run_status"),
    "run_id": Column(None, others="id run run_name name"),
}
NEEDED = ("algorithm", "num_params", "global_batch_tokens", "loss")
EITHER = ("num_tokens", "tokens_per_parameter")
METHOD = ("num_workers", "sync_interval", "num_fragments", "delay_steps", "bits_per_value")
"""What of a method tells one series from another."""

FIT_COLUMNS: dict[str, Column] = {
    **COLUMNS,
    "critical_batch_size": Column(
        "count", others="cbs b_crit bcrit critical_batch critical_batch_tokens crit_batch_size", sign="positive"
    ),
    "x": Column("number", sign="positive"),
    "y": Column("number", sign="positive"),
    "series": Column(None, others="algorithm algo method optimizer optimiser"),
}
"""Columns of single laws. A batch size is no critical one: only names that say so stand for it."""

_PREFIXES = re.compile(r"^((config|summary|params?|metrics?|tags|data|summary_metrics|info)[./_])+", re.IGNORECASE)


def find_column(headings: Sequence[str], name: str, ambiguous: frozenset[str], remedy: str) -> str | None:
    """The heading that holds `name`: that name itself, else the only one of its usual names.

    Raises `ConfigError` where several headings could, with the `remedy`, or where the file has one more than once.
    """
    matches = [name] if name in headings else usual_headings(headings, name)
    if len(matches) > 1:
        raise ConfigError(f"columns {' and '.join(matches)} could all be {name}: {remedy}")
    if matches and matches[0] in ambiguous:
        raise ConfigError(f"the file has the column {matches[0]!r} more than once: rename one of them")
    return matches[0] if matches else None


def usual_headings(headings: Sequence[str], name: str) -> list[str]:
    """The headings that are usual names of our column `name`."""
    usual = {name, *FIT_COLUMNS[name].others.split()}
    matches = [one for one in headings if plain(one) in usual]
    return matches or [one for one in headings if plain(_PREFIXES.sub("", one)) in usual]


def plain(heading: str) -> str:
    """`Training FLOP`, `training-flop (total)` -> training_flop, training_flop_total."""
    return re.sub(r"[^a-z0-9]+", "_", heading.lower()).strip("_")


def listed(headings: Sequence[str], most: int = 40) -> str:
    """The headings for a message, not more than a page of them."""
    more = f" and {len(headings) - most} more" if len(headings) > most else ""
    return ", ".join(headings[:most]) + more


def nearest(name: str, headings: Sequence[str]) -> str:
    """` (did you mean NAME?)`, or nothing."""
    close = difflib.get_close_matches(name, headings, 1)
    return f" (did you mean {close[0]}?)" if close else ""

"""What a user says of a table's columns that are not ours, and what the others among them are."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from dataclasses import dataclass

import pandas as pd

from analysis.budgets import TOLERANCE
from analysis.input.cells import Decimal
from analysis.input.columns import listed, nearest, plain
from muloco_runner.config import ConfigError

_NEVER_A_SETTING = frozenset({
    "id", "name", "run", "run_id", "run_name", "run_uuid", "uuid", "created", "created_at", "updated", "updated_at",
    "runtime", "start_time", "end_time", "user", "user_id", "hostname", "host", "timestamp", "wandb",
    "artifact_uri", "experiment_id", "index", "duration", "date", "time", "url",
})  # fmt: skip
"""Columns that trackers write beside every run."""
_PROGRESS = frozenset({"step", "global_step", "epoch", "iteration", "iter"})
"""Columns that trackers write beside every loss of a run: where they vary, a table holds curves, not runs."""
_OF_THE_LOSS = frozenset({
    "dataset", "datasets", "corpus", "tokenizer", "tokeniser", "vocab", "vocabulary", "seqlen", "sequence", "context",
    "ctx", "schedule", "scheduler",
})  # fmt: skip
"""Words in headings of columns that say on what, or by which schedule, a loss was reached."""
_OF_THE_LOSS_WHOLE = frozenset(
    {"data", "train_data", "eval_data", "val_data", "block_size", "seq_len", "max_seq_len", "eval_set"}
)
"""Such headings."""


@dataclass(frozen=True)
class Declared:
    """What the user says of columns that are not ours."""

    identity: tuple[str, ...] = ()
    """They tell series apart."""
    settings: tuple[str, ...] = ()
    """They are tuned: the best of them counts."""
    bookkeeping: tuple[str, ...] = ()
    """They say nothing about a run; patterns such as `_*` are allowed."""
    unlabelled_repeats: bool = False
    """Whether rows that agree in everything are taken for runs with different seeds."""
    budget_tolerance: float = TOLERANCE
    decimal: Decimal | None = None


@dataclass(frozen=True)
class OtherColumns:
    """Columns of the table that are not ours, by what they mean."""

    identity: tuple[str, ...]
    settings: tuple[str, ...]
    bookkeeping: tuple[str, ...]
    undeclared: tuple[str, ...]

    def used(self) -> dict[str, str]:
        """What the declared columns are for -> their names."""
        kinds = {"--identity": self.identity, "--setting": self.settings}
        return {kind: listed(names) for kind, names in kinds.items() if names}


def declared_columns(source: str, frame: pd.DataFrame, unused: list[str], declared: Declared) -> OtherColumns:
    """`unused` columns of `frame` by what they mean. `ConfigError` where one that was declared is not among them."""
    bookkeeping = [name for name in unused if _is_bookkeeping(name)]
    for pattern in declared.bookkeeping:
        matched = fnmatch.filter(unused, pattern)
        if not matched:
            raise ConfigError(f"{source}: --bookkeeping {pattern}: {_no_such(pattern, frame, unused)}")
        bookkeeping += matched
    for flag, names in (("identity", declared.identity), ("setting", declared.settings)):
        for name in names:
            if name not in unused:
                raise ConfigError(f"{source}: --{flag} {name}: {_no_such(name, frame, unused)}")
    meant = {*declared.identity, *declared.settings}
    bookkeeping = [name for name in dict.fromkeys(bookkeeping) if name not in meant]
    undeclared = [name for name in unused if name not in meant and name not in bookkeeping]
    return OtherColumns(declared.identity, declared.settings, tuple(bookkeeping), tuple(undeclared))


def caution_of_unlike_losses(frame: pd.DataFrame, others: OtherColumns, whole: Collection[str]) -> list[str]:
    """A caution where the rows of `frame` differ in data, tokenizer, sequence length or schedule and nobody said so.

    whole: columns that are read as ours, not as a part of arithmetic.
    """
    known = {*whole, *others.identity, *others.settings, *others.bookkeeping}
    out = []
    for name in map(str, frame.columns):
        words = plain(name)
        if name in known or not (words in _OF_THE_LOSS_WHOLE or _OF_THE_LOSS & set(words.split("_"))):
            continue
        values = sorted({str(cell).strip() for cell in frame[name].dropna()})
        if len(values) > 1:
            out.append(f"{name} ({listed(values, 4)})")
    if not out:
        return []
    return [
        f"Rows differ in {'; '.join(out)}: losses side by side, and laws through them, are not of like runs. Leave out "
        "the rows that are not alike, or say --identity COLUMN, which tells series apart, --setting COLUMN, of which "
        "the best counts, or --bookkeeping COLUMN, which says nothing."
    ]


def _no_such(name: str, frame: pd.DataFrame, unused: list[str]) -> str:
    if name in frame:
        return "is read as one of our columns already: drop it"
    return f"no such column{nearest(name, unused)}; not read yet: {listed(unused) or 'none'}"


def _is_bookkeeping(name: str) -> bool:
    return plain(name) not in _PROGRESS and (name.startswith(("Unnamed:", "_")) or plain(name) in _NEVER_A_SETTING)

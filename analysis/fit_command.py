"""`muloco-report fit`: one law fitted to one table, for scripts and for a look."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muloco_runner.config import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.laws.fit import Fit


@dataclass(frozen=True)
class Form:
    """A law by name: the columns it needs, in the fitter's order."""

    columns: tuple[str, ...]
    formula: str
    groups: bool = False
    """Whether a column `series` gives each series its own curve over one irreducible loss."""


ALIASES = {
    "num_params": "n params parameters num_parameters n_params n_parameters model_size model_params model_parameters",
    "num_tokens": "d tokens training_tokens train_tokens n_tokens dataset_size data_size dataset_tokens",
    "flops": "c flop compute training_flop training_flops train_flops total_flops training_compute",
    "loss": "l eval_loss validation_loss val_loss valid_loss final_loss test_loss final_eval_loss eval_loss_final",
    "critical_batch_size": "b cbs b_crit bcrit critical_batch critical_batch_tokens batch_size batch",
}
"""Names under which others know our columns: read as ours where a table has one of them alone."""


FORMS = {
    "power": Form(("x", "y"), "y = A * x^alpha"),
    "loss-compute": Form(("flops", "loss"), "loss = E + A * flops^-alpha", groups=True),
    "chinchilla": Form(("num_params", "num_tokens", "loss"), "loss = E + A * num_params^-alpha + B * num_tokens^-beta"),
    "critical-batch": Form(("num_tokens", "critical_batch_size"), "critical_batch_size = A * num_tokens^alpha"),
}


def read_table(path: Path) -> pd.DataFrame:
    """A .csv or .tsv (what follows a # is a comment), .parquet or .jsonl file. Mistakes raise `ConfigError`."""
    import pandas as pd

    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".csv": lambda p: pd.read_csv(p, comment="#", skipinitialspace=True),
        ".tsv": lambda p: pd.read_csv(p, comment="#", sep="\t"),
        ".parquet": pd.read_parquet,
        ".jsonl": lambda p: pd.read_json(p, lines=True),
    }
    if path.suffix not in readers:
        raise ConfigError(f"{path}: a table ends in {', '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{path}: not readable as {path.suffix} ({' '.join(str(error).split())})") from None


def fit_table(
    form: str, table: pd.DataFrame, *, mapping: dict[str, str], bootstrap: int, delta: float, seed: int = 0
) -> Fit:
    """The law `form` on the table's columns; `mapping` gives a column's own name. Mistakes raise `ConfigError`."""
    from analysis.laws import power_law

    wanted = FORMS[form]
    optional = ("series",) if wanted.groups else ()
    for name in mapping:
        if name not in (*wanted.columns, *optional):
            raise ConfigError(
                f"--column {name}: {form} has no such column; it takes {', '.join((*wanted.columns, *optional))}"
            )
    if table.empty:
        raise ConfigError("the table has no rows")
    columns = [_column(table, name, mapping.get(name)) for name in wanted.columns]
    options: dict[str, Any] = {"bootstrap": bootstrap, "delta": delta, "seed": seed}
    series = mapping.get("series", "series")
    if wanted.groups and series in table:
        options["groups"] = [str(value) for value in table[series]]
    fitters: dict[str, Callable[..., Fit]] = {
        "power": power_law.fit_power_law,
        "loss-compute": power_law.fit_loss_compute,
        "chinchilla": power_law.fit_chinchilla,
        "critical-batch": power_law.fit_critical_batch,
    }
    try:
        fit = fitters[form](*columns, **options)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    keys = [*columns, options["groups"]] if "groups" in options else columns
    repeated = len(keys[0]) - len(set(zip(*keys, strict=True)))
    if not repeated:
        return fit
    warning = f"{repeated} row(s) repeat another: each counts, as a point of its own"
    return dataclasses.replace(fit, warnings=(*fit.warnings, warning))


def _column(table: pd.DataFrame, name: str, own: str | None) -> Any:
    """The column called `own`, else `name`, else by another usual name, else from the other two of C = 6ND."""
    found = own if own in table else None
    if own is None:
        found = _find(table, name)
        others = {"num_params": "num_tokens", "num_tokens": "num_params"}
        if found is None and name in others:
            other, compute = _find(table, others[name]), _find(table, "flops")
            if other is not None and compute is not None:
                return (_numbers(table, compute) / (6.0 * _numbers(table, other))).to_numpy()
    if found is None:
        have = ", ".join(str(column) for column in table.columns)
        raise ConfigError(f"the table has no column {own or name!r}; it has {have}; say --column {name}=ITS_NAME")
    return table[found].to_numpy()


def _numbers(table: pd.DataFrame, column: str) -> pd.Series[float]:
    import pandas as pd

    try:
        return pd.to_numeric(table[column]).astype(float)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"column {column}: must be numbers ({' '.join(str(error).split())})") from None


def _find(table: pd.DataFrame, name: str) -> str | None:
    """The table's column for `name`: that name itself, else the only column with one of its usual names."""
    if name in table:
        return name
    usual = {name, *ALIASES.get(name, "").split()}
    matches = [str(column) for column in table.columns if _plain(str(column)) in usual]
    if len(matches) > 1:
        raise ConfigError(f"columns {' and '.join(matches)} could all be {name}: say --column {name}=ITS_NAME")
    return matches[0] if matches else None


def _plain(column: str) -> str:
    """`Training FLOP`, `training-flop (total)` -> training_flop, training_flop_total."""
    return re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")


def add_arguments(
    parser: argparse.ArgumentParser, positive: Callable[[str], float], whole: Callable[[str], int]
) -> None:
    parser.add_argument("form", metavar="FORM", choices=sorted(FORMS), help=" | ".join(FORMS))
    parser.add_argument("table", metavar="TABLE", type=Path, help="a .csv, .parquet or .jsonl file")
    parser.add_argument(
        "--column", action="append", default=[], metavar="NAME=COLUMN", help="the table's own name of a column"
    )
    parser.add_argument("--bootstrap", type=whole, default=1000, help="resamples behind each interval (%(default)s)")
    parser.add_argument(
        "--delta", type=positive, default=1e-3, help="Huber's delta in log space; inf is least squares (%(default)s)"
    )
    parser.add_argument("--seed", type=whole, default=0, help="of the resampling (%(default)s)")
    parser.add_argument("--json", action="store_true", help="everything about the fit, for a program")


def run_fit(options: argparse.Namespace) -> int:
    mapping = {}
    for pair in options.column:
        name, separator, column = pair.partition("=")
        if not separator or not column:
            raise ConfigError(f"--column {pair}: write NAME=COLUMN")
        mapping[name] = column
    fit = fit_table(
        options.form,
        read_table(options.table),
        mapping=mapping,
        bootstrap=options.bootstrap,
        delta=options.delta,
        seed=options.seed,
    )
    if options.json:
        print(json.dumps(fit.to_dict(), indent=1, allow_nan=False))
        return 0
    print(f"{fit.formula}, {fit.num_points} points, objective {fit.objective:.6g} (Huber, delta {fit.delta:g})")
    for name, estimate in fit.parameters.items():
        spread = ""
        if estimate.ci is not None:
            spread = f"  se {estimate.se:.3g}  95% [{estimate.ci[0]:.6g}, {estimate.ci[1]:.6g}]"
        print(f"  {name:12} {estimate.value:.6g}{spread}")
    for warning in fit.warnings:
        print(f"  note: {warning}")
    return 0

"""One table, written otherwise: in another order, with other names and units, in other files, with a damaged cell."""

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.__main__ import _read
from analysis.commands.arguments import report_parser
from analysis.input.table_files import read_table, read_tables
from analysis.optima import find_optima
from analysis.runs import Study
from analysis.table import Declared, study_of_table


@functools.cache
def planted_outcome() -> pd.DataFrame:
    return outcome(study_of_table("t", planted_table(), {}))


def planted_table() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = [
        {
            "algorithm": algorithm,
            "num_params": n,
            "num_tokens": 20 * n,
            "global_batch_tokens": b,
            "lr": lr,
            "seed": seed,
        }
        for algorithm in ("DDP-AdamW", "DDP-Muon")
        for n in (10_000_000, 30_000_000, 100_000_000)
        for b in (65536, 131072)
        for lr in (0.001, 0.002)
        for seed in (0, 1)
    ]
    table = pd.DataFrame(rows)
    table["loss"] = np.round(2 + 100 * table["num_params"] ** -0.3 + 0.01 * generator.normal(size=len(rows)), 4)
    return table


def outcome(found: Study) -> pd.DataFrame:
    columns = ["series", "num_params", "tokens_per_parameter", "global_batch_tokens", "lr", "seeds", "runs", "loss"]
    return find_optima(found).points[columns]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False), st.sampled_from([".csv", ".tsv", ".jsonl", ".json"]), st.booleans())
def test_order_names_units_and_kind_of_file_do_not_matter(
    tmp_path: Path, random: Any, suffix: str, units: bool
) -> None:
    table = planted_table()
    order = list(range(len(table)))
    random.shuffle(order)
    columns = list(table.columns)
    random.shuffle(columns)
    other = table.iloc[order][columns].rename(columns={"loss": "eval/loss", "lr": "config.lr", "num_params": "N"})
    mapping: dict[str, Any] = {}
    if units:
        other["num_tokens"] = [f"{value / 1e6:g}M" for value in other["num_tokens"]]
        other["global_batch_tokens"] /= 1024
        mapping["global_batch_tokens"] = random.choice(
            [{"column": "global_batch_tokens", "factor": 1024}, "global_batch_tokens * 1024"]
        )
    path = tmp_path / f"t{suffix}"
    if suffix == ".csv":
        other.to_csv(path, index=False)
    elif suffix == ".tsv":
        other.to_csv(path, index=False, sep="\t", encoding="utf-16")
    else:
        other.to_json(path, orient="records", lines=suffix == ".jsonl", double_precision=15)
    found = study_of_table("t", read_table(path), mapping)
    pd.testing.assert_frame_equal(outcome(found), planted_outcome(), check_exact=True)


@pytest.mark.parametrize("examples", [8, pytest.param(25, marks=pytest.mark.long)])
def test_a_damaged_cell_changes_its_own_row_alone(examples: int) -> None:
    settings(max_examples=examples, deadline=None)(given(st.data())(assert_a_damaged_cell_changes_its_row_alone))()


def assert_a_damaged_cell_changes_its_row_alone(data: st.DataObject) -> None:
    table = planted_table()
    row = data.draw(st.integers(0, len(table) - 1))
    column = data.draw(st.sampled_from(["num_params", "num_tokens", "global_batch_tokens", "loss", "algorithm"]))
    cell = data.draw(st.sampled_from(["", "oops", "#", "1,2,3", "--", "0", "-1"]))
    without = study_of_table("t", table.drop(index=row), {})
    if column == "algorithm":
        cell = ""
    damaged = table.astype(object)
    damaged.loc[row, column] = cell
    found = study_of_table("t", damaged, {})
    assert [one.run_id for one in found.excluded] == [f"row {row + 1}"]
    pd.testing.assert_frame_equal(outcome(found), outcome(without), check_exact=True)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_files_that_are_split_give_what_the_whole_gives(tmp_path: Path, data: st.DataObject) -> None:
    table = planted_table().astype({"lr": object, "loss": object})
    rows = st.integers(0, len(table) - 1)
    table.loc[data.draw(rows), "lr"] = data.draw(st.sampled_from(["1e-3", "2.0e-3", "", "oops"]))
    table.loc[data.draw(rows), "loss"] = data.draw(st.sampled_from(["inf", "oops", "3.10", "#"]))
    table["model"] = data.draw(st.sampled_from([["2.0"] * 48, ["2.0"] * 40 + ["b"] * 8, ["x"] * 48]))
    cuts = sorted(data.draw(st.lists(st.integers(1, len(table) - 1), min_size=1, max_size=3, unique=True)))
    whole = tmp_path / "whole.csv"
    table.to_csv(whole, index=False)
    paths = []
    for start, end in zip([0, *cuts], [*cuts, len(table)], strict=True):
        paths.append(tmp_path / f"part{start}.csv")
        table.iloc[start:end].to_csv(paths[-1], index=False)
    declared = Declared(identity=("model",))
    one = study_of_table("t", read_tables([whole]), {}, declared)
    several = study_of_table("t", read_tables(paths), {}, declared)
    # Rows are named with their file.
    runs = [found.runs.drop(columns="run_id") for found in (several, one)]
    pd.testing.assert_frame_equal(*runs, check_exact=True)
    reasons = [sorted(re.sub(r"\S* ?row \d+", "row", x.reason) for x in found.excluded) for found in (several, one)]
    assert reasons[0] == reasons[1]
    assert replace(several, runs=one.runs, excluded=one.excluded) == one


def test_the_command_takes_a_table_in_several_files(tmp_path: Path) -> None:
    table = planted_table()
    paths = [tmp_path / name for name in ("first.csv", "second.tsv", "third.jsonl")]
    table.iloc[:20].to_csv(paths[0], index=False)
    table.iloc[20:30].to_csv(paths[1], index=False, sep="\t")
    table.iloc[30:].to_json(paths[2], orient="records", lines=True, double_precision=15)
    options = report_parser().parse_args(["--table", str(paths[0]), str(paths[1]), "--table", str(paths[2])])
    found, out = _read(options)
    pd.testing.assert_frame_equal(outcome(found), outcome(study_of_table("t", table, {})), check_exact=True)
    assert (len(found.runs), out) == (len(table), tmp_path / "report")


def test_a_spreadsheet_with_decimal_commas_is_a_plain_table(tmp_path: Path) -> None:
    table = planted_table()
    other = table.astype({"loss": str, "num_params": str, "lr": str})
    other["loss"] = [f"{value:.4f}".replace(".", ",") for value in table["loss"]]
    other["num_params"] = [f"{value:,}".replace(",", ".") for value in table["num_params"]]
    other["lr"] = [f"{value:.3f}".replace(".", ",") for value in table["lr"]]
    path = tmp_path / "t.csv"
    other.to_csv(path, index=False, sep=";")
    found = study_of_table(str(path), read_table(path), {})
    assert outcome(found).equals(outcome(study_of_table("t", table, {})))
    assert any("decimal mark: comma" in note for note in found.notes)

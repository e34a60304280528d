"""Cells of tables that others wrote: what no two of them may become, and what is named instead of read."""

from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import run
from analysis.input.table_files import read_tables
from analysis.optima import find_optima
from analysis.runs import Study
from analysis.table import Declared, study_of_table
from muloco_runner.config import ConfigError

HEADER = "algorithm,num_params,global_batch_tokens,num_tokens,loss"


def study(
    tmp_path: Path, lines: str, columns: str = "", mapping: dict[str, Any] | None = None, **declared: Any
) -> Study:
    """The study of a .csv: `lines` begin with the algorithm, `|` stands for usual size, batch and tokens."""
    path = tmp_path / "t.csv"
    path.write_text(f"{HEADER}{columns}\n{lines.replace('|', ',1e8,65536,2e9,')}\n")
    return study_of_table("t", read_tables([path]), mapping or {}, Declared(**declared))


def best(found: Study) -> dict[str, float]:
    """Loss of each series."""
    rows = find_optima(found).best
    return {str(series): float(loss) for series, loss in zip(rows["series"], rows["loss"], strict=True)}


def reasons(found: Study) -> dict[str, str]:
    return {one.run_id: one.reason for one in found.excluded}


@pytest.mark.parametrize(
    ("first", "second"),
    [("20240101", "20240102"), ("0.1234567", "0.1234568"), ("9007199254740992", "9007199254740993")],
)
def test_an_empty_cell_merges_no_series_and_no_settings(tmp_path: Path, first: str, second: str) -> None:
    lines = f"AdamW|3.1,{first}\nAdamW|3.3,{second}\nMuon|3.15,"
    found = study(tmp_path, lines, ",version", identity=("version",))
    assert best(found) == {f"AdamW version={first}": 3.1, f"AdamW version={second}": 3.3, "Muon": 3.15}
    assert (found.columns["--identity"], found.unused) == ("version", [])
    found = study(tmp_path, lines, ",version", settings=("version",))
    assert best(found) == {"AdamW": 3.1, "Muon": 3.15}
    assert sorted(found.runs["hyper_parameters"]) == ["version=", f"version={first}", f"version={second}"]


def test_learning_rates_that_differ_late_are_two_settings(tmp_path: Path) -> None:
    assert best(study(tmp_path, "A|3.1,0.00123456\nA|3.3,0.001234561", ",lr")) == {"A": 3.1}


def test_seeds_beyond_the_exact_floats_stay_apart(tmp_path: Path) -> None:
    lines = "A|3.1,9007199254740993\nA|3.3,9007199254740992\nB|3.4,9007199254740992\nB|3.6,"
    found = study(tmp_path, lines, ",seed")
    assert found.runs.set_index("loss")["seed"].to_dict() == {3.1: 1, 3.3: 0, 3.4: 0, 3.6: -1}


def test_an_algorithm_with_the_name_of_another_series_is_its_own(tmp_path: Path) -> None:
    found = study(tmp_path, "MuLoCo K=4|3.1,1\nMuLoCo|3.3,4", ",num_workers")
    assert best(found) == {
        "MuLoCo K=4 (algorithm MuLoCo K=4)": 3.1,
        "MuLoCo K=4 (algorithm MuLoCo)": 3.3,
    }


def test_arithmetic_gives_a_column_of_words_its_value(tmp_path: Path) -> None:
    found = study(tmp_path, "A|3.1,0\nA|3.0,1", ",flag", {"diverged": "flag * 1"})
    assert (best(found), found.runs["diverged"].sum()) == ({"A": 3.1}, 1)
    found = study(tmp_path, "A|3.1,1\nA|3.0,2", ",flag", {"algorithm": {"column": "flag", "factor": 2}})
    assert best(found) == {"2": 3.1, "4": 3.0}


@pytest.mark.parametrize("given", ["opt + 0", {"column": "opt", "factor": 2}])
@pytest.mark.parametrize("name", ["algorithm", "diverged", "state", "run_id"])
def test_arithmetic_on_words_is_refused(tmp_path: Path, name: str, given: object) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is mapped to .* row 1 gives no number \({name}=adam\)"):
        study(tmp_path, "A|3.1,adam\nA|3.0,muon", ",opt", {name: given})


@pytest.mark.parametrize(("decimal", "bad", "good"), [("comma", "0.001", "0,002"), ("point", "0,001", "0.002")])
def test_no_thousands_are_parted_behind_a_leading_zero(tmp_path: Path, decimal: str, bad: str, good: str) -> None:
    found = study(tmp_path, f'A|3,"{bad}"\nA|2,"{good}"', ",lr", decimal=decimal)
    assert reasons(found) == {"row 1": f"damaged: lr={bad} is no number"}
    assert found.runs["lr"].tolist() == [0.002]


def test_nan_is_a_missing_cell_but_in_a_loss(tmp_path: Path) -> None:
    found = study(tmp_path, "A|3.1,NaN,NaN,0.1\nA|NaN,NaN,NaN,0.2\nA|3.2,inf,NaN,0.3", ",outer_lr,sync_interval,lr")
    assert best(found) == {"A": 3.1}
    assert found.runs["diverged"].sum() == 1
    assert reasons(found) == {"row 3": "damaged: outer_lr=inf must be a finite number"}


# Rows that are no repeats


@pytest.mark.parametrize(
    ("column", "first", "second"),
    [
        ("steps", "10000", "30518"),
        ("train_steps", "20000", "30518"),
        ("num_steps", "1", "2"),
        ("flops", "1e18", "2e18"),
    ],
)
def test_losses_along_one_run_are_not_ranked(tmp_path: Path, column: str, first: str, second: str) -> None:
    lines = f"A|3.5,{first}\nA|3.1,{second}\nB|3.2,{second}"
    ours = "flops" if column == "flops" else "num_steps"
    assert f"these rows differ in {ours}. Where they are one run" in (
        study(tmp_path, lines, f",{column}").withheld or ""
    )
    found = study(tmp_path, lines, f",{column}", unlabelled_repeats=True)
    assert (found.withheld, best(found)) == (None, pytest.approx({"A": 3.3, "B": 3.2}))


def test_tokens_that_differ_at_one_budget_are_named(tmp_path: Path) -> None:
    lines = "A|3.5\nA,1e8,65536,2.05e9,3.1\nB|3.2"
    assert "differ in num_tokens" in (study(tmp_path, lines).withheld or "")
    found = study(tmp_path, lines, budget_tolerance=0.001)
    assert found.withheld is None
    assert sorted(find_optima(found).best["loss"]) == [3.1, 3.2, 3.5]


def test_tokens_at_even_distances_are_a_curve(tmp_path: Path) -> None:
    lines = [f"{name},1e8,65536,{i}e8,3.{9 - i}" for name in "AB" for i in (1, 2, 3, 4, 5)]
    assert "10 rows stand at even distances in num_tokens" in (study(tmp_path, "\n".join(lines)).withheld or "")
    late = "\n".join(f"A,1e8,65536,{i}e8,3.{j}" for j, i in enumerate((3, 4, 5, 6, 7, 7.3)))
    assert "6 rows stand at even distances" in (study(tmp_path, late).withheld or "")
    named = "\n".join(f"{line},run-{i}" for i, line in enumerate(lines))
    assert study(tmp_path, named, ",run_id").withheld is None
    one = "\n".join(f"{line},{line[0]}" for line in lines)
    assert "10 rows are several losses of 2 run(s), such as 'A'" in (study(tmp_path, one, ",run_id").withheld or "")
    doubled = "\n".join(f"A,1e8,65536,{2**i}e8,3.{9 - i}" for i in range(5))
    assert study(tmp_path, doubled).withheld is None


def test_a_row_without_a_seed_is_not_that_of_seed_zero(tmp_path: Path) -> None:
    lines = "A|3.5,0\nA|3.1,\nB|3.2,0"
    assert "1 row(s) have an empty `seed` beside rows" in (study(tmp_path, lines, ",seed").withheld or "")
    found = study(tmp_path, lines, ",seed", unlabelled_repeats=True)
    assert best(found) == pytest.approx({"A": 3.3, "B": 3.2})
    a, b = (set(found.runs.loc[found.runs["series"] == name, "seed"]) for name in "AB")
    assert (len(a), len(a & b)) == (2, 1)
    assert study(tmp_path, "A|3.5,0\nB|3.1,", ",seed").withheld is None


def test_repeats_with_names_of_their_own_all_count(tmp_path: Path) -> None:
    lines = "A|3.1,a,no\nA|3.1,b,no\nA|3.4,c,no\nA|3.4,c,no\nB|7,,yes\nB|8,,yes"
    found = study(tmp_path, lines, ",run_id,diverged", unlabelled_repeats=True)
    assert best(found) == pytest.approx({"A": 3.2})
    assert (len(found.runs), found.runs["diverged"].sum()) == (5, 2)
    assert reasons(found) == {"c (row 4)": "duplicate of row 3"}


# Cells that no run can have


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("lr", "0.0", "must be a positive number"),
        ("lr", "-0.1", "must be a positive number"),
        ("outer_lr", "-1.0", "must not be negative"),
        ("weight_decay", "-0.1", "must not be negative"),
        ("bits_per_value", "0.0", "must be a positive number"),
        ("sync_interval", "0.5", "is less than one: in another unit? Map sync_interval"),
        ("num_workers", "0.5", "is less than one: in another unit? Map num_workers"),
        ("num_steps", "2e+19", "must be below 9e+18"),
    ],
)
def test_a_cell_that_no_run_can_have_is_named(tmp_path: Path, column: str, cell: str, words: str) -> None:
    found = study(tmp_path, f"A|3.0,{cell}\nA|3.2,", f",{column}")
    assert best(found) == {"A": 3.2}
    assert reasons(found)["row 1"].startswith(f"damaged: {column}={cell} {words}")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("A,1e8,0.065536,2e9,3", "global_batch_tokens=0.065536 is less than one"),
        ("A,0.1,65536,2e9,3", "num_params=0.1 is less than one"),
        ("A,1e8,65536,0.002,3", "num_tokens=0.002 is less than one"),
        ("A,1e8,65536,2e19,3", r"num_tokens=2e\+19 must be below 9e\+18"),
    ],
)
def test_counts_in_another_unit_are_refused_with_the_factor(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"none of 1 rows can be used; the first: damaged: {words}"):
        study(tmp_path, line)


@pytest.mark.parametrize(("share", "words"), [("1e-12", "less than one token"), ("1e12", "more than 9e.18 tokens")])
def test_tokens_that_follow_are_held_to_the_same_range(tmp_path: Path, share: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"damaged: {words}"):
        study(tmp_path, f"A,1e8,65536,,3,{share}", ",tokens_per_parameter")


def test_zero_for_a_sync_interval_is_none(tmp_path: Path) -> None:
    found = study(tmp_path, "MuLoCo|3.0,4,0\nMuLoCo|3.2,4,30", ",num_workers,sync_interval")
    assert best(found) == {"MuLoCo K=4": 3.0, "MuLoCo K=4 H=30": 3.2}
    assert run(["--table", str(tmp_path / "t.csv"), "--out", str(tmp_path), "--bootstrap", "0"]) == 0


def test_a_table_of_diverged_runs_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(tmp_path, "A|3.0,yes,0\nB|nan,no,", ",diverged,seed")
    assert run(["--table", str(tmp_path / "t.csv"), "--out", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.endswith("no loss to compare: add runs that train, at lower learning rates\n")


# Several files


def test_a_column_with_another_name_in_one_file_is_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text(f"{HEADER}\nA,1e8,65536,2e9,3.1\n")
    second.write_text(f"{HEADER.replace('loss', 'eval_loss')}\nB,1e8,65536,2e9,3.2\n")
    words = r"loss is the column loss in \S*a.csv and eval_loss in \S*b.csv: give it one name in all files"
    with pytest.raises(ConfigError, match=words):
        study_of_table("t", read_tables([first, second]), {})
    second.write_text(f"{HEADER},train_seconds\nB,1e8,65536,2e9,3.2,5\n")
    assert best(study_of_table("t", read_tables([first, second]), {})) == {"A": 3.1, "B": 3.2}


def test_rows_of_several_files_are_named_with_their_file(tmp_path: Path) -> None:
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path in paths:
        path.write_text(f"{HEADER}\nA,1e8,65536,2e9,3.1\nA,1e8,65536,2e9,bad\n")
    assert reasons(study_of_table("t", read_tables(paths), {})) == {
        f"{paths[0]} row 2": "damaged: loss=bad is no number",
        f"{paths[1]} row 1": f"duplicate of {paths[0]} row 1",
        f"{paths[1]} row 2": "damaged: loss=bad is no number",
    }


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bandwidth", "inf"], "argument --bandwidth: inf: must be positive and finite"),
        (["--bandwidth", "1", "1e300"], "argument --bandwidth: 1e300: must be positive and finite"),
        (["--step-seconds", "inf", "--bits", "inf"], "argument --step-seconds: inf: must be positive and finite"),
        (["--budget", "inf"], "argument --budget: inf: must be positive and finite"),
        (["--watch", "inf"], "argument --watch: inf: must be positive and finite"),
        (["--bootstrap", "1"], "argument --bootstrap: 1: must be 0, for no intervals, or 10 or more"),
        (["--out", "{table}"], "is a file; give the folder of the report"),
        (["--out", "{table}/report"], "Not a directory"),
    ],
)
def test_an_option_that_cannot_be_met_is_one_line(
    tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study(tmp_path, "A|3.0\nB|3.1")
    table = str(tmp_path / "t.csv")
    arguments = ["--table", table, "--out", str(tmp_path), *(one.format(table=table) for one in options)]
    try:
        code = run(arguments)
    except SystemExit as ending:
        code = int(ending.code or 0)
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1), error
    assert words in error


def test_the_largest_options_overflow_nothing(tmp_path: Path) -> None:
    study(tmp_path, "MuLoCo|3.0,4,30\nB|3.1,,", ",num_workers,sync_interval")
    options = [one for name in ("step-seconds", "bits", "bandwidth", "device-flops") for one in (f"--{name}", "1e24")]
    options += ["--bandwidth", "1e-24", "1e24", "--device-flops", "1e-24", "--bootstrap", "0"]
    assert run(["--table", str(tmp_path / "t.csv"), "--out", str(tmp_path), *options]) == 0

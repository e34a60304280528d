"""Cells of tables that others wrote: what no two of them may become, and what is named instead of read."""

from pathlib import Path
from typing import Any

import pytest

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

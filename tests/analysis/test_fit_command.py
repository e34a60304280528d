import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import run


def chinchilla(path: Path) -> None:
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e12, 5)))
    loss = 1.69 + 406.4 * n**-0.34 + 410.7 * d**-0.28
    pd.DataFrame({"num_params": n, "num_tokens": d, "loss": loss, "flops": 6 * n * d}).to_csv(path, index=False)


def test_the_json_has_parameters_by_their_usual_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "runs.csv"
    chinchilla(table)
    assert run(["fit", "chinchilla", str(table), "--bootstrap", "20", "--json"]) == 0
    fit = json.loads(capsys.readouterr().out)
    assert set(fit["parameters"]) == {"E", "A", "B", "alpha", "beta"}
    assert fit["parameters"]["alpha"]["value"] == pytest.approx(0.34, rel=1e-6)
    assert set(fit["parameters"]["alpha"]) == {"value", "se", "ci"}
    assert fit["objective"] < 1e-12


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_tables_of_each_kind_with_names_of_their_own(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"size": [1e6, 1e7, 1e8, 1e9], "batch": [10.0, 20.0, 40.0, 80.0]})
    path = tmp_path / f"table{suffix}"
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    elif suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    arguments = ["--column", "x=size", "--column", "y=batch", "--bootstrap", "0", "--json"]
    assert run(["fit", "power", str(path), *arguments]) == 0
    fit = json.loads(capsys.readouterr().out)
    assert fit["parameters"]["alpha"]["value"] == pytest.approx(np.log10(2), rel=1e-6)


def test_a_series_each_over_one_irreducible_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c = np.geomspace(1e17, 1e21, 5)
    frame = pd.concat(
        pd.DataFrame({"series": name, "flops": c, "loss": 1.7 + a * c**-0.2})
        for name, a in (("one", 4e3), ("two", 5e3))
    )
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    assert run(["fit", "loss-compute", str(path), "--bootstrap", "0"]) == 0
    out = capsys.readouterr().out
    assert "alpha[one]" in out
    assert "alpha[two]" in out


def test_columns_by_other_usual_names_and_tokens_from_compute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chinchilla(tmp_path / "runs.csv")
    table = pd.read_csv(tmp_path / "runs.csv")
    other = pd.DataFrame(
        {"Model Size": table["num_params"], "Training FLOP": table["flops"], "eval/loss": table["loss"]}
    )
    other.to_csv(tmp_path / "other.csv", index=False)
    objectives = []
    for name in ("runs", "other"):
        assert run(["fit", "chinchilla", str(tmp_path / f"{name}.csv"), "--bootstrap", "0", "--json"]) == 0
        objectives.append(json.loads(capsys.readouterr().out)["parameters"])
    for parameter, estimate in objectives[0].items():
        assert objectives[1][parameter]["value"] == pytest.approx(estimate["value"], rel=1e-6)


def test_rows_that_repeat_another_are_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,y\n1,2\n2,4.1\n4,8\n4,8\n")
    assert run(["fit", "power", str(path), "--bootstrap", "0", "--json"]) == 0
    fit = json.loads(capsys.readouterr().out)
    assert fit["num_points"] == 4
    assert any("1 row(s) repeat" in warning for warning in fit["warnings"])


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("flops,loss\n1e18,3\n", ["loss-compute"], "1 point"),
        ("flops,loss\n1e18,3\n1e19,nan\n1e20,2\n1e21,1.9\n", ["loss-compute"], "row 2"),
        ("flops,perplexity\n1e18,3\n", ["loss-compute"], "--column loss="),
        ("flops,loss\n1e18,much\n1e19,2\n1e20,2\n1e21,1\n", ["loss-compute"], "no number"),
        ("", ["loss-compute"], "not readable"),
        ("flops,loss\n", ["loss-compute"], "no rows"),
        ("flops,loss\n1e18,3\n1e18,3.1\n1e19,2\n1e19,2.1\n", ["loss-compute"], "2 different values"),
        ("flops,val_loss,test_loss\n1e18,3,3\n", ["loss-compute"], "could all be loss"),
        ("x,y\n1,2\n", ["cubic"], "cubic"),
        ("x,y\n1,2\n", ["power", "--column", "z=x"], "no such column"),
        ("x,y\n1,2\n", ["power", "--delta", "-1"], "positive"),
    ],
)
def test_a_bad_table_is_one_line(
    text: str, arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    try:
        code = run(["fit", arguments[0], str(path), *arguments[1:]])
    except SystemExit as ending:
        code = int(ending.code or 0)
    error = capsys.readouterr().err
    assert code == 2
    assert len(error.splitlines()) == 1, error
    assert words in error


def two_algorithms(path: Path) -> None:
    c = np.geomspace(1e17, 1e21, 5)
    parts = [
        pd.DataFrame({"algorithm": name, "C": c, "loss": 1.7 + a * c**-0.2, "width": 3})
        for name, a in (("X", 4e3), ("Y", 5e3))
    ]
    pd.concat(parts).to_csv(path, index=False)


def test_algorithms_are_series_and_unused_columns_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    two_algorithms(path)
    assert run(["fit", "loss-compute", str(path), "--bootstrap", "0", "--json"]) == 0
    fit = json.loads(capsys.readouterr().out)
    assert fit["parameters"]["A[X]"]["value"] == pytest.approx(4e3, rel=1e-3)
    assert fit["parameters"]["A[Y]"]["value"] == pytest.approx(5e3, rel=1e-3)
    assert (fit["columns"]["series"], fit["unused_columns"]) == ("algorithm", ["width"])
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("Y")))
    assert run(["fit", "loss-compute", str(path), "--bootstrap", "0"]) == 0
    assert "alpha  " in capsys.readouterr().out


def test_a_law_over_several_algorithms_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_algorithms(tmp_path / "t.csv")
    arguments = ["--column", "x=C", "--column", "y=loss", "--bootstrap", "0"]
    assert run(["fit", "power", str(tmp_path / "t.csv"), *arguments]) == 0
    out = capsys.readouterr().out
    assert "columns not used: algorithm, width" in out
    assert "one law for the rows of all 2 values of algorithm (X, Y)" in out


def rows_of_runs(path: Path, runs: int = 24, rows: int = 10) -> None:
    """Several rows a run, as when checkpoints of one run are fitted: what a run has of its own, all its rows have."""
    generator = np.random.default_rng(3)
    n = np.repeat(np.exp(generator.uniform(np.log(5e7), np.log(2e9), runs)), rows)
    d = np.tile(np.geomspace(2e9, 3e11, rows), runs)
    own = np.repeat(generator.normal(size=runs), rows)
    loss = (1.8 + 480 * n**-0.35 + 2140 * d**-0.37) * np.exp(0.01 * own + 5e-4 * generator.normal(size=len(n)))
    pd.DataFrame({"run": np.repeat(np.arange(runs), rows), "N": n, "D": d, "loss": loss}).to_csv(path, index=False)


def test_rows_of_one_run_are_resampled_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "runs.csv"
    rows_of_runs(table)
    widths = {}
    for options in ([], ["--resample-by", "run"]):
        assert run(["fit", "chinchilla", str(table), "--bootstrap", "100", "--json", *options]) == 0
        fit = json.loads(capsys.readouterr().out)
        low, high = fit["parameters"]["alpha"]["ci"]
        widths[bool(options)] = high - low
        assert any("say --resample-by run" in line for line in fit["warnings"]) == (not options)
    assert low < 0.35 < high
    assert widths[True] > 2 * widths[False]


@pytest.mark.parametrize(
    ("column", "runs", "words"),
    [("model", 24, "no such column; the table has run, N, D"), ("run", 5, "5 of them for 5 parameters; at least 6")],
)
def test_a_column_that_gives_no_interval_is_refused(
    column: str, runs: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "runs.csv"
    rows_of_runs(table, runs)
    assert run(["fit", "chinchilla", str(table), "--bootstrap", "20", "--resample-by", column]) == 2
    assert words in capsys.readouterr().err

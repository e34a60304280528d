"""Columns against each other: what is a caution, what stops a law, and what leaves one row out."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import run
from analysis.report.figures import draw_all
from analysis.runs import Study
from analysis.table import study_of_table

SIZES = np.repeat(np.geomspace(1e7, 1e9, 4).round(), 5)


def table(**columns: object) -> pd.DataFrame:
    found = pd.DataFrame(
        {
            "algorithm": "DDP-AdamW", "num_params": SIZES, "num_tokens": 20 * SIZES, "global_batch_tokens": 2.0**16,
            "lr": np.tile([1, 2, 3, 4, 5], 4), "loss": 1.7 + 200 * SIZES**-0.3,
        }
    )  # fmt: skip
    return found.assign(**columns)


def read(frame: pd.DataFrame) -> Study:
    return study_of_table("t", frame, {})


def test_columns_that_agree_raise_nothing() -> None:
    found = read(table(flops=120 * SIZES**2, num_steps=20 * SIZES / 2**16, tokens_per_parameter=20))
    assert (found.cautions, found.unusable, found.excluded) == ([], {}, [])


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("global_batch_tokens", 32.0, "sequences of 2048 tokens"),
        ("num_steps", 7.0, "nothing explains"),
    ],
)
def test_steps_and_batch_that_miss_the_tokens_stop_batch_laws(column: str, values: float, words: str) -> None:
    found = read(table(num_steps=20 * SIZES / 2**16).assign(**{column: values}))
    assert words in found.unusable["global_batch_tokens"]


@pytest.mark.parametrize(
    ("flops", "unusable", "caution"),
    [
        (120 * SIZES**2 * 1.33, None, "1.33 times 6 N D"),
        (120 * SIZES**2 * (1 + 5e7 / SIZES), None, "6 times at the smallest"),
        (120 * SIZES**2 / 1e9, "unit: GFLOPs", None),
        (120 * SIZES**2 / 8.64e19, "unit: PF-days", None),
        (120 * SIZES**2 * 30, "nothing explains", None),
    ],
)
def test_flops_are_held_against_six_n_d(flops: np.ndarray, unusable: str | None, caution: str | None) -> None:
    found = read(table(flops=flops))
    assert (unusable is None) == (not found.unusable)
    assert (unusable or "") in found.unusable.get("flops", "")
    assert (caution or "") in " ".join(found.cautions)


def test_flops_that_algorithms_count_differently_are_named() -> None:
    algorithm = np.tile(["DDP-AdamW", "DDP-AdamW", "DDP-Muon", "DDP-Muon", "DDP-Muon"], 4)
    found = read(table(algorithm=algorithm, flops=120 * SIZES**2 * np.where(algorithm == "DDP-Muon", 1.3, 1.0)))
    assert "differ between algorithms" in " ".join(found.cautions)


def test_one_row_in_another_unit_is_left_out_by_name() -> None:
    flops = 120 * SIZES**2
    flops[7] /= 1e9
    found = read(table(flops=flops))
    assert not found.unusable
    (left,) = found.excluded
    assert left.run_id == "row 8"
    assert "1e-09 times 6 N D" in left.reason


def test_a_size_in_another_unit_is_left_out_by_name() -> None:
    sizes = SIZES.copy()
    sizes[3] /= 1e6
    (left,) = read(table(num_params=sizes)).excluded
    assert (left.run_id, left.reason) == (
        "row 4",
        "damaged: tokens per parameter are 2e+07 here and 20 elsewhere",
    )


def test_half_the_rows_in_another_unit_stop_laws_of_size() -> None:
    halves = np.where(np.arange(20) % 2, 1.0, 1e-6)
    found = read(table(num_tokens=20 * SIZES).assign(num_params=SIZES * halves))
    assert "are 20 in 10 rows and 2e+07 in 10: " in found.unusable["num_params"]


def test_sizes_without_embeddings_drift() -> None:
    tokens = 20 * (SIZES + 3e6)
    both = read(table(num_tokens=tokens, tokens_per_parameter=20))
    assert "count embeddings differently" in " ".join(both.cautions)
    alone = read(table(num_tokens=tokens))
    assert "drift from 26 at the smallest size to 20.1 at the largest, 1.3 times" in " ".join(alone.cautions)
    assert not both.unusable
    assert not alone.unusable


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_tokens_that_follow_a_law_of_size_are_no_drift(power: float) -> None:
    uneven = np.repeat([1e7, 8e7, 1e8, 1.1e8], 5)
    assert read(table(num_params=uneven, num_tokens=2e9 * (uneven / 1e8) ** power)).cautions == []


@pytest.mark.parametrize(
    ("ratio", "column"),
    [
        (SIZES / 1e7, "num_params"),
        (1 + np.where(SIZES == 1e9, 3.0, 0.0), "num_params"),
        (np.where(SIZES == 1e7, 0.7, 1.3), "num_params"),
        (3.0, "num_tokens"),
    ],
)
def test_a_drift_that_embeddings_do_not_explain_stops_laws(ratio: np.ndarray, column: str) -> None:
    found = read(table(num_tokens=20 * SIZES * ratio, tokens_per_parameter=20))
    assert "map" in found.unusable[column]


@pytest.mark.parametrize(("scale", "column"), [(1e-6, "num_params"), (1e-9, "num_tokens")])
def test_counts_in_millions_or_billions_are_named_with_the_factor(scale: float, column: str) -> None:
    frame = table()
    found = read(frame.assign(**{column: frame[column] * scale}))
    assert "factor" in found.unusable[column]


def test_losses_that_are_no_nats() -> None:
    loss = table()["loss"]
    perplexity = read(table(loss=np.exp(loss) * 5))
    assert "log(COLUMN)" in perplexity.unusable["loss"]
    assert "above 5.5 nats" in " ".join(read(table(loss=np.exp(loss) * 0.8)).cautions)
    assert "bits per byte" in " ".join(read(table(loss=loss / 4)).cautions)
    low = loss.copy()
    low[3] /= 10
    assert "row 4" in " ".join(read(table(loss=low)).cautions)


def test_no_law_is_fitted_from_an_unusable_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    table(flops=120 * SIZES**2 / 1e9).to_csv(path, index=False)
    assert run(["fit", "loss-compute", str(path), "--bootstrap", "0"]) == 2
    assert "unit: GFLOPs" in capsys.readouterr().err
    arguments = ["--column", "flops={column: flops, unit: GFLOPs}", "--bootstrap", "0"]
    assert run(["fit", "loss-compute", str(path), *arguments]) == 0
    assert "20 of 20" in capsys.readouterr().out


def test_steps_and_batch_are_held_against_tokens_per_parameter_too() -> None:
    frame = table(num_steps=20 * SIZES / 2**16, tokens_per_parameter=20.0).drop(columns="num_tokens")
    assert not read(frame).unusable
    assert "sequences of 2048 tokens" in read(frame.assign(global_batch_tokens=32.0)).unusable["global_batch_tokens"]
    assert "factor: 1e+06" in read(frame.assign(num_params=SIZES / 1e6)).unusable["num_params"]


def test_batches_in_sequences_give_no_critical_batch(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    batch = 2.0 ** (14 + np.tile([0, 1, 2, 3, 4], 4))
    loss = (1.7 + 200 * SIZES**-0.3) * (1 + batch / 2**20)
    frame = table(num_steps=20 * SIZES / batch, global_batch_tokens=batch / 2048, loss=loss)
    frame.to_csv(path, index=False)
    assert run(["--table", str(path), "--out", str(tmp_path), "--bootstrap", "0"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["critical_batch"]["points"] == []
    assert "sequences of 2048 tokens" in report["critical_batch"]["reason"]
    assert "factor: 2048" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "tables" / "critical_batch.csv").exists()
    labels = {drawing.name: drawing.figure.axes[0].get_xlabel().replace("\n", " ") for drawing in draw_all(report)}
    assert labels["loss_vs_batch_10M"] == "global batch B (unit not clear; column global_batch_tokens)"
    assert "| batch (unit not clear) |" in (tmp_path / "report.md").read_text()


def test_axes_name_the_column_that_was_mapped(tmp_path: Path) -> None:
    path, mapping = tmp_path / "t.csv", tmp_path / "m.yaml"
    batch = 2.0 ** (14 + np.tile([0, 1, 2, 3, 4], 4))
    frame = table(global_batch_tokens=batch / 2048, flops=120 * SIZES**2 / 1e9)
    names = {"global_batch_tokens": "batch_size", "loss": "<b>loss", "flops": "gflops", "num_params": "N"}
    frame.rename(columns=names).to_csv(path, index=False)
    mapping.write_text(
        "global_batch_tokens: {column: batch_size, factor: 2048}\nflops: {column: gflops, unit: GFLOPs}\n"
        "loss: <b>loss\n"
    )
    assert run(["--table", str(path), "--mapping", str(mapping), "--out", str(tmp_path), "--bootstrap", "0"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    axes = {drawing.name: drawing.figure.axes[0] for drawing in draw_all(report)}
    assert axes["loss_vs_batch_10M"].get_xlabel().replace("\n", " ") == (
        "global batch B (tokens; column batch_size x 2,048)"
    )
    assert axes["loss_vs_batch_10M"].get_ylabel() == "validation loss (nats per token)\n(column <b>loss)"
    assert axes["loss_compute"].get_xlabel() == "compute C (flops; column gflops x 1e+09)"
    assert "training tokens D (" not in str([one.get_xlabel() for one in axes.values()])
    assert "column batch_size x 2,048" in (tmp_path / "report.html").read_text()


def test_a_column_that_is_no_loss_is_ranked_by_nobody(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame = table()
    frame.assign(loss=np.exp(frame["loss"]) * 5).to_csv(path, index=False)
    assert run(["--table", str(path), "--out", str(tmp_path), "--bootstrap", "0"]) == 0
    verdict = json.loads((tmp_path / "report.json").read_text())["verdict"]
    assert verdict["findings"] == []
    assert any("log(COLUMN)" in caution for caution in verdict["cautions"])

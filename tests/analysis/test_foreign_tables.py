"""Tables that others wrote: what tells their runs apart, and what must not be lost or averaged on the way in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import run
from analysis.input.table_files import read_table
from analysis.optima import find_optima, main_budget
from analysis.runs import Study
from analysis.table import Declared, read_mapping, study_of_table
from muloco_runner.config import ConfigError

CASES = Path(__file__).parent / "cases"
ROW = {"algorithm": "MuLoCo", "num_params": 1e8, "num_tokens": 2e9, "global_batch_tokens": 2**19, "num_workers": 8}


def case(name: str, mapping: str | None = None, **declared: Any) -> Study:
    return study(CASES / f"{name}.csv", CASES / f"{mapping}.yaml" if mapping else None, **declared)


def study(path: Path, mapping: Path | None = None, **declared: Any) -> Study:
    return study_of_table(str(path), read_table(path), read_mapping(mapping), Declared(**declared))


def best(found: Study) -> dict[str, float]:
    """Loss of each series at its largest size."""
    rows = find_optima(found).best.sort_values("num_params")
    return {str(series): float(loss) for series, loss in zip(rows["series"], rows["loss"], strict=True)}


def runs(**columns: list[Any]) -> pd.DataFrame:
    (count,) = {len(values) for values in columns.values()}
    return pd.DataFrame({**{name: [value] * count for name, value in ROW.items()}, **columns})


# Identity


def test_runs_of_other_bits_or_fragments_are_their_own_series() -> None:
    found = case("bits")
    losses = best(found)
    assert min(losses, key=lambda name: losses[name]) == "MuLoCo K=8"
    assert losses["MuLoCo K=8"] == 3.0
    assert losses["MuLoCo K=8 bits_per_value=2"] == 3.3
    assert losses["MuLoCo K=8 num_fragments=4"] == 3.06
    assert find_optima(found).seed_sd is None


def test_an_undeclared_column_at_one_seed_withholds_the_ranking(tmp_path: Path) -> None:
    table = runs(loss=[3.0, 3.4], compressor=["none", "topk"])
    found = study_of_table("t", table, {})
    assert "compressor" in (found.withheld or "")
    for declared, losses in (
        (Declared(identity=("compressor",)), {"MuLoCo K=8 compressor=none": 3.0, "MuLoCo K=8 compressor=topk": 3.4}),
        (Declared(settings=("compressor",)), {"MuLoCo K=8": 3.0}),
        (Declared(bookkeeping=("comp*",)), {"MuLoCo K=8": 3.2}),
    ):
        found = study_of_table("t", table, {}, declared)
        assert found.withheld is None
        assert best(found) == pytest.approx(losses)
    path = tmp_path / "t.csv"
    table.to_csv(path, index=False)
    assert run(["--table", str(path), "--out", str(tmp_path), "--bootstrap", "0"]) == 0
    (finding,) = json.loads((tmp_path / "report.json").read_text())["verdict"]["findings"]
    assert "compressor" in finding
    assert "3.0" not in finding


def test_a_column_varying_with_the_seed_withholds_nothing() -> None:
    found = study_of_table("t", runs(loss=[3.0, 3.1], seed=[0, 1], node=["a", "b"]), {})
    assert found.withheld is None
    assert any("node" in caution for caution in found.cautions)


def test_only_distinct_seeds_are_repeats() -> None:
    table = runs(loss=[3.0, 3.2, 3.1], seed=[0, 0, 1])
    found = find_optima(study_of_table("t", table, {}))
    assert found.best["seeds"].tolist() == [2]
    assert found.best["runs"].tolist() == [3]
    assert found.best["loss"].tolist() == pytest.approx([3.1])
    assert found.seed_sd == pytest.approx(0.0, abs=1e-9)
    one = runs(loss=[3.0, 3.2])
    assert find_optima(study_of_table("t", one, {})).seed_sd is None
    labelled = find_optima(study_of_table("t", one, {}, Declared(unlabelled_repeats=True)))
    assert labelled.seed_sd == pytest.approx(np.log([3.0, 3.2]).std(ddof=1))


def test_unlabelled_repeats_are_never_paired() -> None:
    declared = Declared(unlabelled_repeats=True)
    table = runs(loss=[3.0, 3.4, 3.1, 3.3, 3.3], lr=[0.01, 0.01, 0.02, 0.02, 0.02])
    (row,) = find_optima(study_of_table("t", table, {}, declared)).best.to_dict("records")
    # Pairing them by the order of their losses, the lowest of each would have chosen and the others been shown.
    assert (row["lr"], row["loss"], row["seeds"]) == (0.01, pytest.approx(3.2), 2)
    assert not row["shared_seeds"]
    two = study_of_table("t", runs(loss=[3.0, 3.2, 3.1, 3.3], algorithm=["A", "A", "B", "B"]), {}, declared)
    first, second = two.runs.groupby("series")["seed"].agg(set)
    assert not first & second


@pytest.mark.parametrize("column", ["step", "_step", "train/epoch"])
def test_losses_of_one_run_at_several_steps_are_never_averaged(column: str) -> None:
    table = runs(loss=[3.2, 3.0, 2.8], **{column: [1, 2, 3]})
    if "/" in column:
        table["run_id"] = "first"
        found = study_of_table("t", table.drop(columns=column), {})
        assert "3 rows are several losses of 1 run(s), such as 'first'" in (found.withheld or "")
        assert study_of_table("t", table.drop(columns=column), {}, Declared(unlabelled_repeats=True)).withheld is None
        return
    assert f"differ in {column}" in (study_of_table("t", table, {}).withheld or "")
    assert study_of_table("t", table, {}, Declared(bookkeeping=(column,))).withheld is None


def test_a_declared_column_must_be_there_and_not_be_read_already() -> None:
    table = runs(loss=[3.0], compressor=["none"])
    with pytest.raises(ConfigError, match="did you mean compressor"):
        study_of_table("t", table, {}, Declared(identity=("compresor",)))
    with pytest.raises(ConfigError, match="already"):
        study_of_table("t", table, {}, Declared(settings=("loss",)))


# Nothing lost


def test_a_number_sign_in_a_cell_cuts_nothing() -> None:
    found = case("hash_silent")
    assert best(found) == {"AdamW": 5.0}
    assert found.runs["diverged"].sum() == 1
    assert len(found.runs) == 3


def test_a_mapped_column_wins_over_one_of_the_same_name() -> None:
    found = case("dup", "dup")
    assert sorted(found.runs["loss"]) == [5.0, 5.05]
    assert found.unused == ["loss"]
    assert found.columns["loss"] == "eval_loss"


def test_one_column_may_stand_under_two_names() -> None:
    found = case("twice", "twice")
    assert sorted(found.runs["train_seconds"]) == sorted(found.runs["wall_seconds"]) == [60, 100]


def test_budgets_that_are_nearly_one_are_one() -> None:
    found = case("tpp")
    optima = find_optima(found)
    at_budget = optima.best[optima.best["tokens_per_parameter"] == main_budget(optima.best)]
    assert at_budget["num_params"].max() == 1e9
    assert len(at_budget) == 5
    assert best(found) == {"AdamW": 3.0}
    assert any("19.3 to 20.4" in note for note in found.notes)


def test_two_budgets_of_one_size_are_two_and_can_be_chosen() -> None:
    table = runs(num_tokens=[19e8, 20e8, 20e8], num_params=[1e8, 1e8, 1e8], loss=[3.0, 2.9, 2.95], lr=[1, 1, 2])
    optima = find_optima(study_of_table("t", table, {}))
    assert sorted(optima.best["tokens_per_parameter"]) == [19.0, 20.0]
    assert main_budget(optima.best, 19.2) == 19.0
    with pytest.raises(ConfigError, match="no runs near it"):
        main_budget(optima.best, 40.0)


def test_runs_that_are_not_finished_and_lost_losses_are_counted() -> None:
    table = runs(
        loss=[3.0, 1.0, "NaN", "inf", None], State=["finished", "running", "finished", "finished", "finished"],
        lr=[1, 2, 3, 4, 5],
    )  # fmt: skip
    found = study_of_table("t", table, {})
    assert best(found) == {"MuLoCo K=8": 3.0}
    assert found.runs["diverged"].sum() == 2
    assert {one.reason for one in found.excluded} == {"unfinished: running", "damaged: no loss"}


def test_diverged_that_is_neither_yes_nor_no_is_named() -> None:
    words = ["no", "True", "blew up", None]
    found = study_of_table("t", runs(loss=[3.0, 2.9, 2.8, 2.7], diverged=words, lr=[1, 2, 3, 4]), {})
    assert found.runs.sort_values("lr")["diverged"].tolist() == [False, True, False]
    assert [one.reason for one in found.excluded] == ["damaged: diverged=blew up is neither yes nor no"]


def test_states_that_nobody_knows_are_said_to_be_unknown() -> None:
    found = study_of_table("t", runs(loss=[3.0, 2.9], status=[1, 3], lr=[1, 2]), {})
    assert "status has no state that is known (1, 3)" in " ".join(found.cautions)


@pytest.mark.parametrize(
    ("workers", "names", "unknown"),
    [([None, None], ["DiLoCo"], 1), ([1, 1], ["DiLoCo K=1"], 0), ([None, 4], ["DiLoCo", "DiLoCo K=4"], 1)],
)
def test_workers_that_no_cell_tells_are_not_one(workers: list[Any], names: list[str], unknown: int) -> None:
    algorithms = ["DDP-AdamW", "DiLoCo", "DiLoCo"] if len(names) > 1 else ["DDP-AdamW", "DiLoCo"]
    cells = [None, *workers] if len(names) > 1 else workers
    losses = [3.0, 2.9, 2.8][: len(cells)]
    found = study_of_table("t", runs(loss=losses, algorithm=algorithms, num_workers=cells), {})
    assert found.series == ["DDP-AdamW", *names]
    said = f"K is not known of {unknown} runs of DiLoCo" in " ".join(found.cautions)
    assert said == bool(unknown)


@pytest.mark.parametrize("outer", ["DiLoCo", "LocalSGD"])
def test_k_is_named_of_other_inner_optimizers_too(outer: str) -> None:
    cells: list[Any] = [None, 1, None]
    algorithms = ["DDP-Lion", f"{outer}-Lion", f"{outer}-Lion"]
    found = study_of_table("t", runs(loss=[3.0, 2.9, 2.8], algorithm=algorithms, num_workers=cells), {})
    assert found.series == ["DDP-Lion", f"{outer}-Lion", f"{outer}-Lion K=1"]


def test_algorithms_that_differ_in_spelling_alone_are_named() -> None:
    found = study_of_table("t", runs(loss=[3.0, 2.9, 2.8], algorithm=["AdamW", "adamw", "Muon"]), {})
    assert "Algorithms AdamW and adamw differ in spelling alone" in " ".join(found.cautions)


def test_names_without_latin_letters_are_not_alike() -> None:
    found = study_of_table("t", runs(loss=[3.0, 2.9], algorithm=["名前", "別名"]), {})
    assert found.cautions == []


def test_a_column_in_arithmetic_still_stands_for_itself() -> None:
    table = pd.DataFrame({"num_params": [1e8, 1e9], "n": [1, 2], "batch_tokens": 2**19, "loss": [3.0, 2.8]})
    mapping = {"algorithm": {"value": "Muon"}, "num_tokens": "20 * num_params", "global_batch_tokens": "n * 262144"}
    found = study_of_table("t", table, mapping).runs
    assert found["num_tokens"].tolist() == [2 * 10**9, 2 * 10**10]
    assert sorted(found["global_batch_tokens"]) == [262144, 524288]
    with pytest.raises(ConfigError, match="no column num_params"):
        study_of_table("t", table.drop(columns="num_params"), {**mapping, "num_tokens": {"value": 2e9}})


def test_a_batch_size_is_no_critical_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("D,batch_size\n1e9,1e5\n1e10,2e5\n1e11,4e5\n1e12,8e5\n")
    assert run(["fit", "critical-batch", str(path)]) == 2
    assert "critical_batch_size" in capsys.readouterr().err


# Not identified


def test_sizes_that_hardly_differ_identify_no_exponent(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", "chinchilla", str(CASES / "tinyN.csv")]) == 2
    error = capsys.readouterr().err
    assert "num_params spans a factor of 1.003" in error


def test_a_column_in_another_unit_gives_no_law_but_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    sizes = np.geomspace(1e7, 1e9, 5)
    table = pd.DataFrame({"algorithm": "DDP-AdamW", "num_params": sizes, "num_tokens": 20 * sizes, "loss": 3.0})
    table["loss"] = 1.7 + 4e3 * (120 * sizes**2) ** -0.19
    table["global_batch_tokens"], table["flops"] = 2**16, 120 * sizes**2 / 1e9
    table.to_csv(path, index=False)
    assert run(["--table", str(path), "--out", str(tmp_path), "--bootstrap", "0"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert "GFLOPs" in report["iso_loss"]["reason"]
    assert "unit: GFLOPs" in " ".join(report["verdict"]["cautions"])
    (tmp_path / "m.yaml").write_text("flops: {column: flops, unit: GFLOPs}\n")
    found = study(path, tmp_path / "m.yaml")
    assert not found.unusable
    assert found.runs["flops"].max() == pytest.approx(1.2e20)


# Exports of trackers


def test_an_export_of_weights_and_biases_needs_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "wandb.csv"
    path.write_text(
        '"Name","State","Created","Runtime","algorithm","config.num_params","config.num_tokens",'
        '"config.global_batch_tokens","config.lr","config.seed","eval/loss"\n'
        '"swift-1","finished","2026-01-01","100","DDP-AdamW","124M","2.48B","0.5M","0.001","0","3.1"\n'
        '"swift-2","finished","2026-01-02","101","DDP-AdamW","124M","2.48B","0.5M","0.001","1","3.3"\n'
        '"swift-3","running","2026-01-03","12","DDP-AdamW","124M","2.48B","0.5M","0.002","0","2.9"\n'
        '"swift-4","crashed","2026-01-03","12","DDP-AdamW","124M","2.48B","0.5M","0.004","0",""\n'
        '"swift-5","finished","2026-01-03","12","DDP-AdamW","124M","2.48B","0.5M","0.008","0","NaN"\n'
    )
    found = study(path)
    assert best(found) == pytest.approx({"DDP-AdamW": 3.2})
    assert (found.withheld, found.cautions) == (None, [])
    assert found.runs["diverged"].sum() == 1
    assert sorted(one.reason for one in found.excluded) == ["unfinished: crashed", "unfinished: running"]


def test_runs_of_mlflow_as_json(tmp_path: Path) -> None:
    def one(lr: str, loss: float, status: str) -> dict[str, Any]:
        params = {**{name: str(value) for name, value in ROW.items()}, "learning_rate": lr}
        return {
            "info": {"run_id": f"id-{lr}", "status": status},
            "data": {
                "metrics": [{"key": "val_loss", "value": loss, "step": 9}],
                "params": [{"key": key, "value": value} for key, value in params.items()],
            },
        }

    path = tmp_path / "runs.json"
    runs = [one("0.1", 3.0, "FINISHED"), one("0.2", 2.0, "RUNNING"), one("0.3", float("nan"), "FINISHED")]
    path.write_text(json.dumps({"runs": runs}))
    found = study(path)
    assert best(found) == {"MuLoCo K=8": 3.0}
    assert found.runs["diverged"].sum() == 1
    assert [one.run_id for one in found.excluded] == ["id-0.2"]


def test_ratios_of_several_series_stand_at_one_compute(tmp_path: Path) -> None:
    arguments = ["--table", str(CASES / "kmix.csv"), "--out", str(tmp_path), "--bootstrap", "50"]
    assert run(arguments) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    at = 6 * 335e6 * 6.7e9
    expected = {r["series"]: r["value"] for r in report["iso_loss"]["ratios"] if r["flops"] == pytest.approx(at)}
    for name in ("DiLoCo K=2", "DiLoCo K=8"):
        (finding,) = [one for one in report["verdict"]["findings"] if f"times the compute of {name} at" in one]
        assert f"{at:.2e} FLOPs".replace("e+", "e") in finding
        assert f"DDP-AdamW needs {expected[name]:.3g} [" in finding


@pytest.mark.parametrize("column", ["dataset", "config.tokenizer", "lr_schedule", "seq_len"])
def test_rows_of_other_data_or_schedules_are_named(column: str) -> None:
    table = runs(algorithm=["DDP-AdamW", "DDP-Muon"], loss=[3.0, 2.9]).assign(**{column: ["one", "other"]})
    (said,) = study_of_table("t", table, {}).cautions
    assert f"Rows differ in {column} (one, other)" in said
    for declared in (Declared(identity=(column,)), Declared(bookkeeping=(column,))):
        assert study_of_table("t", table, {}, declared).cautions == []

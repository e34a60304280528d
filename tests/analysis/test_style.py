"""`--style FILE`, and series under names of their own."""

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import run
from analysis.input.run_rows import _row_of_config
from analysis.page.styles import Styles
from analysis.series import series_labels
from analysis.style import Style, partner_of
from muloco_runner.config import (
    DiLoCoConfig,
    NoCompressionConfig,
    QuantisationConfig,
    RunConfig,
    TargetCompressionConfig,
)

ROWS = [
    {"algorithm": algorithm, "num_workers": k, "num_params": n, "num_tokens": 20 * n, "global_batch_tokens": 1024,
     "lr": 0.01, "seed": 0, "loss": 3 + 1e3 / n + gain + 0.01 * k}
    for algorithm, gain in (("Zeta Adam", 0.0), ("sophia", 0.1))
    for k in (1, 4)
    for n in (10_000, 20_000, 40_000)
]  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def report_of(table: Path, style: str) -> dict[str, Any]:
    (table.parent / "style.yaml").write_text(style)
    out = table.parent / "report"
    assert run(["--table", str(table), "--style", str(table.parent / "style.yaml"), "--out", str(out),
                "--bootstrap", "0"]) == 0  # fmt: skip
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


STYLE = """\
order: [sophia]
colours: {sophia: "#112233", Zeta Adam K=4: "#445566"}
labels: {Zeta Adam: ours}
partners: {sophia: Zeta Adam}
baseline: Zeta Adam
"""


def test_a_style_names_order_colours_labels_partners_baseline(table: Path) -> None:
    report = report_of(table, STYLE)
    assert report["series"] == ["sophia", "sophia K=4", "ours", "Zeta Adam K=4"]
    assert report["settings"]["baseline"] == "ours"
    assert {p["baseline"] for p in report["num_workers"]["points"] if p["algorithm"] == "sophia"} == {"ours"}
    styles = Styles(report["series"], **report["style"])
    assert styles.line("Zeta Adam K=4")["color"] == "#445566"
    assert styles.line("sophia")["color"] == "#112233"  # it is a series too
    assert styles.line("sophia K=4")["color"] == "#7c858f"  # a lighter shade


def test_without_a_partner_the_smallest_k_is_one(table: Path) -> None:
    points = report_of(table, "order: [sophia]")["num_workers"]["points"]
    assert {(p["series"], p["baseline"]) for p in points} == {
        ("sophia K=4", "sophia"),
        ("Zeta Adam K=4", "Zeta Adam"),
    }


def test_an_own_optimizer_is_compared_with_itself_in_data_parallel() -> None:
    workers = {"DiLoCo-Lion K=1": 1, "DiLoCo-Lion K=4": 4}
    for known, partner in (({"DDP-Lion", *workers}, "DDP-Lion"), (set(workers), "DiLoCo-Lion K=1")):
        assert partner_of(Style(), "DiLoCo-Lion K=4", "DiLoCo-Lion", workers, known) == partner


def test_local_sgd_is_compared_with_data_parallel() -> None:
    workers = {"LocalSGD-Muon K=1": 1, "LocalSGD-Muon K=4": 4}
    for known, partner in (({"DDP-Muon", *workers}, "DDP-Muon"), (set(workers), "LocalSGD-Muon K=1")):
        assert partner_of(Style(), "LocalSGD-Muon K=4", "LocalSGD-Muon", workers, known) == partner


def test_a_label_does_not_change_the_partner() -> None:
    style = Style(names={"ours": "DiLoCo-Lion K=4", "theirs": "DDP-Lion", "few": "DiLoCo-Lion K=1"})
    for known, partner in (({"theirs", "ours", "few"}, "theirs"), ({"ours", "few"}, "few")):
        assert partner_of(style, "ours", "DiLoCo-Lion", {"ours": 4, "few": 1}, known) == partner
    assert partner_of(Style(names={"base": "DDP-AdamW"}), "x", "DiLoCo", {"x": 4}, {"x", "base"}) == "base"


def test_a_series_without_compression_is_told_from_one_with_it() -> None:
    own = TargetCompressionConfig(_target_="my_lab.Ternary", bits_per_value=8.0)
    configs = [NoCompressionConfig(), QuantisationConfig(name="linear"), own]
    rows = [_row_of_config(RunConfig(method=DiLoCoConfig(compression=compression))) for compression in configs]
    names = series_labels([{**row, "algorithm": "DiLoCo"} for row in rows])
    assert [name.split()[2] for name in names] == [f"compression.name={name}" for name in ("none", "linear", "Ternary")]


def test_partners_are_of_the_same_model() -> None:
    rows = [
        {"algorithm": algorithm, "method": {**method, "model": model}}
        for algorithm, method in (
            ("DDP-AdamW", {}),
            ("DiLoCo", {"num_workers": 4}),
            ("DiLoCo-Lion", {"num_workers": 2}),
        )
        for model in (None, "ConvNet")
    ]
    names = series_labels(rows)
    assert names[:4] == ["DDP-AdamW", "DDP-AdamW model=ConvNet", "DiLoCo K=4", "DiLoCo K=4 model=ConvNet"]
    for mine, partner in ((names[2], names[0]), (names[3], names[1])):
        assert partner_of(Style(), mine, "DiLoCo", {names[2]: 4, names[3]: 4}, set(names)) == partner
    assert partner_of(Style(), names[5], "DiLoCo-Lion", {names[4]: 1, names[5]: 2}, set(names)) is None


@pytest.mark.parametrize(
    ("style", "said"),
    [
        ("", "holds no keys"),
        ("a: [", "not YAML"),
        ("colors: {a: b}", "unknown key colors; allowed: order"),
        ("colours: {sophia: red}", "give it as '#rrggbb'"),
        ("colours: {sophia: #112233}", "not YAML"),
        ("order: sophia", "a list of series"),
        ("order: [adam]", "order: no 'adam' among these runs; there are"),
        ("baseline: adam", "baseline: no 'adam'"),
        ("labels: {sophia: x, sophia K=4: x}", "two series would be called 'x'"),
        ("partners: {sophia: nobody}", "partners: no 'nobody'"),
    ],
)
def test_a_bad_style_is_one_line(table: Path, capsys: pytest.CaptureFixture[str], style: str, said: str) -> None:
    (table.parent / "style.yaml").write_text(style)
    arguments = ["--table", str(table), "--style", str(table.parent / "style.yaml"), "--bootstrap", "0"]
    assert run(arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_style_that_is_not_there_is_one_line(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--table", str(table), "--style", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err == "muloco-report: --style nowhere.yaml: No such file or directory\n"

"""The page opens with its picture and one table; what has nothing to show is one line; many series are folded."""

import copy
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planted import Law, run_config, write_run

from analysis.page.listed import listed, listed_values
from analysis.page.page_table import Column, Table
from analysis.questions.options import Options
from analysis.questions.registry import REGISTRY
from analysis.report.content import build_report
from analysis.report.named_series import OF_MANY
from analysis.report.render import render_pages
from analysis.report.tables import all_tables
from analysis.runs import load_study

FIGURES: dict[str, list[dict[str, Any]]] = {
    name: [{"name": name, "alt": "alt", "svg": "<svg></svg>"}]
    for name in ("best", "loss_vs_batch", "critical_batch", "iso_loss", "hyper_parameters", "wall_clock")
}


@pytest.fixture(scope="module")
def report(planted: tuple[Path, Path]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((planted[1] / "report.json").read_text())
    return loaded


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<(style|title)\b.*?</\1>|<[^>]*>", " ", page, flags=re.S)).strip()


def test_the_page_opens_with_its_picture_and_one_table(report: dict[str, Any]) -> None:
    page = render_pages(report, all_tables(report), FIGURES)["report.html"]
    before, after = page.split("<figure>", 1)
    assert len(text_of(before).split()) < 40
    assert "Scaling-law report MuLoCo K=1 reaches 1.52" in text_of(before), "what was found comes first"
    beside = after.split('<section id="verdict">')[0]
    assert beside.index("<table>") < 600
    rows = re.findall(r"<tr><td>([^<]*)</td>", beside.split("</table>")[0])
    assert rows == report["series"]
    assert "Best loss by size" in beside


def test_many_series_open_with_the_named_ones_and_fold_the_rest(report: dict[str, Any]) -> None:
    many = copy.deepcopy(report)
    for i in range(20):
        name = f"variant-{i}"
        many["series"].append(name)
        many["style"]["algorithms"][name] = "variant"
        many["best"] += [{**row, "series": name} for row in report["best"] if row["series"] == report["series"][0]]
        many["audit"]["by_series"].append({**report["audit"]["by_series"][0], "series": name})
    many["verdict"]["findings"] = [f"finding {i}" for i in range(11)]
    page = render_pages(many, all_tables(many), FIGURES)["report.html"]
    beside = page.split('<section id="overview">')[1].split("</section>")[0]
    first, folded = beside.split("<details", 1)
    assert first.count("<tr><td>") == OF_MANY
    assert folded.count("<tr><td>") == len(many["series"])
    assert "The other series are grey in figures" in beside
    assert re.search(r"<summary>More findings</summary>\s*<ul>\s*<li>finding 8</li>", page)


def test_what_a_single_run_cannot_say_is_a_line_each(tmp_path: Path) -> None:
    config = run_config()
    write_run(tmp_path, config, Law().loss(config))
    report = build_report(load_study(tmp_path), Options(bootstrap=0))
    tables = all_tables(report)
    sections = [section for one in REGISTRY if (section := one.section_in(report, ["best"])) is not None]
    silent = {section.title: section.reason for section in sections if section.reason}
    assert silent["Loss against batch"] == "no series has two batches at one size"
    assert set(silent) >= {"Loss against compute", "Wall clock under a bandwidth", "Hyper-parameters", "Sensitivity"}
    pages = render_pages(report, tables, {"best": FIGURES["best"]})
    for title, reason in silent.items():
        assert f"<li><strong>{title}</strong>: {reason}.</li>" in html.unescape(pages["report.html"])
        assert f"- {title}: " in pages["report.md"]
        assert f"<h2>{title}" not in pages["report.html"]
    targets = re.findall(r'href="#([^"]*)"', pages["report.html"])
    ids = re.findall(r'\bid="([^"]*)"', pages["report.html"])
    assert set(targets) <= set(ids)
    assert {section.id for section in sections if section.reason is None} <= set(ids)


def test_a_reason_takes_the_place_of_missing_numbers() -> None:
    columns = [Column("series"), Column("alpha", "ratio"), Column("sizes", "integer"), Column("why not")]
    rows = [["a", None, None, "too few"], ["b", 0.5, 3, "–"], ["c", 0.5, None, "odd"]]
    assert Table("t", "t", columns, rows).spread_cells() == [
        [("a", False, 1), ("too few", False, 3)],
        [("b", False, 1), ("0.500", True, 1), ("3", True, 1), ("–", False, 1)],
        [("c", False, 1), ("0.500", True, 1), ("odd", False, 2)],
    ]


def test_a_page_leaves_out_columns_that_say_nothing() -> None:
    columns = [Column("series"), Column("gap", "ratio"), Column("interval", "ratio", joint=" "), Column("why")]
    table = Table("t", "t", columns, [["a", None, None, "few"], ["b", None, None, "–"]])
    assert [column.name for column in table.shown_columns] == ["series", "why"]
    assert table.cells() == [["a", "few"], ["b", "–"]]
    assert table.to_csv().splitlines()[0] == '"series","gap","interval","why"'
    assert [column.name for column in Table("t", "t", columns, [["a", 1.0, None, "–"]]).shown_columns] == [
        "series",
        "gap",
    ]


def test_names_with_commas_are_told_apart_in_a_sentence() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(["lion, beta 0.9", "b"]) == "lion, beta 0.9; b"
    assert listed_values([("a", "1.2"), ("b", "1.3")]) == "a 1.2, b 1.3"
    assert listed_values([("lion, beta 0.9", "1.2"), ("b", "1.3")]) == "lion, beta 0.9: 1.2; b: 1.3"


def test_a_table_too_long_for_a_page_is_named_with_its_file(report: dict[str, Any]) -> None:
    tables = all_tables(report)
    long = replace(tables["loss_vs_batch"], rows=tables["loss_vs_batch"].rows * 40)
    pages = render_pages(report, {**tables, "loss_vs_batch": long}, FIGURES)
    for page in pages.values():
        assert f"{len(long.rows)} rows, in tables/loss_vs_batch.csv" in page.replace("\\", "")
    short = render_pages(report, tables, FIGURES)
    assert len(pages["report.html"]) < len(short["report.html"])


def test_templates_know_no_section_by_name(report: dict[str, Any]) -> None:
    known = [section for one in REGISTRY if (section := one.section_in(report, [*FIGURES])) is not None]
    for template in (Path(__file__).parents[3] / "analysis" / "report" / "templates").iterdir():
        text = template.read_text()
        assert not [section.title for section in known if section.title in text or f'"{section.id}"' in text]


def test_where_no_law_gives_ratios_losses_are_compared(tmp_path: Path) -> None:
    for algorithm, loss in (("DDP-AdamW", 2.0), ("DDP-Muon", 1.9)):
        for seed in (0, 1):
            write_run(tmp_path, run_config(algorithm, seed=seed), loss + seed / 100)
    overview = all_tables(build_report(load_study(tmp_path), Options(bootstrap=0)))["overview"]
    assert "ratio: loss over DDP-AdamW's, less one, at 29.1k" in overview.caption
    adamw, muon = overview.cells()
    assert adamw[1] == "–"
    assert muon[1].startswith("-4.99%")

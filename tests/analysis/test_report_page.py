"""The page and report.json: every number of the one is in the other, both are what their formats promise."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import html5lib
import jsonschema
import pytest

from analysis.page.numbers import FORMATS
from analysis.page.styles import Styles
from analysis.report.figures import draw_all
from analysis.report.schema import report_schema
from analysis.report.verdict import statements

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d.\u202f]*(?:e-?\d+)?[kMBT%]?")
OF_THE_TEXT = {"6", "2025"}
"""C = 6ND, and the year of a citation."""


def values(node: Any) -> Iterator[Any]:
    """Every number and string of report.json, and how many entries each list has."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from values(value)
    elif isinstance(node, list):
        yield len(node)
        for value in node:
            yield from values(value)
    else:
        yield node


def numbers_in(text: str) -> set[str]:
    return {found.rstrip(".") for found in NUMBER.findall(text)}


@pytest.fixture(scope="module")
def report(planted: tuple[Path, Path]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((planted[1] / "report.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def known(report: dict[str, Any]) -> set[str]:
    """Every number of report.json as a page may write it; sentences of the verdict are on trial themselves."""
    out: set[str] = set(OF_THE_TEXT)
    for value in values({key: part for key, part in report.items() if key != "verdict"}):
        if isinstance(value, str):
            out |= numbers_in(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            out |= {text for form in FORMATS.values() for text in numbers_in(form(value))} | {str(value)}
    return out


@pytest.mark.parametrize("page", ["report.html", "report.md"])
def test_every_number_of_the_page_is_in_the_json(page: str, planted: tuple[Path, Path], known: set[str]) -> None:
    text = (planted[1] / page).read_text()
    text = re.sub(r"<(svg|style)\b.*?</\1>|<[^>]*>|!\[[^\]]*\]\([^)]*\)", " ", text, flags=re.S)
    on_page = numbers_in(html.unescape(text))
    assert len(on_page) > 200
    assert on_page <= known, sorted(on_page - known)


def test_a_number_that_is_not_in_the_json_would_be_found(known: set[str]) -> None:
    assert not numbers_in("a loss of 1.23456789 nats") <= known


def test_the_page_is_valid_html(planted: tuple[Path, Path]) -> None:
    parser = html5lib.HTMLParser(strict=True)
    parser.parse((planted[1] / "report.html").read_text())
    text = (planted[1] / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    targets = {target[1:] for target in re.findall(r'(?:xlink:href|href)="(#[^"]*)"', text)}
    assert targets <= set(ids)


def test_the_json_follows_its_schema(report: dict[str, Any]) -> None:
    schema = report_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(report, schema)
    for key in ("verdict", "iso_loss"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({name: part for name, part in report.items() if name != key}, schema)


def test_every_figure_stands_for_itself_without_colour(planted: tuple[Path, Path]) -> None:
    """Series differ by marker, line or filling, not by colour alone; each figure has a text in its place."""
    from analysis.page.styles import Styles

    series = ["DDP-AdamW", "DDP-Muon", *(f"{a} K={k}" for a in ("DiLoCo", "MuLoCo") for k in (1, 2, 4, 8, 16)), "Other"]
    styles = Styles(series)
    looks = [tuple(styles.line(name)[key] for key in ("marker", "linestyle", "fillstyle")) for name in series]
    assert len(set(looks)) == len(series)
    text = (planted[1] / "report.html").read_text()
    assert text.count("<svg") == text.count('role="img" aria-label=') > 10


def test_figures_maps_and_tables_show_one_loss(report: dict[str, Any]) -> None:
    best = {(row["series"], row["num_params"]): row for row in report["best"]}
    assert any(row["loss_se"] is not None for row in best.values())
    for curve in report["hyper_parameters"]["curves"]:
        row = best[curve["series"], curve["num_params"]]
        (point,) = (point for point in curve["points"] if point["lr"] == row["lr"])
        assert (point["loss"], point["loss_se"], point["seeds"]) == (row["loss"], row["loss_se"], row["seeds"])
    for chosen in report["hyper_parameters"]["maps"]:
        row = best[chosen["series"], chosen["num_params"]]
        (cell,) = (cell for cell in chosen["cells"] if cell["relative"] == 0)
        assert (cell["lr"], cell["global_batch_tokens"]) == (row["lr"], row["global_batch_tokens"])
        assert cell["loss"] == row["loss"]
    for row in best.values():
        losses = [entry["loss"] for entry in row["seed_losses"]]
        assert row["loss"] == pytest.approx(sum(losses) / len(losses))


def test_a_figures_learning_rates_have_bars_of_standard_errors(report: dict[str, Any]) -> None:
    drawn = [drawing for drawing in draw_all(report) if drawing.section == "hyper_parameters"]
    assert drawn
    bars = [segment for one in drawn for part in one.figure.axes[0].collections for segment in part.get_segments()]
    errors = [p for c in report["hyper_parameters"]["curves"] if len(c["points"]) > 1 for p in c["points"]]
    expected = {(p["lr"], p["loss"] - p["loss_se"], p["loss"] + p["loss_se"]) for p in errors if p["loss_se"]}
    assert expected
    assert {(s[0][0], s[0][1], s[1][1]) for s in bars} == expected


def test_each_law_and_headline_says_on_how_many_runs_it_stands(report: dict[str, Any]) -> None:
    runs = {entry["series"]: entry["runs"] - entry["diverged"] for entry in report["audit"]["by_series"]}
    best = report["best"]
    assert sum(runs.values()) == report["audit"]["used"]
    for row in best:
        assert row["seeds"] <= row["stands_on"]["runs"] <= row["stands_on"]["of"] == runs[row["series"]]
    fitted = {point["series"] for point in report["iso_loss"]["points"]}
    assert report["iso_loss"]["stands_on"] == {
        "runs": sum(row["stands_on"]["runs"] for row in best if row["series"] in fitted),
        "of": sum(runs[name] for name in fitted),
    }
    for law in (
        *report["critical_batch"]["laws"],
        *report["critical_batch"]["joint"],
        *report["size_and_data"]["laws"],
    ):
        behind = law["stands_on"]
        assert (behind is None) == (law["reason"] is not None)
        assert behind is None or 3 <= behind["runs"] <= behind["of"] == runs[law["series"]]
    for line in report["verdict"]["findings"]:
        assert re.search(r"\(on [\d\u202f]+ of [\d\u202f]+ runs\)", line) or "established" in line, line


def test_other_choices_and_parabolas_say_their_number_of_runs(planted: tuple[Path, Path]) -> None:
    report = json.loads((planted[1] / "report.json").read_text())
    runs = {row["series"]: row["runs"] for row in report["audit"]["by_series"]}
    behind = {(row["series"], row["num_params"]): row["stands_on"]["runs"] for row in report["best"]}
    largest = max(size for _, size in behind)
    for choice in report["sensitivity"]["loss"]:
        used = [n for (name, size), n in behind.items() if name == choice["series"]
                and not (choice["name"] == "without the largest size" and size == largest)]  # fmt: skip
        if choice["name"].startswith(("as reported", "without the largest")):
            expected = None if choice["reason"] and choice["exponent"] is None else sum(used)
            assert (choice["stands_on"] or {}).get("runs") == expected
        assert choice["stands_on"] is None or choice["stands_on"]["of"] == runs[choice["series"]]
    laws = {(law["series"], law["definition"]): law["stands_on"] for law in report["critical_batch"]["laws"]}
    for row in report["sensitivity"]["critical_batch"]:
        assert row["stands_on"] == laws[row["series"], row["definition"]]
    for budget in report["size_and_data"]["budgets"]:
        assert (
            len(budget["points"]) <= budget["stands_on"]["runs"] <= budget["stands_on"]["of"] == runs[budget["series"]]
        )
    assert report["sensitivity"]["loss"]


def test_sixteen_times_six_algorithms_look_different() -> None:
    styles = Styles([f"variant-{i}" for i in range(96)])
    looks = [styles.line(f"variant-{i}") for i in range(96)]
    keys = ("color", "marker", "linestyle", "fillstyle")
    assert len({tuple(look[key] for key in keys) for look in looks}) == 96


def test_sentences_of_very_many_series_name_a_few(planted: tuple[Path, Path]) -> None:
    report = json.loads((planted[1] / "report.json").read_text())
    compared = report["questions"]["one_compute"]["series"]
    ratios = {f"variant-{i}": 1 + i / 100 for i in range(40)}
    compared[:] = [{**compared[0], "series": name, "compute_ratio": ratio} for name, ratio in ratios.items()]
    laws = [{"series": name, "definition": "cbs_1pct", "fit": None, "reason": "too few"} for name in ratios]
    report["critical_batch"]["laws"] = laws
    said = statements(report)
    (line,) = [line for line in said.findings if "needs so many times the compute" in line]
    assert line.index("variant-39 1.39") < line.index("variant-35 1.35") < line.index("and others")
    assert max(len(line) for line in (*said.findings, *said.cautions)) < 600


def test_many_series_share_their_sentences(planted: tuple[Path, Path]) -> None:
    report = json.loads((planted[1] / "report.json").read_text())
    names = [f"variant-{i}" for i in range(12)]
    compared = report["questions"]["one_compute"]["series"]
    compared[:] = [{**compared[0], "series": name} for name in names]
    laws = [{"series": name, "definition": "cbs_1pct", "fit": None, "reason": "too few"} for name in names]
    report["critical_batch"]["laws"] = laws
    said = statements(report)
    assert len([line for line in said.findings if "variant-11" in line and "variant-0 " in line]) == 1
    assert [line for line in said.cautions if "variant-3" in line] == [
        f"The growth of the critical batches of {', '.join(names)} is not identified: too few."
    ]

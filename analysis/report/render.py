"""report.json -> report.html, report.md, figures and tables. Reads nothing but the JSON's content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis.beside import beside
from analysis.page.drawing import Drawing
from analysis.page.escape import markdown_markup
from analysis.page.numbers import show
from analysis.page.page_table import Table
from analysis.questions.going_on import next_runs
from analysis.questions.registry import REGISTRY
from analysis.report.figures import draw_all
from analysis.report.fonts import small_fonts
from analysis.report.named_series import named_series
from analysis.report.tables import all_tables
from muloco_runner.record import write_atomically

_MOST_ROWS = 400
"""Of a table on a page; longer ones are in their files alone."""
_MOST_PRINTED = 30
"""Rows of a folded table that paper shows."""


def write_report(report: dict[str, Any], out: Path) -> list[Path]:
    """Writes every file of the report below `out`; unchanged content gives the same bytes."""
    text = json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    report = json.loads(text)
    tables = all_tables(report)
    drawings = draw_all(report)
    figures: dict[str, list[dict[str, Any]]] = {}
    files: dict[Path, str | bytes] = {out / "report.json": text}
    for drawing, (svg, pdf) in zip(drawings, _written(drawings), strict=True):
        files[out / "figures" / f"{drawing.name}.svg"] = svg
        files[out / "figures" / f"{drawing.name}.pdf"] = pdf
        figures.setdefault(drawing.section, []).append(
            {"name": drawing.name, "title": drawing.title, "alt": drawing.alt, "svg": Markup(drawing.inline(svg))}
        )
    for name, table in tables.items():
        files[out / "tables" / f"{name}.csv"] = table.to_csv()
        files[out / "tables" / f"{name}.tex"] = table.to_latex()
    files |= {out / name: page for name, page in render_pages(report, tables, figures).items()}
    missing = next_runs.to_sweep_file(next_runs.QUESTION.read(report), out)
    if missing is not None:
        files[out / next_runs.FILE] = missing
    else:
        (out / next_runs.FILE).unlink(missing_ok=True)
    for path, content in files.items():
        if isinstance(content, bytes):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        else:
            write_atomically(path, content)
    return list(files)


def render_pages(
    report: dict[str, Any], tables: dict[str, Table], figures: dict[str, list[dict[str, Any]]]
) -> dict[str, str]:
    """report.html and report.md by name. `figures`: name, alt and SVG of those of each part and question."""
    sections = [section for one in REGISTRY if (section := one.section_in(report, figures)) is not None]
    values = {
        "report": report,
        "tables": tables,
        "figures": figures,
        "sections": [section for section in sections if section.reason is None],
        "silent": [section for section in sections if section.reason],
        "named": named_series(report),
    }
    return {
        page: environment.get_template(f"{page}.j2").render(values) for page, environment in _environments().items()
    }


def _written(drawings: list[Drawing]) -> list[tuple[str, bytes]]:
    """SVG and PDF of each drawing, every second one from a second process."""

    def written(some: list[Drawing]) -> list[tuple[str, bytes]]:
        vectors = [drawing.svg() for drawing in some]
        with small_fonts([drawing.figure for drawing in some]):
            return list(zip(vectors, [drawing.pdf() for drawing in some], strict=True))

    others = beside(lambda: written(drawings[1::2]))
    out = [("", b"")] * len(drawings)
    out[::2] = written(drawings[::2])
    out[1::2] = others()
    return out


def _environments() -> dict[str, Environment]:
    """Templates of both pages; every expression that is not finished markup is escaped for its page."""
    settings: Any = {
        "loader": PackageLoader("analysis.report"),
        "autoescape": True,
        "undefined": StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
    }
    pages = {"report.html": Environment(**settings), "report.md": Environment(**settings, finalize=markdown_markup)}
    for environment in pages.values():
        environment.filters["show"] = show
        environment.globals |= {"most_rows": _MOST_ROWS, "most_printed": _MOST_PRINTED}
    return pages

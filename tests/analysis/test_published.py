"""Every figure of the page of published figures is met, and the page is what the command writes."""

from pathlib import Path

import pytest

from analysis.__main__ import run
from analysis.published.comparison import Row, compare

ROWS = compare()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.quantity} ({row.method})")
def test_a_published_figure_is_met(row: Row) -> None:
    assert row.met, f"published {row.published}, here {row.ours}, allowed {row.bound}"


def test_the_bounds_are_tight() -> None:
    def bounds(words: str, method: str = "") -> set[float]:
        return {row.bound for row in ROWS if words in row.quantity and method in row.method}

    assert bounds("legend") == {0.001}
    assert bounds("irreducible") == {0.003}
    assert bounds("at 1.26e21") == {0.005}
    assert bounds("compute, ") == {0.01}
    assert bounds("time at the critical batch") == {0.03}
    assert bounds(", A", "least") == {0.003}
    assert bounds(", alpha") == {1e-4}


def test_the_page_of_the_docs_is_what_the_command_writes(tmp_path: Path) -> None:
    page = tmp_path / "published.md"
    assert run(["published", "--out", str(page)]) == 0
    assert page.read_text() == (Path(__file__).parents[2] / "docs" / "published.md").read_text()

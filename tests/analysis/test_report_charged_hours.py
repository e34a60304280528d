"""The report's table of where the hours of the sweeps behind it went."""

from pathlib import Path

import pytest

from analysis.questions.parts.charged_hours import ChargedHours, charged_hours, table_of
from analysis.report.content import json_values
from muloco_runner.record import Goodput, write_goodput


def test_kinds_of_every_sweep_are_rows_with_shares(tmp_path: Path) -> None:
    goodput = Goodput({"training": 3.0, "lost: preempted": 1.0, "compile": 0.0}, {"tokens": 8e6}, 4.0)
    write_goodput(tmp_path / "sweeps" / "demo" / "goodput.json", "demo", {"GPU": goodput})
    for source in (tmp_path, tmp_path / "runs"):
        table = table_of({"goodput": json_values(charged_hours(str(source)))})
        assert table.rows == [
            ["demo", "training", "GPU", 3.0, 0.75, pytest.approx(2e6)],
            ["demo", "lost: preempted", "GPU", 1.0, 0.25, pytest.approx(2e6)],
        ]


def test_a_file_that_cannot_be_read_is_said_and_no_hours_invented(tmp_path: Path) -> None:
    assert charged_hours(str(tmp_path / "table.csv")) == ChargedHours([], None)
    path = tmp_path / "sweeps" / "demo" / "goodput.json"
    path.parent.mkdir(parents=True)
    for text in ("{", '{"format_version": 7}', "[]"):
        path.write_text(text)
        found = charged_hours(str(tmp_path))
        assert found.rows == []
        assert str(path) in (found.problem or "")

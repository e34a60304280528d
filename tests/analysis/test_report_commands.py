"""What the report's command does beside one report: compare two, watch a sweep, write an interactive page."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from planted import Law, run_config, write_run

from analysis import __main__ as command
from analysis.commands.arguments import report_parser
from analysis.questions.options import Options
from analysis.questions.wall_clock import Assumptions


def test_a_report_compared_with_itself_has_moved_nothing(
    planted: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = planted
    assert command.run(["compare", str(root), str(out)]) == 0
    text = capsys.readouterr().out
    assert "Both rest on the same runs" in text
    changes = set(re.findall(r"[-+]\d+\.\d+%", text))
    assert changes == {"+0.00%"}
    assert "overlap" in text
    assert "disjoint" not in text


def test_what_differs_between_two_reports_is_named(planted: tuple[Path, Path], tmp_path: Path) -> None:
    report = json.loads((planted[1] / "report.json").read_text())
    for row in report["best"]:
        row["loss"] *= 1.01
    for law in report["critical_batch"]["laws"]:
        if law["fit"]:
            law["fit"]["parameters"]["alpha"] = {"value": 9.0, "se": 0.1, "ci": [8.8, 9.2]}
    report["audit"]["corpus"] = "other"
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert command.run(["compare", str(planted[1]), str(tmp_path), "--out", str(tmp_path / "compare.md")]) == 0
    text = (tmp_path / "compare.md").read_text()
    assert "+1.00%" in text
    assert "disjoint" in text
    assert "other data" in text


def test_a_report_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "no report.json" in capsys.readouterr().err
    (tmp_path / "report.json").write_text('{"schema_version": 0}')
    assert command.run(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "schema version 0" in capsys.readouterr().err


def test_a_size_that_is_none_is_refused_before_any_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run([str(tmp_path), "--predict", "N=1e300"]) == 2
    assert "--predict N=1e300: write model=7b" in capsys.readouterr().err


def test_watching_writes_the_report_again_when_a_run_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    law, used = Law(), []
    waiting = [run_config(lr=lr) for lr in (0.005, 0.01)]

    def sleep(seconds: float) -> None:
        assert seconds == 5.0
        file = tmp_path / "report" / "report.json"
        used.append(json.loads(file.read_text())["audit"]["used"] if file.exists() else 0)
        if len(used) == 4:  # looked once more, with nothing new
            raise KeyboardInterrupt
        if waiting:
            config = waiting.pop()
            write_run(tmp_path, config, law.loss(config))

    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=sleep))
    assert command.run([str(tmp_path), "--watch", "5", "--bootstrap", "0"]) == 0
    assert used == [0, 1, 2, 2]
    out = capsys.readouterr().out
    assert out.count("waiting:") == 1
    assert out.count("runs used") == 2


def test_an_interactive_page_is_one_file_and_the_same_again(planted: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    from analysis.report.interactive import write_interactive

    report: dict[str, Any] = json.loads((planted[1] / "report.json").read_text())
    write_interactive(report, tmp_path / "a.html")
    write_interactive(report, tmp_path / "b.html")
    text = (tmp_path / "a.html").read_text()
    assert text == (tmp_path / "b.html").read_text()
    assert not re.findall(r'<(?:script|link)[^>]*(?:src|href)="http', text)
    assert text.count("MuLoCo K=1") > 4


def test_interactive_without_plotly_is_one_line(
    planted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly", None)
    assert command.run([str(planted[0]), "--interactive"]) == 2
    assert "pip install" in capsys.readouterr().err


def test_the_study_of_a_table_can_be_watched_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "t.csv"
    header = "algorithm,num_params,num_tokens,global_batch_tokens,loss\n"
    table.write_text(header + "DDP-AdamW,1e6,2e7,4096,3\nDDP-AdamW,1e6,2e7,8192,3.1\n")

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=sleep))
    assert command.run(["--table", str(table), "--watch", "--bootstrap", "0"]) == 0
    assert (tmp_path / "report" / "report.html").exists()
    shutil.rmtree(tmp_path / "report")


def test_defaults_are_those_of_the_library() -> None:
    asked, options = report_parser().parse_args(["results"]), Options()
    for name in ("delta", "bootstrap", "seed", "title", "budget", "baseline", "interval_width", "published"):
        assert getattr(asked, name) == getattr(options, name), name
    assert Assumptions(asked.step_seconds, asked.bits, asked.devices, asked.device_flops) == options.machine

"""Scores of tasks and named sets on the report's page: whose they are, and what is not put side by side."""

import json
from pathlib import Path
from typing import Any

from planted import run_config, write_run

from analysis.page.styles import Styles
from analysis.questions.options import Options
from analysis.questions.parts.evaluations import PART
from analysis.report.content import build_report
from analysis.runs import load_study
from muloco_runner.record import RunFolder


def score(folder: RunFolder, name: str, accuracy: float, limit: int | None = None, **more: Any) -> None:
    result = folder.read_result()
    assert result is not None
    values = {"scores": {"acc,none": accuracy, "acc_stderr,none": 0.01}, "limit": limit, "task_version": 1.0, **more}
    file = folder.evaluations_at(result.num_steps) / f"{name}{'' if limit is None else f'-limit-{limit}'}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


def reported(root: Path) -> dict[str, Any]:
    return build_report(load_study(root), Options(bootstrap=0))


def test_scores_are_those_of_the_best_evaluated_run(tmp_path: Path) -> None:
    books = {"bits_per_byte": 1.5, "validation_tokens": 512, "content_hash": "abc"}
    best = {}
    for algorithm in ("DDP-AdamW", "DDP-Muon"):
        for model, loss in (("29k", 3.0), ("82k", 2.5)):
            low, high = (run_config(algorithm, model, lr=lr) for lr in (0.01, 0.02))
            best[algorithm, model] = write_run(tmp_path, low, loss, named_validation={"books": books})
            score(write_run(tmp_path, high, loss + 0.1), "choice", 0.25)
    score(best["DDP-Muon", "82k"], "choice", 0.5)
    score(best["DDP-Muon", "82k"], "choice", 0.75, limit=10)
    damaged = best["DDP-Muon", "29k"]
    score(damaged, "other", 0.5)
    next(damaged.path.glob("evaluations/*/other.json")).write_text("{")
    report = reported(tmp_path)
    measures = report["evaluations"]["measures"]
    assert [(m["name"], m["metric"], m["content"], len(m["scores"])) for m in measures] == [
        ("choice", "acc", "all examples, version 1.0", 4),
        ("choice", "acc", "first 10 examples, version 1.0", 1),
        ("books", "bits per byte", "512 tokens of abc", 4),
    ]
    choice = {(s["series"], s["num_params"]): s for s in measures[0]["scores"]}
    largest = max(size for _, size in choice)
    assert (choice["DDP-Muon", largest]["value"], choice["DDP-Muon", largest]["is_best"]) == (0.5, True)
    assert (choice["DDP-AdamW", largest]["value"], choice["DDP-AdamW", largest]["is_best"]) == (0.25, False)
    assert choice["DDP-Muon", largest]["se"] == 0.01
    assert all(one["is_best"] and one["value"] == 1.5 for one in measures[2]["scores"])
    text = " ".join(block for block in PART.section(report, True) or () if isinstance(block, str))
    assert "A run with a lower loss has no such score beside" in text
    assert "Not side by side, as their examples or versions differ: scores of choice" in text
    assert f"Damaged, and left out: {damaged.run_id}/other.json" in text
    (table,) = PART.rows(report)
    assert len(table.rows) == 9
    drawings = PART.plot(report, Styles(["DDP-AdamW", "DDP-Muon"]))
    assert [drawing.title for drawing in drawings] == [
        "choice: acc against compute",
        "books: bits per byte against compute",
    ]


def test_without_scores_the_page_says_how_to_have_them(tmp_path: Path) -> None:
    write_run(tmp_path, run_config(), 3.0)
    report = reported(tmp_path)
    assert report["evaluations"]["measures"] == []
    assert "muloco-model eval ROOT --tasks" in str(PART.section(report, False))
    assert PART.rows(report) == []

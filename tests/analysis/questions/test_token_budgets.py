"""Losses at every token budget of a size: what stands there, and against what."""

from pathlib import Path

import pytest
from planted import run_config, write_run

from analysis.page.styles import Styles
from analysis.questions.options import Options
from analysis.questions.parts.token_budgets import QUESTION, TokenBudgets
from analysis.report.content import build_report
from analysis.runs import load_study


def found(root: Path) -> TokenBudgets:
    return QUESTION.read(build_report(load_study(root), Options(bootstrap=0)))


def test_each_budget_has_its_best_and_its_distance_to_the_baseline(tmp_path: Path) -> None:
    for budget, base in ((5.0, 3.0), (20.0, 2.8), (40.0, 2.7)):
        for seed in (0, 1):
            noise = 1 + 0.01 * seed
            write_run(tmp_path, run_config("DDP-AdamW", budget=budget, seed=seed), base * noise)
            write_run(tmp_path, run_config("DDP-Muon", budget=budget, seed=seed), 0.97 * base * noise)
            write_run(tmp_path, run_config("DDP-Muon", lr=0.02, budget=budget, seed=seed), base * noise)
    # One budget: nothing to be seen against.
    write_run(tmp_path, run_config("DDP-AdamW", "82k"), 2.5)
    result = found(tmp_path)
    assert [(p.tokens_per_parameter, p.series) for p in result.points] == [
        (budget, series) for budget in (5.0, 20.0, 40.0) for series in ("DDP-AdamW", "DDP-Muon")
    ]
    assert {p.num_params for p in result.points} == {29120}
    baseline, muon = result.points[:2]
    assert (baseline.loss, baseline.seeds, baseline.against_baseline) == (pytest.approx(3.015), 2, None)
    over = muon.against_baseline
    assert over is not None
    assert (over.relative, over.se, over.paired_seeds) == (pytest.approx(-0.03), pytest.approx(0, abs=1e-9), 2)
    assert muon.lr == 0.01
    (table,) = QUESTION.rows(result)
    assert len(table.rows) == 6
    (drawing,) = QUESTION.plot(result, Styles(["DDP-AdamW", "DDP-Muon"]))
    assert drawing.name == "loss_vs_tokens_29p1k"


def test_one_budget_a_size_is_nothing_to_show(tmp_path: Path) -> None:
    write_run(tmp_path, run_config(budget=20.0), 3.0)
    write_run(tmp_path, run_config(model="82k", budget=5.0), 2.8)
    result = found(tmp_path)
    assert (result.points, result.reason) == ([], "no size was trained at two token budgets")
    assert QUESTION.section(result) == ["Not identified: no size was trained at two token budgets."]

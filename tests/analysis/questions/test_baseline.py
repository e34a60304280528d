"""The series that ratios are relative to: as asked, else by a rule that looks at no loss."""

import pandas as pd
import pytest

from analysis.questions.baseline import Baseline, choose_baseline
from analysis.runs import Study
from analysis.style import Style, styled
from muloco_runner.config import ConfigError


def study_of(*runs: tuple[str, str, int, int, float]) -> Study:
    """Runs of (series, algorithm, K, size, loss)."""
    frame = pd.DataFrame(runs, columns=["series", "algorithm", "num_workers", "num_params", "loss"])
    return Study("here", frame.assign(diverged=False, sync_interval=float("nan")))


def chosen(study: Study) -> Baseline:
    return choose_baseline(study, study.series)


def test_ddp_adamw_is_the_default_and_may_be_overruled() -> None:
    study = study_of(("A", "A", 1, 10, 2.0), ("DDP-AdamW", "DDP-AdamW", 1, 10, 3.0))
    assert choose_baseline(study, study.series).series == "DDP-AdamW"
    assert choose_baseline(study, study.series, style=Style(baseline="A")).rule == "as --style says"
    assert choose_baseline(study, study.series, "A", Style(baseline="DDP-AdamW")).rule == "as --baseline says"
    with pytest.raises(ConfigError, match="--baseline B: no such series; these runs have: A, DDP-AdamW"):
        choose_baseline(study, study.series, "B")


def test_else_the_data_parallel_series_with_most_sizes_and_runs() -> None:
    lion = [("DDP-Lion", "DDP-Lion", 1, n, 3.0) for n in (10, 20)]
    runs = [
        ("A K=4", "A", 4, 10, 1.0), ("A K=4", "A", 4, 20, 1.0), ("A K=4", "A", 4, 30, 1.0),
        ("B", "B", 1, 10, 2.0), ("B", "B", 1, 10, 2.0), ("B", "B", 1, 10, 2.0),
        ("C", "C", 1, 10, 2.0), ("C", "C", 1, 20, 2.0), *lion,
    ]  # fmt: skip
    assert chosen(study_of(*runs)).series == "C"
    assert chosen(study_of(*runs, lion[0])).series == "DDP-Lion"
    assert "of the data-parallel series the one with the most sizes" in chosen(study_of(*runs)).rule
    apart = chosen(study_of(*runs[:3], ("MuLoCo K=1", "MuLoCo", 1, 10, 1.0)))
    assert (apart.series, apart.rule.split(",")[0]) == ("A K=4", "of the series the one with the most sizes")


def test_a_label_changes_neither_baseline_nor_rule() -> None:
    study = study_of(("DDP-AdamW", "DDP-AdamW", 1, 10, 3.0), ("A", "A", 1, 10, 2.0), ("A", "A", 1, 20, 2.0))
    study, style = styled(study, Style(labels={"DDP-AdamW": "ours"}))
    assert choose_baseline(study, study.series, style=style) == Baseline("ours", "the default")
    assert choose_baseline(study, study.series, "DDP-AdamW", style).series == "ours"


def test_a_baseline_has_runs_where_sizes_are_compared() -> None:
    study = study_of(("DDP-AdamW", "DDP-AdamW", 1, 10, 3.0), ("A", "A", 1, 10, 2.0), ("B", "B", 1, 10, 2.0))
    found = choose_baseline(study, {"A", "B"})
    assert (found.series, found.rule.split(", as ")[1]) == ("A", "DDP-AdamW has no run where sizes are compared")
    for asked, style in (("DDP-AdamW", Style()), (None, Style(baseline="DDP-AdamW"))):
        with pytest.raises(ConfigError, match="baseline DDP-AdamW: has no finished run at the tokens per"):
            choose_baseline(study, {"A", "B"}, asked, style)

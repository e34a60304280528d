"""The series that ratios are relative to: as asked, else by a rule that looks at no loss."""

import pandas as pd
import pytest

from analysis.questions.baseline import choose_baseline
from analysis.runs import Study
from muloco_runner.config import ConfigError


def study_of(*runs: tuple[str, str, int, int, float]) -> Study:
    """Runs of (series, algorithm, K, size, loss)."""
    frame = pd.DataFrame(runs, columns=["series", "algorithm", "num_workers", "num_params", "loss"])
    return Study("here", frame.assign(diverged=False, sync_interval=float("nan")))


def test_ddp_adamw_is_the_default_and_may_be_overruled() -> None:
    study = study_of(("A", "A", 1, 10, 2.0), ("DDP-AdamW", "DDP-AdamW", 1, 10, 3.0))
    assert choose_baseline(study).series == "DDP-AdamW"
    assert choose_baseline(study, of_style="A").rule == "as --style says"
    assert choose_baseline(study, "A", "DDP-AdamW").rule == "as --baseline says"
    with pytest.raises(ConfigError, match="--baseline B: no such series; these runs have: A, DDP-AdamW"):
        choose_baseline(study, "B")


def test_else_the_data_parallel_series_with_most_sizes_and_runs() -> None:
    lion = [("DDP-Lion", "DDP-Lion", 1, n, 3.0) for n in (10, 20)]
    runs = [
        ("A K=4", "A", 4, 10, 1.0), ("A K=4", "A", 4, 20, 1.0), ("A K=4", "A", 4, 30, 1.0),
        ("B", "B", 1, 10, 2.0), ("B", "B", 1, 10, 2.0), ("B", "B", 1, 10, 2.0),
        ("C", "C", 1, 10, 2.0), ("C", "C", 1, 20, 2.0), *lion,
    ]  # fmt: skip
    assert choose_baseline(study_of(*runs)).series == "C"
    assert choose_baseline(study_of(*runs, lion[0])).series == "DDP-Lion"
    assert "of the data-parallel series the one with the most sizes" in choose_baseline(study_of(*runs)).rule
    apart = choose_baseline(study_of(*runs[:3], ("MuLoCo K=1", "MuLoCo", 1, 10, 1.0)))
    assert (apart.series, apart.rule.split(",")[0]) == ("A K=4", "of the series the one with the most sizes")

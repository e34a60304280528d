"""The report's section on the rules that its sweeps went on by."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from analysis.questions.going_on import tuning_rules
from analysis.questions.going_on.tuning_rules import TuningRules
from muloco_runner.record import ContestStanding, GroupStanding, SweepTuning, write_tuning

SWEEP = SweepTuning(
    "demo", "local", None, ("extend: until all is interior",), (GroupStanding("MuLoCo at 29k", "bracketed", 9),),
    (ContestStanding("29k", "MuLoCo and DDP-Muon are a tie: difference +0.0010", 0.0123, 6),),
    as_of=1764525600.0, is_final=True,
)  # fmt: skip


def of(root: Path) -> TuningRules:
    return tuning_rules.compute(SimpleNamespace(study=SimpleNamespace(folder=root / "runs")))  # type: ignore[arg-type]


def test_rules_standing_and_outcomes_are_on_the_page(tmp_path: Path) -> None:
    write_tuning(tmp_path / "sweeps" / "demo" / "tuning.json", replace(SWEEP, max_gpu_hours=2.0))
    found = of(tmp_path)
    (text,) = tuning_rules.section(found)
    assert "the same rules for all of its series and sizes. Extend: until all is interior." in text
    assert "The budget of the sweep: 2" in text
    assert "as of" not in text
    contests, groups = tuning_rules.rows(found)
    assert contests.rows == [["demo", "29k", 6, 0.0123, "MuLoCo and DDP-Muon are a tie: difference +0.0010", "its end"]]
    assert groups.rows == [["demo", "MuLoCo at 29k", 9, "bracketed", "its end"]]
    (finding,) = tuning_rules.findings(found)
    assert finding.endswith("at 29k: MuLoCo and DDP-Muon are a tie: difference +0.0010.")


@pytest.mark.parametrize(
    ("as_of", "words"), [(1764525600.0, "2025-11-30 18:00:00 UTC"), (None, "a time that its version did not note")]
)
def test_standings_of_before_the_end_say_of_when(tmp_path: Path, as_of: float | None, words: str) -> None:
    write_tuning(tmp_path / "sweeps" / "demo" / "tuning.json", replace(SWEEP, as_of=as_of, is_final=False))
    found = of(tmp_path)
    (text,) = tuning_rules.section(found)
    assert f"as of {words}, and not its end" in text
    assert [table.rows[0][-1] for table in tuning_rules.rows(found)] == [words, words]
    (finding,) = tuning_rules.findings(found)
    assert finding.endswith(f"(as of {words}).")


def test_fixed_grids_and_damaged_files_are_said(tmp_path: Path) -> None:
    write_tuning(tmp_path / "sweeps" / "demo" / "tuning.json", SweepTuning("demo", "local", None))
    assert tuning_rules.section(of(tmp_path)) == ["no sweep of these runs went on by its results"]
    assert tuning_rules.rows(of(tmp_path)) == []
    (tmp_path / "sweeps" / "demo" / "tuning.json").write_text("{")
    assert "not readable" in tuning_rules.section(of(tmp_path))[0]

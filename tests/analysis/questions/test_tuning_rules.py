"""The report's section on the rules that its sweeps went on by."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from analysis.questions.going_on import tuning_rules
from analysis.questions.going_on.tuning_rules import TuningRules
from muloco_runner.record import ContestStanding, GroupStanding, SweepTuning, write_tuning

SWEEP = SweepTuning(
    "demo", "local", None, ("extend: until all is interior",), (GroupStanding("MuLoCo at 29k", "bracketed", 9),),
    (ContestStanding("29k", "MuLoCo and DDP-Muon are a tie: difference +0.0010", 0.0123, 6),),
)  # fmt: skip


def of(root: Path) -> TuningRules:
    return tuning_rules.compute(SimpleNamespace(study=SimpleNamespace(folder=root / "runs")))  # type: ignore[arg-type]


def test_rules_standing_and_outcomes_are_on_the_page(tmp_path: Path) -> None:
    write_tuning(tmp_path / "sweeps" / "demo" / "tuning.json", replace(SWEEP, max_gpu_hours=2.0))
    found = of(tmp_path)
    (text,) = tuning_rules.section(found)
    assert "the same rules for all of its series and sizes. Extend: until all is interior." in text
    assert "The budget of the sweep: 2" in text
    contests, groups = tuning_rules.rows(found)
    assert contests.rows == [["demo", "29k", 6, 0.0123, "MuLoCo and DDP-Muon are a tie: difference +0.0010"]]
    assert groups.rows == [["demo", "MuLoCo at 29k", 9, "bracketed"]]
    (finding,) = tuning_rules.findings(found)
    assert "at 29k: MuLoCo and DDP-Muon are a tie" in finding


def test_fixed_grids_and_damaged_files_are_said(tmp_path: Path) -> None:
    write_tuning(tmp_path / "sweeps" / "demo" / "tuning.json", SweepTuning("demo", "local", None))
    assert tuning_rules.section(of(tmp_path)) == ["no sweep of these runs went on by its results"]
    assert tuning_rules.rows(of(tmp_path)) == []
    (tmp_path / "sweeps" / "demo" / "tuning.json").write_text("{")
    assert "not readable" in tuning_rules.section(of(tmp_path))[0]

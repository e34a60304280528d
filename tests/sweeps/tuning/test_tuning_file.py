"""What a sweep's controller leaves for reports of the rules that it went on by."""

from dataclasses import replace
from pathlib import Path

import pytest
from planted_surfaces import group_of, seed_grid

from muloco_runner.record import RecordError, read_all_tuning
from sweeps.engine.capacity import MAX_GPU_HOURS
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.tuning.growth import Growth
from sweeps.engine.tuning.sequential import PairRule
from sweeps.engine.tuning.study import DecideRule, ExtendRule, Place, ReplicateRule, Setting, Study
from sweeps.engine.work import Adapter, Need, Work
from sweeps.store.folder import SweepFolder
from sweeps.tuning_file import TuningFile

FIRST, SECOND = (replace(group_of(), id=name, label=f"{name} at 1m", series=name, scale="1m") for name in "AB")


def ended() -> tuple[Study, SweepState]:
    """Two series with five seeds of one setting, the second half a nat worse; nothing is wanted."""
    settings = {group.id: seed_grid(group)[0] for group in (FIRST, SECOND)}
    places = {f"{id}{seed}": Place(id, settings[id], seed) for id in "AB" for seed in range(5)}
    others = {f"{id}x": Place(id, Setting(settings[id].batch + 1, settings[id].at), 0) for id in "AB"}
    rules = {"extend": ExtendRule(max_runs=7), "replicate": ReplicateRule(), "decide": None}
    study = Study((FIRST, SECOND), {**places, **others}, **rules)  # type: ignore[arg-type]
    # A run that has not ended, so that the sweep is not over.
    state = SweepState.of([Work("A0", "/nowhere", "m:f", need=Need(1, 8, 8, 0.0, 10.0), adapter=Adapter())], "tag-")
    losses: dict[str, float | None] = {
        name: 2 + 0.5 * (name[0] == "B") + 0.001 * place.seed**2 for name, place in places.items()
    }
    state.losses.update({**losses, "Ax": 2.6, "Bx": 2.9})
    return replace(study, decide=DecideRule((("A", "B"),), PairRule(gap=0.01, confidence=0.9))), state


def test_rules_and_their_outcomes_are_left_for_reports(tmp_path: Path) -> None:
    study, state = ended()
    checks: list[int] = []
    file = TuningFile(SweepFolder(tmp_path, "mine"), "h100", Growth(study))
    file.keep(state, 0.0, lambda: checks.append(1))
    (found,) = read_all_tuning(tmp_path)
    assert (found.sweep, found.cluster, found.max_gpu_hours) == ("mine", "h100", None)
    assert [rule.split(":")[0] for rule in found.rules] == ["extend", "replicate", "decide"]
    assert "at most 7 more" in found.rules[0]
    assert [(one.label, one.added) for one in found.groups] == [("A at 1m", 0), ("B at 1m", 0)]
    (contest,) = found.contests
    assert contest.outcome.startswith("A is better than B: difference -0.5")
    assert (contest.scale, contest.seeds) == ("1m", 3)
    # Nothing is written again until something has changed, nor more often than it is worth.
    file.keep(state, 99.0, lambda: checks.append(1))
    state.own_limits[MAX_GPU_HOURS] = 12.0
    file.keep(state, 5.0, lambda: checks.append(1))
    assert len(checks) == 1
    file.keep(state, 99.0, lambda: checks.append(1))
    assert next(read_all_tuning(tmp_path)).max_gpu_hours == 12.0
    # The end of its controller does not wait.
    state.own_limits[MAX_GPU_HOURS] = 13.0
    file.keep(state, 99.5, lambda: checks.append(1))
    file.end(state, 99.5, lambda: checks.append(1))
    assert next(read_all_tuning(tmp_path)).max_gpu_hours == 13.0


def test_what_a_killed_controller_left_is_not_final(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "mine")
    folder.path.mkdir(parents=True)
    folder.ledger_file.write_text("one line\n")
    study, state = ended()
    TuningFile(folder, "h100", Growth(study)).keep(state, 50.0, lambda: None)
    found = next(read_all_tuning(tmp_path))
    assert (found.as_of, found.ledger_bytes, found.is_final) == (50.0, 9, False)

    TuningFile(folder, "h100", None).keep(SweepState.of([], "tag-"), 60.0, lambda: None)
    assert next(read_all_tuning(tmp_path)).is_final
    # The next controller went on with it, and was killed before it wrote anew.
    folder.ledger_file.write_text("one line\nanother\n")
    found = next(read_all_tuning(tmp_path))
    assert (found.as_of, found.is_final) == (60.0, False)


def test_a_sweep_without_rules_still_says_its_cluster(tmp_path: Path) -> None:
    TuningFile(SweepFolder(tmp_path, "fixed"), "local", None).keep(SweepState.of([], "tag-"), 0.0, lambda: None)
    (found,) = read_all_tuning(tmp_path)
    assert (found.cluster, found.rules, found.groups) == ("local", (), ())


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 7}', '{"format_version": 1, "sweep": "a"}'])
def test_what_cannot_be_read_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sweeps" / "mine" / "tuning.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(RecordError, match=r"tuning\.json"):
        list(read_all_tuning(tmp_path))

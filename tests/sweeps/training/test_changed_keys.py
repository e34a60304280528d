"""What a sweep has added keeps its place where the keys that are extended are others by then."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.record import RunFolder
from sweeps.engine.tuning.growth import Added, Growth
from sweeps.engine.tuning.study import BATCH, Study
from sweeps.engine.work import Work
from sweeps.training.derive import rewrite_lost_configs, run_of
from sweeps.training.expansion import expand
from sweeps.training.study_file import split_study
from sweeps.training.study_groups import study_of

LR, DECAY = "inner_optimizer.lr", "inner_optimizer.weight_decay"
FILE: dict[str, Any] = {
    "model": ["29k"],
    "algorithm": ["ddp_muon"],
    BATCH: [1024],
    LR: [0.001, 0.002],
    DECAY: [0.1, 0.2],
}


@dataclass
class Known:
    """What a ledger holds."""

    losses: dict[str, float | None]
    added: dict[str, Added]
    stopped: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)


def runs_of(product: dict[str, Any]) -> dict[str, RunConfig]:
    return {run.run_id: run for run in expand({"grids": [{"product": product}]}, {})}


def study(added: dict[str, RunConfig], **rules: Any) -> Study:
    _, _, file = split_study({**rules, "grids": [{"product": FILE}]}, {})
    assert file is not None
    return study_of(file, runs_of(FILE), added)


MORE = runs_of({**FILE, LR: [0.0005, 0.00025], DECAY: [0.1]})
"""What `extend: [inner_optimizer.lr]` has added; the lower the rate, the better the run."""
BEST = min(MORE, key=lambda name: MORE[name].inner_optimizer.lr)


def ledger() -> Known:
    """All runs have ended."""
    before = study(MORE, extend=[LR])
    losses: dict[str, float | None] = dict.fromkeys(before.places, 5.0)
    losses |= {name: 3 + run.inner_optimizer.lr for name, run in MORE.items()}
    return Known(losses, {name: Added(before.coordinates_of(place), "why") for name, place in before.added.items()})


@pytest.mark.parametrize("rules", [{}, {"extend": {"keys": [DECAY], "max_runs": 1}}], ids=["none", "another"])
def test_added_settings_stay_apart_without_their_key(rules: dict[str, Any]) -> None:
    now = Study.from_dict(study(MORE, replicate={"best": 1, "seeds": 2}, **rules).to_dict())
    assert len({place.setting for place in now.added.values()}) == len(MORE)
    growth, known = Growth(now), ledger()
    asked = [one for found in growth.additions(known).values() for one in found]
    assert [one.like for one in asked] == [BEST]
    assert all("take no part" not in line for line in growth.lines(known))


def test_a_key_more_adds_nothing_that_is_there() -> None:
    now, known = study(MORE, extend=[LR, DECAY]), ledger()
    growth = Growth(now)
    asked = [one.place for found in growth.additions(known).values() for one in found]
    assert asked
    assert not set(asked) & {*now.places.values(), *now.added.values()}
    (standing,) = growth.standings(known)
    assert standing.added == len(MORE)


def test_what_lies_outside_is_said_to_take_no_part() -> None:
    growth, known = Growth(study(MORE, extend={"keys": {LR: {"low": 0.0004}}})), ledger()
    assert "and take no part: 1; 1 runs added" in next(iter(growth.lines(known)))


def test_a_run_that_is_added_anew_is_taken_in() -> None:
    now = study({}, extend=[LR])
    known, at = ledger(), study(MORE, extend=[LR]).coordinates_of(study(MORE, extend=[LR]).added[BEST])
    known.added = {name: Added(one.at._replace(values={BATCH: 1024}), "old") for name, one in known.added.items()}
    growth = Growth(now)
    assert growth.standings(known)[0].added == 0
    del known.added[BEST]
    known.added[BEST] = Added(at, "new")
    assert growth.standings(known)[0].added == 1


def test_a_lost_config_is_written_anew_where_runs_tell_it(tmp_path: Path) -> None:
    at = {name: one.at for name, one in ledger().added.items()}
    (kept,) = at.keys() - {BEST}
    RunFolder.of(tmp_path, kept).write_config(MORE[kept].to_dict())
    found = rewrite_lost_configs([], at, tmp_path)
    assert (found.rewritten, found.unknown) == ([BEST], []), "a run that was added tells it as well"
    for name in at:
        RunFolder.of(tmp_path, name).config_file.unlink()
    assert set(rewrite_lost_configs([], at, tmp_path).unknown) == set(at)
    with pytest.raises(ConfigError, match="launch the sweep again"):
        run_of(Work(BEST, str(RunFolder.of(tmp_path, BEST).path), "m:f"))
    found = rewrite_lost_configs(list(runs_of(FILE).values()), at, tmp_path)
    assert set(found.rewritten) == set(at)
    assert RunFolder.of(tmp_path, BEST).read_config() == MORE[BEST].to_dict()
    assert [line for line in found.lines() if "`retry`" in line]
    assert not list(rewrite_lost_configs([], at, tmp_path).lines())

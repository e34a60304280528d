"""The table of causes in docs/clusters.md says what the code does."""

import dataclasses
import re
from pathlib import Path

import pytest

from muloco_runner.record import STOPPED_CODES, ExitCode
from sweeps.clusters.slurm.slurm_cluster import _ENDS
from sweeps.engine import policy
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig
from sweeps.engine.policy import _BY_CODE, _BY_END, RULES, Cause, Rule, changed_retries

TEXT = (Path(__file__).parents[3] / "docs" / "clusters.md").read_text()
COLUMNS = ("means", "seen by", "what follows", "pause", "again", "setting")


def rows() -> dict[str, dict[str, str]]:
    (section,) = re.findall(r"^## What follows from each end\n(.*?)^## ", TEXT, re.DOTALL | re.MULTILINE)
    header, _, *lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in header] == ["cause", *COLUMNS]
    cells = [[cell.strip() for cell in line] for line in lines]
    return {cause.strip("`"): dict(zip(COLUMNS, others, strict=True)) for cause, *others in cells}


ROWS = rows()


def test_each_cause_has_a_row_in_words() -> None:
    assert set(ROWS) == {cause.value for cause in Cause}
    assert all(row["means"] and row["seen by"] and row["what follows"] for row in ROWS.values())


def again(rule: Rule) -> str:
    if rule.retries is None:
        return "always"
    return f"{rule.retries}{'*' if rule.free_with_progress else ''}" if rule.retries else ""


def pause(rule: Rule) -> str:
    minutes, seconds = divmod(int(rule.backoff_seconds), 60)
    return f"{minutes} min" if minutes else f"{seconds} s" if seconds else ""


@pytest.mark.parametrize("cause", Cause, ids=lambda cause: cause.value)
def test_a_row_says_what_the_rule_does(cause: Cause) -> None:
    row, rule = ROWS[cause.value], RULES[cause]
    assert (row["again"], row["pause"]) == (again(rule), pause(rule))
    for words, holds in {
        "another node": rule.excludes_node,
        "twice the time": rule.doubles_wall_time,
        "twice the memory": rule.doubles_memory,
        "half the micro-batch": rule.adjusts,
        "done": rule.done,
        "held": rule.retries == 0 and not rule.done,
    }.items():
        assert (words in row["what follows"]) is holds, words


def test_settings_are_named_where_they_count() -> None:
    known = {field.name for config in (ClusterConfig, AllocationConfig) for field in dataclasses.fields(config)}
    for name, row in ROWS.items():
        assert {word.strip("`") for word in row["setting"].split(", ") if word} <= known, name
    for setting, values in {"retries": (7, 2), "max_timeouts": (1, 7)}.items():
        counted = {name for name, row in ROWS.items() if f"`{setting}`" in row["setting"]}
        assert counted == set(changed_retries(*values)), setting


def test_states_of_slurm_and_exit_codes_stand_with_their_cause() -> None:
    for state, end in _ENDS.items():
        assert f"`{state}`" in ROWS[_BY_END[end].value]["seen by"], state
    for code, cause in _BY_CODE.items():
        if code not in STOPPED_CODES:
            assert code in ExitCode
            assert re.search(rf"exit codes?\b.*\b{code}\b", ROWS[cause.value]["seen by"]), (code, cause)


def test_the_words_below_have_the_numbers_of_the_code() -> None:
    assert policy._MOST_FAILURES == 10
    assert "Ten ends of one cause without *" in TEXT
    assert policy._LONGEST_BACKOFF_SECONDS == 3600
    # `disk full`: the pauses until it is held.
    rule = RULES[Cause.DISK_FULL]
    assert rule.retries is not None
    waits = [policy.doubled(rule.backoff_seconds, n, 3600) for n in range(rule.retries)]
    assert round(sum(waits) / 3600) == 19
    assert "held after some 19 hours" in TEXT

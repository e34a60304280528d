"""`--check-gpu`: sections that fail apart, and what is said of them. `make test-extras` runs every section."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from muloco_runner.machine_check import kernels, tile_sweep
from muloco_runner.machine_check import sections as checks
from muloco_runner.machine_check.findings import Finding, Findings, read_findings
from muloco_runner.machine_check.sections import Outcome, Section, summary
from muloco_runner.machine_check.timing import Machine
from muloco_runner.optimizers import orthogonalize
from muloco_runner.record import ExitCode


def good(machine: Machine, findings: Findings) -> None:
    findings.at_most("an error", 0.25, 0.5)
    findings.hoped("a speed", 1.0, 2.0, "TB/s")


def raises_after_a_finding(machine: Machine, findings: Findings) -> None:
    findings.holds("before it", True)
    raise ValueError("two\nlines")


def dies(machine: Machine, findings: Findings) -> None:
    findings.holds("before it", True)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.thorough
def test_sections_fail_apart_and_all_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sections = {name: Section(check, 60) for name, check in
                {"raises": raises_after_a_finding, "dies": dies, "good": good}.items()}  # fmt: skip
    out = tmp_path / "check.json"
    assert checks.main(["--device", "cpu", "--out", str(out)], sections) == ExitCode.CRASH
    said = json.loads(out.read_text())
    assert [s["failure"] for s in said["sections"]] == ["ValueError: two lines", "its process ended with -9", ""]
    assert [len(s["findings"]) for s in said["sections"]] == [1, 1, 2]
    assert said["machine"]["device"].startswith("CPU")
    printed = capfd.readouterr().out
    assert "a speed: 1 TB/s (hoped for 2) misses" in printed
    assert "Not fit: see raises, dies." in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tile"], "tile: must be ceilings, kernels"),
        (["--device", "gpu"], "gpu: must be auto, cpu or cuda"),
        (["--ouput"], "--ouput: no such option; did you mean --out?"),
        (["--out", ""], "must be a file"),
        (["--device", "cuda"], "torch finds no GPU here"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert checks.main(arguments) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_what_is_not_right_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = Findings("s", tmp_path / "f")
    findings.at_most("not a number", math.nan, 1.0)
    findings.at_most("above", 1.1, 1.0)
    findings.holds("does not", False)
    assert [f.verdict for f in read_findings(tmp_path / "f")] == ["wrong"] * 3
    with (tmp_path / "f").open("a") as file:
        file.write('{"section": "cut sh')
    found = read_findings(tmp_path / "f")
    assert len(found) == 3
    assert not Outcome("s", 1.0, "", found).is_right


def test_a_missed_speed_or_an_absent_peer_is_not_unfit() -> None:
    slow = Outcome("s", 1.0, "", [Finding("s", "a", 1.0, verdict="misses"), Finding("s", "b", "no", verdict="absent")])
    assert summary([slow], "cuda").splitlines()[-1] == "Fit."
    assert slow.is_right
    assert summary([Outcome("s", 1.0, "killed")], "cuda").splitlines()[-1] == "Not fit: see s."


@pytest.mark.parametrize("check", [kernels.check, tile_sweep.check])
def test_kernels_without_triton_are_absent(
    check: Callable[[Machine, Findings], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthogonalize, "find_spec", lambda name: None)
    orthogonalize.why_no_kernels.cache_clear()
    try:
        check(Machine(torch.device("cpu")), Findings("kernels", tmp_path / "found"))
    finally:
        orthogonalize.why_no_kernels.cache_clear()
    (found,) = read_findings(tmp_path / "found")
    assert found.verdict == "absent"

"""A law that is new to the report is a module and a line in the registry."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from analysis.questions.registry import PARTS, QUESTIONS
from analysis.report.schema import report_schema

PACKAGE = Path(__file__).parents[3] / "analysis"
MODULE = '''
from dataclasses import dataclass

from analysis.page.page_table import Column, Table
from analysis.questions.question import Inputs, Question


@dataclass(frozen=True)
class Spread:
    """How far losses lie apart."""

    factor: float
    """Largest loss over the smallest."""


def compute(inputs: Inputs) -> Spread:
    losses = inputs.best["loss"]
    return Spread(float(losses.max() / losses.min()))


def rows(result: Spread) -> list[Table]:
    return [Table("spread", "Spread of losses", [Column("factor", "ratio")], [[result.factor]])]


QUESTION = Question(
    name="spread",
    title="How far losses lie apart",
    result=Spread,
    compute=compute,
    findings=lambda result: [f"Losses lie apart by a factor of {result.factor:.3g}."],
    section=lambda result: ["The largest loss over the smallest."],
    rows=rows,
    plot=lambda result, styles: [],
)
'''


@pytest.mark.thorough
def test_a_law_is_added_to_the_report_in_two_files(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "analysis", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "analysis" / "questions" / "spread.py").write_text(MODULE)
    registry = tmp_path / "analysis" / "questions" / "registry.py"
    text = registry.read_text().replace(
        "    one_compute.QUESTION,\n", "    one_compute.QUESTION,\n    spread.QUESTION,\n"
    )
    registry.write_text(text.replace("import crossings,", "import spread, crossings,"))
    lines = [f"DDP-AdamW,{n},{20 * n},65536,0.01,{1.7 + n**-0.1:.6f}" for n in np.geomspace(1e7, 1e9, 3).astype(int)]
    table = tmp_path / "runs.csv"
    table.write_text("\n".join(["algorithm,num_params,num_tokens,global_batch_tokens,lr,loss", *lines]))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])}

    def muloco_report(*arguments: str) -> str:
        command = [sys.executable, "-m", "analysis", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    muloco_report("--table", "runs.csv", "--out", "report", "--bootstrap", "0")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    factor = report["questions"]["spread"]["factor"]
    assert factor == pytest.approx((1.7 + 1e7**-0.1) / (1.7 + 1e9**-0.1), rel=1e-4)
    assert f"Losses lie apart by a factor of {factor:.3g}." in report["verdict"]["findings"]
    for page in ("report.html", "report.md"):
        assert "How far losses lie apart" in (tmp_path / "report" / page).read_text()
    assert (tmp_path / "report" / "tables" / "spread.csv").exists()
    schema = json.loads(muloco_report("schema"))
    jsonschema.validate(report, schema)
    assert schema["$defs"]["Spread"]["properties"]["factor"]["description"] == "Largest loss over the smallest."


def test_the_schema_has_every_key_with_its_meaning() -> None:
    schema = report_schema()
    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names)
    assert {*names, "schema_version", "settings", "series", "questions", "verdict"} <= {*schema["required"]}
    questions = schema["$defs"]["Questions"]
    assert questions["required"] == [question.name for question in QUESTIONS]
    best = schema["$defs"]["BestSetting"]
    assert best["required"] == [*best["properties"]]
    assert best["additionalProperties"] is False
    assert best["properties"]["memory_bytes"]["description"].startswith("Peak memory of the main rank")

"""What the page about the report says can be done."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import run

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "report.md").read_text()


def test_the_python_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(block, {})
    assert float(capsys.readouterr().out.split()[0]) == pytest.approx(0.34, rel=1e-6)


def test_the_commands_of_the_page_run(
    planted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for whole reports, which have tests of their own: their options are read."""
    from analysis.commands.arguments import report_parser

    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / name).symlink_to(planted[1])
    n, d = [1e7, 1e8, 1e9] * 3, [1e9] * 3 + [1e10] * 3 + [1e11] * 3
    loss = [1.7 + 400 * a**-0.34 + 410 * b**-0.28 for a, b in zip(n, d, strict=True)]
    pd.DataFrame({"N": n, "D": d, "loss": loss}).to_csv(tmp_path / "runs.csv")
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    lines = [shlex.split(line, comments=True) for line in "".join(blocks).splitlines()]
    # What `muloco-sweep` does with a report's sweep file has tests of its own.
    for program, *arguments in lines:
        if program == "muloco-sweep":
            assert arguments[1] == "study/report/next.yaml"
            continue
        assert program == "muloco-report"
        if arguments[0] in ("compare", "fit", "published"):
            assert run(arguments) == 0, arguments
        else:
            report_parser().parse_args(arguments)


def test_the_columns_of_the_page_are_those_that_are_read() -> None:
    from analysis.input.columns import COLUMNS

    part = TEXT[TEXT.index("## Tables of runs") : TEXT.index("Other usual names")]
    assert set(re.findall(r"`(\w+)`", part)) == {*COLUMNS}

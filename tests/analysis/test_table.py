from pathlib import Path

import pandas as pd
import pytest
from planted import Law, run_config, write_run, write_sweep

from analysis.__main__ import _read, run
from analysis.commands.arguments import report_parser
from analysis.questions.options import Options
from analysis.report.content import build_report
from analysis.runs import load_study
from analysis.table import study_of_table

HEADER = "algorithm,num_params,num_tokens,global_batch_tokens,loss"


def test_a_table_gives_the_report_that_the_folders_give(tmp_path: Path) -> None:
    write_sweep(tmp_path, Law(noise=0.001), models=("29k", "42k", "82k"), batches=(2048, 4096, 8192), lrs=(0.005, 0.01))
    runs = load_study(tmp_path).runs
    # A stranger's table: other names, and only what a stranger would have.
    kept = ["algorithm", "num_workers", "num_params", "num_tokens", "tokens_per_parameter", "global_batch_tokens", "lr"]
    table = runs[[*kept, "seed"]].assign(**{"eval/loss": runs["loss"]})
    table.to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "mapping.yaml").write_text("loss: eval/loss\n")
    arguments = ["--table", str(tmp_path / "runs.csv"), "--mapping", str(tmp_path / "mapping.yaml")]
    both = ([str(tmp_path)], arguments)
    # What is drawn is drawn of the report.
    reports = [build_report(_read(report_parser().parse_args(words))[0], Options(bootstrap=20)) for words in both]
    for key in ("verdict", "iso_loss"):
        assert reports[0][key] == reports[1][key]
    losses = [{(row["series"], row["num_params"]): row["loss"] for row in report["best"]} for report in reports]
    assert losses[0] == losses[1]


def test_budgets_that_differ_a_little_by_size_are_one(tmp_path: Path) -> None:
    """As published ones do, since they are numbers of steps."""
    for model, budget in (("29k", 20.05), ("42k", 20.526), ("82k", 20.0334)):
        write_run(tmp_path, run_config(model=model, budget=budget), 2.0)
    write_run(tmp_path, run_config(model="82k", budget=14.0), 2.1)
    budgets = load_study(tmp_path).runs.groupby("num_params")["tokens_per_parameter"].max()
    assert budgets.nunique() == 1
    assert 20 < budgets.iloc[0] < 20.6


def test_every_row_is_accounted_for() -> None:
    rows = [
        {"algorithm": "DDP-AdamW", "num_params": 1e6, "num_tokens": 2e7, "global_batch_tokens": 4096, "loss": loss}
        for loss in (2.0, 2.0, -1.0, None, "much", "NaN", "-inf")
    ]
    rows.append({**rows[0], "loss": None, "diverged": "True", "seed": 1})
    study = study_of_table("t", pd.DataFrame(rows), {})
    assert study.runs["diverged"].sum() == 2
    assert len(study.runs) + len(study.excluded) == len(rows)
    reasons = {one.run_id: one.reason for one in study.excluded}
    assert "duplicate of row 1" in reasons["row 2"]
    assert "duplicate of row 6" in reasons["row 7"]  # both diverged, and nothing else tells them apart
    assert "positive" in reasons["row 3"]
    assert "no loss" in reasons["row 4"]
    assert "no number" in reasons["row 5"]


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("algorithm,loss\nx,1\n", [], "no column num_params"),
        (f"{HEADER}\n", [], "none of 0 rows"),
        (f"{HEADER}\nDDP-AdamW,1e6,2e7,4096,-2\n", [], "none of 1 rows"),
        (f"{HEADER}\nDDP-AdamW,1e6,2e7,4096,2\n", ["--corpus", "x"], "no effect"),
        (f"{HEADER}\nDDP-AdamW,1e6,2e7,4096,2\n", ["--mapping", "missing.yaml"], "no such file"),
        (f"{HEADER}\nDDP-AdamW,1e6,2e7,4096,2\n", ["somewhere"], "one of them"),
    ],
)
def test_a_bad_table_is_one_line(
    text: str, arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    assert run([*arguments, "--table", str(path)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    assert words in error

"""docs/study: its records unpack, its page says what its report has, and a run of it repeats to the bit."""

import json
import lzma
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

STUDY = Path(__file__).parents[1] / "docs" / "study"
sys.path.insert(0, str(STUDY))

import critical  # noqa: E402
import differences  # noqa: E402
import page  # noqa: E402
import records  # noqa: E402
import study  # noqa: E402
from differences import Contrast, Found  # noqa: E402

from muloco_runner.config import ConfigError  # noqa: E402
from muloco_runner.data.python_packages import source_files  # noqa: E402
from muloco_runner.record import RunFolder  # noqa: E402
from muloco_sweeps import python_command  # noqa: E402
from sweeps.store.folder import SweepFolder  # noqa: E402

ARCHIVES = sorted((STUDY / "records").glob("*.tar.xz"))
MUON_ADAMW = Contrast("Muon against AdamW", {"DDP-Muon": 1, "DDP-AdamW": -1})


def test_each_slice_is_a_sweep_file() -> None:
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (STUDY / "sweeps").glob("*.yaml")}
    assert sorted(files) == sorted(study.SLICES)
    assert all(name.startswith(file["fixed"]["model"]) for name, file in files.items())
    assert {path.name.removesuffix(".tar.xz") for path in ARCHIVES} <= files.keys()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All records, unpacked."""
    folder = tmp_path_factory.mktemp("records") / "study"
    for archive in ARCHIVES:
        records.unpack(folder, archive)
    return folder


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
def test_unpacked_records_hold_every_result(archive: Path, root: Path) -> None:
    folder = SweepFolder(root, archive.name.removesuffix(".tar.xz"))
    replay = folder.read_state(folder.read_definition())
    assert not [one for one in replay.damage if "request" not in str(one.why)]
    done = [name for name, run in replay.state.runs.items() if run.done]
    assert done
    for name in done:
        result = RunFolder.of(root, name).read_result()
        assert result is not None
        # Ledgers keep the losses that rules look at.
        assert result.validation_loss == replay.state.losses.get(name, result.validation_loss)
    # Runs that rules added and that have not ended are continued by their configs alone.
    assert all(RunFolder.of(root, name).config_file.exists() for name in replay.state.runs)


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
def test_packing_again_gives_the_same_bytes(archive: Path, root: Path) -> None:
    assert records.content(root, archive.name.removesuffix(".tar.xz")) == lzma.decompress(archive.read_bytes())


def test_records_do_not_say_where_the_root_lay(tmp_path: Path) -> None:
    archive = min(ARCHIVES, key=lambda path: path.stat().st_size)
    name = archive.name.removesuffix(".tar.xz")
    records.unpack(tmp_path, archive)
    definition = tmp_path / "sweeps" / name / "definition.jsonl"
    definition.write_text(definition.read_text().replace('"/study/', f'"{tmp_path}/'))
    assert str(tmp_path) in definition.read_text()
    assert records.content(tmp_path, name) == lzma.decompress(archive.read_bytes())


def test_unpacking_completes_and_never_goes_back(tmp_path: Path) -> None:
    archive = min(ARCHIVES, key=lambda path: path.stat().st_size)
    records.unpack(tmp_path, archive)
    sweep = tmp_path / "sweeps" / archive.name.removesuffix(".tar.xz")
    further = (sweep / "ledger.jsonl").read_text() + "further\n"
    (sweep / "ledger.jsonl").write_text(further)
    killed, kept = sorted((tmp_path / "runs").iterdir())[:2]
    whole = {path.name: path.read_bytes() for path in killed.iterdir()}
    (killed / "result.json").unlink()
    (killed / "record.jsonl").write_text("torn")
    (kept / "record.jsonl").write_text("further")
    records.unpack(tmp_path, archive)
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == whole
    assert (kept / "record.jsonl").read_text() == "further"
    assert (sweep / "ledger.jsonl").read_text() == further


def test_no_slice_named_is_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(study, "report", lambda root: 0)
    launched: list[str] = []
    monkeypatch.setattr(study, "launch", lambda name, root, seconds: launched.append(name) or 0)
    assert study.main(["--root", str(tmp_path / "runs")]) == 0
    assert tuple(launched) == study.SLICES
    with pytest.raises(SystemExit) as refused:
        study.main(["29m"])
    assert refused.value.code == 2


@pytest.mark.parametrize("path", page.PAGES, ids=lambda path: path.parent.name)
def test_numbers_of_the_pages_are_those_of_the_report(path: Path) -> None:
    text = path.read_text()
    assert "<!-- study: " in text
    assert page.filled(text, page.read_report()) == text, "python docs/study/page.py writes them again"


def test_no_finding_stands_outside_what_is_read() -> None:
    prose = re.sub(r"<!-- study.*?<!-- end -->", "", (STUDY / "README.md").read_text(), flags=re.DOTALL)
    assert set(re.findall(r"[-+]?\d+\.?\d*%", prose)) <= {"95%", "80%", "1%"}
    assert not re.findall(r"\b(lower|higher|better|worse|beats|wins) (than|by)\b", prose)


def test_the_report_is_that_of_the_records(root: Path) -> None:
    """Of as many runs, and of the same losses."""
    report = page.read_report()
    assert report["audit"]["used"] == sum(1 for _ in root.glob("runs/*/result.json"))
    losses = {json.loads(path.read_text())["validation_loss"] for path in root.glob("runs/*/result.json")}
    assert {seed["loss"] for one in report["best"] for seed in one["seed_losses"]} <= losses


def report_of(first: list[float], second: list[float], **of_both: Any) -> dict[str, Any]:
    """Best settings of two series at one size, with these losses by seed."""
    rows = [("DDP-Muon", first), ("DDP-AdamW", second)]
    return {
        "best": [
            {
                "series": name,
                "num_params": 29120,
                "unbiased": True,
                "seed_losses": [{"seed": seed, "loss": loss} for seed, loss in enumerate(losses)],
                **of_both,
            }
            for name, losses in rows
        ]
    }


def test_a_difference_comes_with_interval_and_power() -> None:
    second = [2.0, 2.02, 1.98, 2.01]
    (found,) = differences.found(report_of([0.97 * one for one in second], second), MUON_ADAMW)
    assert found.seeds == 4
    assert found.mean == pytest.approx(math.log(0.97))
    noisy = [0.97 * one + shift for one, shift in zip(second, (0.01, -0.01, 0.005, -0.005), strict=True)]
    (found,) = differences.found(report_of(noisy, second), MUON_ADAMW)
    assert found.low < math.log(0.97) < found.high < 0
    assert (found.high - found.low) / 2 < found.sees < found.high - found.low
    assert differences.verdict(MUON_ADAMW, found) == "agrees"


def test_seeds_that_chose_the_settings_show_no_difference() -> None:
    (found,) = differences.found(report_of([1.9, 1.9], [2.0, 2.1], unbiased=False), MUON_ADAMW)
    assert found.mean is None
    assert differences.verdict(MUON_ADAMW, found) == "cannot be told"
    assert "too few for an interval" in differences.sentence(MUON_ADAMW, found)


@pytest.mark.parametrize(
    ("low", "high", "said"), [(-0.02, -0.01, "agrees"), (0.01, 0.02, "differs"), (-0.01, 0.02, "cannot be told")]
)
def test_a_verdict_follows_the_interval(low: float, high: float, said: str) -> None:
    one = Found(29120, 4, (low + high) / 2, low, high, 0.03)
    assert differences.verdict(MUON_ADAMW, one) == said
    sentence = differences.sentence(MUON_ADAMW, one)
    assert said in sentence
    assert one.interval in sentence


def test_a_critical_batch_is_larger_where_its_bounds_say_so() -> None:
    assert critical.verdict((512, 1024), (None, 512)) == "agrees"
    assert critical.verdict((None, 512), (512, None)) == "differs"
    assert critical.verdict((256, 1024), (None, 512)) == "cannot be told"
    assert critical.verdict((None, None), (None, None)) == "cannot be told"


def test_a_budget_has_its_distance_with_an_interval() -> None:
    scale = {"num_params": 29120, "tokens_per_parameter": 5.0, "series": "DDP-Muon"}
    points = [
        {**scale, "loss": 2.0, "loss_se": 0.01, "seeds": 3, "against_baseline": over}
        for over in ({"relative": -0.03, "se": 0.01, "paired_seeds": paired} for paired in (3, 1))
    ]
    found = {"baseline": "DDP-AdamW", "points": points}
    *_, several, one = page.budgets({"questions": {"token_budgets": found}})
    # Student's t of two degrees of freedom: 4.303.
    assert several.endswith("| -3.00% | -7.30% to +1.30% |")
    assert one.endswith("| -3.00% | none |")


def shortest_run(root: Path) -> tuple[str, RunFolder]:
    """Of the slices with one worker, the run with the fewest steps at the smallest size, and its slice."""
    found = []
    for slice_of_one in (archive for archive in ARCHIVES if "_" not in archive.name):
        folder = SweepFolder(root, slice_of_one.name.removesuffix(".tar.xz"))
        for name in {*(work.name for work in folder.read_definition().works), *folder.added_runs()}:
            run = RunFolder.of(root, name)
            if (result := run.read_result()) is not None:
                found.append((result.num_params, result.num_steps, name, folder.name, run))
    *_, slice_name, shortest = min(found)
    return slice_name, shortest


def test_a_run_trained_afresh_gives_the_same_losses(root: Path, tmp_path: Path) -> None:
    name, recorded = shortest_run(root)
    skip_elsewhere(name)
    config = recorded.read_config()
    sweep = yaml.safe_load((STUDY / "sweeps" / f"{name}.yaml").read_text())
    result = recorded.read_result()
    assert result is not None
    words = {
        **sweep["fixed"],
        "algorithm": result.algorithm.lower().replace("-", "_"),
        **{key: config[key] for key in ("global_batch_tokens", "seed")},
        "inner_optimizer.lr": config["inner_optimizer"]["lr"],
        "execution.log_interval_steps": 100,
        "root": tmp_path,
    }
    command = [*python_command("muloco_runner"), *(f"{key}={value}" for key, value in words.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    again = RunFolder.of(tmp_path, recorded.run_id)
    losses = [[(one.step, one.loss, one.validation_loss) for one in run.read_steps()] for run in (recorded, again)]
    assert len(losses[0]) > 3
    assert losses[0] == losses[1]


def skip_elsewhere(name: str) -> None:
    """Skip where the text is not, and where the last bits of losses may differ."""
    try:
        source_files()
    except ConfigError as error:
        pytest.skip(str(error))
    trained_on = json.loads((STUDY / "records" / "machines.json").read_text())[name]
    here = study.machine()
    if here != trained_on:
        pytest.skip(f"the records of {name} are of {trained_on}, and this is {here}")

"""What a sweep writes, as a plan counts it and as a real run leaves it."""

from pathlib import Path

import pytest

from muloco_runner.config import ExecutionConfig
from muloco_runner.job import run_job
from muloco_runner.record import RunFolder
from sweeps.cli.display import plan_as_dict, show_plan
from sweeps.clusters import make_cluster
from sweeps.node.code_snapshot import keep_source, source_space
from sweeps.training.disk import RunSpace, disk_use, spaces_of
from sweeps.training.preview import preview
from sweeps.training.sweep import read_sweep

LARGE = 10**18


def test_a_real_runs_folder_is_as_large_as_planned(tmp_path: Path) -> None:
    small = ["model=42k", "method.num_workers=2", "method.sync_interval=5", "tokens_per_parameter=0.3"]
    (run,) = read_sweep(["algorithm=muloco", *small, f"root={tmp_path}"]).runs
    folder = RunFolder.of(tmp_path, run.run_id)
    folder.write_config(run.to_dict())
    execution = ExecutionConfig(device="cpu", keep="final")
    assert run_job(folder, execution, 1) == 0
    planned = spaces_of({run.run_id: run}, execution, {})[run.run_id]
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) == pytest.approx(planned.left, rel=0.2)
    saved = [path.stat().st_size for path in files if "checkpoint" in path.parts]
    assert sum(saved) == pytest.approx(planned.checkpoint_bytes, rel=0.1)
    assert planned.left_files - 12 <= len(list(folder.path.rglob("*"))) <= planned.left_files


def test_runs_side_by_side_take_space_together(tmp_path: Path) -> None:
    space = RunSpace(checkpoint_bytes=10, at_work=30, at_work_files=7, left=2, left_files=3)
    spaces = dict.fromkeys("abc", space)
    found = disk_use(tmp_path, [(0.0, 60.0, "a"), (0.0, 60.0, "b"), (60.0, 90.0, "c")], spaces)
    assert found is not None
    assert (found.peak_bytes, found.peak_files) == (60, 14)
    assert (found.left_bytes, found.left_files) == (6, 9)
    assert found.fits
    too_large = disk_use(tmp_path, [(0.0, 1.0, "a")], {"a": RunSpace(10, LARGE, 1, 2, 3)})
    too_many = disk_use(tmp_path, [(0.0, 1.0, "a")], {"a": RunSpace(10, 1, LARGE, 2, 3)})
    assert too_large is not None
    assert not too_large.fits
    assert too_many is not None
    assert too_many.fits == (too_many.free_files is None)
    assert disk_use(tmp_path, [], {}) is None


def test_a_plan_says_what_does_not_fit_the_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = read_sweep(["+sweep=demo", "model=29k", f"root={tmp_path / 'new'}"])
    limits = make_cluster(sweep.cluster, sweep.folder.cluster_dir).limits(sweep.folder.owns)
    show_plan(preview(sweep, limits))
    assert "will NOT fit" not in capsys.readouterr().out
    monkeypatch.setattr("sweeps.training.disk.checkpoint_bytes", lambda run: LARGE)
    found = preview(sweep, limits)
    show_plan(found)
    assert ": it will NOT fit: make room, choose another root=, or lower the quota" in capsys.readouterr().out
    disk = plan_as_dict(found)["disk"]
    assert not disk["fits"]
    assert disk["peak_bytes"] > LARGE > disk["left_bytes"]


def test_the_first_sweeps_plan_counts_the_copy_of_the_code(tmp_path: Path) -> None:
    size, files = source_space(tmp_path)
    copy = keep_source(tmp_path)
    written = [path for path in copy.rglob("*") if path.is_file()]
    assert files == len([path for path in written if path.suffix != ".patch"])  # of changes that no commit holds
    assert abs(size - sum(path.stat().st_blocks * 512 for path in written)) <= 0.05 * size
    assert source_space(tmp_path) == (0, 0)
    spans, spaces = [(0.0, 1.0, "a")], {"a": RunSpace(1, 5, 3, 2, 1)}
    with_code, without = disk_use(tmp_path, spans, spaces, (100, 10)), disk_use(tmp_path, spans, spaces)
    assert with_code is not None
    assert without is not None
    assert with_code.peak_bytes - without.peak_bytes == with_code.left_bytes - without.left_bytes == 100
    assert with_code.peak_files - without.peak_files == with_code.left_files - without.left_files == 10

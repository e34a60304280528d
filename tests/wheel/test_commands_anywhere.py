"""Every command in a folder that holds packages of its own by the project's names, with that folder on PYTHONPATH."""

import contextlib
from pathlib import Path

import psutil
import pytest
from installed_wheel import Installed

RUN = ["algorithm=muloco", "model=29k", "tokens_per_parameter=1", "global_batch_tokens=1024",
       "method.sync_interval=5", "data=text", "data.path=text", "data.validation_fraction=0.3"]  # fmt: skip
PATIENCE_SECONDS = 300


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("sweeps", "analysis", "muloco_runner"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the user s own')")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("of: another program\n")
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} or not to be. " * 400)
    return tmp_path


@pytest.mark.thorough
def test_every_command_beside_folders_of_its_names(installed: Installed, folder: Path) -> None:
    def say(*words: str) -> str:
        return installed.run(folder, *words, PYTHONPATH=str(folder))

    assert "validation loss" in say("muloco-train", *RUN, "execution.device=cpu", "root=alone")
    assert "MuLoCo" in say("muloco-sweep", "plan", *RUN, "root=runs")
    said = say("muloco-sweep", "launch", *RUN, "root=runs", "--detach")
    pid = int(said.partition("controller ")[2].split()[0])
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(PATIENCE_SECONDS)
    assert "1 runs: 1 done" in say("muloco-sweep", "launch", *RUN, "root=runs")
    assert len(list(folder.glob("runs/runs/*/attempts/*"))) == 1, "the detached launch has done it"
    assert "MuLoCo" in say("muloco-sweep", "status", "runs")
    assert "1 of 1 runs used" in say("muloco-report", "runs", "--bootstrap", "0")
    assert "Prepares text" in say("muloco-data", "--help")

"""`muloco-train` as people type it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from muloco_runner.__main__ import main

SMALL = [
    "model=29k",
    "model.sequence_length=32",
    "global_batch_tokens=256",
    "tokens_per_parameter=0.5",
    "data=text",
    "data.validation_tokens=512",
    "data.validation_fraction=0.2",
]


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "muloco_runner", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


def test_a_run_ends_with_its_name_its_loss_and_its_folder(tmp_path: Path, text_dir: Path) -> None:
    done = train(tmp_path, "algorithm=muloco", *SMALL, f"data.path={text_dir}")
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout
    assert "left" in done.stdout
    run_id, *words, folder = done.stdout.splitlines()[-1].split()
    assert folder == f"results/runs/{run_id}"
    assert words[:2] == ["validation", "loss"]
    assert (tmp_path / folder / "result.json").exists()
    assert os.listdir(tmp_path) == ["results"]
    again = train(tmp_path, "algorithm=muloco", *SMALL, f"data.path={text_dir}")
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
    assert "step 1/" not in again.stdout


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        ("inner_optimizer.momentun=0.9", "momentun"),
        ("optimizer=muon", "optimizer"),
        ("algorithm=mulocco", "muloco"),
        ("global_batch_tokens=1000", "global_batch_tokens=1000"),
        ("model.width=50", "multiple of"),
        ("inner_optimizer.lr=fast", "fast"),
        ("data=text", "data.path"),
        ("data=text data.path=/no/such/folder", "/no/such/folder"),
        ("data.path=/tmp", "no effect"),
        ("method.sync_interval=100000 algorithm=muloco", "sync_interval"),
        ("method.num_workers=4", "num_workers"),
        ("inner_optimizer.momentum=0.95", "momentum"),
        ("execution.device=tpu", "tpu"),
        ("execution.device=cpu execution.attention=flex", "flex"),
        ("execution.device=cpu execution.muon_backend=triton algorithm=muloco", "triton"),
        ("execution.device=cuda", "torch finds no GPU here"),
        ("--estimate model=15b execution.sharding=some", "sharding"),
        ("--estimate --multirun model=29k,42k", "leave --multirun out"),
        ("model.vocab_size=100", "vocab_size"),
        ("seed=", "seed"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistake: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["muloco-train", *mistake.split()])
    with pytest.raises(SystemExit) as ending:
        main()
    stderr = capsys.readouterr().err
    assert ending.value.code == 2
    assert len(stderr.splitlines()) == 1, stderr
    assert expected in stderr
    assert not os.listdir(tmp_path)


def test_a_mistake_as_a_process_exits_with_two(tmp_path: Path) -> None:
    done = train(tmp_path, "global_batch_tokens=1000")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr


def test_plain_hydra_multirun_trains_each_combination(tmp_path: Path, text_dir: Path) -> None:
    done = train(tmp_path, "--multirun", "algorithm=ddp_muon,muloco", "seed=0,1", *SMALL, f"data.path={text_dir}")
    assert done.returncode == 0, done.stderr
    folders = list((tmp_path / "results" / "runs").iterdir())
    assert len(folders) == 4
    assert all((folder / "result.json").exists() for folder in folders)
    assert os.listdir(tmp_path) == ["results"]


def test_hydras_own_flags_work(tmp_path: Path) -> None:
    done = train(tmp_path, "--cfg", "job", "algorithm=muloco")
    assert done.returncode == 0, done.stderr
    assert "sync_interval: 30" in done.stdout
    assert not os.listdir(tmp_path)


def test_a_root_that_cannot_be_written_is_one_line(tmp_path: Path, text_dir: Path) -> None:
    # /proc takes no new folder from anybody, root included.
    done = train(tmp_path, *SMALL, f"data.path={text_dir}", "root=/proc/results")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("muloco-train: /proc/results/runs/")
    assert line.endswith("choose another root")

"""Weights of finished runs: counted, cleaned, and left to the best of each series and size when a sweep ends."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from muloco_runner.record import RunFolder, RunResult
from sweeps.__main__ import main
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import Lease
from sweeps.store.ledger import Ledger
from sweeps.training.best import best_results, training_runs_of
from sweeps.training.sweep import Sweep, read_sweep
from sweeps.training.weights import cost_of_weights, end_of_sweep, without_weights

SMALL = ["model=29k,42k", "algorithm=ddp_muon,muloco", "inner_optimizer.lr=0.01,0.02", "tokens_per_parameter=9"]
BYTES = 1000


def launched(root: Path, *words: str) -> Sweep:
    """A sweep whose runs are all finished and keep weights; the loss of each is its learning rate."""
    sweep = read_sweep([*SMALL, f"root={root}", *words])
    sweep.folder.write_definition(sweep.definition)
    for run in sweep.runs:
        folder = RunFolder.of(root, run.run_id)
        folder.write_config(run.to_dict())
        if folder.result_file.exists():
            continue
        loss = run.inner_optimizer.lr
        folder.write_result(
            RunResult(run.run_id, run.algorithm, False, loss, None, loss, run.num_params, 9, 9, 1.0, 60.0, 60.0, 0, "")
        )
        folder.checkpoint_at(9).mkdir(parents=True)
        (folder.checkpoint_at(9) / "shared.pt").write_bytes(b"0" * BYTES)
    return sweep


def record(sweep: Sweep, event: str, **values: Any) -> None:
    lease = Lease(sweep.folder.lease_dir)
    Ledger(sweep.folder.ledger_file, lease, lambda: 1000.0).append(event, **values)
    lease.release()


def holders(sweep: Sweep) -> set[str]:
    return {run.run_id for run in sweep.runs if RunFolder.of(sweep.root, run.run_id).checkpoint_steps()}


def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[Any, str]:
    monkeypatch.setattr(sys, "argv", ["muloco-sweep", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, "".join(capsys.readouterr())


def test_weights_stay_that_others_have_yet_to_start_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = launched(tmp_path, "execution.keep=best_of_sweep")
    first, second, *_ = (run.run_id for run in sweep.runs if run.inner_optimizer.lr == 0.02)
    queued = []
    for number, init_from in enumerate((f"runs/{first}", str(tmp_path / "runs" / second / "checkpoint" / "step-9"))):
        run = replace(sweep.runs[0], init_from=init_from, init_hash=f"{number:016}")
        queued.append(RunFolder.of(tmp_path, run.run_id))
        queued[-1].write_config(run.to_dict())
    end_of_sweep(sweep.folder, sweep.definition.works)
    assert {first, second} <= holders(sweep)
    _, said = say(capsys, monkeypatch, "clean", str(tmp_path), "--keep", "none", "--all")
    assert said.count("runs have yet to start from it") == 2
    assert holders(sweep) == {first, second}
    queued[0].checkpoint_at(3).mkdir(parents=True)
    say(capsys, monkeypatch, "clean", str(tmp_path), "--keep", "none", "--all")
    assert holders(sweep) == {second}


def test_clean_leaves_the_best_of_each_series_and_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = launched(tmp_path)
    assert len(sweep.runs) == len(holders(sweep)) == 8
    code, said = say(capsys, monkeypatch, "clean", str(tmp_path))
    assert code == 0
    assert "8 finished runs with weights, 8 kB" in said
    assert said.count("best of its series and size") == 4
    lines = best_results(training_runs_of(sweep.definition.works), tmp_path)
    assert [line.partition(":")[0] for line in lines if "Muon" in line] == [
        "best DDP-Muon at 29k",
        "best DDP-Muon at 42k",
    ]
    code, said = say(capsys, monkeypatch, "clean", str(tmp_path), "--keep", "best")
    assert (code, len(holders(sweep))) == (2, 8)
    assert "or say --all" in said
    unfinished = RunFolder.of(tmp_path, sweep.runs[0].run_id)
    result = unfinished.result_file.read_bytes()
    unfinished.result_file.unlink()
    code, said = say(capsys, monkeypatch, "clean", str(tmp_path), "--keep", "none", "model=29k")
    assert unfinished.run_id in holders(sweep), "it goes on from its checkpoint"
    assert len(holders(sweep)) == 5
    unfinished.result_file.write_bytes(result)
    code, said = say(capsys, monkeypatch, "clean", str(tmp_path), "--keep", "best", "--all", "--json")
    told = json.loads(said)
    assert (told["freed_bytes"], told["changed"], len(told["runs"])) == (2 * BYTES, True, 2)
    best = {run.run_id for run in sweep.runs if run.inner_optimizer.lr == 0.01 and run.num_params > 40_000}
    assert holders(sweep) == best | {unfinished.run_id} == set(told["kept"])


def test_the_end_of_a_sweep_leaves_the_best_and_what_others_hold(tmp_path: Path) -> None:
    assert end_of_sweep(SweepFolder(tmp_path, "none"), launched(tmp_path / "all").definition.works) == ""
    sweep = launched(tmp_path / "best", "execution.keep=best_of_sweep")
    other = launched(tmp_path / "best", "seed=0", "model=29k", "execution.keep=final")
    worse = {run.run_id for run in other.runs if run.inner_optimizer.lr == 0.02}
    said = end_of_sweep(sweep.folder, sweep.definition.works)
    assert said == "weights: kept of 6 runs, removed of 2 (0.0 MB)"
    assert holders(sweep) == {run.run_id for run in sweep.runs if run.inner_optimizer.lr == 0.01} | worse


def test_the_end_of_a_sweep_leaves_what_another_has_added(tmp_path: Path) -> None:
    sweep = launched(tmp_path, "execution.keep=best_of_sweep")
    other = launched(tmp_path, "seed=7", "model=29k", "execution.keep=final")
    worse = {
        run.run_id: work
        for run, work in zip(sweep.runs, sweep.definition.works, strict=True)
        if run.inner_optimizer.lr == 0.02
    }
    name = min(worse)
    at = {"group": "g", "values": {}, "others": "", "seed": 0, "why": ""}
    record(other, "added", runs=[{"work": worse[name].to_dict(), **at}])
    end_of_sweep(sweep.folder, sweep.definition.works)
    assert holders(sweep) & set(worse) == {name}


def test_weights_asked_for_too_late_have_a_price(tmp_path: Path) -> None:
    sweep = launched(tmp_path, "execution.keep=final")
    assert cost_of_weights(without_weights(sweep.definition.works)) == ""
    say_all = read_sweep([*SMALL, f"root={tmp_path}"])
    for run in sweep.runs:
        RunFolder.of(tmp_path, run.run_id).checkpoint_at(9).rename(tmp_path / run.run_id)
    assert cost_of_weights(without_weights(say_all.definition.works)) == ""
    assert "8 finished run(s) kept no weights" in cost_of_weights(without_weights(sweep.definition.works))
    assert "0.13 hours" in cost_of_weights(without_weights(sweep.definition.works))


def test_status_counts_the_weights_of_finished_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = launched(tmp_path)
    record(sweep, "found_finished", runs=[run.run_id for run in sweep.runs])
    assert "weights of 8 finished runs take 8 kB; free: " in say(capsys, monkeypatch, "status", str(tmp_path))[1]

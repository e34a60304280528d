"""Where the hours of a run went that is killed, then asked to stop: a sweep of the trainer itself."""

import dataclasses
import json
from pathlib import Path

import pytest

from muloco_runner.config import DataConfig, ModelConfig, RunConfig
from muloco_runner.record import RunFolder, read_all_goodput
from sweeps.__main__ import main
from sweeps.clusters.local import LocalCluster
from sweeps.controller import Controller
from sweeps.engine.policy import RULES, Cause
from sweeps.engine.work import Need, Work
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.training.adapter import TRAINING

HERE = Path(__file__).parents[1]
CLUSTER = {"kind": "local", "tick_seconds": 0.05, "allocations": [{"name": "here", "quota": {"jobs": 1}}]}
EXECUTION = {
    "device": "cpu",
    "log_interval_steps": 1,
    "evaluate_interval_steps": 20,
    "checkpoint_interval_seconds": 0.02,
}


def run_of(text: Path) -> RunConfig:
    model = ModelConfig(
        width=16, num_layers=2, head_width=8, vocab_size=256, sequence_length=32, ffn_ratio=2.75, rope_theta=1e4
    )
    text.mkdir()
    for number in range(20):
        (text / f"{number}.txt").write_text(f"worker {number} moves a step of the outer gradient\n" * 20)
    data = DataConfig(source="text", path=str(text), validation_tokens=512, validation_fraction=0.2)
    return RunConfig(model=model, data=data, global_batch_tokens=256, tokens_per_parameter=180 * 256 / model.num_params)


@pytest.mark.thorough
def test_the_hours_of_a_killed_and_stopped_run_are_itemised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setitem(RULES, Cause.CRASH, dataclasses.replace(RULES[Cause.CRASH], backoff_seconds=0.0))
    run = run_of(tmp_path / "text")
    place = RunFolder.of(tmp_path, run.run_id)
    place.write_config(run.to_dict())
    work = Work(run.run_id, str(place.path), "sample_work:train", {"execution": EXECUTION}, Need(), adapter=TRAINING)
    folder = SweepFolder(tmp_path, "sample")
    definition = Definition("sample", "local", CLUSTER, [work])
    folder.write_definition(definition)
    state = Controller(folder, definition, lambda config, path: LocalCluster(path, 1)).run()

    causes = [attempt.cause for attempt in state.runs[run.run_id].attempts]
    assert causes == [Cause.CRASH, Cause.WANTS_MORE_TIME, Cause.FINISHED]
    ((_, processor, goodput),) = read_all_goodput(tmp_path)
    assert processor == "CPU"
    assert goodput == state.goodput["CPU"]
    expected = {"training", "start-up", "evaluation", "checkpoints", "lost: crash", "shut-down"}
    assert set(goodput.hours) == expected
    assert all(hours > 0 for hours in goodput.hours.values())
    minutes = sum(attempt.minutes for attempt in state.runs[run.run_id].attempts)
    assert goodput.charged == pytest.approx(minutes / 60)
    # What was lost is no progress; a checkpoint after the killed attempt's last heartbeat is not known of.
    assert 0.6 * run.num_tokens < goodput.progress["tokens"] <= run.num_tokens

    monkeypatch.setattr("sys.argv", ["muloco-sweep", "status", str(tmp_path), "--json"])
    with pytest.raises(SystemExit):
        main()
    said = json.loads(capsys.readouterr().out)["goodput"]["CPU"]
    assert said["hours"] == goodput.hours
    monkeypatch.setattr("sys.argv", ["muloco-sweep", "explain", run.run_id, str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "CPU-hours of its attempts: " in capsys.readouterr().out

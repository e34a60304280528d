"""A run's folder to its model: the weights that were evaluated, or a refusal that says what there is."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from muloco_runner.config import ConfigError, DataConfig, ExecutionConfig, RunConfig, TargetConfig
from muloco_runner.data.batches import validation_batch
from muloco_runner.data.corpus import load_corpus
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.inference.load import LoadedRun, load_run
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder
from muloco_runner.training.evaluate import evaluate
from muloco_runner.training.loop import Trainer
from muloco_runner.training.precision import DTYPES
from muloco_runner.training.session import Session

MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]
KEEPS = ExecutionConfig(device="cpu", final_checkpoint=True)
TWO_SETS = """
import torch

class Averaged(torch.optim.SGD):
    'Trains one set of weights and evaluates their running mean.'

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.detach(), 0.1)

    @torch.no_grad()
    def _change(self, mode):
        for group in self.param_groups:
            if group.setdefault("mode", "train") != mode:
                for p in group["params"]:
                    kept = p.clone()
                    p.copy_(self.state[p]["mean"])
                    self.state[p]["mean"].copy_(kept)
                group["mode"] = mode

    def train(self):
        self._change("train")

    def eval(self):
        self._change("eval")
"""


def trained(run: RunConfig, folder: RunFolder, **execution: Any) -> RunFolder:
    assert run_job(folder, replace(KEEPS, **execution)) is ExitCode.FINISHED
    return folder


def validation_loss(loaded: LoadedRun) -> float:
    run = loaded.config
    batch = validation_batch(load_corpus(run.data), run, torch.device("cpu"))
    return evaluate(loaded.model, batch, DTYPES[run.precision], Communicator(Topology(1)))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("method", [{"method": "data_parallel"}, {"method": "diloco", "num_workers": 2}])
def test_a_loaded_model_has_the_loss_of_the_result(
    method: dict[str, Any], optimizer: str, tiny_run: MakeRun, new_folder: MakeFolder
) -> None:
    run = tiny_run(optimizer=optimizer, **method)
    loaded = load_run(trained(run, new_folder(run)).path)
    assert loaded.result is not None
    assert (loaded.config, loaded.step, loaded.worker) == (run, run.num_steps, None)
    assert not loaded.model.training
    assert validation_loss(loaded) == loaded.result.validation_loss
    assert loaded.tokenizer.decode(loaded.tokenizer.encode([b"anchor"])[0]) == "anchor"


def test_a_workers_own_weights_are_loaded_where_asked_for(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    run = tiny_run("diloco", "adamw", num_workers=2, sync_interval=20, num_steps=39)
    folder = new_folder(run)
    stops = iter([False] * 29 + [True] * 99)
    session = Session(folder, KEEPS, Communicator(Topology(2)), torch.device("cpu"), should_stop=lambda: next(stops))
    assert Trainer(run, load_corpus(run.data), session).train() is None
    anchor, first, second = (load_run(folder.path, worker=worker) for worker in (None, 0, 1))
    assert anchor.result is None
    assert anchor.step == 30
    weights = [loaded.model.head.weight for loaded in (anchor, first, second)]
    assert all(not torch.equal(weights[a], weights[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    with pytest.raises(ConfigError, match=r"worker=2: the run has 2 worker\(s\)"):
        load_run(folder.path, worker=2)


def test_weights_that_an_optimizer_evaluates_are_loaded(
    tiny_run: MakeRun, new_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two_sets_of_weights.py").write_text(TWO_SETS)
    monkeypatch.syspath_prepend(tmp_path)
    target = TargetConfig(_target_="two_sets_of_weights.Averaged", lr=0.05, applies_to="all", weight_decay=0.0)
    run = tiny_run(inner_optimizer=target)
    folder = trained(run, new_folder(run), checkpoint_interval_seconds=1e-3, evaluate_interval_steps=1)
    sys.modules.pop("two_sets_of_weights")
    by_step = {record.step: record.validation_loss for record in folder.read_steps()}
    for step in folder.checkpoint_steps():
        assert validation_loss(load_run(folder.path, step=step)) == by_step[step]


def test_a_folder_without_weights_says_what_they_cost(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    run = tiny_run()
    folder = new_folder(run)
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        load_run(folder.path)
    trained(run, folder, final_checkpoint=False)
    with pytest.raises(ConfigError, match=r"weights were not kept: training it again takes .* minutes on 1 rank"):
        load_run(folder.path)
    with pytest.raises(ConfigError, match="is no run folder"):
        load_run(folder.path.parent)


def test_a_damaged_or_absent_checkpoint_is_refused(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    run = tiny_run("diloco")
    folder = trained(run, new_folder(run))
    with pytest.raises(ConfigError, match=r"step=5: .* holds checkpoints of step 23"):
        load_run(folder.path, step=5)
    file = folder.checkpoint_at(23) / "shared.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"damaged.*there is no other"):
        load_run(folder.path)


def test_the_tokenizer_of_other_data_is_refused(tiny_run: MakeRun, new_folder: MakeFolder, text_dir: Path) -> None:
    run = tiny_run()
    loaded = load_run(trained(run, new_folder(run)).path)
    data = DataConfig(source="prepared", path=str(text_dir / "absent"), content_hash="0" * 16)
    with pytest.raises(ConfigError, match="muloco-data prepare"):
        _ = replace(loaded, config=replace(run, data=data)).tokenizer

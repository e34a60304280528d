"""Every method, optimizer, compressor and schedule under conf/: it is what it is called, resumes to the bit, and the
plan, the memory estimate and the analysis know it."""

import json
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.runs import load_study
from muloco_runner.compose import compose_app_config
from muloco_runner.config import DiLoCoConfig, ExecutionConfig, RunConfig
from muloco_runner.data.corpus import load_corpus
from muloco_runner.diloco.compression.payload import Descriptor, payload_bytes
from muloco_runner.diloco.compression.row_ranges import writes_rows_apart
from muloco_runner.diloco.error_feedback import choose_codecs
from muloco_runner.diloco.method import DataParallel, DiLoCo
from muloco_runner.diloco.primal_averaging import PrimalAveraging
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.job import run_job
from muloco_runner.memory import Placement, estimate_memory
from muloco_runner.paths import config_dir
from muloco_runner.record import ExitCode, RunFolder
from muloco_runner.training.loop import Trainer
from muloco_runner.training.session import Session

GROUPS = ("inner_optimizer", "method/outer_optimizer", "method/compression", "schedule")
STEPS, STOP_AT, NUM_PARAMS = 13, 6, 14_640
TINY = [
    *(f"model.{name}" for name in ("width=16", "num_layers=2", "head_width=8", "vocab_size=256", "sequence_length=32")),
    "inner_optimizer.weight_decay_rule=constant",
    *("data=text", "data.validation_tokens=256", "global_batch_tokens=128"),
]
DILOCO = [
    *("method=diloco", "method.num_workers=2", "method.sync_interval=4"),
    *("method.streaming.num_fragments=2", "method.streaming.delay_steps=1", "method.streaming.mixing=0.1"),
]


def names(group: str) -> list[str]:
    """Those of other packages' classes are tried in test_targets.py."""
    files = (config_dir() / group).glob("*.yaml")
    return sorted(path.stem for path in files if "_target_" not in path.read_text())


def combinations() -> list[list[str]]:
    """As few runs as hold every file at least once, each the difference from `DILOCO` or from data parallel."""
    count = max(len(names(group)) for group in GROUPS)
    columns = [[choice for choice, _ in zip(cycle(names(group)), range(count), strict=False)] for group in GROUPS]
    found = [[f"{group}={name}" for group, name in zip(GROUPS, row, strict=True)] for row in zip(*columns, strict=True)]
    others = [name for name in names("method") if name != "diloco"]
    return [
        *found,
        *([f"method={method}", f"inner_optimizer={inner}"] for method in others for inner in names(GROUPS[0])),
    ]


def values_of(combination: list[str], text_dir: Path) -> list[str]:
    composed = any(word.startswith("method=") for word in combination)
    return [
        *([] if composed else DILOCO),
        *combination,
        *TINY,
        f"data.path={text_dir}",
        f"tokens_per_parameter={STEPS * 128 / NUM_PARAMS}",
    ]


def class_named(name: str, config: object) -> bool:
    """`OuterAdamConfig` describes an `OuterAdam`."""
    return type(config).__name__ == f"{name}Config"


@pytest.fixture(scope="module")
def runs(text_dir: Path) -> dict[str, RunConfig]:
    return {" ".join(words): compose_app_config(values_of(words, text_dir)).run for words in combinations()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


def trainer_of(run: RunConfig, folder: RunFolder, execution: ExecutionConfig, stop_at: int) -> Trainer:
    def should_stop() -> bool:
        return trainer.state.step >= stop_at

    communicator = Communicator(Topology(run.num_workers))
    session = Session(folder, execution, communicator, torch.device("cpu"), should_stop=should_stop)
    trainer = Trainer(run, load_corpus(run.data), session)
    return trainer


def final_files(folder: RunFolder) -> tuple[dict[str, str], Any]:
    """Digests of the workers' files in the last checkpoint, and what the workers share."""
    newest = max(folder.checkpoint_dir.iterdir())
    digests = json.loads((newest / "manifest.json").read_text())["sha256"]
    shared = torch.load(newest / "shared.pt", weights_only=True)
    return {n: d for n, d in digests.items() if n != "shared.pt"}, (shared["method"], shared["outer_steps"])


def tensor_bytes(value: Any) -> int:
    """Of all tensors within, but numbers of steps."""
    if isinstance(value, torch.Tensor):
        return value.nbytes if value.numel() > 1 else 0
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(tensor_bytes(item) for item in values)


def check_types(run: RunConfig, trainer: Trainer) -> None:
    assert class_named(type(trainer.method).__name__, run.method)
    assert class_named(type(trainer.state.workers[0].optimizer).__name__, run.inner_optimizer)
    if isinstance(run.method, DiLoCoConfig):
        assert isinstance(trainer.method, DiLoCo)
        (optimizer, *_) = [fragment.optimizer for fragment in trainer.method.fragments]
        assert class_named(type(optimizer).__name__, run.method.outer_optimizer)
        codec = choose_codecs(run.method.compression, trainer.state.workers[0].model)[0]
        called = {"none": "exact"}.get(run.method.compression.name, run.method.compression.name)
        assert type(codec).__name__.lower() == called.replace("_", "")
        check_codec(run.method, codec)
    else:
        assert isinstance(trainer.method, DataParallel | PrimalAveraging)


def check_codec(method: DiLoCoConfig, codec: Any) -> None:
    """What the config states of a large tensor is what the codec sends."""
    sent = payload_bytes([Descriptor.of((1024, 1024), torch.float32, codec)])
    assert 8 * sent / 2**20 == pytest.approx(method.compression.bits_per_value, rel=0.01)
    assert writes_rows_apart(codec) == method.compression.sends_rows_apart


def check_memory(run: RunConfig, trainer: Trainer) -> None:
    """What the estimate says of state is what there is, on one process that holds all workers."""
    estimate = estimate_memory(run, Placement(1, device="cpu"))
    workers, method = trainer.state.workers, trainer.method
    inner = sum(tensor_bytes(worker.optimizer.state_dict()["state"]) for worker in workers)
    assert estimate.inner_optimizer == inner
    state = method.state_dict()
    errors = [method.worker_state(row) for row in range(len(workers))]
    assert estimate.method == tensor_bytes({k: v for k, v in state.items() if k != "arriving"}) + tensor_bytes(errors)


@pytest.mark.parametrize("combination", [" ".join(words) for words in combinations()], ids=lambda words: words[:150])
def test_a_choice_is_what_it_is_called_and_resumes_to_the_bit(
    combination: str, runs: dict[str, RunConfig], root: Path, tmp_path: Path, execution: ExecutionConfig
) -> None:
    run = runs[combination]
    assert run.num_steps == STEPS
    whole, cut = RunFolder.of(root, run.run_id), RunFolder.of(tmp_path, run.run_id)
    for folder in (whole, cut):
        folder.write_config(run.to_dict())
    assert run_job(whole, execution) is ExitCode.FINISHED
    trainer = trainer_of(run, cut, execution, STOP_AT)
    assert trainer.train() is None
    check_types(run, trainer)
    check_memory(run, trainer)
    assert trainer_of(run, cut, execution, STEPS).train() is not None
    now, expected = final_files(cut), final_files(whole)
    assert now[0] == expected[0]
    assert now[1][1] == expected[1][1]
    for name, tensors in expected[1][0].items():
        assert all(torch.equal(one, other) for one, other in zip(now[1][0][name], tensors, strict=True)), name
    # The first line of the record that has no header is taken for one.
    assert [s.loss for s in cut.read_steps()] == [s.loss for s in whole.read_steps()][1:]


def test_the_analysis_tells_every_choice_apart(runs: dict[str, RunConfig], root: Path) -> None:
    """Reads the runs that the test above has trained; those of this process, where tests are spread over several."""
    done = {run.run_id: run for run in runs.values() if RunFolder.of(root, run.run_id).read_result() is not None}
    if not done:
        pytest.skip("no run was trained in this process")
    rows = load_study(root).runs.set_index("run_id")
    assert set(rows.index) == set(done)
    assert len(set(zip(rows["algorithm"], rows["series"], rows["hyper_parameters"], strict=True))) == len(done)
    for run_id, run in done.items():
        row = rows.loc[run_id]
        assert row["algorithm"] == run.algorithm
        assert row["bits_per_value"] == pytest.approx(run.method.bits_per_value, nan_ok=True)
        assert (row["gathered_values"] > 0) == (run.num_workers == 1 and run.inner_optimizer.shares_matrices)


def test_every_file_takes_part() -> None:
    covered = {word.replace("=", "/") for words in combinations() for word in words} | {"method/diloco"}
    files = [path for group in ("method", *GROUPS) for path in (config_dir() / group).glob("*.yaml")]
    own = [path for path in files if "_target_" not in path.read_text()]
    assert {path.relative_to(config_dir()).with_suffix("").as_posix() for path in own} <= covered


def test_every_choice_is_planned_without_torch(text_dir: Path, tmp_path: Path) -> None:
    code = """
import json, sys
from pathlib import Path
from muloco_runner.compose import compose_app_config
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig
from sweeps.training.entry import works_of
apps = [compose_app_config(words) for words in json.loads(sys.argv[1])]
cluster = ClusterConfig("c", "slurm", [AllocationConfig("a", gpus_per_node=8)])
works = works_of([app.run for app in apps], Path(sys.argv[2]), apps[0].execution, cluster)
assert "torch" not in sys.modules
print(len({work.name for work in works}))
"""
    words = json.dumps([values_of(words, text_dir) for words in combinations()])
    done = subprocess.run(
        [sys.executable, "-c", code, words, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(combinations())

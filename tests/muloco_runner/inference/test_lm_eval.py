"""lm-evaluation-harness on local tasks, through our wrapper and the exported folder. `make test-extras` has it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from forked import on_two_ranks
from prepared_text import texts

import muloco_runner.inference.command
from analysis.questions.options import Options
from analysis.report.content import build_report
from analysis.runs import load_study
from muloco_runner.config import ConfigError, DataConfig, ExecutionConfig, ModelConfig, RunConfig
from muloco_runner.data.prepared.input_chunk import PrepareOptions
from muloco_runner.data.prepared.inputs import find_files
from muloco_runner.data.prepared.prepare import prepare
from muloco_runner.inference.evaluation import tasks
from muloco_runner.inference.export import export_run
from muloco_runner.inference.load import load_run
from muloco_runner.inference.shared_work import Ranks
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("transformers")
from muloco_runner.inference.lm_eval_model import LoadedModel  # noqa: E402  # needs the harness

MakeRun = Callable[..., RunConfig]
COMMAND = Path(muloco_runner.inference.command.__file__)
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
metadata: {{version: 1.0}}
"""
CHOICE = """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
NEXT = """
output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""


TASKS = ["muloco_choice", "muloco_next"]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def local_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks and their data: which word follows, chosen or written."""
    words = ["gradient", "anchor", "worker", "outer", "step"]
    rows = [
        {"question": f"the {words[n % 5]} of", "choices": [f" {word}" for word in words], "answer": (n * 7) % 5}
        for n in range(20)
    ]
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in zip(TASKS, (CHOICE, NEXT), strict=True):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data) + text)
    return folder


@pytest.fixture(scope="module")
def trained(tokenizer_file: Path, tiny_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run on data whose documents end with a token, which the harness itself needs and bytes do not have."""
    base = tmp_path_factory.mktemp("trained")
    (base / "texts").mkdir()
    for number, text in enumerate(texts(60, seed=1)):
        (base / "texts" / f"{number}.txt").write_text(text)
    options = PrepareOptions(str(tokenizer_file), validation_fraction=0.2)
    prepare(find_files([base / "texts"], None), base / "prepared", options, 1, lambda done: None)
    data = DataConfig(source="prepared", path=str(base / "prepared"), validation_tokens=256)
    model = ModelConfig(width=32, num_layers=2, head_width=16, vocab_size=290, sequence_length=64, rope_theta=1e4)
    run = tiny_run("diloco", "muon", model=model, data=data, num_steps=40)
    folder = RunFolder.of(base, run.run_id)
    folder.write_config(run.to_dict())
    assert run_job(folder, ExecutionConfig(device="cpu")) is ExitCode.FINISHED
    return folder


def scores_in(folder: RunFolder) -> dict[str, dict[str, float]]:
    """What is kept of each task."""
    files = folder.evaluations_at(40).glob("*.json")
    return {file.stem: json.loads(file.read_text())["scores"] for file in files}


def test_scores_are_those_of_the_exported_folder(
    local_tasks: Path, trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_run(trained.path)
    ours = tasks(loaded, TASKS, local_tasks, None, batch=7)
    export_run(loaded, tmp_path / "hf")
    manager = lm_eval.tasks.TaskManager(include_path=str(local_tasks), include_defaults=False)
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "hf"), "dtype": "float32", "device": "cpu"},
        tasks=TASKS,
        task_manager=manager,
        batch_size=4,
    )["results"]
    for name, found in ours.items():
        scores = {key: value for key, value in theirs[name].items() if key in found["scores"]}
        assert found["scores"] == pytest.approx(scores), name
    assert 0 < ours["muloco_choice"]["scores"]["acc,none"] < 1
    monkeypatch.setattr("muloco_runner.inference.lm_eval_model.scores_of", None)  # once is enough
    assert tasks(loaded, TASKS[:1], local_tasks, None, batch=7)["muloco_choice"] == ours["muloco_choice"]
    # Another definition under the same name is another task.
    (local_tasks / "more.yaml").write_text("group: more\ntask: []\n")
    try:
        with pytest.raises(TypeError):
            tasks(loaded, TASKS[:1], local_tasks, None, batch=7)
    finally:
        (local_tasks / "more.yaml").unlink()
    report = build_report(load_study(trained.path.parents[1]), Options(bootstrap=0))
    shown = [(one["name"], one["metric"]) for one in report["evaluations"]["measures"]]
    assert shown == [("muloco_choice", "acc_norm"), ("muloco_next", "exact_match")]


def test_two_processes_score_as_one_does(local_tasks: Path, trained: RunFolder) -> None:
    tasks(load_run(trained.path), TASKS, local_tasks, None, batch=7)
    alone = scores_in(trained)
    shutil.rmtree(trained.path / "evaluations")
    words = ["eval", str(trained.path), "--tasks", ",".join(TASKS), "--include", str(local_tasks), "--batch", "7"]
    on_two_ranks(COMMAND, words)
    assert scores_in(trained) == alone


def test_texts_are_continued_alike_in_any_batch(trained: RunFolder) -> None:
    loaded = load_run(trained.path)
    settings = [
        {"until": ["."], "max_gen_toks": 20, "do_sample": False},
        {"until": [" the"], "max_gen_toks": 40, "do_sample": True, "temperature": 0.7},
    ]
    contexts = ["the outer step", "anchor", "the", "Nesterov of the outer"]
    requests = [SimpleNamespace(args=(context, setting)) for context in contexts for setting in settings]
    (one_by_one, together) = (LoadedModel(loaded, batch, Ranks()).generate_until(requests) for batch in (1, 3))
    assert together == one_by_one
    assert len(set(one_by_one)) > 4
    assert not any("." in text for text in one_by_one[::2])
    assert not any(" the" in text for text in one_by_one[1::2])


def test_a_task_that_is_none_is_refused(trained: RunFolder, local_tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no_such_thing: no such task"):
        tasks(load_run(trained.path), ["no_such_thing"], local_tasks, None, batch=7)
    with pytest.raises(ConfigError, match="no folder with tasks' YAML files"):
        tasks(load_run(trained.path), ["no_such_thing"], tmp_path / "absent", None, batch=7)

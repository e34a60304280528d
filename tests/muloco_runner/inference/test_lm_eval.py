"""lm-evaluation-harness on local tasks, through our wrapper and the exported folder. `make test-extras` has it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from prepared_text import texts

from muloco_runner.config import ConfigError, DataConfig, ExecutionConfig, ModelConfig, RunConfig
from muloco_runner.data.prepared.input_chunk import PrepareOptions
from muloco_runner.data.prepared.inputs import find_files
from muloco_runner.data.prepared.prepare import prepare
from muloco_runner.inference.evaluation import tasks
from muloco_runner.inference.export import export_run
from muloco_runner.inference.load import load_run
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("transformers")
MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]
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


@pytest.fixture
def local_tasks(tmp_path: Path) -> Path:
    """Two tasks and their data: which word follows, chosen or written."""
    words = ["gradient", "anchor", "worker", "outer", "step"]
    rows = [
        {"question": f"the {words[n % 5]} of", "choices": [f" {word}" for word in words], "answer": (n * 7) % 5}
        for n in range(20)
    ]
    data = tmp_path / "tasks" / "data.jsonl"
    data.parent.mkdir()
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("muloco_choice", CHOICE), ("muloco_next", NEXT)):
        (data.parent / f"{name}.yaml").write_text(TASK.format(name=name, data=data) + text)
    return data.parent


def test_scores_are_those_of_the_exported_folder(
    local_tasks: Path,
    tokenizer_file: Path,
    tiny_run: MakeRun,
    new_folder: MakeFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    # The harness itself needs a token that ends a document, which bytes do not have.
    texts_folder, data = tmp_path / "texts", tmp_path / "prepared"
    texts_folder.mkdir()
    for number, text in enumerate(texts(60, seed=1)):
        (texts_folder / f"{number}.txt").write_text(text)
    options = PrepareOptions(str(tokenizer_file), validation_fraction=0.2)
    prepare(find_files([texts_folder], None), data, options, 1, lambda done: None)
    prepared = DataConfig(source="prepared", path=str(data), validation_tokens=256)
    model = ModelConfig(width=32, num_layers=2, head_width=16, vocab_size=290, sequence_length=64, rope_theta=1e4)
    run = tiny_run("diloco", "muon", model=model, data=prepared, num_steps=40)
    folder = new_folder(run)
    assert run_job(folder, ExecutionConfig(device="cpu")) is ExitCode.FINISHED
    loaded = load_run(folder.path)
    ours = tasks(loaded, ["muloco_choice", "muloco_next"], local_tasks, None, batch=7)
    export_run(loaded, tmp_path / "hf")
    manager = lm_eval.tasks.TaskManager(include_path=str(local_tasks))
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "hf"), "dtype": "float32", "device": "cpu"},
        tasks=["muloco_choice", "muloco_next"],
        task_manager=manager,
        batch_size=4,
    )["results"]
    for name, found in ours.items():
        scores = {key: value for key, value in theirs[name].items() if isinstance(value, int | float)}
        assert found["scores"] == pytest.approx(scores), name
    assert 0 < ours["muloco_choice"]["scores"]["acc,none"] < 1
    monkeypatch.setattr("muloco_runner.inference.lm_eval_model.scores_of", None)  # once is enough
    assert tasks(loaded, ["muloco_choice"], local_tasks, None, batch=7)["muloco_choice"] == ours["muloco_choice"]


def test_a_task_that_is_none_is_refused(tiny_run: MakeRun, new_folder: MakeFolder, local_tasks: Path) -> None:
    run = tiny_run()
    folder = new_folder(run)
    assert run_job(folder, ExecutionConfig(device="cpu")) is ExitCode.FINISHED
    with pytest.raises(ConfigError, match="no_such_thing: no such task"):
        tasks(load_run(folder.path), ["no_such_thing"], local_tasks, None, batch=7)

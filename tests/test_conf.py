"""Every file under conf/ composes to a checked run, and a misspelt key never passes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.models import model_named
from muloco_runner.compose import compose_app_config, one_line
from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.paths import config_dir
from sweeps.training.sweep import read_sweep

# What a choice needs beside itself to be a whole run.
NEEDS = {
    "data/text": ["data.path=somewhere"],
    "data/prepared": ["data.path=somewhere"],
}
PUBLISHED_SIZES = ("150m", "416m", "914m", "1.76b", "3.1b", "15b")
# Groups that hold other things than a run's choices.
OTHERS = {"cluster", "sweep", "weight_decay"}


def choices() -> list[str]:
    names = [path.relative_to(config_dir()).with_suffix("").as_posix() for path in config_dir().rglob("*.yaml")]
    return sorted(name for name in names if "/" in name and name.split("/")[0] not in OTHERS)


@pytest.mark.parametrize("choice", choices())
def test_every_choice_composes(choice: str) -> None:
    group, _, name = choice.rpartition("/")
    overrides = [f"{group}={name}", *NEEDS.get(choice, [])]
    if group.startswith("method/"):
        overrides = ["algorithm=muloco", *overrides]
    if name in PUBLISHED_SIZES:
        overrides.append("global_batch_tokens=1048576")
    run = compose_app_config(overrides).run
    assert RunConfig.from_dict(run.to_dict()).run_id == run.run_id
    if group == "model":
        assert model_named(name) == run.model, "benchmarks read models without Hydra"


@pytest.mark.parametrize("size", PUBLISHED_SIZES)
@pytest.mark.parametrize("algorithm", ["ddp_adamw", "ddp_muon", "diloco", "muloco"])
def test_published_sizes_carry_the_published_weight_decay(size: str, algorithm: str) -> None:
    run = compose_app_config([f"model={size}", f"algorithm={algorithm}", "global_batch_tokens=1048576"]).run
    muon = {"150m": 0.01, "416m": 0.01, "914m": 0.01, "1.76b": 0.001, "3.1b": 0.001, "15b": 1e-4}
    expected = 0.001 if (size, run.inner_optimizer.name) == ("150m", "adamw") else muon[size]
    assert run.weight_decay == expected


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["modle=42k"], "modle: no such setting; did you mean model?"),
        (["lr=0.1"], "lr: no such setting; did you mean inner_optimizer.lr?"),
        (["+lr=0.1"], "lr: no such setting; did you mean inner_optimizer.lr?"),
        (["++method.streaming.fragments=3", "algorithm=muloco"], "did you mean method.streaming.num_fragments?"),
        (["+inner_optimizer.momentum=0.9"], "another choice of inner_optimizer has it"),
        (["+execution.quickness=0.9"], "execution.quickness: no such setting; known there: device"),
        (["cluster.successors=false"], "+cluster.successors=VALUE"),
        (["+wrong=0.9"], "wrong: no such setting; known there: model"),
        (["model=43k"], "43k"),
        (["inner_optimizer.learning_rate=1"], "did you mean inner_optimizer.lr?"),
        (["method.num_workers=4"], "num_workers"),
        (["algorithm=ddp_adamw", "inner_optimizer.momentum=0.9"], "momentum"),
        (["model.width=50"], "multiple of model.head_width"),
        (["model.head_width=3", "model.width=33"], "even"),
        (["global_batch_tokens=2000"], "2048"),
        (["algorithm=muloco", "method.num_workers=3"], "multiple of 384"),
        (["algorithm=muloco", "method.sync_interval=100000"], "no outer step"),
        (["algorithm=ddp_muon", "method/compression=linear"], "method/compression"),
        (["algorithm=muloco", "method.compression.bits=2"], "bits"),
        (["algorithm=muloco", "method/compression=linear", "method.compression.bits=3"], "2, 4, 8"),
        (["algorithm=muloco", "method/compression=top_k", "method.compression.bits=4"], "no effect"),
        (["algorithm=muloco", "method/compression=linear", "method.compression.error_feedback=1.5"], "at most 1"),
        (["algorithm=muloco", "method/compression=sparse_loco", "method.compression.chunk=4000"], "1024, 4096, 16384"),
        (
            ["algorithm=muloco", "method/compression=sparse_loco", "method.compression.fraction=1e-4"],
            "use 0.000244141 to",
        ),
        (["algorithm=muloco", "method.streaming.num_fragments=3"], "model.num_layers=2"),
        (["algorithm=muloco", "method.streaming.delay_steps=30"], "method.sync_interval=30"),
        (["algorithm=muloco", "method/outer_optimizer=adam", "method.outer_optimizer.betas=[0.9,1]"], "below 1"),
        (["algorithm=muloco", "method/outer_optimizer=adam", "method.outer_optimizer.momentum=0.9"], "momentum"),
        (["inner_optimizer.name=muon"], "AdamWConfig is adamw"),
        (["algorithm=muloco", "method/outer_optimizer=averaging", "method.outer_optimizer.matrix_lr=1"], "matrix_lr"),
        (["execution.link_megabits_per_second=0"], "link_megabits_per_second"),
        (["seed=-1"], "seed"),
        (["seed=one"], "seed"),
        (["seed=99999999999999999999"], "below 2^63"),
        (["execution.memory_halvings=-1"], "memory_halvings=-1"),
        (
            ["algorithm=muloco", "inner_optimizer.coefficients=polar_express", "inner_optimizer.num_iterations=6"],
            "at most five",
        ),
        (["inner_optimizer.lr=0"], "inner_optimizer.lr"),
        (["inner_optimizer.lr=nan"], "inner_optimizer.lr"),
        (["data.path=here"], "no effect"),
        (["data=text"], "data.path"),
        (["precision=float16"], "bfloat16"),
    ],
)
def test_a_mistake_is_one_clear_line(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_app_config(overrides).run.run_id  # noqa: B018
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert one_line(caught.value) == str(caught.value), "said once, also where the cause is at hand"


def test_names_of_runs_without_compression_or_fragments_stand() -> None:
    names = {algorithm: compose_app_config([f"algorithm={algorithm}"]).run.run_id for algorithm in ("diloco", "muloco")}
    assert names == {"diloco": "f9efdd067d79", "muloco": "a6e080bfe3d7"}


def test_local_sgd_is_diloco_that_averages() -> None:
    averaging = "method/outer_optimizer=averaging"
    for inner, name, run_id in (("adamw", "LocalSGD-AdamW", "fdbd7cd6a554"), ("muon", "LocalSGD-Muon", "53cb5d568ebe")):
        run = compose_app_config(["algorithm=local_sgd", f"inner_optimizer={inner}"]).run
        assert run == compose_app_config(["algorithm=diloco", f"inner_optimizer={inner}", averaging]).run
        assert (run.algorithm, run.run_id) == (name, run_id), "the id from before it had this name"
    for other in ("method.outer_optimizer.momentum=0.1", "method.outer_optimizer.lr=0.9"):
        assert compose_app_config(["algorithm=local_sgd", other]).run.algorithm == "DiLoCo"


def test_a_runs_name_depends_on_what_decides_its_result_alone() -> None:
    def run_id(*overrides: str) -> str:
        return compose_app_config(overrides).run.run_id

    assert run_id() == run_id("execution.micro_batch_sequences=1", "root=elsewhere")
    assert run_id("tokens_per_parameter=20") == run_id("tokens_per_parameter=20.0")
    ids = {run_id(o) for o in ("seed=0", "seed=1", "model=29k", "algorithm=muloco", "inner_optimizer.lr=0.001")}
    assert len(ids) == 5


def test_no_torch_on_a_login_node() -> None:
    code = (
        "import sys, sweeps, analysis, muloco_runner.config, muloco_runner.record, muloco_runner.compose\n"
        "import sweeps.__main__, analysis.__main__, muloco_runner.__main__, muloco_runner.job\n"
        "assert 'torch' not in sys.modules, 'torch was loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("folder", ["it's", "a b", '"x', "a=b", "[x]", "{x", "(x)", "a\\", "null", "1e3", "é", "a#b;c"])
def test_a_root_is_the_folder_that_a_shell_hands_on(folder: str) -> None:
    assert compose_app_config([f"root={folder}"]).root == folder


def test_words_that_cannot_be_read_say_how_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word, said in (
        ("root=a,b", "root=a,b: one root at a time; a folder with a comma in its name is 'root=\"a,b\"'"),
        ("root=''", "root='': names no folder: give one, such as root=results"),
        ("data.path=a#b", "data.path=a#b: cannot be read: text with quotes, brackets or other signs is written "),
    ):
        for read in (compose_app_config, read_sweep):
            with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
                read(["data=text", word])
    with pytest.raises(
        ConfigError, match=r"^cluster=local,h100: one value at a time: cluster is the same for all runs"
    ):
        read_sweep(["seed=0", "cluster=local,h100"])
    (tmp_path / "it's").mkdir()
    assert compose_app_config(["data=text", "data.path=it's"]).data.path == "it's"
    assert compose_app_config(['root="a,b"']).root == "a,b"

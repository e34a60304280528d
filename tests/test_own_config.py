"""A user's own config folders: searched before the package's by every command, groups alone, and never in silence."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muloco_runner import __main__ as train
from muloco_runner.compose import compose_app_config
from muloco_runner.config import ConfigError
from muloco_runner.paths import ConfigPath, announce, config_dir, config_path, take_config_path, use_config_path
from muloco_runner.record import RunFolder
from sweeps.__main__ import main as sweep_main
from sweeps.training.sweep import read_sweep

OWN_MODEL = "defaults: [small_ladder]\nwidth: 16\nnum_layers: 1\n"
OWN_SWEEP = "grids:\n  - product: {model: [mine, 42k], seed: [1, 2]}\n"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A work folder with ./conf: two models, one under a built-in name, a sweep, and files of another program."""
    for name, text in {
        "model/mine.yaml": OWN_MODEL,
        "model/42k.yaml": OWN_MODEL,
        "model/29k.yaml": (config_dir() / "model" / "29k.yaml").read_text(),
        "sweep/small.yaml": OWN_SWEEP,
        "config.yaml": "nonsense: 1\n",
        "seed/1.yaml": "nonsense: 1\n",
    }.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    (tmp_path / "other.yaml").write_text(OWN_SWEEP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MULOCO_CONF", raising=False)
    yield tmp_path
    use_config_path(ConfigPath())


def use(*words: str) -> list[str]:
    others, path = take_config_path(words)
    use_config_path(path)
    return others


def test_own_groups_come_first_and_another_config_counts_not(own: Path) -> None:
    assert use("model=mine", "seed=1") == ["model=mine", "seed=1"]
    for name in ("mine", "42k"):
        assert compose_app_config([f"model={name}", "seed=1"]).run.model.num_layers == 1
    assert compose_app_config(["model=82k"]).run.model.width == 48
    assert "conf/model/42k.yaml for model=42k" in announce(config_path())
    assert "29k" not in announce(config_path()), "a file of the same content changes nothing"


def test_conf_path_none_turns_own_folders_off(own: Path) -> None:
    use("conf_path=none")
    assert compose_app_config(["model=42k"]).run.model.num_layers == 2
    with pytest.raises(ConfigError, match="mine"):
        compose_app_config(["model=mine"])
    assert config_path().as_arguments() == ["conf_path=none"]


def test_said_folders_come_before_listed_ones_and_conf(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("said", "listed"), 2):
        (own / name / "model").mkdir(parents=True)
        text = OWN_MODEL.replace("num_layers: 1", f"num_layers: {number}")
        (own / name / "model" / "mine.yaml").write_text(text)
    monkeypatch.setenv("MULOCO_CONF", str(own / "listed"))
    use("--config-dir", "said")
    assert [folder.name for folder in config_path().folders] == ["said", "listed", "conf"]
    assert compose_app_config(["model=mine"]).run.model.num_layers == 2
    before = config_path()
    assert take_config_path(before.as_arguments())[1] == before, "a started process searches the same"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config-dir", "nowhere"], "there is no folder"),
        (["--config-dir"], "needs a folder"),
        (["--config-dir=conf/model"], "name the folder above"),
        (["conf_path=here"], "must be conf_path=none"),
        (["conf_path=none", "--config-dir=conf"], "leave one out"),
    ],
)
def test_a_mistake_in_config_folders_is_one_line(own: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        take_config_path(words)


def test_a_listed_folder_that_is_missing_is_refused(own: Path) -> None:
    with pytest.raises(ConfigError, match="MULOCO_CONF=nowhere"):
        take_config_path([], {"MULOCO_CONF": "nowhere"})


def test_broken_yaml_of_a_user_is_one_line(own: Path) -> None:
    (own / "conf" / "model" / "mine.yaml").write_text("width: [1\n")
    use()
    with pytest.raises(ConfigError, match=r"model/mine\.yaml") as caught:
        compose_app_config(["model=mine"])
    assert "\n" not in str(caught.value)


def test_a_sweep_is_given_by_name_or_by_path(own: Path) -> None:
    use()
    by_name, by_path = read_sweep(["+sweep=small"]), read_sweep(["+sweep=./other.yaml"])
    assert {run.run_id for run in by_name.runs} == {run.run_id for run in by_path.runs}
    assert (len(by_name.runs), by_path.name) == (2, "other"), "two names of one model are one run a seed"
    (own / "list.yaml").write_text("defaults: [small]\n")
    for file, said in (("./nowhere.yaml", "no such file"), ("./list.yaml", "no defaults list")):
        with pytest.raises(ConfigError, match=said):
            read_sweep([f"+sweep={file}"])


def test_train_names_what_it_shadows_and_records_it(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["tokens_per_parameter=0.2", "data=text", "data.path=text", "data.validation_fraction=0.3", "root=runs_here"]
    (own / "text").mkdir()
    for number in range(20):
        (own / "text" / f"{number}.txt").write_text(f"{number} or not to be. " * 400)
    monkeypatch.setattr(sys, "argv", ["muloco-train", "model=42k", "execution.device=cpu", *few])
    with pytest.raises(SystemExit) as end:
        train.main()
    said = capsys.readouterr()
    assert end.value.code == 0, said.err
    assert "conf/model/42k.yaml for model=42k" in said.err
    (folder,) = RunFolder.all_under(own / "runs_here")
    recorded = json.loads((folder.path / "config_sources.json").read_text())
    assert recorded["shadows"] == {"model/42k": str(own / "conf" / "model" / "42k.yaml")}
    assert recorded["search_path"] == [str(own / "conf"), str(config_dir())]


def test_a_multirun_plans_a_sweep_by_its_path(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[str] = []

    def keep(overrides: list[str], detached: bool, allow_large: bool) -> int:
        found.extend(run.model.num_layers for run in read_sweep(overrides).runs)
        return 0

    monkeypatch.setattr("sweeps.__main__.multirun", keep)
    monkeypatch.setattr(sys, "argv", ["muloco-train", "--multirun", "+sweep=./other.yaml", "tokens_per_parameter=1"])
    with pytest.raises(SystemExit):
        train.main()
    assert found == [1, 1], capsys.readouterr().err


def test_init_writes_a_cluster_and_a_sweep_and_overwrites_neither(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(*words: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["muloco-sweep", *words])
        with pytest.raises(SystemExit) as end:
            sweep_main()
        said = capsys.readouterr()
        return end.value.code, said.out + said.err

    (own / "conf" / "model" / "42k.yaml").unlink()
    assert say("init", "here", "--local")[0] == 0
    code, said = say("plan", "+sweep=mine", "cluster=here")
    assert code == 0, said
    assert "under the quota of cluster here" in said
    (own / "conf" / "cluster" / "here.yaml").write_text("mine")
    assert say("init", "here", "--local")[0] == 2
    assert (own / "conf" / "cluster" / "here.yaml").read_text() == "mine"
    assert say("init", "h100", "--local")[0] == 2
    assert say("init", "", "--local") == (
        2,
        "muloco-sweep: init '': a name is one or more of letters, digits, - and _\n",
    )
    code, said = say("init", "two", "--local")
    assert code == 0, said
    assert "is kept" in said


def test_a_sweep_file_without_keys_is_refused(own: Path) -> None:
    (own / "conf" / "sweep" / "listed.yaml").write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match=r"\+sweep=listed: the file holds no keys"):
        read_sweep(use("+sweep=listed", "cluster=local", "model=29k"))

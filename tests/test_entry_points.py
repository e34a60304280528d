"""Choices that other installed packages offer by entry points: composed, listed and completed as any other."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path

from muloco_runner.__main__ import help_text
from muloco_runner.compose import compose_app_config, register
from muloco_runner.config import ConfigError, TargetConfig
from muloco_runner.paths import choices_of, config_dir, packaged_files
from muloco_runner.targets import find_source

OPTIMIZER = "_target_: their_lab.optim.TheirLion\nlr: 0.003\nbeta: 0.9\n"
SCHEDULE = "_target_: their_lab.decays.root\nwarmup_steps: 5\n"


def install(place: Path, package: str, files: dict[str, str], points: dict[str, list[str]]) -> None:
    """A package as pip leaves it behind."""
    for name, text in {"__init__.py": "", **files}.items():
        (place / package / name).parent.mkdir(parents=True, exist_ok=True)
        (place / package / name).write_text(text)
    info = place / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.0\n")
    sections = [f"[{group}]\n" + "".join(f"{name} = {package}\n" for name in names) for group, names in points.items()]
    (info / "entry_points.txt").write_text("\n".join(sections))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two packages in a folder of installed ones."""
    folder = tmp_path / "site-packages"
    install(
        folder,
        "their_lab",
        {"conf/inner_optimizer/their_lion.yaml": OPTIMIZER, "conf/schedule/root.yaml": SCHEDULE},
        {"muloco.inner_optimizers": ["their_lion", "forgotten"], "muloco.schedules": ["root"]},
    )
    install(folder, "other_lab", {"conf/model/mixer.yaml": "_target_: other_lab.Mixer\n"}, {"muloco.models": ["mixer"]})
    monkeypatch.syspath_prepend(str(folder))
    packaged_files.cache_clear()
    yield folder
    packaged_files.cache_clear()


def test_a_packages_choices_are_composed_and_listed(place: Path) -> None:
    run = compose_app_config(["inner_optimizer=their_lion", "schedule=root", "method=diloco"]).run
    assert isinstance(run.inner_optimizer, TargetConfig)
    assert run.inner_optimizer.arguments == {"beta": 0.9}
    assert (run.algorithm, run.schedule.warmup_steps) == ("DiLoCo-TheirLion", 5)
    assert find_source("their_lab.optim.TheirLion").installed
    said = help_text()
    for name in ("their_lion", "root", "mixer"):
        assert f"| {name} |" in said or f"| {name}\n" in said, said
    assert {"their_lab", "other_lab"} & set(sys.modules) == set(), "nothing of theirs is imported"


def test_a_packages_choices_are_completed(place: Path) -> None:
    register()
    loader = ConfigLoaderImpl(create_config_search_path(f"file://{config_dir()}"))
    assert {"adamw", "their_lion"} <= set(loader.get_group_options("inner_optimizer"))
    assert {"cosine", "root"} <= set(loader.get_group_options("schedule"))


def test_built_in_names_come_first_and_two_offers_are_refused(place: Path) -> None:
    install(
        place,
        "third_lab",
        {"conf/inner_optimizer/adamw.yaml": OPTIMIZER, "conf/model/mixer.yaml": "_target_: third_lab.Mixer\n"},
        {"muloco.inner_optimizers": ["adamw"], "muloco.models": ["mixer"]},
    )
    packaged_files.cache_clear()
    assert compose_app_config(["inner_optimizer=adamw"]).run.algorithm == "DDP-AdamW"
    assert "mixer" in choices_of("model")
    with pytest.raises(ConfigError, match=r"model=mixer: several packages offer it, .*other_lab.* and .*third_lab"):
        compose_app_config(["model=mixer"])


def test_an_offer_without_its_file_is_named(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"offers it .*their_lab/conf/inner_optimizer/forgotten\.yaml is missing"):
        compose_app_config(["inner_optimizer=forgotten"])

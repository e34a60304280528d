"""The text of pinned packages: which files, which versions, and how often a budget sees it."""

import base64
import hashlib
import sys
import tomllib
from pathlib import Path

import pytest

from muloco_runner.compose import compose_app_config
from muloco_runner.config import ConfigError, DataConfig, RunConfig
from muloco_runner.data import python_packages
from muloco_runner.data.check import check_data
from muloco_runner.data.corpus import load_corpus
from muloco_runner.data.epochs import describe_epochs, epochs_of_sweep
from sweeps.__main__ import main as sweep_command


def install(site: Path, name: str, version: str, files: dict[str, str]) -> None:
    """As an installer does: files, and the list of them."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    record = []
    for file, content in files.items():
        path = site / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{file},sha256={digest},{len(content)}\n")
    (info / "RECORD").write_text("".join(record))


def sources(count: int) -> dict[str, str]:
    return {f"one/module_{number}.py": f"VALUE = {number}\n" * 40 for number in range(count)}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages: 60 files, one of which each has under a name of its own, one empty, and what is no source."""
    monkeypatch.setattr(python_packages, "PACKAGES", {"one": "1.0", "two": "2.0"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    install(tmp_path / "site", "one", "1.0", {**sources(60), "one/__init__.py": "", "one/data.json": "{}"})
    install(tmp_path / "site", "two", "2.0", {"two/copy.py": sources(1)["one/module_0.py"], "../bin/two.py": "no\n"})
    return tmp_path / "site"


def run(*overrides: str) -> RunConfig:
    return compose_app_config(["data=python_packages", "root=/nowhere", *overrides]).run


def test_every_file_of_the_packages_is_read_once(site: Path) -> None:
    corpus = load_corpus(DataConfig("python_packages"))
    assert corpus.train.num_tokens + corpus.validation.num_tokens == sum(map(len, sources(60).values()))
    assert run().data.content_hash == corpus.content_hash


def test_the_text_is_named_by_its_content(site: Path) -> None:
    before = run().run_id
    (site / "two" / "copy.py").write_text("VALUE = -1\n")
    assert run().run_id != before


@pytest.mark.parametrize("wrong", ["version", "missing", "file"])
def test_other_packages_are_refused_by_name(wrong: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if wrong == "file":
        (site / "one" / "module_3.py").unlink()
        with pytest.raises(ConfigError, match=r"one/module_3\.py is missing: pip install"):
            load_corpus(DataConfig("python_packages"))
        return
    packages = {"one": "1.0", **({"two": "3.0"} if wrong == "version" else {"three": "1.0"})}
    monkeypatch.setattr(python_packages, "PACKAGES", packages)
    words = {"version": "two is 2.0 instead of 3.0", "missing": "three 1.0 is missing"}[wrong]
    with pytest.raises(ConfigError, match=rf"{words}.*pip install 'muloco-sweeps\[study\]'"):
        check_data(run())


def test_the_extra_installs_the_versions_that_are_read() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    wanted = [f"{name}=={version}" for name, version in python_packages.PACKAGES.items()]
    assert project["project"]["optional-dependencies"]["study"] == wanted


def test_a_run_says_how_often_it_sees_its_text(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = load_corpus(DataConfig("python_packages")).train.num_tokens
    one = run("model=29k", "tokens_per_parameter=20")
    line = describe_epochs(one)
    assert f"{tokens:,} training tokens, {one.num_tokens / tokens:.2f} epochs" in line
    assert f"repeats above {tokens / 20:,.0f} parameters at 20 tokens each" in line
    small = run("model=29k", "tokens_per_parameter=0.1", "global_batch_tokens=256")
    line, on_validation = epochs_of_sweep([one, small])
    assert "(1 of 2 runs repeat it)" in line
    assert "no more are held out" in on_validation
    words = ["plan", "data=python_packages", "model=29k", "tokens_per_parameter=20,0.1", "cluster=local"]
    monkeypatch.setattr(sys, "argv", ["muloco-sweep", *words, "global_batch_tokens=256", f"root={tmp_path / 'root'}"])
    with pytest.raises(SystemExit):
        sweep_command()
    assert f"data python_packages: {tokens:,} training tokens" in capsys.readouterr().out

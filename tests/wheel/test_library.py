"""The library, from a wheel: what docs/library.md shows, and what goes wrong in words."""

import re
import sys
from pathlib import Path

import pytest
from installed_wheel import ROOT, Installed

import muloco_runner.api
from muloco_runner.config import ConfigError
from sweeps import Need, Work, WorkFailed, launch

BLOCKS = re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), re.S)
LOCAL = {"kind": "local", "tick_seconds": 0.05, "allocations": [{"name": "here", "quota": {"jobs": 1}}]}
FUNCTIONS = """
def halve(number, divisor=2):
    with open("calls", "a") as file:
        file.write(f"{number}\\n")
    return {"half": number / divisor}


def give_set():
    return {1}
"""


@pytest.fixture
def my_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    (tmp_path / "my_functions.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_functions

    yield my_functions
    del sys.modules["my_functions"]


@pytest.mark.thorough
def test_the_documented_code_runs_beside_folders_of_its_names(installed: Installed, tmp_path: Path) -> None:
    said = {}
    for name, code in BLOCKS:
        (tmp_path / name).write_text(code)
        said[name] = installed.run(tmp_path, "python", name)
    assert said["area.py"].splitlines()[-1] == "[3.14159, 12.56636, 28.27431]"
    assert "MuLoCo 57" in said["one_run.py"]
    assert "MuLoCo" in said["to_report.py"].splitlines()[-1]
    again = installed.run(tmp_path, "python", "area.py")
    assert again.splitlines()[-1] == said["area.py"].splitlines()[-1]
    assert len(list(tmp_path.glob("areas/sweeps/functions/runs/*/attempts/*"))) == 3, "nothing ran twice"
    for name in ("sweeps", "analysis"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the user s own')")
    (tmp_path / "area.py").write_text(
        dict(BLOCKS)["area.py"].replace("from sweeps import", "from muloco_runner.api import")
    )
    assert installed.run(tmp_path, "python", "area.py").splitlines()[-1] == again.splitlines()[-1]


def test_what_has_a_result_is_not_called_again(my_functions: object, tmp_path: Path) -> None:
    works = [Work.calling(my_functions.halve, number=number) for number in (1, 2)]
    assert launch(works, tmp_path, cluster=LOCAL) == [{"half": 0.5}, {"half": 1.0}]
    more = [*works, Work.calling(my_functions.halve, number=2, divisor=4)]
    assert launch(more, tmp_path, cluster=LOCAL) == [{"half": 0.5}, {"half": 1.0}, {"half": 0.5}]
    assert sorted((tmp_path / "calls").read_text().split()) == ["1", "2", "2"]


def test_work_that_fails_is_named_after_all_else_is_done(my_functions: object, tmp_path: Path) -> None:
    good = Work.calling(my_functions.halve, number=3)
    bad = [Work.calling(my_functions.halve, number=1, divisor=0), Work.calling(my_functions.give_set)]
    with pytest.raises(WorkFailed, match="2 without a result") as caught:
        launch([*bad, good], tmp_path, cluster={**LOCAL, "retries": 0})
    assert "ZeroDivisionError" in caught.value.reasons[bad[0].name]
    assert "give_set returned what JSON cannot hold" in caught.value.reasons[bad[1].name]
    assert launch([good], tmp_path, cluster=LOCAL) == [{"half": 1.5}]


def test_mistakes_are_refused_before_anything_is_written(my_functions: object, tmp_path: Path) -> None:
    work = Work.calling(my_functions.halve, number=1)
    with pytest.raises(ConfigError, match="at the top level"):
        Work.calling(lambda: 1)
    with pytest.raises(ConfigError, match="halve: arguments must be what JSON can hold"):
        Work.calling(my_functions.halve, number=object())
    for words, said in (
        ({"cluster": "nowhere"}, "cluster=nowhere: there is no such file"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"cluster": LOCAL, "quota": {"job": 1}}, "job"),
    ):
        with pytest.raises(ConfigError, match=said):
            launch([work], tmp_path / "root", **words)
    with pytest.raises(ConfigError, match="can never run"):
        launch([work.needing(Need(gpus_per_node=99))], tmp_path / "root", cluster=LOCAL)
    assert not list(tmp_path.glob("root/sweeps/*/definition.jsonl"))


def test_all_names_are_in_one_module_too() -> None:
    for name in muloco_runner.api.__all__:
        assert callable(getattr(muloco_runner.api, name)), name
    with pytest.raises(AttributeError, match="nothing"):
        _ = muloco_runner.api.nothing

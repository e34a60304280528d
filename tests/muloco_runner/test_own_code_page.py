"""docs/own_code.md: its files, put where it says, and its commands, in an empty folder."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from target_labs import lab_in

from muloco_runner.compose import compose_app_config

PAGE = Path(__file__).parent.parent.parent / "docs" / "own_code.md"


def files_of_the_page() -> dict[str, str]:
    """Texts by name."""
    text = PAGE.read_text()
    names = re.findall(r"`(conf/[a-z_/]+\.yaml)`", text)
    assert len(names) == 6
    files = dict(zip(names, re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE), strict=True))
    code = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return {**files, "my_lab.py": "\n\n".join(code)}


def commands_of_the_page() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for line in "".join(blocks).splitlines()]


OTHERS = ["method/outer_optimizer=signs", "schedule=root", "data=sums"]
"""Choices of the page that none of its commands names."""


def test_its_optimizers_schedule_and_codec_are_choices(tmp_path: Path) -> None:
    """Found and read. The model and the data are tried as soon as they are named: that is of the commands below."""
    with lab_in(tmp_path, "my_lab", files_of_the_page()):
        *_, compressed = ([word for word in words if "=" in word] for words in commands_of_the_page())
        words = [word for word in [*compressed, *OTHERS] if word not in ("model=mixer", "data=sums")]
        assert compose_app_config(["inner_optimizer=signs"]).run.algorithm == "DDP-Signs"
        run = compose_app_config(words).run
        assert run.algorithm == "MuLoCo"
        used = sorted(re.findall(r'"my_lab\.(\w+)"', json.dumps(run.to_dict())))
        assert used == ["Signs", "Ternary", "one_minus_root"]


@pytest.mark.thorough
def test_its_files_and_commands_do_what_it_says(
    tmp_path: Path, text_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, content in files_of_the_page().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    said = []
    for words in commands_of_the_page():
        if "method/compression=ternary" in words:
            words.extend(OTHERS)
        else:
            words.extend(["data=text", f"data.path={text_dir}", "data.validation_tokens=256"])
        done = subprocess.run(
            [str(Path(sys.executable).parent / words[0]), *words[1:]],
            cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    assert "validation loss" in said[0]
    for algorithm in ("DDP-Signs", "DiLoCo-Signs", "DDP-Muon", "MuLoCo", "DDP-AdamW", "DiLoCo"):
        assert algorithm in said[1], said[1]
    assert "MuLoCo" in said[2], said[2]
    assert "data sums: " in said[2], said[2]

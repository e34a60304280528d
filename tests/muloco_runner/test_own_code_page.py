"""docs/own_code.md: its files, put where it says, and its commands, in an empty folder."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / "docs" / "own_code.md"


def test_its_files_and_commands_do_what_it_says(
    tmp_path: Path, text_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = PAGE.read_text()
    names = re.findall(r"`(conf/[a-z_/]+\.yaml)`", text)
    assert len(names) == 6
    files = list(zip(names, re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE), strict=True))
    code = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    files.append(("my_lab.py", "\n\n".join(code)))
    for name, content in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    said = []
    for line in "".join(blocks).splitlines():
        words = shlex.split(line)
        if "method/compression=ternary" in words:
            words += ["method/outer_optimizer=signs", "schedule=root", "data=sums"]
        else:
            words += ["data=text", f"data.path={text_dir}", "data.validation_tokens=256"]
        done = subprocess.run(
            [str(Path(sys.executable).parent / words[0]), *words[1:]],
            cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    assert "validation loss" in said[0]
    for algorithm in ("DDP-Signs", "DiLoCo-Signs", "DDP-Muon", "MuLoCo", "DDP-AdamW", "DiLoCo"):
        assert algorithm in said[1], said[1]
    assert "MuLoCo" in said[2], said[2]
    assert "data sums: " in said[2], said[2]

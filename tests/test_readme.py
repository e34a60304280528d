"""Every command in the README, run in its order in an empty folder; runs are cut short, nothing else is changed."""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from muloco_runner.compose import compose_app_config

ROOT = Path(__file__).parent.parent
# What makes a command short enough for a test.
SHORT = {
    "muloco-train": ["tokens_per_parameter=2", "method.sync_interval=10"],
    "muloco-train --multirun": ["tokens_per_parameter=2", "model=29k", "global_batch_tokens=1024"],
    "muloco-train model=hf:kept/hf": ["tokens_per_parameter=0.5"],
    "muloco-model continue": ["--tokens-per-parameter", "3"],
    "muloco-train data=prepared": ["tokens_per_parameter=0.2", "model=29k"],
    "muloco-sweep launch": [
        "model=11k",
        "global_batch_tokens=256",
        "tokens_per_parameter=1",
        "extend=false",
        "replicate=false",
    ],
    "muloco-report": ["--bootstrap", "20"],
}


def blocks() -> list[list[str]]:
    """Commands of the README's shell blocks, comments cut off."""
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [[" ".join(shlex.split(line, comments=True)) for line in block.splitlines() if line] for block in found]


def commands() -> list[str]:
    return [line for block in blocks() for line in block]


def shortened(command: str) -> list[str]:
    words = shlex.split(command)
    key = " ".join(words[:2])
    key = key if key in SHORT else words[0]
    return [str(Path(sys.executable).parent / words[0]), *words[1:], *SHORT.get(key, [])]


def with_run(words: list[str], folder: Path) -> list[str]:
    """The words with the folder of the run that keeps step 30 in place of RUN."""
    kept = [path.parents[1] for path in folder.glob("kept/runs/*/checkpoint/step-00000030")]
    return [str(kept[0]) if word == "RUN" else word for word in words]


def test_what_the_readme_trains_are_runs() -> None:
    """The words of its command lines compose; the commands themselves are `make test-thorough`'s."""
    trained = [line for line in commands() if line.startswith("muloco-train ")]
    assert len(trained) >= 5
    for line in trained:
        # What another command has written is not there yet.
        if "hf:" in line or "data=prepared" in line:
            continue
        settings = [word.partition("=") for word in shortened(line)[1:] if not word.startswith("--")]
        choices = [[f"{key}={value}" for value in values.split(",")] for key, _, values in settings]
        for words in itertools.product(*choices):
            assert compose_app_config(words).run.num_steps > 0, line


@pytest.mark.thorough
def test_commands_of_the_readme_do_what_it_says(tmp_path: Path) -> None:
    used = [line for line in commands() if line.startswith("muloco-")]
    assert len(used) >= 6
    (tmp_path / "my_text").mkdir()
    for number in range(400):
        (tmp_path / "my_text" / f"{number}.txt").write_text(f"Text number {number} of four hundred. " * 20)
    for line in used:
        done = subprocess.run(
            with_run(shortened(line), tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "demo" / "report" / "report.html").exists()


@pytest.mark.thorough
def test_lines_for_other_applications_run_with_one(tmp_path: Path) -> None:
    app = shutil.copytree(ROOT / "tests" / "hydra" / "grid_app", tmp_path / "app")
    lines = [line for line in commands() if line.startswith("python app.py") and "cluster=slurm" not in line]
    assert len(lines) >= 3
    for line in lines:
        words = [sys.executable, *shlex.split(line)[1:]]
        done = subprocess.run(words, cwd=app, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert " done" in done.stdout


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert targets
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def anchor_of(heading: str) -> str:
    """By what a link names it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda page: page.name)
def test_files_and_headings_that_pages_link_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in map(anchor_of, headings), link


@pytest.mark.parametrize("command", ["muloco-train", "muloco-data", "muloco-sweep", "muloco-model", "muloco-report"])
def test_help_teaches_with_an_example(command: str) -> None:
    program = str(Path(sys.executable).parent / command)
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)


def test_the_notebooks_index_has_all_of_it() -> None:
    index, _, findings = (ROOT / "docs" / "notebook.md").read_text().partition("\n## ")
    headings = re.findall(r"^## (.*)$", f"## {findings}", re.MULTILINE)
    assert sorted(re.findall(r"\]\(#([^)]*)\)", index)) == sorted(map(anchor_of, headings))

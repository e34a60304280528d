"""The project as its users have it: a wheel, installed in an environment of its own, far from this checkout."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel."""

    folder: Path
    variables: dict[str, str]

    def start(self, work: Path, program: str, *words: str, **variables: str) -> "subprocess.Popen[str]":
        """A program of the environment, in that folder; what it says goes to one pipe."""
        return subprocess.Popen(
            [str(self.folder / "bin" / program), *words], cwd=work, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**os.environ, **self.variables, **variables},
        )  # fmt: skip

    def run(self, work: Path, program: str, *words: str, code: int = 0, **variables: str) -> str:
        """What a program says that ends with that exit code."""
        process = self.start(work, program, *words, **variables)
        said, _ = process.communicate(timeout=600)
        assert process.returncode == code, f"{program} {' '.join(words)}: {process.returncode}\n{said}"
        return said

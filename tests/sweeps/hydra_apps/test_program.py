"""The application as its jobs get it."""

import pickle
from pathlib import Path

from omegaconf import OmegaConf

from sweeps.hydra_apps.program import Program, write_program


def test_jobs_of_other_code_can_read_the_program(tmp_path: Path) -> None:
    program = Program(None, len, OmegaConf.create({"lr": 0.1}), {}, "out")  # type: ignore[arg-type]
    write_program(tmp_path / "program.pkl", program)
    body = pickle.loads((tmp_path / "program.pkl").read_bytes())["body"]
    # A module of ours may have another name in a job that was submitted before an upgrade.
    assert b"sweeps" not in body
    assert vars(pickle.loads(body)) == vars(program)

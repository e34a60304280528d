"""The process in which targets are tried.

    python -m muloco_runner.trials < {"path": [...], "questions": {KEY: ["model", values], ...}}

The last line of its output is JSON: for each key what `muloco_runner.targets.Answer` holds.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

from muloco_runner.config import RunConfig, TargetModelConfig
from muloco_runner.trials.try_model import try_model
from muloco_runner.trials.try_optimizer import try_run

_TRIALS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "model": lambda values: try_model(TargetModelConfig(**values)),
    "inner_optimizer": lambda values: try_run(RunConfig.from_dict(values)),
}
"""What is tried -> what tries it, given its plain values."""


def main() -> None:
    words = json.load(sys.stdin)
    sys.path[:0] = words["path"]
    # What a target prints must not be taken for the answer.
    with contextlib.redirect_stdout(sys.stderr):
        answers = {key: _TRIALS[part](values) for key, (part, values) in words["questions"].items()}
    print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()

"""The process in which targets are tried.

    python -m muloco_runner.trials < {"path": [...], "questions": {KEY: QUESTION, ...}, "answers": FILE}

A question is a `muloco_runner.targets.questions.Question` as a list. The file gets JSON: for each key what
`muloco_runner.targets.Answer` holds. What targets print is their own affair.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from muloco_runner.config import (
    ConfigError,
    RunConfig,
    TargetCompressionConfig,
    TargetDataConfig,
    TargetModelConfig,
    TargetOuterConfig,
)
from muloco_runner.trials.try_codec import try_codec
from muloco_runner.trials.try_data import try_data
from muloco_runner.trials.try_model import try_model
from muloco_runner.trials.try_optimizer import build_at_rates, build_for_size, try_run
from muloco_runner.trials.try_outer_optimizer import build_outer, try_outer_optimizer
from muloco_runner.trials.try_schedule import try_schedule

_TRIALS: dict[tuple[str, str], Callable[[dict[str, Any]], dict[str, Any]]] = {
    ("model", "whole"): lambda values: try_model(TargetModelConfig(**values)),
    ("data", "whole"): lambda values: try_data(TargetDataConfig(**values)),
    ("inner_optimizer", "rates"): lambda values: build_at_rates(RunConfig.from_dict(values)),
    ("inner_optimizer", "size"): lambda values: build_for_size(RunConfig.from_dict(values)),
    ("inner_optimizer", "whole"): lambda values: try_run(RunConfig.from_dict(values)),
    ("schedule", "whole"): lambda values: try_schedule(RunConfig.from_dict(values)),
    ("method.compression", "whole"): lambda values: try_codec(TargetCompressionConfig(**values)),
    ("method.outer_optimizer", "rates"): lambda values: build_outer(TargetOuterConfig(**values)),
    ("method.outer_optimizer", "whole"): lambda values: try_outer_optimizer(TargetOuterConfig(**values)),
}
"""What is tried -> what tries it, given its plain values: the run's, or where that is enough its part's."""


def _answer(part: str, trial: str, values: dict[str, Any]) -> dict[str, Any]:
    try:
        return _TRIALS[part, trial](values)
    except ConfigError as error:
        problem = str(error)
    except Exception as error:
        problem = f"trying it failed: {type(error).__name__}: {error}"
    return {"problem": " ".join(problem.split())}


def main() -> None:
    words = json.load(sys.stdin)
    sys.path[:0] = words["path"]
    answers = {key: _answer(*question) for key, question in words["questions"].items()}
    Path(words["answers"]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()

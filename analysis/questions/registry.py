"""Every question that is a module of its own, in the order of the page."""

from __future__ import annotations

from typing import Any

from analysis.questions import crossings, one_compute, pairwise_tests, scale_laws, steps_to_target
from analysis.questions.question import Question

QUESTIONS: tuple[Question[Any], ...] = (
    one_compute.QUESTION,
    crossings.QUESTION,
    pairwise_tests.QUESTION,
    scale_laws.QUESTION,
    steps_to_target.QUESTION,
)

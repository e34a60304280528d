"""All that report.json holds of a study: parts with keys of their own, and questions in the order of the page."""

from __future__ import annotations

from typing import Any

from analysis.questions import crossings, one_compute, pairwise_tests, scale_laws, steps_to_target
from analysis.questions.parts import (
    batch_curves,
    best_settings,
    charged_hours,
    choices_otherwise,
    critical_batches,
    data_audit,
    equal_loss,
    link_hours,
    sizes_and_data,
    training_curves,
    tuned_rates,
    worker_counts,
)
from analysis.questions.question import Part, Question

PARTS: tuple[Part[Any], ...] = (
    data_audit.PART,
    best_settings.BEST,
    best_settings.RANKING,
    training_curves.PART,
    batch_curves.PART,
    critical_batches.PART,
    equal_loss.COMPUTE_PART,
    equal_loss.TIME_PART,
    sizes_and_data.PART,
    tuned_rates.PART,
    worker_counts.PART,
    link_hours.PART,
    charged_hours.PART,
    choices_otherwise.PART,
)
QUESTIONS: tuple[Question[Any], ...] = (
    one_compute.QUESTION,
    crossings.QUESTION,
    pairwise_tests.QUESTION,
    scale_laws.QUESTION,
    steps_to_target.QUESTION,
)

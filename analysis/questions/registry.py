"""All that report.json holds of a study, in the order of the page: parts with keys of their own, and questions."""

from __future__ import annotations

from typing import Any

from analysis.questions import crossings, one_compute, pairwise_tests, scale_laws, steps_to_target
from analysis.questions.going_on import next_runs, tuning_rules
from analysis.questions.parts import (
    batch_curves,
    best_settings,
    charged_hours,
    choices_otherwise,
    critical_batches,
    data_audit,
    equal_loss,
    evaluations,
    link_hours,
    sizes_and_data,
    token_budgets,
    training_curves,
    tuned_rates,
    worker_counts,
)
from analysis.questions.question import Part, Question

REGISTRY: tuple[Part[Any] | Question[Any], ...] = (
    best_settings.BEST,
    best_settings.RANKING,
    training_curves.PART,
    data_audit.PART,
    batch_curves.PART,
    critical_batches.PART,
    one_compute.QUESTION,
    crossings.QUESTION,
    pairwise_tests.QUESTION,
    scale_laws.QUESTION,
    steps_to_target.QUESTION,
    evaluations.PART,
    equal_loss.COMPUTE_PART,
    equal_loss.TIME_PART,
    token_budgets.QUESTION,
    sizes_and_data.PART,
    worker_counts.PART,
    link_hours.PART,
    charged_hours.PART,
    tuned_rates.PART,
    tuning_rules.QUESTION,
    choices_otherwise.PART,
    next_runs.QUESTION,
)
PARTS: tuple[Part[Any], ...] = tuple(one for one in REGISTRY if isinstance(one, Part))
QUESTIONS: tuple[Question[Any], ...] = tuple(one for one in REGISTRY if isinstance(one, Question))

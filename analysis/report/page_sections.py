"""The sections of a report in order, and which have nothing to show: a page says of these in one line each why."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from analysis.questions.registry import QUESTIONS


@dataclass(frozen=True)
class Section:
    """A section of a page; `reason` says why it has nothing to show, and is None where it has."""

    id: str
    title: str
    reason: str | None = None


def page_sections(report: dict[str, Any], tables: Collection[str], figures: Collection[str]) -> list[Section]:
    """Every section in the page's order. `tables` and `figures`: names of tables, and of sections with figures."""
    questions = []
    for question in QUESTIONS:
        part = question.section_in(report)
        shows = part["id"] in figures or any(name in tables for name in part["tables"])
        said = " ".join(part["paragraphs"]).removeprefix("Not identified: ").removesuffix(".")
        questions.append(Section(part["id"], part["title"], None if shows else said or "nothing to show"))
    iso = report["iso_loss"]["reason"] or None
    goodput = report["goodput"]["rows"] or report["goodput"]["problem"]
    return [
        Section("overview", "Result"),
        Section("verdict", "Verdict"),
        Section("curves", "Training curves", _no_curves(report, figures)),
        Section("audit", "Data"),
        _unless("loss_vs_batch" in figures, "batch", "Loss against batch", "no series has two batches at one size"),
        Section("critical", "Critical batch", _no_critical_batch(report)),
        *questions,
        Section("compute", "Loss against compute", iso),
        Section("iso", "Equal loss", iso and "there are no laws of loss against compute"),
        Section("size", "Size and data", _no_size_law(report, figures)),
        _unless(
            bool(report["num_workers"]["points"]), "workers", "Workers",
            "no size has both a series and a partner to compare it with over K",
        ),
        Section("clock", "Wall clock", _no_wall_clock(tables, figures)),
        *([Section("charged", "Charged hours")] if goodput else []),
        _unless(
            "hyper_parameters" in figures, "hyper", "Hyper-parameters",
            "no series was trained with two learning rates at one batch",
        ),
        Section("sensitivity", "Sensitivity", _no_sensitivity(report)),
        Section("provenance", "Provenance"),
    ]  # fmt: skip


def _unless(shows: bool, name: str, title: str, reason: str) -> Section:
    return Section(name, title, None if shows else reason)


def _no_curves(report: dict[str, Any], figures: Collection[str]) -> str | None:
    if "training_curves" in figures:
        return None
    return "no run has logged two training losses" if report["training_curves"] else "a table has no steps"


def _no_critical_batch(report: dict[str, Any]) -> str | None:
    part = report["critical_batch"]
    if part["reason"]:
        return str(part["reason"])
    found = [law["fit"] for law in part["laws"]] + [joint["law"] for joint in part["joint"]]
    if any(found) or not all(point["censored"] for point in part["points"]):
        return None
    return "every curve of loss against batch has its best, or the end of its plateau, on the edge of the batches tried"


def _no_size_law(report: dict[str, Any], figures: Collection[str]) -> str | None:
    laws = report["size_and_data"]["laws"]
    if "isoflop" in figures or any(law["fit"] for law in laws):
        return None
    return str(laws[0]["reason"]) if laws else "no series has a loss"


def _no_wall_clock(tables: Collection[str], figures: Collection[str]) -> str | None:
    if "wall_clock" not in tables:
        return "the columns that hours would follow from cannot be used"
    if "wall_clock" not in figures:
        return (
            "no link considered lengthens a series' training by a tenth, or all series take the same "
            "(tables/wall_clock.csv)"
        )
    return None


def _no_sensitivity(report: dict[str, Any]) -> str | None:
    part = report["sensitivity"]
    if part["critical_batch"] or any(row["ratio"] is not None for row in part["loss"]):
        return None
    return "no law was fitted that another choice could move"

"""What the results allow to be said, in sentences; and what is not identified, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analysis.page import numbers
from analysis.page.listed import listed, listed_values
from analysis.page.numbers import count, integer, loss, number, spread
from analysis.questions import pairwise_tests
from analysis.questions.registry import QUESTIONS

_MANY_SERIES = 6
_TOO_MANY_SERIES = 12
"""Series beyond which the ranking names the first `_MANY_SERIES` and refers to the table."""
_MANY_REASONS = 4
"""Reasons beyond which the verdict counts the series without a law of the critical batch."""


@dataclass(frozen=True)
class Verdict:
    """Sentences, strongest first."""

    findings: list[str]
    cautions: list[str]
    headline: str = ""
    """What was found, in one line; empty where nothing may be compared."""


def statements(report: dict[str, Any]) -> Verdict:
    """What report.json's content allows to be said."""
    return Verdict(_findings(report), _cautions(report), _headline(report))


def _headline(report: dict[str, Any]) -> str:
    """Which series is the lowest at the largest size, and whether the second is known to lie above it."""
    if report["audit"]["withheld"]:
        return "Nothing is ranked: it is not known what is compared."
    if _cannot_rank(report):
        return ""
    largest, ranked, gap = (report["ranking"][key] for key in ("num_params", "series", "gap"))
    lowest = next(row for row in report["best"] if row["num_params"] == largest and row["series"] == ranked[0])
    head = f"{ranked[0]} reaches {loss(lowest['loss'])} at {count(largest)} parameters"
    if gap is None:
        return f"{head}."
    if _disagrees(gap):
        return f"{head} on its mean; {_by_seeds(report)}."
    if gap["se"] is None:
        return f"{head}, {ranked[1]} {spread(gap['relative'])} more, on one seed."
    established = "established" if _is_distinct(report)[0] else "not established"
    return f"{head}, {ranked[1]} {spread(gap['relative'])} ± {spread(gap['se'])} more: {established}."


def _disagrees(gap: dict[str, Any]) -> bool:
    """Whether the second of the ranking, which goes by means, lies below the first on the seeds that both have."""
    return bool(gap["relative"] < 0)


def _by_seeds(report: dict[str, Any]) -> str:
    """What the shared seeds say where they put the second below the first, and whether that is known."""
    gap, second = report["ranking"]["gap"], report["ranking"]["series"][1]
    match gap["paired_seeds"]:
        case 0:
            shared = "on the mean of log losses"
        case 1:
            shared = "on the seed that both have"
        case several:
            shared = f"on the {integer(several)} seeds that both have"
    size = spread(abs(gap["relative"]))
    if gap["se"] is None:
        return f"{shared} {second} is {size} lower: which is lower is not established"
    distinct, how = _is_distinct(report)
    known = f"that is established{how}" if distinct else f"which is lower is not established{how}"
    return f"{shared} {second} is {size} ± {spread(gap['se'])} lower: {known}"


def _cannot_rank(report: dict[str, Any]) -> bool:
    return bool({"loss", "num_params"} & report["audit"]["unusable"].keys())


def _is_distinct(report: dict[str, Any]) -> tuple[bool, str]:
    """Whether the two are known to differ as the gap says, and how that is known; of a gap with an error."""
    tested = pairwise_tests.find(pairwise_tests.QUESTION.read(report), *report["ranking"]["series"][:2])
    if tested is None or tested.adjusted_p is None:
        return bool(report["ranking"]["gap"]["distinct"]), ""
    lower = {"first lower": tested.first, "second lower": tested.second}.get(tested.outcome)
    below = report["ranking"]["series"][1 if _disagrees(report["ranking"]["gap"]) else 0]
    return lower == below, f" (p = {number(tested.adjusted_p)} with Holm's correction)"


def _findings(report: dict[str, Any]) -> list[str]:
    withheld = report["audit"]["withheld"]
    if withheld:
        return [f"Nothing is ranked, because it is not known what is compared: {withheld}"]
    asked = [sentence for question in QUESTIONS for sentence in question.findings_in(report)]
    return [*_ranking(report), *asked, *_critical_batches(report)]


def _ranking(report: dict[str, Any]) -> list[str]:
    if _cannot_rank(report):
        return []
    largest = report["ranking"]["num_params"]
    losses = {row["series"]: row["loss"] for row in report["best"] if row["num_params"] == largest}
    ranked = report["ranking"]["series"]
    first = ranked if len(ranked) <= _TOO_MANY_SERIES else ranked[:_MANY_SERIES]
    behind = _behind(report["ranking"])
    if len(ranked) == 1:
        return [f"{ranked[0]} reaches {loss(losses[ranked[0]])} nats per token at {count(largest)} parameters{behind}."]
    order = listed_values([(name, loss(losses[name])) for name in first])
    order += ", the others as the table has them," if len(first) < len(ranked) else ""
    head = (
        f"At the largest size, {count(largest)} parameters, losses from best to worst: {order} nats per token{behind}."
    )
    return [head + _noise_sentence(report)]


def _noise_sentence(report: dict[str, Any]) -> str:
    gap, sd = report["ranking"]["gap"], report["audit"]["seed_sd"]
    if gap is None:
        return ""
    if _disagrees(gap):
        return f" That order is by means; {_by_seeds(report)}."
    if gap["se"] is not None:
        seeds = f", seed by seed over {gap['paired_seeds']} seeds" if gap["paired_seeds"] else ""
        distinct, how = _is_distinct(report)
        end = f"the difference is {'' if distinct else 'not '}established{how}."
        return f" The second lies {spread(gap['relative'])} ± {spread(gap['se'])} above the first{seeds}: {end}"
    if sd is None:
        return " No setting was run with two seeds, so the noise in these differences is unknown."
    verdict = "beyond" if gap["relative"] > 2 * 2**0.5 * sd else "within"
    return (
        f" Between seeds a loss varies by {spread(sd)} (one standard deviation); the gap of the first two lies "
        f"{verdict} the noise of one run each."
    )


def _critical_batches(report: dict[str, Any]) -> list[str]:
    laws = [
        law for law in report["critical_batch"]["laws"] if law["fit"] and law["definition"] == "cbs_1pct_interpolated"
    ]
    if not laws:
        return []
    alphas = {law["series"]: law["fit"]["parameters"]["alpha"] for law in laws}
    each = listed_values([(law["series"], _with_interval(alphas[law["series"]]) + _behind(law)) for law in laws])
    out = [f"The critical batch (1% rule, interpolated) grows as tokens to the power of: {each}."]
    baseline = report["settings"]["baseline"]
    base = alphas.get(baseline)
    if base is None or not base["ci"] or len(alphas) < 2:
        return out
    disjoint = [
        name
        for name, alpha in alphas.items()
        if alpha["ci"] and (alpha["ci"][0] > base["ci"][1] or base["ci"][0] > alpha["ci"][1])
    ]
    rest = [name for name in alphas if name not in (*disjoint, baseline)]
    if disjoint:
        out.append(f"The exponent differs from {baseline}'s, their intervals are disjoint: {listed(disjoint)}.")
    if rest:
        out.append(
            f"That the exponent differs from {baseline}'s is not established, their intervals overlap: {listed(rest)}."
        )
    return out


def _behind(part: dict[str, Any]) -> str:
    """How many runs a statement stands on; nothing where there is none."""
    runs = part.get("stands_on")
    return f" (on {integer(runs['runs'])} of {integer(runs['of'])} runs)" if runs else ""


def _with_interval(estimate: dict[str, Any]) -> str:
    """A ratio or exponent with its 95% interval in brackets."""
    return numbers.estimate(estimate["value"], estimate["ci"], "ratio")


def _cautions(report: dict[str, Any]) -> list[str]:
    audit, iso = report["audit"], report["iso_loss"]
    out = [*audit["cautions"], *[f"No law is fitted from {name}: {why}." for name, why in audit["unusable"].items()]]
    elsewhere = [one for one in audit["budgets"] if not one["compared"]]
    if elsewhere:
        budgets = ", ".join(f"{number(one['tokens_per_parameter'])} ({one['runs']} runs)" for one in elsewhere)
        out.append(
            f"Sizes are compared at {number(report['settings']['tokens_per_parameter'])} tokens per parameter; runs at "
            f"others take part in laws of size and tokens alone: {budgets}."
        )
    if audit["optima_on_edge"]:
        out.append(
            f"{audit['optima_on_edge']} of {audit['optima']} best settings lie on the edge of their hyper-parameter "
            "grid: the true optimum may be better, and a comparison may be of grids rather than of methods."
        )
    if audit["optima_batch_on_edge"]:
        out.append(
            f"In {audit['optima_batch_on_edge']} of {audit['optima']} cases the best batch is the smallest, "
            "the largest or the only one tested."
        )
    if audit["optima_biased"]:
        out.append(
            f"{audit['optima_biased']} of {audit['optima']} best settings are shown by the seeds that chose them, for "
            "want of others: the lowest of several noisy losses lies below what its setting gives on average "
            "(selection bias). Another seed of the best settings removes it."
        )
    if audit["optima_without_shared_seeds"]:
        out.append(
            f"{audit['optima_without_shared_seeds']} of {audit['optima']} best settings were chosen among settings "
            "that have no seed in common: means over different seeds were compared."
        )
    if audit["repeated_settings"] == 0:
        out.append("Every setting was run with one seed: no noise between seeds can be stated.")
    if iso.get("reason"):
        out.append(f"Loss against compute is not identified: {iso['reason']}.")
    else:
        if iso["scales"] < iso["trusted_scales"]:
            out.append(
                f"The laws of loss against compute rest on {iso['scales']} sizes. With fewer than "
                f"{iso['trusted_scales']} their intervals are too narrow: read them as a description of these runs."
            )
        out += [f"{name} has no law of loss against compute: {why}." for name, why in iso["refused"].items()]
        if iso["holdout_reason"]:
            out.append(f"The error of a prediction of a larger size is not identified: {iso['holdout_reason']}.")
    return [*out, *_critical_batches_not_identified(report)]


def _critical_batches_not_identified(report: dict[str, Any]) -> list[str]:
    """One sentence for all series that lack a law for the same reason."""
    part, out = report["critical_batch"], []
    if part["reason"]:
        return [f"Critical batch sizes are not identified: {part['reason']}."]
    missing = [law for law in part["laws"] if law["definition"] == "cbs_1pct" and not law["fit"]]
    by_reason: dict[str, list[str]] = {}
    for law in missing:
        by_reason.setdefault(law["reason"], []).append(law["series"])
    if len(by_reason) > _MANY_REASONS:
        names = [law["series"] for law in missing]
        return [
            f"The growth of the critical batches of {len(names)} of {len(report['series'])} series is not identified: "
            "the table of these laws has each reason."
        ]
    for reason, names in by_reason.items():
        whose = f"{names[0]}'s critical batch" if len(names) == 1 else f"the critical batches of {listed(names)}"
        out.append(f"The growth of {whose} is not identified: {reason}.")
    return out

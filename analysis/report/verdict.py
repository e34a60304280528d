"""What the results allow to be said, in sentences; and what cannot be said, with the reason."""

from __future__ import annotations

from typing import Any

from analysis.report.numbers import count, flops, loss, percent, ratio


def statements(report: dict[str, Any]) -> dict[str, list[str]]:
    """`findings` and `cautions`, strongest first."""
    return {"findings": _findings(report), "cautions": _cautions(report)}


def _findings(report: dict[str, Any]) -> list[str]:
    out = []
    if report["scales"]:
        largest = report["scales"][-1]["num_params"]
        here = sorted((row for row in report["best"] if row["num_params"] == largest), key=lambda row: row["loss"])
        if here:
            out.append(
                f"At the largest size, {count(largest)} parameters, losses from best to worst: "
                + ", ".join(f"{row['series']} {loss(row['loss'])}" for row in here)
                + f" nats per token.{_noise_sentence(report, here)}"
            )
    for name, ratios in _by_series(report["iso_loss"].get("ratios") or []).items():
        last = ratios[-1]
        sign = "more" if last["value"] >= 1 else "less"
        interval = f" (95% interval {ratio(last['ci'][0])} to {ratio(last['ci'][1])})" if last["ci"] else ""
        apart = last["ci"] and (last["ci"][0] > 1 or last["ci"][1] < 1)
        few = report["iso_loss"]["scales"] < report["iso_loss"]["trusted_scales"]
        out.append(
            f"For the loss that {name} reaches with {flops(last['flops'])} flops, "
            f"{report['settings']['baseline']} needs {ratio(last['value'])} times the compute{interval}"
            + _established(bool(apart), few, f"{sign} than {name}", report["iso_loss"]["scales"])
        )
    out += _critical_batch_findings(report)
    return out


def _established(apart: bool, few: bool, claim: str, scales: int) -> str:
    if few:
        return f". {scales} sizes are too few to establish it."
    if apart:
        return f": {claim}."
    return ". The interval holds 1, so which of the two needs less is not established."


def _noise_sentence(report: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    sd = report["audit"]["seed_sd"]
    if len(rows) < 2:
        return ""
    gap = rows[1]["loss"] / rows[0]["loss"] - 1
    if sd is None:
        return " No setting was run with two seeds, so the noise in these differences is unknown."
    verdict = "beyond" if gap > 2 * 2**0.5 * sd else "within"
    return (
        f" Between seeds a loss varies by {percent(sd)} (one standard deviation); the gap of the first two, "
        f"{percent(gap)}, lies {verdict} the noise of one run each."
    )


def _critical_batch_findings(report: dict[str, Any]) -> list[str]:
    out = []
    laws = [
        law for law in report["critical_batch"]["laws"] if law["fit"] and law["definition"] == "cbs_1pct_interpolated"
    ]
    for law in laws:
        alpha = law["fit"]["parameters"]["alpha"]
        interval = f" (95% interval {ratio(alpha['ci'][0])} to {ratio(alpha['ci'][1])})" if alpha["ci"] else ""
        out.append(
            f"The critical batch of {law['series']} (1% rule, interpolated) grows as tokens to the power "
            f"{ratio(alpha['value'])}{interval}, from {law['fit']['num_points']} sizes."
        )
    for i, one in enumerate(laws):
        for other in laws[i + 1 :]:
            a, b = (law["fit"]["parameters"]["alpha"]["ci"] for law in (one, other))
            if a and b and (a[0] > b[1] or b[0] > a[1]):
                out.append(f"The exponents of {one['series']} and {other['series']} differ: their intervals are apart.")
    if len(laws) > 1 and not any("intervals are apart" in line for line in out):
        out.append("All intervals of these exponents overlap: that they differ is not established.")
    return out


def _cautions(report: dict[str, Any]) -> list[str]:
    out = []
    audit, iso = report["audit"], report["iso_loss"]
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
    if audit["repeated_settings"] == 0:
        out.append("Every setting was run with one seed: no noise between seeds can be stated.")
    if iso.get("reason"):
        out.append(f"Loss against compute cannot be said: {iso['reason']}.")
    else:
        if iso["scales"] < iso["trusted_scales"]:
            out.append(
                f"The laws of loss against compute rest on {iso['scales']} sizes. With fewer than "
                f"{iso['trusted_scales']} their intervals are too narrow: read them as a description of these runs."
            )
        out += [f"{name} has no law of loss against compute: {why}." for name, why in iso["refused"].items()]
        if iso["left_out_reason"]:
            out.append(f"How well the laws predict a larger size cannot be said: {iso['left_out_reason']}.")
    missing = [law for law in report["critical_batch"]["laws"] if law["definition"] == "cbs_1pct" and not law["fit"]]
    out += [f"The growth of {law['series']}'s critical batch cannot be said: {law['reason']}." for law in missing]
    if not report["critical_batch"]["points"]:
        out.append("Critical batch sizes cannot be said: no size was trained with two batches.")
    return out


def _by_series(ratios: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for item in ratios:
        out.setdefault(item["series"], []).append(item)
    return out

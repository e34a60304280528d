"""How the critical batch, the best batch and the best learning rate grow with size and tokens, over every scale.

    y = c N^a D^b,    and its forms in N or D alone

All scales (N, D) take part, whatever their tokens per parameter; a scale whose optimum lies on the edge of its grid
enters as a bound. In N and D/N the same law is c N^(a+b) (D/N)^b: b is how y grows with tokens per parameter, a + b how
it grows with size at one number of tokens per parameter. Where N and D rise together only one-factor forms exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.laws.censored_product import Bounds, ProductLaw, fit_censored_product
from analysis.laws.fit import Estimate, NotIdentified
from analysis.page.axes import arrow, log_axis
from analysis.page.drawing import Drawing, finish, panel
from analysis.page.numbers import count, estimate, number
from analysis.page.page_table import Column, Table
from analysis.page.styles import Styles
from analysis.questions.options import Size
from analysis.questions.question import NOT_IDENTIFIED, Inputs, Question
from analysis.questions.scale_observations import COLUMNS, Quantity, ScaleObservation, observe

FORMS = (("num_params", "num_tokens"), ("num_tokens",), ("num_params",))
"""Inputs of the forms, the first to be preferred."""
_SYMBOL = {"num_params": "N", "num_tokens": "D"}
_OFF_THE_LINE = 1.1
"""Factor from the line of a study's (N, D) up to which a one-factor form still speaks of a size."""


@dataclass(frozen=True)
class ScaleForm:
    """A form of the law, or why these scales have none."""

    inputs: tuple[str, ...]
    law: ProductLaw | None
    coefficient: float | None
    reason: str | None


@dataclass(frozen=True)
class ScaleLaw:
    """One quantity of one series."""

    series: str
    quantity: Quantity
    forms: list[ScaleForm]
    at_one_ratio: Estimate | None
    """a + b: the exponent of N at one number of tokens per parameter; None without the form in N and D."""
    scales: list[ScaleObservation]
    without: int
    """Scales that say nothing of it, and take no part."""
    reason: str | None = None
    """Why nothing may be fitted."""


@dataclass(frozen=True)
class Prediction:
    """A quantity at a size that was asked for."""

    series: str
    quantity: Quantity
    num_params: float
    num_tokens: float
    value: Estimate | None
    """With the 95% interval for the best of one more scale."""
    inputs: tuple[str, ...] | None
    """Of the form that it comes from."""
    remark: str
    """How far it extrapolates, or why there is none."""


@dataclass(frozen=True)
class ScaleLaws:
    """Laws of every series and quantity, and predictions from them."""

    laws: list[ScaleLaw]
    predictions: list[Prediction]


def compute(inputs: Inputs) -> ScaleLaws:
    """Laws of every series and quantity of the study, and what they say of the sizes that were asked for."""
    found = [_law(inputs, series, quantity) for series in inputs.study.series for quantity in COLUMNS]
    laws = [law for law in found if law.scales or law.reason]
    return ScaleLaws(laws, [predict(law, size, inputs.budget) for size in inputs.options.predict for law in laws])


def _law(inputs: Inputs, series: str, quantity: Quantity) -> ScaleLaw:
    if against := inputs.optima.reason_against(*COLUMNS[quantity]):
        return ScaleLaw(series, quantity, [], None, [], 0, against)
    scales, without = observe(inputs.optima, series, quantity)
    return fit_scales(series, quantity, scales, without)


def fit_scales(series: str, quantity: Quantity, scales: list[ScaleObservation], without: int = 0) -> ScaleLaw:
    """Every form of the law on these scales."""
    forms = [_form(names, scales) for names in FORMS] if scales else []
    both = next((form.law for form in forms if form.law and len(form.inputs) > 1), None)
    at_one_ratio = both.combined_exponent("num_params", "num_tokens") if both else None
    return ScaleLaw(series, quantity, forms, at_one_ratio, scales, without)


def _form(names: tuple[str, ...], scales: list[ScaleObservation]) -> ScaleForm:
    width = np.array([one.width for one in scales])
    bounds = Bounds(_logs(scales, "low", -np.inf), _logs(scales, "high", np.inf), width)
    try:
        law = fit_censored_product({name: [getattr(one, name) for one in scales] for name in names}, bounds)
    except NotIdentified as error:
        return ScaleForm(names, None, None, str(error))
    return ScaleForm(names, law, law.coefficient(), None)


def _logs(scales: list[ScaleObservation], end: str, unbounded: float) -> Any:
    values = [getattr(one, end) for one in scales]
    return np.array([unbounded if value is None else np.log(value) for value in values])


def predict(law: ScaleLaw, size: Size, budget: float) -> Prediction:
    """The quantity at `size`, by the first form that these scales determine; tokens are N times `budget` if not given.

    A form in one factor speaks only of sizes on the line of the study's (N, D): it cannot know what the other does.
    """
    at = {"num_params": size.num_params, "num_tokens": size.num_tokens or size.num_params * budget}

    def without(reason: str) -> Prediction:
        return Prediction(law.series, law.quantity, at["num_params"], at["num_tokens"], None, None, reason)

    form = next((form for form in law.forms if form.law), None)
    if form is None or form.law is None:
        return without(f"no law: {law.reason or law.forms[0].reason}")
    if len(form.inputs) == 1 and (off := _off_the_line(form.inputs[0], law.scales, at)):
        return without(off)
    remark = _extrapolation(form.law, law.scales, at)
    value = form.law.predict(at)
    return Prediction(law.series, law.quantity, at["num_params"], at["num_tokens"], value, form.inputs, remark)


def _off_the_line(name: str, scales: list[ScaleObservation], at: dict[str, float]) -> str | None:
    """Why a form in `name` alone says nothing here; None on the line on which the study's other factor lies."""
    other = "num_tokens" if name == "num_params" else "num_params"
    known = [one for one in scales if one.known]
    x, y = (np.log([getattr(one, key) for one in known]) for key in (name, other))
    slope = float(np.cov(x, y)[0, 1] / np.var(x, ddof=1))
    left = y - y.mean() - slope * (x - x.mean())
    off = np.log(at[other]) - y.mean() - slope * (np.log(at[name]) - x.mean())
    if abs(off) <= np.abs(left).max() + np.log(_OFF_THE_LINE):
        return None
    expected = float(np.exp(np.log(at[other]) - off))
    return (
        f"these scales do not tell {_SYMBOL[name]} from {_SYMBOL[other]}: at {_SYMBOL[name]} = {count(at[name])} they "
        f"speak of {_SYMBOL[other]} = {count(expected)} alone, not of {count(at[other])}"
    )


def _extrapolation(law: ProductLaw, scales: list[ScaleObservation], at: dict[str, float]) -> str:
    parts = []
    data = {"N": [s.num_params for s in scales], "D": [s.num_tokens for s in scales]}
    data["D/N"] = [s.num_tokens / s.num_params for s in scales]
    asked = {"N": at["num_params"], "D": at["num_tokens"], "D/N": at["num_tokens"] / at["num_params"]}
    for name, value in asked.items():
        low, high = min(data[name]), max(data[name])
        if value > _OFF_THE_LINE * high:
            parts.append(f"{name} is {number(value / high)} times the largest with data, {count(high)}")
        elif value * _OFF_THE_LINE < low:
            parts.append(f"{name} is {number(value / low)} times the smallest with data, {count(low)}")
    if not parts:
        return "inside the data"
    worst = max(np.log10(max(min(data[n]) / v, v / max(data[n]))) for n, v in asked.items())
    end = "; more than a decade: no study supports it" if worst > 1 else ""
    return f"extrapolated, if the law holds so far: {', '.join(parts)}{end}"


def findings(result: ScaleLaws) -> list[str]:
    """One sentence for each prediction; without any, what grows with what."""
    out = []
    for size in dict.fromkeys((p.num_params, p.num_tokens) for p in result.predictions):
        mine = [p for p in result.predictions if (p.num_params, p.num_tokens) == size]
        for series in dict.fromkeys(p.series for p in mine):
            of_series = [p for p in mine if p.series == series]
            where = f"For N = {count(size[0])} and D = {count(size[1])}, {series}"
            remarks = dict.fromkeys(p.remark for p in of_series if p.value)
            if remarks:
                said = ", ".join(_said(p) for p in of_series if p.value)
                out.append(f"{where}: {said} ({'; '.join(remarks)}).")
            else:
                out.append(f"{where}: nothing is predicted; {'; '.join(dict.fromkeys(p.remark for p in of_series))}.")
    return out


def _said(prediction: Prediction) -> str:
    assert prediction.value is not None
    kind = "number" if prediction.quantity == "best learning rate" else "count"
    return f"{prediction.quantity} {estimate(prediction.value.value, prediction.value.ci, kind)}"


def section(result: ScaleLaws) -> list[str]:
    """What the laws are and what they rest on."""
    if not result.laws:
        return [f"{NOT_IDENTIFIED}no scale was trained with several batches or learning rates."]
    if not result.predictions and not any(form.law for law in result.laws for form in law.forms):
        return [f"{NOT_IDENTIFIED}no quantity has a law (tables/scale_laws.csv has the reasons)."]
    text = [
        "y = c N^a D^b over every size and token budget. A scale whose best setting is the last of its grid enters the "
        "likelihood as a bound; known values weigh by the width of their plateau. In N and D/N the exponents are "
        "a + b and b. Intervals are Student's where all scales give values."
    ]
    bounded = sum(not one.known for law in result.laws for one in law.scales)
    missing = sum(law.without for law in result.laws)
    total = sum(len(law.scales) + law.without for law in result.laws)
    if bounded:
        text.append(
            f"{bounded} of {total} times a scale gives a bound alone: used as such, it does not flatten the law as "
            "leaving it out would where grids end below the optimum."
        )
    if missing:
        text.append(
            f"{missing} of {total} times a scale says nothing and is left out: one value was tried, the curve is open "
            "at both ends, or, for the overhead, no run had other tokens. That biases no law unless those scales "
            "differ from the rest."
        )
    return text


def rows(result: ScaleLaws) -> list[Table]:
    """Laws, predictions, and the scales behind them."""
    forms = [(law, form) for law in result.laws for form in law.forms]
    exponents = [Column("exponent of N", "ratio"), Column("95% interval", "ratio", joint=" ")]
    exponents += [Column("exponent of D", "ratio"), Column("95% interval ", "ratio", joint=" ")]
    laws = Table(
        "scale_laws",
        "Laws over all scales, y = c N^a D^b, and their forms in one factor",
        [
            Column("quantity"), Column("series"), Column("left out", "integer"), *exponents,
            Column("N at one D/N", "ratio"), Column("95% interval  ", "ratio", joint=" "),
            Column("c", "number"), Column("scatter", "spread"), Column("values", "integer"),
            Column("bounds", "integer"), Column("why not"),
        ],
        [
            [
                law.quantity, law.series, law.without, *_exponent(form, "num_params"), *_exponent(form, "num_tokens"),
                *_pair(law.at_one_ratio if form.law and len(form.inputs) > 1 else None),
                form.coefficient, form.law.scatter if form.law else None,
                form.law.num_known if form.law else None,
                form.law.num_above + form.law.num_below if form.law else None,
                f"in {' and '.join(_SYMBOL[name] for name in form.inputs)}: {form.reason}" if form.reason else "–",
            ]
            for law, form in forms
        ],
    )  # fmt: skip
    predictions = Table(
        "predictions",
        "Predicted hyper-parameters, with the interval for one more scale",
        [
            Column("size", "count", "parameters"), Column("tokens", "count"), Column("series"), Column("quantity"),
            Column("value", "number"), Column("95% interval", "number", joint=" "), Column("from a law in"),
            Column("remark"),
        ],
        [
            [
                p.num_params, p.num_tokens, p.series, p.quantity, *_pair(p.value),
                " and ".join(_SYMBOL[name] for name in p.inputs) if p.inputs else "–", p.remark,
            ]
            for p in result.predictions
        ],
    )  # fmt: skip
    scales = Table(
        "scale_observations",
        "What every scale says",
        [
            Column("quantity"), Column("series"), Column("size", "count", "parameters"), Column("tokens", "count"),
            Column("at least", "number"), Column("at most", "number"), Column("half plateau in ln", "number"),
        ],
        [
            [law.quantity, law.series, s.num_params, s.num_tokens, s.low, s.high, s.width]
            for law in result.laws for s in law.scales
        ],
    )  # fmt: skip
    return [table for table in (predictions, laws, scales) if table.rows]


def _pair(estimate: Estimate | None) -> tuple[float | None, tuple[float, float] | None]:
    return (estimate.value, estimate.ci) if estimate else (None, None)


def _exponent(form: ScaleForm, name: str) -> tuple[float | None, tuple[float, float] | None]:
    return _pair(form.law.exponents.get(name) if form.law else None)


def plot(result: ScaleLaws, styles: Styles) -> list[Drawing]:
    """Each quantity known at two scales against tokens; arrows are bounds, lines the form in D."""
    out = []
    for i, quantity in enumerate(COLUMNS):
        laws = [law for law in result.laws if law.quantity == quantity and any(one.known for one in law.scales)]
        if len({one.num_tokens for law in laws for one in law.scales if one.known}) < 2:
            continue
        title = f"{quantity[0].upper()}{quantity[1:]}, every scale"
        unit = "" if quantity == "best learning rate" else " (tokens)"
        figure, axes = panel(title, "tokens D", quantity.split(",")[0] + unit)
        for law in laws:
            _draw(axes, law, styles)
        values = [v for law in laws for s in law.scales for v in (s.low, s.high) if v is not None]
        log_axis(axes.xaxis, [s.num_tokens for law in laws for s in law.scales], count)
        log_axis(axes.yaxis, values, number if quantity == "best learning rate" else count)
        finish(figure, axes)
        alt = f"{quantity} against training tokens for {', '.join(law.series for law in laws)}."
        out.append(Drawing(f"scale_law_{i + 1}", title, alt, figure))
    return out


def _draw(axes: Any, law: ScaleLaw, styles: Styles) -> None:
    known = [one for one in law.scales if one.known]
    axes.plot([s.num_tokens for s in known], [s.low for s in known], **styles.points(law.series))
    color = styles.line(law.series)["color"]
    for at, end, factor in _bounds(law.scales if law.series in styles.named else []):
        arrow(axes, (at, end), (at, end * factor), color)
    fitted = next((form.law for form in law.forms if form.law and form.inputs == ("num_tokens",)), None)
    if fitted:
        low, high = fitted.inputs["num_tokens"]
        line = [fitted.predict({"num_tokens": d}).value for d in (low, high)]
        axes.plot([low, high], line, **styles.curve(law.series))


def _bounds(scales: list[ScaleObservation]) -> Iterator[tuple[float, float, float]]:
    for one in scales:
        if one.low is not None and one.high is None:
            yield one.num_tokens, one.low, 1.5
        elif one.high is not None and one.low is None:
            yield one.num_tokens, one.high, 1 / 1.5


QUESTION = Question(
    name="scale_laws",
    title="Laws over all scales",
    result=ScaleLaws,
    compute=compute,
    findings=findings,
    section=section,
    rows=rows,
    plot=plot,
)

"""This project's fits of the published tables beside what was published: `muloco-report published`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.laws.fit import Fit
from analysis.laws.intervals import students_t
from analysis.laws.power_law import fit_critical_batch, fit_loss_compute, fit_power_law, fit_power_product
from analysis.laws.solver import Array
from analysis.published import published_tables as tables
from analysis.questions.iso_loss import ratio_at
from analysis.questions.steps_to_target import fit_critical_batch_of_steps
from analysis.questions.time_ratio import at_baselines_flops, time_ratio_at
from analysis.questions.wall_clock import GIGABIT, Assumptions, Training, idealised_seconds

BASELINE = "DDP-AdamW"
HUBER = "Huber 1e-3"
LEAST_SQUARES = "least squares"


@dataclass(frozen=True)
class Row:
    """One figure: what was published, what comes out here, and how far apart they may be."""

    group: str
    quantity: str
    method: str
    """How this project found its value."""
    published: float
    ours: float
    bound: float
    relative: bool = False

    @property
    def difference(self) -> float:
        return self.ours / self.published - 1 if self.relative else self.ours - self.published

    @property
    def met(self) -> bool:
        return abs(self.difference) <= self.bound * (1 + 1e-9)


def compare() -> list[Row]:
    """Every row, in the order of the page."""
    loss_fit = _loss_fit(1e-3)
    batch_fits = {name: _batch_fit(name, 1e-3) for name in tables.ALGORITHMS.values()}
    return [
        *_critical_batch_exponents(batch_fits),
        *_iso_loss(loss_fit),
        *_plotted_curves(loss_fit, batch_fits),
        *_charles(),
        *_zhang(),
        *_wall_clock(),
    ]


def _batch_fit(series: str, delta: float) -> Fit:
    points = tables.critical_batches()
    mine = points[points["series"] == series]
    return fit_critical_batch(mine["num_tokens"], mine["critical_batch_size"], delta=delta, bootstrap=0)


def _loss_fit(delta: float) -> Fit:
    table = tables.swept_losses()
    return fit_loss_compute(table["flops"], table["loss"], groups=table["series"].tolist(), delta=delta, bootstrap=0)


def _critical_batch_exponents(batch_fits: dict[str, Fit]) -> list[Row]:
    group = "Critical batch, exponent of B = A D^alpha over five sizes"
    points = tables.critical_batches()
    rows = []
    for name, fit in batch_fits.items():
        legend = float(points.loc[points["series"] == name, "exponent"].iloc[0])
        rows.append(Row(group, f"{name}, legend", HUBER, legend, fit.value("alpha"), 0.001))
    # By another reference fit of the same points, with the token counts as read off the figure.
    reference = {
        "DDP-AdamW": (0.383, -0.16, 0.93),
        "DDP-Muon": (0.910, 0.72, 1.10),
        "DiLoCo K=1": (0.481, 0.13, 0.84),
        "MuLoCo K=1": (0.927, 0.53, 1.32),
    }
    for name, expected in reference.items():
        mine = points[points["series"] == name]
        tokens, batch = mine["num_tokens_as_read"], mine["critical_batch_size"]
        fit = fit_critical_batch(tokens, batch, delta=np.inf, bootstrap=0)
        _, (_, low, high) = students_t(np.log(tokens.to_numpy()), np.log(batch.to_numpy()))
        rows.append(Row(group, f"{name}, value", LEAST_SQUARES, expected[0], fit.value("alpha"), 0.001))
        rows.append(Row(group, f"{name}, low end of the t interval", LEAST_SQUARES, expected[1], low, 0.006))
        rows.append(Row(group, f"{name}, high end of the t interval", LEAST_SQUARES, expected[2], high, 0.006))
    return rows


def _iso_loss(fit: Fit) -> list[Row]:
    group = "Loss against compute, five sizes, shared irreducible loss"
    rows = [Row(group, "irreducible loss", HUBER, 1.667, fit.value("E"), 0.003)]
    exponents = {"DDP-AdamW": 0.1858, "DDP-Muon": 0.1901, "DiLoCo K=1": 0.1896, "MuLoCo K=1": 0.1905}
    rows += [Row(group, f"exponent, {n}", HUBER, e, fit.value(f"alpha[{n}]"), 5e-4) for n, e in exponents.items()]
    expected = {
        (HUBER, 1e-3): {"DDP-Muon": 1.307, "DiLoCo K=1": 1.204, "MuLoCo K=1": 1.341},
        (LEAST_SQUARES, np.inf): {"DDP-Muon": 1.295, "DiLoCo K=1": 1.149, "MuLoCo K=1": 1.378},
    }
    for (method, delta), ratios in expected.items():
        values = _values(fit if method == HUBER else _loss_fit(delta))
        for name, ratio in ratios.items():
            ours = float(ratio_at(values, BASELINE, name, 1.26e21)[0])
            rows.append(Row(group, f"compute of {BASELINE} over {name}'s at 1.26e21", method, ratio, ours, 0.005))
    return rows


def _plotted_curves(loss_fit: Fit, batch_fits: dict[str, Fit]) -> list[Row]:
    """Compare each plotted curve at the point that is met worst."""
    group = "Plotted ratios at equal loss, the worst point of each curve"
    laws = _values(loss_fit)
    batch_laws = {name: _values(fit) for name, fit in batch_fits.items()}
    rows = []
    for name in list(tables.ALGORITHMS.values())[1:]:
        flops, plotted = tables.iso_loss_curve("compute_ratio", name)
        ours = np.array([ratio_at(laws, BASELINE, name, c)[0] for c in flops])
        rows.append(_worst(group, f"compute, {name}", flops, plotted, ours, 0.01))
    for name in list(tables.ALGORITHMS.values())[1:]:
        # The plotted time ratios stand at the baseline's compute.
        flops, plotted = tables.iso_loss_curve("time_ratio", name)
        own = [at_baselines_flops(laws, BASELINE, name, c) for c in flops]
        budget = tables.TOKENS_PER_PARAMETER
        ours = np.array([time_ratio_at(laws, batch_laws, BASELINE, name, c, budget)[0] for c in own])
        rows.append(_worst(group, f"time at the critical batch, {name}", flops, plotted, ours, 0.03))
    return rows


def _worst(group: str, quantity: str, flops: Array, plotted: Array, ours: Array, bound: float) -> Row:
    i = int(np.abs(ours / plotted - 1).argmax())
    label = f"{quantity}, {len(flops)} points, worst at {flops[i]:.3g}"
    return Row(group, label, HUBER, float(plotted[i]), float(ours[i]), bound, relative=True)


def _charles() -> list[Row]:
    group = "Charles et al. 2025, loss against size, L = A N^alpha M^gamma"
    table = tables.charles_losses()
    published = {
        "DP": (18.129, -0.0953),
        "1": (18.363, -0.0961),
        "2": (18.768, -0.0969),
        "4": (19.762, -0.0992),
        "8": (21.051, -0.1018),
    }
    rows = []
    for name, (amplitude, alpha) in published.items():
        mine = table[table["M"] == name]
        fit = fit_power_law(mine["num_params"], mine["loss"], delta=np.inf, bootstrap=0)
        label = "data parallel" if name == "DP" else f"M = {name}"
        rows += _published_law(group, label, amplitude, fit.value("A"), {"alpha": (alpha, fit.value("alpha"))})
    diloco = table[table["M"] != "DP"]
    inputs = {"N": diloco["num_params"], "M": diloco["M"].astype(float)}
    joint = fit_power_product(inputs, diloco["loss"], delta=np.inf, bootstrap=0)
    exponents = {"alpha": (-0.0985, joint.value("alpha[N]")), "gamma": (0.0116, joint.value("alpha[M]"))}
    return rows + _published_law(group, "joint", 19.226, joint.value("A"), exponents)


def _published_law(
    group: str, label: str, amplitude: float, ours: float, exponents: dict[str, tuple[float, float]]
) -> list[Row]:
    """Exponents were published with four digits and are compared with as many."""
    rows = [Row(group, f"{label}, A", LEAST_SQUARES, amplitude, ours, 0.003, relative=True)]
    for name, (published, value) in exponents.items():
        rows.append(Row(group, f"{label}, {name}", LEAST_SQUARES, published, round(value, 4), 1e-4))
    return rows


def _zhang() -> list[Row]:
    """B* costs a fifth more tokens than the reference of 256 sequences, not than the fewest: S B = S_min (B + B_c)."""
    group = "Zhang et al. 2024, critical batch (sequences of 512) over five sizes at 20 tokens per parameter, c N^a"
    reference, coefficient, exponent = 256.0, 93.20, 0.47
    steps = tables.steps_to_target()
    batch, sizes = steps.columns.to_numpy(dtype=float), steps.index.to_numpy(dtype=float)
    found = [fit_critical_batch_of_steps(batch, row)[0].value for row in steps.to_numpy(dtype=float)]
    critical = 1.2 * reference + 0.2 * np.array(found)
    millions = sizes / 1e6
    fit = fit_power_law(millions, critical, delta=np.inf, bootstrap=0)
    line = coefficient * millions**exponent
    worst = int(np.abs(critical / line - 1).argmax())
    size = f"its worst size, {millions[worst]:g}M"
    return [
        Row(group, "a", LEAST_SQUARES, exponent, fit.value("alpha"), 0.01),
        Row(group, "c, N in millions", LEAST_SQUARES, coefficient, fit.value("A"), 0.05, relative=True),
        Row(
            group, f"the law at {size}", LEAST_SQUARES, float(line[worst]), float(critical[worst]), 0.03, relative=True
        ),
    ]


def _wall_clock() -> list[Row]:
    """The published 15B runs under the idealised model; batches are those that the plotted step counts imply."""
    group = "Hours of 15B training, idealised model, 0.97 s a step"
    sequence, num_params, num_tokens = 2048, 15_229_089_792, 304.76e9
    batches = {
        "DP_AdamW": 1024, "DP_Muon": 2048, "DiLoCo_K1": 512, "MuLoCo_K1": 8192, "DiLoCo_K16": 2048, "MuLoCo_K16": 4096
    }  # fmt: skip
    rows = []
    for row in tables.wall_clock_hours().to_dict("records"):
        name, gigabits = str(row["method"]), float(row["bandwidth_gbits"])
        apart = name.endswith("K16")
        run = Training(num_params, num_tokens, batches[name] * sequence, 16 if apart else 1, 30 if apart else 1)
        hours = idealised_seconds(run, gigabits * GIGABIT, Assumptions(step_seconds=0.97)) / 3600
        label = f"{name.replace('_', ' ')} at {gigabits:g} Gbit/s"
        rows.append(Row(group, label, "formula", float(row["hours"]), hours, 0.07, relative=True))
    return rows


def _values(fit: Fit) -> dict[str, Array]:
    return {name: np.array([estimate.value]) for name, estimate in fit.parameters.items()}

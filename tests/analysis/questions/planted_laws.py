"""Studies with known laws, each with what its printed intervals say: (name of the interval, whether it holds the
truth). Nothing is yielded where no interval is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from analysis.laws.fit import Estimate, Fit
from analysis.laws.power_law import fit_chinchilla, fit_critical_batch, fit_power_product
from analysis.optima import Optima
from analysis.questions.critical_batch_joint import fit_joint
from analysis.questions.critical_batch_size import find_critical_batches, fit_laws
from analysis.questions.crossings import cross
from analysis.questions.iso_loss import compute_iso_loss
from analysis.questions.measured_ratio import at_equal_loss, measured_ratio
from analysis.questions.options import Size
from analysis.questions.scale_laws import fit_scales, predict
from analysis.questions.scale_observations import ScaleObservation
from analysis.questions.steps_to_target import fit_critical_batch_of_steps
from analysis.questions.time_ratio import compute_time_ratios

Held = Iterator[tuple[str, bool]]
SIZES = np.geomspace(3e7, 3e9, 6)
BOOTSTRAP = 200


def holds(ci: Sequence[float] | None, truth: float) -> bool:
    low, high = ci or (np.nan, np.nan)
    return bool(low <= truth <= high)


def estimated(estimate: Estimate, truth: float) -> bool:
    return holds(estimate.ci, truth)


# Loss against compute, ratios, crossings

E, LEVEL, ALPHA = 1.7, 4e3, {"DDP-AdamW": 0.19, "DDP-Muon": 0.195, "MuLoCo K=1": 0.187}
GAIN = {"DDP-AdamW": 1.0, "DDP-Muon": 1.3, "MuLoCo K=1": 1.0}
"""Compute that AdamW needs for the same loss at 1e19 flops."""
BATCH = {"DDP-AdamW": (3e5, 0.45), "DDP-Muon": (5e5, 0.6), "MuLoCo K=1": (6e5, 0.7)}
"""Critical batch at 2e9 tokens, and its exponent."""
CROSSING = 1e19


def level_of(name: str) -> float:
    """A of E + A C^-alpha with the gain at 1e19 flops."""
    return float(LEVEL * (GAIN[name] * 1e19) ** -0.19 * 1e19 ** ALPHA[name])


def best_losses(generator: np.random.Generator, noise: float = 0.001) -> pd.DataFrame:
    """Losses of all series at every size; half of the noise is common to a size."""
    rows = []
    for n in SIZES:
        flops, shared = 120.0 * n * n, generator.normal()
        for name, power in ALPHA.items():
            loss = E + level_of(name) * flops**-power
            loss *= np.exp(noise * (generator.normal() + shared) / np.sqrt(2))
            rows.append((name, int(n), flops, 20 * n, loss))
    return pd.DataFrame(rows, columns=["series", "num_params", "flops", "num_tokens", "loss"])


def batch_fits(generator: np.random.Generator) -> dict[str, Fit]:
    out = {}
    for name, (level, power) in BATCH.items():
        tokens = 20 * SIZES
        found = level * (tokens / 2e9) ** power * np.exp(0.1 * generator.normal(size=len(SIZES)))
        units = [int(n) for n in SIZES]
        out[name] = fit_critical_batch(tokens, found, bootstrap=BOOTSTRAP, resample_by=units)
    return out


def ratios(generator: np.random.Generator) -> Held:
    best = best_losses(generator)
    names = [*ALPHA]
    iso = compute_iso_loss(best, names, "DDP-AdamW", 1e-3, BOOTSTRAP, 0)
    yield "loss against compute, E", estimated(iso.fit.parameters["E"], E)
    for name in names:
        yield f"loss against compute, alpha of {name}", estimated(iso.fit.parameters[f"alpha[{name}]"], ALPHA[name])
        yield f"loss against compute, A of {name}", estimated(iso.fit.parameters[f"A[{name}]"], level_of(name))
    fits = batch_fits(generator)
    for name in names:
        yield f"critical batch, exponent of {name}", estimated(fits[name].parameters["alpha"], BATCH[name][1])
    at = float(best["flops"].max())
    times = compute_time_ratios(
        iso.fit, fits, "cbs_1pct", names[0], {name: [at] for name in names[1:]}, np.empty(0), 20.0, iso.scales
    )
    for name, found in zip(names[1:], times.ratios, strict=True):
        reducible = level_of(name) * at ** -ALPHA[name]
        compute = (level_of(names[0]) / reducible) ** (1 / ALPHA[names[0]]) / at
        (own,) = (r for r in iso.ratios if r.series == name and r.flops == at)
        yield f"compute ratio of {name}", holds(own.ci, compute)
        tokens = {names[0]: np.sqrt(20 * at * compute / 6), name: np.sqrt(20 * at / 6)}
        batch = {key: BATCH[key][0] * (d / 2e9) ** BATCH[key][1] for key, d in tokens.items()}
        steps = np.sqrt(compute) * batch[name] / batch[names[0]]
        yield f"steps ratio of {name}", holds(found.steps_ci, steps)
        yield f"time ratio of {name}", holds(found.ci, steps * np.sqrt(compute))


def crossing(generator: np.random.Generator) -> Held:
    """AdamW and another whose exponent is larger by .03 meet at 1e19 flops."""
    rows = []
    for n in SIZES:
        flops, shared = 120.0 * n * n, generator.normal()
        for name, power in (("DDP-AdamW", 0.19), ("other", 0.22)):
            reducible = LEVEL * CROSSING**-0.19 * (flops / CROSSING) ** -power
            noise = 5e-4 * (generator.normal() + shared) / np.sqrt(2)
            rows.append((name, int(n), flops, (E + reducible) * np.exp(noise)))
    best = pd.DataFrame(rows, columns=["series", "num_params", "flops", "loss"])
    iso = compute_iso_loss(best, ["DDP-AdamW", "other"], "DDP-AdamW", 1e-3, BOOTSTRAP, 0)
    found = cross(iso, "DDP-AdamW", "other", best["flops"].min(), best["flops"].max(), 20.0)
    if found.low is not None or found.high is not None:
        yield "crossing", holds((found.low or 0.0, found.high or np.inf), CROSSING)


def measured(generator: np.random.Generator) -> Held:
    """Seconds a flop fall as C^-.05, by 1.4 times more for the series at 1e19 flops; memory is .6 of the baseline's."""
    rows = []
    for n in SIZES:
        flops = 120.0 * n * n
        for name, speed, memory in (("base", 1.0, 1.0), ("other", 1.4 * (flops / 1e19) ** 0.02, 0.6)):
            seconds = speed * flops**-0.05 * np.exp(0.05 * generator.normal())
            rows.append((name, int(n), flops, seconds, memory * 20 * n * np.exp(0.02 * generator.normal())))
    names = ["series", "num_params", "flops", "seconds_per_flop", "memory_bytes"]
    best = pd.DataFrame(rows, columns=names).assign(device="gpu", num_ranks=8)
    at = float(best["flops"].max())
    memory = measured_ratio(best, "base", "other", "memory_bytes", at)
    assert memory.ratio is not None
    yield "memory ratio", estimated(memory.ratio, 1 / 0.6)
    speed = measured_ratio(best, "base", "other", "seconds_per_flop", at)
    assert speed.ratio is not None
    same = 1 / (1.4 * (at / 1e19) ** 0.02)
    yield "speed at one size", estimated(speed.ratio, same)
    for compute, width in ((1.3, 0.05), (0.8, 0.15)):
        known = compute * np.exp(width * generator.normal())
        ci = (float(known * np.exp(-1.96 * width)), float(known * np.exp(1.96 * width)))
        found = at_equal_loss(speed, float(known), ci)
        assert found is not None
        yield f"device time ratio at a compute ratio of {compute}", estimated(found, same * compute**0.95)


# Critical batches, hyper-parameters


def joint_losses(
    generator: np.random.Generator, budgets: tuple[float, ...], beta: float, critical_batch: Callable[..., float]
) -> pd.DataFrame:
    """L = 1.7 + 400 N^-.34 + B D_eff^-beta at batches of powers of two; those well below B_c lose a little as well."""
    rows = []
    for n in np.geomspace(1e7, 1e9, 5):
        for budget in budgets:
            d = budget * n
            critical = critical_batch(n, d)
            for b in 2.0 ** np.arange(12, 25):
                small = max(0.0, float(np.log2(critical / 8 / b)))
                loss = 1.7 + 400 * n**-0.34 + 900 * 2e9 ** (beta - 0.3) * (d / (1 + b / critical)) ** -beta
                loss *= (1 + 0.003 * small**2) * np.exp(0.002 * generator.normal())
                rows.append(("s", int(n), budget, d, b, loss))
    names = ["series", "num_params", "tokens_per_parameter", "num_tokens", "global_batch_tokens", "loss"]
    return pd.DataFrame(rows, columns=names)


def joint(generator: np.random.Generator) -> Held:
    """B_c = 2e6 (N/1e8)^-.2 (D/2e9)^.6 over five sizes and three budgets; (D/2e9)^.6 over one."""
    points = joint_losses(generator, (5.0, 20.0, 80.0), 0.3, lambda n, d: 2e6 * (n / 1e8) ** -0.2 * (d / 2e9) ** 0.6)
    law = fit_joint(points, "s", 1e-3)
    assert law.in_both is not None, law.in_both_reason
    yield "cbs_joint, exponent of N", estimated(law.in_both.exponents["num_params"], -0.2)
    yield "cbs_joint, exponent of D", estimated(law.in_both.exponents["num_tokens"], 0.6)
    at = law.in_both.at
    truth = 2e6 * (at["num_params"] / 1e8) ** -0.2 * (at["num_tokens"] / 2e9) ** 0.6
    yield "cbs_joint, B_c", estimated(law.in_both.critical_batch_size, truth)
    # One exponent for N and D, as the model has where they rise together.
    alone = fit_joint(joint_losses(generator, (20.0,), 0.34, lambda n, d: 2e6 * (d / 2e9) ** 0.6), "s", 1e-3)
    yield "cbs_joint in D alone, exponent", estimated(alone.exponent, 0.6)
    truth = 2e6 * (alone.at_tokens / 2e9) ** 0.6
    yield "cbs_joint in D alone, B_c", estimated(alone.critical_batch_size, truth)


def batch_curves(generator: np.random.Generator) -> Held:
    """Parabolas in log batch about D^.6 with a scatter of .15: the 1% rule's crossing lies a factor of four above."""
    rows = []
    for n in SIZES:
        d = 20 * n
        best = 4e4 * (d / 2e9) ** 0.6 * np.exp(0.15 * generator.normal())
        for b in 2.0 ** np.arange(9, 24):
            loss = 3 * (1 + 0.01 * (np.log(b / best) / np.log(4)) ** 2) * np.exp(5e-4 * generator.normal())
            rows.append(("s", int(n), 20.0, d, int(b), int(d / b), loss, 6 * n * d, [], 2))
    names = ["series", "num_params", "tokens_per_parameter", "num_tokens", "global_batch_tokens", "num_steps", "loss"]
    points = pd.DataFrame(rows, columns=[*names, "flops", "edges", "seeds"])
    points = points.assign(
        selection_loss=points["loss"], selection_seeds=points["seeds"], seed_losses=[{}] * len(points), unbiased=False
    )
    lowest = points.loc[points.groupby("num_params")["loss"].idxmin()].reset_index(drop=True)
    optima = Optima(points, points, lowest, 5e-4 * np.sqrt(2), 1)
    for law in fit_laws(find_critical_batches(optima, 20.0), optima, 1e-3, BOOTSTRAP, 0):
        if law.fit is not None:
            yield f"exponent of {law.definition}", estimated(law.fit.parameters["alpha"], 0.6)


def best_batches(generator: np.random.Generator) -> Held:
    """Best batches .58 D^.571 with a scatter of .2; grids that end at 2^19 leave bounds."""
    scales = []
    for n in SIZES:
        for budget in (5.0, 20.0, 80.0):
            d = n * budget
            value, largest = float(0.58 * d**0.571 * np.exp(0.2 * generator.normal())), 2.0**19
            scales.append(ScaleObservation(n, d, min(value, largest), value if value < largest else None))
    law = fit_scales("s", "best batch", scales)
    for size in (Size(5e8, 1e10), Size(1e10, 2e11)):
        predicted = predict(law, size, 20.0).value
        assert predicted is not None
        assert size.num_tokens is not None
        one_more = 0.58 * size.num_tokens**0.571 * np.exp(0.2 * generator.normal())
        yield f"predicted batch at {size.num_params:.0e} parameters", estimated(predicted, one_more)


def steps_to_target(generator: np.random.Generator) -> Held:
    batch = 2.0 ** np.arange(14, 21)
    steps = 5e3 * (1 + 2e5 / batch) * np.exp(0.05 * generator.normal(size=len(batch)))
    yield "critical batch of steps to one loss", estimated(fit_critical_batch_of_steps(batch, steps)[0], 2e5)


# Size and data, workers


def size_and_data(generator: np.random.Generator) -> Held:
    n, d = (values.ravel() for values in np.meshgrid(np.geomspace(2e7, 2e9, 6), np.geomspace(4e8, 4e10, 5)))
    loss = (1.8 + 400 * n**-0.34 + 410 * d**-0.28) * np.exp(0.002 * generator.normal(size=len(n)))
    fit = fit_chinchilla(n, d, loss, bootstrap=BOOTSTRAP)
    for name, truth in (("E", 1.8), ("alpha", 0.34), ("beta", 0.28)):
        yield f"size and data, {name}", estimated(fit.parameters[name], truth)


def workers(generator: np.random.Generator) -> Held:
    n, k = (values.ravel() for values in np.meshgrid(np.geomspace(3e7, 3e9, 5), 2.0 ** np.arange(5)))
    loss = 12 * n**-0.08 * k**0.01 * np.exp(0.003 * generator.normal(size=len(n)))
    fit = fit_power_product({"num_params": n, "num_workers": k}, loss, name="loss", bootstrap=BOOTSTRAP)
    for name, truth in (("alpha[num_params]", -0.08), ("alpha[num_workers]", 0.01)):
        yield f"workers, {name}", estimated(fit.parameters[name], truth)


STUDIES: tuple[Callable[[np.random.Generator], Held], ...] = (
    ratios, crossing, measured, joint, batch_curves, best_batches, steps_to_target, size_and_data, workers,
)  # fmt: skip

"""Times the fitter against multi-start L-BFGS on the same data, and a report from a study of a published size.

Point fit and bootstrap: 240 points along lines of equal compute with heavy-tailed noise, fitted by
L = E + A N^-alpha + B D^-beta, Huber 1e-3 in logs. The peer is scipy's L-BFGS-B with its defaults and an analytic
gradient from the 16 starts of a 4 x 4 grid of exponents, for a bootstrap one start a resample. Rounds alternate between
the two.

Report: run folders of a planted study (five sizes, four algorithms, K from 1 to 16, about 2,800 folders, cut to
--runs), from reading the folders to the last written file.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from scipy.optimize import minimize

from analysis.laws.power_law import fit_chinchilla
from analysis.laws.solver import Array, LogSumExpModel, derivatives, objective

ROOT = Path(__file__).resolve().parents[1]
DELTA = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of the point fit (%(default)s)")
    parser.add_argument("--resamples", type=int, default=4000, help="of the bootstrap (%(default)s)")
    parser.add_argument("--peer-resamples", type=int, default=200, help="the peer solves, scaled up (%(default)s)")
    parser.add_argument(
        "--runs", type=int, default=2200, help="run folders of the report; 0 leaves it out (%(default)s)"
    )
    options = parser.parse_args()
    data = planted_points()
    rows = [*time_fits(data, options.rounds), *time_bootstraps(data, options.resamples, options.peer_resamples)]
    if options.runs:
        rows.append(time_report(options.runs))
    print(f"{'what':44} {'median':>10} {'spread':>20}   note")
    for what, median, low, high, note in rows:
        print(f"{what:44} {median:>8.3f} s {f'{low:.3f} to {high:.3f} s':>20}   {note}")


def planted_points() -> tuple[Array, Array, Array]:
    """N, D and loss of 240 runs."""
    generator = np.random.default_rng(0)
    flops = np.repeat(np.geomspace(6e18, 3e21, 8), 30)
    n = np.sqrt(flops / 120) * np.exp(generator.uniform(-1.5, 1.5, 240))
    d = flops / (6 * n)
    loss = (1.82 + 480 * n**-0.348 + 2140 * d**-0.367) * np.exp(0.004 * generator.standard_t(3, 240))
    return n, d, loss


def peer(data: tuple[Array, Array, Array]) -> Callable[[Array, Array], tuple[Array, float]]:
    """L-BFGS-B from one start under given weights, on centred logs."""
    n, d, loss = data
    log_n, log_d = (np.log(x) - np.log(x).mean() for x in (n, d))
    design = np.zeros((3, len(n), 5))
    design[0, :, 0] = design[1, :, 1] = design[2, :, 3] = 1
    design[1, :, 2], design[2, :, 4] = -log_n, -log_d
    model, log_y = LogSumExpModel(design), np.log(loss)

    def solve(start: Array, weight: Array) -> tuple[Array, float]:
        def value_and_gradient(theta: Array) -> tuple[float, Array]:
            value = objective(model, theta[None], log_y, weight[None], DELTA)[0]
            return float(value), derivatives(model, theta[None], log_y, weight[None], DELTA)[0][0]

        found = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B")
        return found.x, float(found.fun)

    return solve


def starts() -> list[Array]:
    grid = (0.1, 0.25, 0.45, 0.8)
    return [np.array([0.5, -1.0, alpha, -1.0, beta]) for alpha in grid for beta in grid]


def time_fits(data: tuple[Array, Array, Array], rounds: int) -> list[tuple[str, float, float, float, str]]:
    solve, ones = peer(data), np.ones(len(data[0]))
    ours, theirs = [], []
    fit_chinchilla(*data, bootstrap=0)
    for _ in range(rounds):
        began = time.perf_counter()
        fit = fit_chinchilla(*data, bootstrap=0)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        best = min(solve(start, ones)[1] for start in starts())
        theirs.append(time.perf_counter() - began)
    ratio = np.median(theirs) / np.median(ours)
    return [
        _row("point fit", ours, f"objective {fit.objective:.9g}, {ratio:.1f}x the peer's speed; bar 0.05 s"),
        _row("point fit, L-BFGS-B from 16 starts", theirs, f"objective {best / fit.objective - 1:+.1e} above ours"),
    ]


def time_bootstraps(
    data: tuple[Array, Array, Array], resamples: int, peer_resamples: int
) -> list[tuple[str, float, float, float, str]]:
    solve, generator = peer(data), np.random.default_rng(0)
    centre, _ = min((solve(start, np.ones(len(data[0]))) for start in starts()), key=lambda found: found[1])
    ours, theirs = [], []
    for _ in range(3):
        began = time.perf_counter()
        fit_chinchilla(*data, bootstrap=resamples)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(peer_resamples):
            solve(centre, generator.exponential(size=len(data[0])))
        theirs.append((time.perf_counter() - began) * resamples / peer_resamples)
    ratio = np.median(theirs) / np.median(ours)
    scaled = f"from {peer_resamples} resamples, scaled"
    return [
        _row(f"{resamples} bootstraps", ours, f"{ratio:.1f}x the peer's speed; bar 10 s"),
        _row(f"{resamples} bootstraps, L-BFGS-B, one start each", theirs, scaled),
    ]


def time_report(runs: int) -> tuple[str, float, float, float, str]:
    sys.path.insert(0, str(ROOT / "tests" / "analysis"))
    import shutil

    from planted import Law, write_study

    from analysis.questions.options import Options
    from analysis.report.content import build_report
    from analysis.report.render import write_report
    from analysis.runs import load_study

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        print("writing the run folders of a planted study ...", file=sys.stderr, flush=True)
        write_study(root, Law(noise=0.0015))
        folders = sorted((root / "runs").iterdir())
        for extra in np.random.default_rng(0).permutation(len(folders))[runs:]:
            shutil.rmtree(folders[extra])
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            report = build_report(load_study(root), Options())
            write_report(report, root / "report")
            seconds.append(time.perf_counter() - began)
        figures = len(list((root / "report" / "figures").glob("*.svg")))
    return _row(f"report from {min(runs, len(folders))} run folders", seconds, f"{figures} figures; bar 10 s")


def _row(what: str, seconds: list[float], note: str) -> tuple[str, float, float, float, str]:
    return what, float(np.median(seconds)), min(seconds), max(seconds), note


if __name__ == "__main__":
    main()

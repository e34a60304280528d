"""What a reader looks for first: training curves, best losses, what they cost, links and workers that matter."""

from pathlib import Path
from typing import Any

import pytest
from planted import run_config, write_run

from analysis.optima import find_optima
from analysis.page.styles import Styles
from analysis.questions.options import Options
from analysis.questions.parts.link_hours import plot_wall_clock
from analysis.questions.parts.training_curves import CurvePoint, plot_training_curves, training_curves
from analysis.questions.parts.worker_counts import plot_num_workers
from analysis.report.content import build_report
from analysis.report.tables import all_tables
from analysis.runs import load_study
from muloco_runner.record import StepRecord

AUDIT: dict[str, Any] = {"columns": {}, "unusable": {}}


@pytest.fixture
def small_study(tmp_path: Path) -> Path:
    """AdamW at two sizes and two rates, Muon at the larger size; the second rate is better and slower."""
    for lr, loss, seconds in ((0.01, 2.2, 50.0), (0.02, 2.1, 60.0)):
        write_run(tmp_path, run_config(model="29k", lr=lr), loss + 0.5, train_seconds=10.0)
        write_run(tmp_path, run_config(model="42k", lr=lr), loss, train_seconds=seconds)
    write_run(tmp_path, run_config("DDP-Muon", "42k", lr=0.02), 2.0, train_seconds=70.0)
    return tmp_path


def test_a_curve_is_of_the_lowest_seed_in_means_of_stretches(tmp_path: Path) -> None:
    configs = [run_config(seed=seed) for seed in (0, 1, 2)]
    folders = [write_run(tmp_path, config, loss) for config, loss in zip(configs, (2.2, 2.0, None), strict=True)]
    for step in range(1, 241):
        folders[1].append_record(StepRecord(step, 4096 * step, loss=float(step)))
    study = load_study(tmp_path)
    optima = find_optima(study)
    (curve,) = training_curves(optima.best, study)
    assert curve.run_id == configs[1].run_id
    assert len(curve.points) == 120
    assert curve.points[0] == CurvePoint(2 * 4096, 1.5)
    assert curve.points[-1] == CurvePoint(240 * 4096, 239.5)


def test_the_steep_beginning_of_a_curve_leaves_the_panel() -> None:
    points = [{"tokens": float(i), "loss": 100.0 if i < 10 else 3.0 - i / 100} for i in range(1, 101)]
    curve = {"series": "DDP-AdamW", "num_params": 10**6, "points": points}
    report = {"training_curves": [curve], "audit": AUDIT}
    (drawing,) = plot_training_curves(report, Styles(["DDP-AdamW"]))
    low, high = drawing.figure.axes[0].get_ylim()
    # Running means of eight: of the last five, and of the first eight after a tenth and half that many.
    last, first = 3.0 - 0.98, 3.0 - 0.145
    assert low == pytest.approx(last - 0.06 * (first - last))
    assert high == pytest.approx(first + 0.06 * (first - last))


def test_the_overview_has_losses_by_size_and_the_cost_of_each(small_study: Path) -> None:
    report = build_report(load_study(small_study), Options(bootstrap=0))
    tables = all_tables(report)
    overview = tables["overview"]
    names = [column.name for column in overview.columns]
    small, large = (f"{config.num_params / 1e3:.3g}k" for config in (run_config(), run_config(model="42k")))
    ratio = ["ratio", "ratio, standard error", "paired seeds"]
    assert names == ["series", *ratio, large, f"{large}, standard error", small, f"{small}, standard error"]
    over = pytest.approx(2.0 / 2.1 - 1)
    assert overview.rows == [
        ["DDP-AdamW", None, None, None, 2.1, None, 2.6, None],
        ["DDP-Muon", over, None, None, 2.0, None, None, None],
    ]
    cost = [dict(zip([c.name for c in tables["cost"].columns], row, strict=True)) for row in tables["cost"].rows]
    config = run_config(model="42k", lr=0.02)
    adamw, muon = cost
    assert (adamw["steps"], adamw["tokens"]) == (config.num_steps, config.num_steps * 4096)
    assert (adamw["training time"], muon["training time"]) == (60, 70)
    assert (adamw["runs of the series"], muon["runs of the series"]) == (4, 1)
    # One device a run, and the time of all runs, of both sizes.
    assert adamw["device-hours of the series"] == pytest.approx((10 + 10 + 50 + 60) / 3600)
    decay = config.inner_optimizer.weight_decay
    assert adamw["tau = B/(lr wd D)"] == pytest.approx(4096 / (0.02 * decay * config.num_steps * 4096))


@pytest.mark.parametrize(
    ("hours", "drawn"),
    [
        ({"DDP-AdamW": (10.0, 9.2), "DDP-Muon": (8.0, 7.9)}, 0),
        ({"DDP-AdamW": (10.0, 8.9), "DDP-Muon": (8.0, 7.9)}, 1),
        ({"DDP-AdamW": (10.0, 1.0)}, 0),
        ({"DDP-AdamW": (10.0, 1.0), "DDP-Muon": (10.0, 1.0)}, 0),
    ],
)
def test_links_and_series_a_tenth_apart_are_drawn_alone(hours: dict[str, tuple[float, float]], drawn: int) -> None:
    curves = {
        name: [{"bandwidth_gbits": link, "idealised_hours": h} for link, h in zip((1.0, 10.0), both, strict=True)]
        for name, both in hours.items()
    }
    report = {"series": [*hours], "wall_clock": {"num_params": 10**6, "curves": curves}}
    assert len(plot_wall_clock(report, Styles([*hours]))) == drawn


def test_each_algorithm_and_size_with_several_k_has_a_line() -> None:
    def point(algorithm: str, n: int, workers: int, relative: float) -> dict[str, Any]:
        return {
            "series": f"{algorithm} K={workers}", "algorithm": algorithm, "num_params": n, "num_workers": workers,
            "against_baseline": {"relative": relative, "se": None}, "pseudogradient_cosine": None,
        }  # fmt: skip

    points = [
        point("MuLoCo", 10**6, 4, 0.02), point("MuLoCo", 10**6, 1, -0.01), point("MuLoCo", 10**7, 1, 0.0),
        point("DiLoCo", 10**6, 1, 0.005), point("DiLoCo", 10**6, 4, 0.03),
    ]  # fmt: skip
    report = {"num_workers": {"points": points}, "published": None, "audit": AUDIT}
    styles = Styles(sorted({p["series"] for p in points}))
    (drawing,) = plot_num_workers(report, styles)
    lines = {line.get_label(): line for line in drawing.figure.axes[0].lines if "," in str(line.get_label())}
    found = {label: (list(line.get_xdata()), [round(y, 9) for y in line.get_ydata()]) for label, line in lines.items()}
    assert found == {
        "DiLoCo, 1M": ([1, 4], [0.5, 3.0]),
        "MuLoCo, 1M": ([1, 4], [-1.0, 2.0]),
    }
    assert len({(line.get_color(), line.get_marker()) for line in lines.values()}) == 2
    alone = {**report, "num_workers": {"points": points[2:4]}}
    assert not plot_num_workers(alone, styles)

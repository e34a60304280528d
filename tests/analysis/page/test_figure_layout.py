"""What a reader sees of a figure: text inside it, ticks apart, series told apart, also when there are very many."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from analysis.page.axes import Numbers, cut_above, log_axis
from analysis.page.drawing import RC, finish, fitted, panel, text_width
from analysis.page.numbers import count
from analysis.page.styles import COLOURS, CROWD, Styles, luminance, shaded
from analysis.questions.parts.best_settings import plot_overview
from analysis.report.figures import draw_all
from analysis.report.named_series import MOST_NAMED, OF_MANY, named_series

LONG = "Second-order optimizer with a name that no page is wide enough for"
WHITE, DARK = 1.0, luminance("#14171b")
"""Luminance of the page; on a dark one figures are brightened."""


def contrast(colour: str, page: float) -> float:
    light, dark = sorted((luminance(colour), page), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def tick_labels(axes: Any, renderer: Any) -> Iterator[list[tuple[str, Bbox]]]:
    """Texts and extents of the labels in view, for each axis."""
    for i, axis in enumerate((axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        shown = [t for t in axis.get_ticklabels() if low <= t.get_position()[i] <= high and t.get_text()]
        yield [(t.get_text(), t.get_window_extent(renderer)) for t in shown if t.get_visible()]


def faults(figure: Figure) -> list[str]:
    """Texts that leave the figure, ticks that overlap or read the same, labels of axes that run into others."""
    with mpl.rc_context(RC):
        renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        figure.draw(renderer)
        texts = [(t.get_text(), t.get_window_extent(renderer)) for legend in figure.legends for t in legend.get_texts()]
        found, names = [], []
        for axes in figure.axes:
            for labels in tick_labels(axes, renderer):
                texts += labels
                read = [text for text, _ in labels]
                found += [f"{text} twice" for text in set(read) if read.count(text) > 1]
                pairs = [(a, b) for i, a in enumerate(labels) for b in labels[i + 1 :]]
                found += [f"{a[0]} and {b[0]} overlap" for a, b in pairs if a[1].overlaps(b[1])]
            own = (axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title, *axes.texts)
            names += [(t.get_text(), t.get_window_extent(renderer)) for t in own if t.get_text() and t.get_visible()]
        found += [f"{n} and {t} overlap" for n, box in names for t, other in texts if box.overlaps(other)]
        width, height = figure.get_size_inches() * figure.dpi
        for text, box in texts + names:
            if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1:
                found.append(f"{text} leaves the figure")
    return found


@pytest.fixture(scope="module", params=["own names", "long names"])
def report(request: pytest.FixtureRequest, planted: tuple[Path, Path]) -> dict[str, Any]:
    text = (planted[1] / "report.json").read_text()
    if request.param == "long names":
        text = text.replace("MuLoCo", LONG).replace("DDP-AdamW", f"{LONG}, AdamW")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def test_no_text_of_a_figure_overlaps_or_is_cut(report: dict[str, Any]) -> None:
    drawings = draw_all(report)
    assert len(drawings) > 20
    assert {drawing.name: faults(drawing.figure) for drawing in drawings} == {drawing.name: [] for drawing in drawings}


def many(names: list[str], algorithms: dict[str, str], sizes: int = 3) -> dict[str, Any]:
    """What the first figure reads, of series of which each is worse than the one before."""
    best = [
        {
            "series": name, "num_params": n, "flops": 120.0 * n**2, "loss": 3 + i / 100 - n / 1e6, "loss_se": 0.002,
            "against_baseline": {"relative": i / 300, "se": 0.001} if i else None,
        }
        for i, name in enumerate(names)
        for n in [10_000 * 4**s for s in range(sizes)]
    ]  # fmt: skip
    return {
        "series": names, "best": best, "iso_loss": {"reason": "none"}, "settings": {"baseline": names[0]},
        "audit": {"columns": {}, "unusable": {}}, "ranking": {"series": names},
        "style": {"algorithms": algorithms, "colours": {}},
    }  # fmt: skip


@pytest.mark.parametrize("sizes", [1, 3])
def test_the_first_figure_holds_forty_long_names(sizes: int) -> None:
    names = [f"{LONG}, {i}" for i in range(40)]
    report = many(names, {name: name for name in names}, sizes)
    with mpl.rc_context(RC):
        (drawing,) = plot_overview(report, Styles(names, named=named_series(report)))
    assert faults(drawing.figure) == []
    if sizes > 1:
        entries = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
        assert len(entries) == OF_MANY + 1
        assert entries[-1] == f"{40 - OF_MANY} others"
        assert len(drawing.figure.axes) == 2


def test_of_many_series_the_telling_ones_are_named() -> None:
    names = [f"A K={k}" for k in range(20)] + ["B", "C", "Z"]
    algorithms = {name: name.split(" ")[0] for name in names}
    report = many(names, algorithms)
    report["settings"]["baseline"], report["style"]["colours"] = "Z", {"A K=19": "#123456"}
    assert named_series(report) == ["A K=0", "A K=1", "A K=2", "A K=3", "A K=19", "B", "C", "Z"]
    assert named_series(many(names[:MOST_NAMED], algorithms)) == names[:MOST_NAMED]
    styles = Styles(names, algorithms, named=named_series(report))
    assert {styles.line(name)["color"] for name in names if name not in styles.named} == {CROWD}
    looks = {tuple(styles.line(name)[key] for key in ("marker", "fillstyle")) for name in styles.named}
    assert len(looks) == OF_MANY


def test_each_colour_and_shade_is_seen_on_both_pages() -> None:
    """On a dark page figures are brightened by a quarter, which multiplies the luminance by 1.25^2.2."""
    for colour in COLOURS:
        for shade in (colour, *(shaded(colour, i, 6) for i in range(6))):
            assert contrast(shade, WHITE) > 2.2, (colour, shade)
            brightened = min(1.0, 1.25**2.2 * luminance(shade))
            assert (brightened + 0.05) / (DARK + 0.05) > 2.2, (colour, shade)


def test_colours_of_algorithms_lie_apart() -> None:
    rgb = np.array([mpl.colors.to_rgb(colour) for colour in COLOURS])
    apart = [float(np.linalg.norm(a - b)) for i, a in enumerate(rgb) for b in rgb[i + 1 :]]
    assert min(apart) > 0.2


def test_ticks_that_would_read_the_same_get_more_digits() -> None:
    assert Numbers(count).format_ticks([1000, 2000]) == ["1k", "2k"]
    assert Numbers(count).format_ticks([1842.0, 1844.0]) == ["1842", "1844"]
    figure, axes = panel("title", "x", "y")
    axes.plot([1, 2], [1842.0, 1844.0])
    log_axis(axes.yaxis, [1842.0, 1844.0], count)
    finish(figure, axes)
    assert faults(figure) == []


def test_a_panel_that_leaves_out_losses_says_so() -> None:
    figure, axes = panel("29k parameters", "x", "y")
    cut_above(axes, [[2.0, 2.1, 3.0], [2.0]])
    finish(figure, axes)
    assert axes.get_title(loc="left") == "29k parameters, losses up to 2.2"
    figure, axes = panel("29k parameters", "x", "y")
    cut_above(axes, [[2.0, 2.1], [2.0]])
    assert axes.get_title(loc="left") == "29k parameters"


def test_a_text_is_shortened_in_its_middle_to_what_fits() -> None:
    assert fitted("short", 9.0, 100.0) == "short"
    shorter = fitted("MuLoCo with a long name K=16", 9.0, 90.0)
    assert shorter.startswith("MuLoCo")
    assert shorter.endswith("=16")
    assert text_width(shorter, 9.0) <= 90.0
    assert text_width(fitted("W" * 10_000, 9.0, 90.0), 9.0) <= 90.0

"""What each series was tuned over."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.page import axis_labels
from analysis.page.drawing import (
    Drawing,
    Styles,
    cut_above,
    error_bars,
    legend,
    log_axis,
    loss_axis,
    panel,
    series_slug,
    size_slug,
)
from analysis.page.numbers import count, number


def plot_learning_rates(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Loss against learning rate at each series' best batch, a figure a size."""
    out = []
    for n in sorted({h["num_params"] for h in report["hyper_parameters"]["curves"]}):
        rows = [h for h in report["hyper_parameters"]["curves"] if h["num_params"] == n and len(h["points"]) > 1]
        if not rows:
            continue
        title = f"{count(n)} parameters, each series at its best batch"
        across = axis_labels.across(report, "peak learning rate of the inner steps", "lr")
        upright = axis_labels.upright(report, "validation loss", "loss", "nats per token")
        figure, axes = panel(title, across, upright, len(rows))
        rates: list[float] = []
        for name in report["series"]:
            for h in rows:
                if h["series"] == name:
                    tried, losses = [p["lr"] for p in h["points"]], [p["loss"] for p in h["points"]]
                    rates += tried
                    axes.plot(tried, losses, **styles.line(name))
                    error_bars(axes, tried, losses, [p["loss_se"] for p in h["points"]], styles.line(name)["color"])
        log_axis(axes.xaxis, rates, number)
        loss_axis(axes)
        cut_above(axes, [[p["loss"] for p in h["points"]] for h in rows])
        legend(figure, axes)
        alt = f"Validation loss against peak learning rate for models of {count(n)} parameters."
        out.append(Drawing(f"learning_rate_{size_slug(n)}", "hyper_parameters", title, alt, figure))
    return out


def plot_maps(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Percent above the best loss over batch and learning rate, a map a series, at the largest size."""
    out = []
    for m in report["hyper_parameters"]["maps"]:
        rates = sorted({c["lr"] for c in m["cells"]})
        batches = sorted({c["global_batch_tokens"] for c in m["cells"]})
        if len(rates) < 2 or len(batches) < 2:
            continue
        title = f"{m['series']}, {count(m['num_params'])}: % above its best loss"
        height = 1.5 + 0.26 * len(rates)
        across = axis_labels.across(report, "global batch B", "global_batch_tokens", "tokens")
        upright = axis_labels.upright(report, "peak learning rate", "lr")
        figure, axes = panel(title, across, upright, 0, height=height)
        above = np.full((len(rates), len(batches)), np.nan)
        for c in m["cells"]:
            above[rates.index(c["lr"]), batches.index(c["global_batch_tokens"])] = 100 * c["relative"]
        shade = np.log10(np.clip(np.nan_to_num(above, nan=30.0), 0.05, 30.0))
        axes.imshow(shade, cmap="Greys", vmin=-1.3, vmax=2.6, aspect="auto", origin="lower", alpha=0.55)
        for (i, j), value in np.ndenumerate(above):
            if np.isfinite(value):
                best = value == 0
                text = "best" if best else f"{value:.1f}" if value < 10 else f"{value:.0f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=7.5, fontweight="bold" if best else "normal")
        axes.set_xticks(range(len(batches)), [count(b) for b in batches], fontsize=7.5)
        axes.set_yticks(range(len(rates)), [number(r) for r in rates], fontsize=7.5)
        axes.grid(visible=False)
        alt = f"Percent by which the loss of {m['series']} lies above its best, over learning rate and batch."
        out.append(Drawing(f"map_{series_slug(m['series'])}", "maps", title, alt, figure))
    return out

"""What each series was tuned over."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from analysis.page import axis_labels
from analysis.page.axes import cut_above, error_bars, log_axis, loss_axis
from analysis.page.drawing import INK, Drawing, finish, panel, series_slug, size_slug
from analysis.page.numbers import count, number
from analysis.page.styles import Styles


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
        figure, axes = panel(title, across, upright)
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
        finish(figure, axes)
        alt = f"Validation loss against peak learning rate for models of {count(n)} parameters."
        out.append(Drawing(f"learning_rate_{size_slug(n)}", "hyper_parameters", title, alt, figure))
    return out


def plot_maps(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Percent above the best loss over batch and learning rate, a map a series, at the largest size."""
    out = []
    for m in (m for m in report["hyper_parameters"]["maps"] if m["series"] in styles.named):
        rates = sorted({c["lr"] for c in m["cells"]})
        batches = sorted({c["global_batch_tokens"] for c in m["cells"]})
        if len(rates) < 2 or len(batches) < 2:
            continue
        title = f"{m['series']}, {count(m['num_params'])}: % above its best loss"
        across = axis_labels.across(report, "global batch B", "global_batch_tokens", "tokens")
        upright = axis_labels.upright(report, "peak learning rate", "lr")
        figure, axes = panel(title, across, upright, height=0.25 + 0.24 * len(rates))
        above = np.full((len(rates), len(batches)), np.nan)
        for c in m["cells"]:
            above[rates.index(c["lr"]), batches.index(c["global_batch_tokens"])] = 100 * c["relative"]
        # Ink over the page, so that what is worse stands out on a white page and on a dark one.
        shade = 0.08 * (np.log10(np.clip(np.nan_to_num(above, nan=30.0), 0.05, 30.0)) - np.log10(0.05))
        for (i, j), value in np.ndenumerate(above):
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color=INK, alpha=shade[i, j], linewidth=0))
            if np.isfinite(value):
                best = value == 0
                text = "best" if best else f"{value:.1f}" if value < 10 else f"{value:.0f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=7.5, fontweight="bold" if best else "normal")
        axes.set_xticks(range(len(batches)), [count(b) for b in batches], fontsize=7.5)
        axes.set_yticks(range(len(rates)), [number(r) for r in rates], fontsize=7.5)
        axes.set(xlim=(-0.5, len(batches) - 0.5), ylim=(-0.5, len(rates) - 0.5))
        axes.grid(visible=False)
        finish(figure, axes)
        alt = f"Percent by which the loss of {m['series']} lies above its best, over learning rate and batch."
        out.append(Drawing(f"map_{series_slug(m['series'])}", "maps", title, alt, figure))
    return out

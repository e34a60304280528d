"""interactive.html: the main figures with values under the pointer. One file of several megabytes, plotly inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from analysis.report.drawing import Styles
from analysis.report.numbers import count
from muloco_runner.config import ConfigError
from muloco_runner.record import write_atomically

_MARKERS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross",
            "X": "x", "h": "hexagon"}  # fmt: skip
_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}


def require_plotly() -> None:
    """Raises `ConfigError` where plotly is not installed."""
    try:
        import plotly  # noqa: F401
    except ImportError:
        raise ConfigError("--interactive needs plotly: pip install 'muloco-sweeps[interactive]'") from None


def write_interactive(report: dict[str, Any], path: Path) -> None:
    """Loss against batch, critical batch, reducible loss and ratios; the same bytes for the same report."""
    import plotly.graph_objects as go
    from plotly.offline import get_plotlyjs

    styles = Styles(report["series"])
    parts = []
    for number, (title, x, y, log_y, traces) in enumerate(_figures(report)):
        figure = go.Figure()
        for name, points, lines in traces:
            style = styles.line(name)
            marker = {"symbol": _MARKERS[style["marker"]], "color": style["color"], "size": 8}
            line = {"color": style["color"], "dash": _DASHES[style["linestyle"]]}
            mode = "lines+markers" if lines else "markers"
            figure.add_scatter(
                x=[p[0] for p in points], y=[p[1] for p in points], name=name, mode=mode, marker=marker, line=line
            )
        figure.update_layout(title=title, xaxis_title=x, yaxis_title=y, template="plotly_white", height=520)
        figure.update_xaxes(type="log")
        if log_y:
            figure.update_yaxes(type="log")
        parts.append(figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{number}"))
    body = "\n".join(parts)
    text = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(report['title'])}</title>\n<script>{get_plotlyjs()}</script>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )
    write_atomically(path, text)


def _figures(report: dict[str, Any]) -> list[tuple[str, str, str, bool, list[tuple[str, list[Any], bool]]]]:
    out = []
    curves = report["loss_vs_batch"]
    for n in sorted({curve["num_params"] for curve in curves}):
        traces = [
            (c["series"], [(p["global_batch_tokens"], p["loss"]) for p in c["points"]], True)
            for c in _in_order(report, [c for c in curves if c["num_params"] == n])
        ]
        out.append((f"{count(n)} parameters", "global batch B (tokens)", "loss (nats per token)", False, traces))
    points = report["critical_batch"]["points"]
    traces = [
        (
            name,
            [(p["num_tokens"], p["interpolated"]) for p in points if p["series"] == name and not p["censored"]],
            False,
        )
        for name in report["series"]
    ]
    out.append(("Critical batch, 1% rule", "training tokens D", "critical batch (tokens)", True, traces))
    iso = report["iso_loss"]
    if not iso["reason"]:
        traces = [
            (name, [(p["flops"], p["reducible"]) for p in iso["points"] if p["series"] == name], True)
            for name in report["series"]
        ]
        out.append(("Loss above the irreducible loss", "compute C (flops)", "L - E (nats per token)", True, traces))
    for key, title in (("iso_loss", "Compute"), ("time_ratio", "Training time")):
        if not report[key]["reason"]:
            traces = [
                (name, [(r["flops"], r["value"]) for r in curve if np.isfinite(r["value"])], True)
                for name, curve in report[key]["curves"].items()
            ]
            baseline = report["settings"]["baseline"]
            out.append((f"{title} of {baseline} for the same loss", "compute C (flops)", "ratio", False, traces))
    return out


def _in_order(report: dict[str, Any], curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(curves, key=lambda curve: report["series"].index(curve["series"]))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")

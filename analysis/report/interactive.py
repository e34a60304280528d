"""interactive.html: the main figures with values under the pointer. One file of several megabytes, plotly inside."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any

from analysis.page import axis_labels
from analysis.page.numbers import count
from analysis.page.styles import Styles
from muloco_runner.config import ConfigError
from muloco_runner.record import write_atomically

_MARKERS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross",
            "X": "x", "h": "hexagon", "<": "triangle-left", "p": "pentagon", ">": "triangle-right",
            "d": "diamond-tall"}  # fmt: skip
_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
_DRAW = """\
const buttons = [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "resetScale2d"]];
const config = {responsive: true, displaylogo: false, modeBarButtons: buttons};
for (const [i, figure] of JSON.parse(document.getElementById("figures").textContent).entries())
  Plotly.newPlot(`figure-${i}`, figure.data, figure.layout, config);"""
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<script>{library}</script>
</head>
<body>
{panels}
<script type="application/json" id="figures">{figures}</script>
<script>{draw}</script>
</body>
</html>
"""

Trace = tuple[str, list[tuple[float, float]], bool]
"""Name of a series, its points, and whether a line connects them."""


def require_plotly() -> None:
    """Raises `ConfigError` where plotly is not installed."""
    try:
        import plotly  # noqa: F401
    except ImportError:
        raise ConfigError("--interactive needs plotly: pip install 'muloco-sweeps[interactive]'") from None


def write_interactive(report: dict[str, Any], path: Path) -> None:
    """Loss against batch, critical batch, reducible loss and ratios; the same bytes for the same report."""
    from plotly.offline import get_plotlyjs

    styles = Styles(report["series"], **report["style"])
    figures = [_plotly_figure(styles, *figure) for figure in _figures(report)]
    library = get_plotlyjs().replace("\r\n", "\n")
    page = _PAGE.format(
        policy=_policy(library, _DRAW),
        title=html.escape(report["title"]),
        library=library,
        panels="\n".join(f'<div id="figure-{i}"></div>' for i in range(len(figures))),
        # Data inside a script element end at the first `</script`, whatever JSON says.
        figures=json.dumps(figures, allow_nan=False).replace("<", "\\u003c"),
        draw=_DRAW,
    )
    write_atomically(path, page)


def _policy(*scripts: str) -> str:
    """A content-security policy that runs these scripts and no other, and loads nothing."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _plotly_figure(styles: Styles, title: str, x: str, y: str, log_y: bool, traces: list[Trace]) -> dict[str, Any]:
    """Data and layout. Plotly reads tags in names and titles, so these are escaped as for HTML."""
    data = []
    for name, points, lines in traces:
        style = styles.line(name)
        data.append(
            {
                "type": "scatter",
                "x": [point[0] for point in points],
                "y": [point[1] for point in points],
                "name": html.escape(name, quote=False),
                "mode": "lines+markers" if lines else "markers",
                "marker": {"symbol": _MARKERS[style["marker"]], "color": style["color"], "size": 8},
                "line": {"color": style["color"], "dash": _DASHES[style["linestyle"]]},
            }
        )
    layout = {
        "title": {"text": html.escape(title, quote=False)},
        "xaxis": {"title": {"text": html.escape(x, quote=False)}, "type": "log"},
        "yaxis": {"title": {"text": html.escape(y, quote=False)}, **({"type": "log"} if log_y else {})},
        "height": 520,
        "showlegend": True,
    }
    return {"data": data, "layout": layout}


def _figures(report: dict[str, Any]) -> list[tuple[str, str, str, bool, list[Trace]]]:
    """Title, both axes, whether y is logarithmic, and traces of each figure."""
    out = []
    loss = axis_labels.across(report, "loss", "loss", "nats per token")
    curves = report["loss_vs_batch"]
    for n in sorted({curve["num_params"] for curve in curves}):
        traces: list[Trace] = [
            (c["series"], [(p["global_batch_tokens"], p["loss"]) for p in c["points"]], True)
            for c in _in_order(report, [c for c in curves if c["num_params"] == n])
        ]
        across = axis_labels.across(report, "global batch B", "global_batch_tokens", "tokens")
        out.append((f"{count(n)} parameters", across, loss, False, traces))
    points = report["critical_batch"]["points"]
    traces = [
        (
            name,
            [(p["num_tokens"], p["interpolated"]) for p in points if p["series"] == name and not p["censored"]],
            False,
        )
        for name in report["series"]
    ]
    across = axis_labels.across(report, "training tokens D", "num_tokens")
    upright = axis_labels.across(report, "critical batch", "global_batch_tokens", "tokens")
    out.append(("Critical batch, 1% rule", across, upright, True, traces))
    iso = report["iso_loss"]
    if not iso["reason"]:
        traces = [
            (name, [(p["flops"], p["reducible"]) for p in iso["points"] if p["series"] == name], True)
            for name in report["series"]
        ]
        upright = axis_labels.across(report, "L - E", "loss", "nats per token")
        out.append(("Loss above the irreducible loss", axis_labels.compute(report), upright, True, traces))
    for key, title in (("iso_loss", "Compute"), ("time_ratio", "Training time")):
        if not report[key]["reason"]:
            traces = [
                (name, [(r["flops"], r["value"]) for r in curve if r["value"] is not None], True)
                for name, curve in report[key]["curves"].items()
            ]
            baseline = report["settings"]["baseline"]
            across = axis_labels.across(report, "compute C of the series", "flops", "flops")
            out.append((f"{title} of {baseline} for the same loss", across, "ratio", False, traces))
    return out


def _in_order(report: dict[str, Any], curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(curves, key=lambda curve: report["series"].index(curve["series"]))

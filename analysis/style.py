"""`--style FILE`: order, colours, labels, partners and the baseline of a report's series, as a user wants them."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from analysis.runs import Study
from muloco_runner.config import ConfigError
from muloco_runner.config.method import WITH_INNER_NAMED

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_SHAPES = {
    "order": "a list of series or algorithms",
    "colours": "series or algorithms with '#rrggbb'",
    "labels": "series with the name to show",
    "partners": "series or algorithms with the series each is compared with over K",
    "baseline": "a series",
}


@dataclass(frozen=True)
class Style:
    """What a style file says. Names are those of the data, not of `labels`."""

    order: list[str] = field(default_factory=list)
    """Series or algorithms that come first; the others follow by name."""
    colours: dict[str, str] = field(default_factory=dict)
    """Of series or algorithms; the series of an algorithm get shades of its colour."""
    labels: dict[str, str] = field(default_factory=dict)
    partners: dict[str, str] = field(default_factory=dict)
    """Of series or algorithms: the series that losses against the number of workers K are relative to."""
    baseline: str | None = None
    names: dict[str, str] = field(default_factory=dict)
    """Label of a series -> its name in the data, of a style in terms of labels: rules go by the names."""

    def shown(self, name: str) -> str:
        """What the series of that name in the data is called; itself where it has no label."""
        return next((label for label, own in self.names.items() if own == name), name)


def read_style(path: Path | None) -> Style:
    """The file's content, checked for its form. Raises `ConfigError` naming what is wrong."""
    if path is None:
        return Style()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--style {path}: not YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise ConfigError(f"--style {path}: {error.strerror}") from None
    allowed = "; ".join(f"{key}: {shape}" for key, shape in _SHAPES.items())
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"--style {path}: holds no keys; allowed: {allowed}")
    unknown = [str(key) for key in content if key not in _SHAPES]
    if unknown:
        raise ConfigError(f"--style {path}: unknown key {', '.join(unknown)}; allowed: {allowed}")
    for key, value in content.items():
        if not _has_shape(key, value):
            raise ConfigError(f"--style {path}: {key} is {value!r}; give {_SHAPES[key]}, all as text")
    for name, colour in content.get("colours", {}).items():
        if not _COLOUR.fullmatch(colour):
            raise ConfigError(f"--style {path}: colour of {name} is {colour!r}; give it as '#rrggbb', in quotes")
    return Style(**content)


def _has_shape(key: str, value: Any) -> bool:
    match key:
        case "order":
            return isinstance(value, list) and all(_is_name(v) for v in value) and len(set(value)) == len(value)
        case "baseline":
            return _is_name(value)
        case _:
            return isinstance(value, dict) and all(_is_name(name) for pair in value.items() for name in pair)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def styled(study: Study, style: Style) -> tuple[Study, Style]:
    """The study with its series in order and under their labels, and the style in terms of those labels.

    Raises `ConfigError` where a name is no series or algorithm of the study, or two series get one label.
    """
    series = study.series
    algorithms = dict(zip(study.runs["series"], study.runs["algorithm"], strict=True))
    either = [*series, *algorithms.values()]
    _known("order", style.order, either)
    _known("colours", style.colours, either)
    _known("labels", style.labels, series)
    _known("partners", style.partners, either)
    _known("partners", style.partners.values(), series)
    _known("baseline", [style.baseline] if style.baseline else [], series)
    order = [one for name in style.order for one in series if one == name or algorithms[one] == name]
    order = list(dict.fromkeys([*order, *series]))
    shown = [style.labels.get(name, name) for name in order]
    twice = [name for name in shown if shown.count(name) > 1]
    if twice:
        raise ConfigError(f"--style: two series would be called {twice[0]!r}; give each a label of its own")

    def own(name: str) -> str:
        return style.labels.get(name, name)

    runs = study.runs.assign(series=study.runs["series"].map(own))
    return replace(study, runs=runs, order=shown), Style(
        colours={own(name): colour for name, colour in style.colours.items()},
        partners={own(name): own(partner) for name, partner in style.partners.items()},
        baseline=own(style.baseline) if style.baseline else None,
        names={own(name): name for name in series},
    )


def partner_of(
    style: Style, series: str, algorithm: str, workers: Mapping[str, int], known: Collection[str]
) -> str | None:
    """The series that `series` is compared with over K: of the style, of the same inner optimizer, or its own least K.

    `workers` has K of each series of the same algorithm, `known` all series. Of several models, or weights to start
    from, it is one of the same.
    """
    if chosen := style.partners.get(series) or style.partners.get(algorithm):
        return chosen
    named = {style.names.get(name, name): number for name, number in workers.items()}
    partner = _by_rule(style.names.get(series, series), algorithm, named, {style.names.get(n, n) for n in known})
    return None if partner is None else style.shown(partner)


def _by_rule(series: str, algorithm: str, workers: Mapping[str, int], known: Container[str]) -> str | None:
    model = _model_of(series)
    if algorithm in PARTNERS:
        return PARTNERS[algorithm] + model
    inner = algorithm.partition("-")[2] if algorithm.startswith(_OUTER_AND_INNER) else algorithm
    if inner != algorithm and f"DDP-{inner}{model}" in known:
        return f"DDP-{inner}{model}"
    same = {name: number for name, number in workers.items() if _model_of(name) == model}
    least = min(same, key=lambda name: same[name])
    return least if len(set(same.values())) > 1 else None


def _model_of(series: str) -> str:
    """What a series' name says of a model from outside and of weights to start from; empty where that is the built-in
    one and none, or the only ones."""
    said = ("init_exclude=", "init_from=", "model=", "model._target_=")
    return "".join(f" {word}" for word in series.split() if word.startswith(said))


PARTNERS = {"DiLoCo": "DDP-AdamW", "MuLoCo": "DDP-Muon"}
"""The data-parallel algorithm with the same inner optimizer, where the name of the other does not say it."""
_OUTER_AND_INNER = tuple(f"{name}-" for name in WITH_INNER_NAMED)


def _known(key: str, names: Iterable[str], allowed: Iterable[str]) -> None:
    has = list(dict.fromkeys(allowed))
    for name in names:
        if name not in has:
            raise ConfigError(f"--style: {key}: no {name!r} among these runs; there are {', '.join(has)}")

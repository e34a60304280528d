"""Other implementations of Muon: their defaults, the names that they give to settings, and their saved states.

Equations and defaults were read in their code in November 2026: muloco-1 (github.com/bentherien/muloco-1), nanochat
(github.com/karpathy/nanochat), Keller Jordan's (github.com/KellerJordan/Muon), torch 2.13, optax 0.2.8 and, as "paper",
the training code of arXiv 2505.23725.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

Ancestor = Literal["muloco-1", "nanochat", "keller_jordan", "torch", "optax", "paper"]

_NANOCHAT = MappingProxyType(
    {
        "lr": 0.02,
        "momentum": 0.95,
        "momentum_form": "ema",
        "nesterov": True,
        "lr_scale": "keller_jordan",
        "coefficients": "keller_jordan",
        "num_iterations": 5,
        "epsilon": 1e-7,
        "weight_decay": 0.0,
    }
)
_PAPER = MappingProxyType(
    {
        "lr": 0.02,
        "momentum": 0.9,
        "momentum_form": "sum",
        "nesterov": False,
        "lr_scale": "spectral",
        "coefficients": "muloco",
        "num_iterations": 5,
        "epsilon": 1e-8,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "weight_decay": 0.01,
    }
)
DEFAULTS: Mapping[Ancestor, Mapping[str, Any]] = MappingProxyType(
    {
        "muloco-1": {**_PAPER, "momentum": 0.95, "betas": (0.9, 0.95), "batched": True},
        "nanochat": {**_NANOCHAT, "batched": True},
        "keller_jordan": _NANOCHAT,
        "optax": {
            **_NANOCHAT,
            "nesterov": "corrected",
            "epsilon": 1e-8,
            "betas": (0.9, 0.999),
            "backend": "reference",
        },
        "torch": {**_NANOCHAT, "lr": 1e-3, "weight_decay": 0.1, "epsilon": 0.0, "norm_floor": 1e-7},
        "paper": _PAPER,
    }
)
"""Each one's defaults, in the words of `Muon`."""


def defaults_of(ancestor: Ancestor) -> dict[str, Any]:
    """Return the defaults of an implementation; a name that is none is a `ValueError`."""
    if ancestor not in DEFAULTS:
        raise ValueError(f"like {ancestor!r}: must be one of {', '.join(get_args(Ancestor))}")
    return dict(DEFAULTS[ancestor])


def _one_of(name: str, values: Mapping[Any, Any]) -> Callable[[Any], Any]:
    def translate(value: Any) -> Any:
        if not isinstance(value, str | bool | None) or value not in values:
            raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, values))}")
        return values[value]

    return translate


def _as_it_is(value: Any) -> Any:
    return value


_WORDS: Mapping[str, tuple[str, Callable[[Any], Any]]] = MappingProxyType(
    {
        "mu": ("momentum", _as_it_is),
        "ns_steps": ("num_iterations", _as_it_is),
        "adjust_lr": (
            "lr_scale",
            _one_of("adjust_lr", {"spectral_norm": "spectral", "rms_norm": "moonlight", None: "none"}),
        ),
        "adjust_lr_fn": (
            "lr_scale",
            _one_of(
                "adjust_lr_fn",
                {"original": "keller_jordan", None: "keller_jordan", "match_rms_adamw": "moonlight"},
            ),
        ),
        "ns_coefficients": ("coefficients", _as_it_is),
        "inner_lr": ("lr", _as_it_is),
        "use_muon": ("algorithm", _one_of("use_muon", {True: "muon", False: "adamw"})),
    }
)
"""Others' names of settings -> ours, and their values' translation."""


def in_our_words(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the names and values of `Muon`; one given under both names is a `ValueError`."""
    ours: dict[str, Any] = {}
    for name, value in settings.items():
        own_name, translate = _WORDS.get(name, (name, _as_it_is))
        if own_name in ours or (own_name != name and own_name in settings):
            raise ValueError(f"both {own_name} and {name}: they are the same setting, give one")
        ours[own_name] = translate(value)
    return ours


def check_no_foreign_words(group: Mapping[str, Any]) -> None:
    """Refuse a key of a group of ours that a step would not read."""
    for name in _WORDS.keys() & group.keys():
        raise ValueError(f"{name!r} in a parameter group of this optimizer: set {_WORDS[name][0]!r}")


def is_foreign(state_dict: Mapping[str, Any]) -> bool:
    """Whether a saved state is that of another implementation's Muon."""
    return any("momentum_buffer" in values for values in state_dict["state"].values()) or any(
        _WORDS.keys() & group.keys() for group in state_dict["param_groups"]
    )


def saved_settings(group: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the group of another implementation's saved state in our words, for a group with the settings `own`.

    A momentum of another form than this group's is a `ValueError`: it would go on at another scale.
    """
    form = "sum" if {"mu", "adjust_lr", "epsilon"} & group.keys() else "ema"  # muloco-1's, or all others'
    if own["algorithm"] == "muon" and own["momentum_form"] != form:
        raise ValueError(
            f"the saved momentum_buffer is of momentum_form={form!r}; here it is {own['momentum_form']!r}: build the "
            'optimizer with Muon.like("muloco-1", "nanochat", "keller_jordan" or "torch") as it was saved'
        )
    given = dict(group)
    if "ns_coefficients" in given and "eps" in given:  # torch's, whose eps is the least norm
        given["norm_floor"] = given.pop("eps")
    return in_our_words(given)


def saved_state(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter's state of another implementation under our names."""
    return {("momentum" if name == "momentum_buffer" else name): value for name, value in values.items()}

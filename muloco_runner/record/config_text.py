"""A run's config as text that is JSON and YAML at once, for readers of YAML 1.1 (PyYAML) and of 1.2 alike.

JSON alone would not do: YAML 1.1 takes `1e-06` for a text, since it wants a point in a number with an exponent, and
reads a character that JSON spells as two surrogates as two. Values are therefore `1.0e-06`, and characters themselves.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""Characters that JSON may hold as they are and YAML may not, or takes for the end of a line."""


def config_text(values: Mapping[str, Any]) -> str:
    """Return nested mappings, lists and scalars as text; a number that is not finite raises `ValueError`."""
    return _text(values, "") + "\n"


def _text(value: Any, above: str) -> str:
    inside = f"{above} "
    match value:
        case Mapping() if value:
            items = [f"{_quoted(str(key))}: {_text(item, inside)}" for key, item in value.items()]
            return "{\n" + ",\n".join(inside + item for item in items) + f"\n{above}}}"
        case list() | tuple() if value:
            return "[\n" + ",\n".join(inside + _text(item, inside) for item in value) + f"\n{above}]"
        case str():
            return _quoted(value)
        case float():
            return _number(value)
        case _:
            return json.dumps(value)


def _quoted(text: str) -> str:
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))


def _number(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError(f"{value}: a config holds finite numbers alone")
    mantissa, exponent, power = float(value).__repr__().partition("e")
    return f"{mantissa if '.' in mantissa or not exponent else f'{mantissa}.0'}{exponent}{power}"

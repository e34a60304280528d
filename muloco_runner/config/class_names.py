"""Classes from outside the package, named in a config by `_target_`: what may be said of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from muloco_runner.config.checks import require

_CLASS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def check_class(where: str, target: Any) -> None:
    """A name that cannot be that of something in a module raises `ConfigError`."""
    require(
        isinstance(target, str) and _CLASS.fullmatch(target) is not None,
        f"{where}={target!r}: must name a class with its module, such as my_lab.Lion",
    )


def check_arguments(where: str, arguments: Any, said_elsewhere: Mapping[str, str]) -> None:
    """What is no keys, or holds those that the trainer gives, named with their settings, raises `ConfigError`."""
    require(isinstance(arguments, dict), f"{where}={arguments!r}: must be keys with their values")
    for name, setting in said_elsewhere.items():
        require(name not in arguments, f"{where}.{name}: is given by the trainer: set {setting}")

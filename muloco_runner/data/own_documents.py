"""Documents that a function from outside the package yields."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from muloco_runner.config import ConfigError, TargetDataConfig
from muloco_runner.config.outside import import_target


def own_documents(config: TargetDataConfig) -> Iterator[tuple[str, bytes]]:
    """Its documents, named by their numbers, text as UTF-8; empty ones are left out.

    What is no function, yields something else, or is given arguments that it does not name raises `ConfigError`.
    """
    where = f"data._target_={config._target_}"
    function = import_target(where, config._target_)
    if not callable(function) or isinstance(function, type):
        raise ConfigError(f"{where}: is no function")
    known = inspect.signature(function).parameters
    for name in config.arguments:
        if name not in known:
            raise ConfigError(f"{where}: has no argument {name}; it takes {', '.join(known) or 'none'}")
    for number, document in enumerate(_yielded(where, function(**config.arguments))):
        if not isinstance(document, str | bytes):
            raise ConfigError(
                f"{where}: document {number} is a {type(document).__name__}: must be str or bytes; tokens of a "
                "tokenizer are prepared with `muloco-data prepare`"
            )
        if document:
            yield str(number), document.encode() if isinstance(document, str) else document


def _yielded(where: str, documents: Any) -> Iterable[Any]:
    if isinstance(documents, str | bytes) or not isinstance(documents, Iterable):
        raise ConfigError(f"{where}: returns a {type(documents).__name__}: must yield documents, str or bytes each")
    return documents

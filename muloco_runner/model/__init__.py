"""The study's transformer and its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muloco_runner.model.transformer import Transformer, build_model

__all__ = ["Transformer", "build_model"]


def __getattr__(name: str) -> Any:
    """Loads torch when a model is asked for: the memory estimate reads `logit_chunks` without it."""
    if name in __all__:
        from muloco_runner.model import transformer

        return getattr(transformer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

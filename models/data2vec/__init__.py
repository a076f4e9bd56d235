"""data2vec and data2vec 2.0: models, objectives, data and heads in PyTorch, usable without the platform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artifact import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # torch is imported only when a model is asked for: tools such as `d2v prepare` do not need it.
    if name in __all__:
        from . import artifact

        return getattr(artifact, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Rookery: run, train, tune, inspect and serve RWKV, the recurrent language model family.

>>> import rookery
>>> model = rookery.load("gosling")
>>> for piece in model.stream("Once upon a time", max_tokens=200, seed=1): print(piece, end="")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rookery import chat, errors, evaluate, lab, store, tokenizer, weights
    from rookery.model import Model, load
    from rookery.sampling import Sampling
    from rookery.session import Session
    from rookery.state import State
    from rookery.stream import Stream

_HOME = {
    "Model": "rookery.model",
    "Sampling": "rookery.sampling",
    "Session": "rookery.session",
    "State": "rookery.state",
    "Stream": "rookery.stream",
    "load": "rookery.model",
}
_ROOMS = ("chat", "errors", "evaluate", "lab", "store", "tokenizer", "weights")

__all__ = [
    "Model",
    "Sampling",
    "Session",
    "State",
    "Stream",
    "chat",
    "errors",
    "evaluate",
    "lab",
    "load",
    "store",
    "tokenizer",
    "weights",
]


def __getattr__(name: str) -> Any:
    """Public names load their room on first use, so that `import rookery` stays light."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _ROOMS:
        return import_module(f"rookery.{name}")
    raise AttributeError(f"module 'rookery' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

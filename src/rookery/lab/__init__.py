"""The state lab: watch what a model's state is becoming, disturb it, and say how sure the numbers are.

Its rooms: `substrates` (what has a state and is driven), `trace` and `monitor` (what is seen of it), `surgery`,
`skip`, `bake` and `steering` (what is done to it), `sensitivity` and `exponents` (what follows), `metrics` (what is
measured), `compare` (a whole experiment) and `plots`, `llama_state` (another program's). Needs NumPy; plots need the
extra `lab`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rookery.lab import (
        bake,
        compare,
        exponents,
        llama_state,
        metrics,
        monitor,
        pieces,
        plots,
        sensitivity,
        skip,
        steering,
        substrates,
        surgery,
        trace,
    )
    from rookery.lab.llama_state import import_llama
    from rookery.lab.metrics.change import coherence, coherence_cv, rel_delta, state_delta

_HOME = {
    "coherence": "metrics.change",
    "coherence_cv": "metrics.change",
    "import_llama": "llama_state",
    "rel_delta": "metrics.change",
    "state_delta": "metrics.change",
}
_ROOMS = (
    "bake",
    "compare",
    "exponents",
    "llama_state",
    "metrics",
    "monitor",
    "pieces",
    "plots",
    "sensitivity",
    "skip",
    "steering",
    "substrates",
    "surgery",
    "trace",
)

__all__ = [
    "bake",
    "coherence",
    "coherence_cv",
    "compare",
    "exponents",
    "import_llama",
    "llama_state",
    "metrics",
    "monitor",
    "pieces",
    "plots",
    "rel_delta",
    "sensitivity",
    "skip",
    "state_delta",
    "steering",
    "substrates",
    "surgery",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

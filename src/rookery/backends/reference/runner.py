"""A model on NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery.architecture import Param, forward, version
from rookery.backends.alone import Alone
from rookery.backends.layout import Layout
from rookery.backends.reference.ops import Ops
from rookery.backends.reference.points import Hearing, ear, hearing
from rookery.errors import BackendError
from rookery.state import gather, scatter
from rookery.weights import Weights, tree
from rookery.weights.adapters import Side

Array = npt.NDArray[Any]


class Runner(Alone):
    """`dtype`: "float32" (default) or "float64", for weights, states and logits alike."""

    name = "reference"

    def __init__(
        self, weights: Weights, dtype: str | None = None, device: str | None = None, threads: int | None = None
    ) -> None:
        if dtype not in (None, "float32", "float64"):
            raise BackendError(f"dtype {dtype!r}: the reference back end computes in float32 or float64")
        if device not in (None, "cpu"):
            raise BackendError(f"device {device!r}: the reference back end runs on the cpu; backend='torch' has others")
        self.dtype = np.dtype(dtype or "float32")
        self.arithmetic = f"reference {self.dtype}"
        self.config = weights.config
        with np.errstate(all="ignore"):  # what a damaged weight does shows in the logits
            self.model = tree(
                weights, lambda param, tensor: tensor.array().astype(self.dtype).reshape(param.shape), self._side
            )
        self.listener: Callable[[str, Array], Array] | None = None  # what it returns takes the value's place
        self._hearing: Hearing | None = None

    def adapted(self, weights: Weights) -> Runner:
        """See `backends.Runner`; nothing is shared."""
        return Runner(weights, str(self.dtype))

    def _side(self, param: Param, side: Side) -> SimpleNamespace:
        a, b = (SimpleNamespace(weight=m.astype(self.dtype)) for m in (side.a, side.b))
        return SimpleNamespace(a=a, b=b, gain=None if side.gain is None else side.gain.astype(self.dtype))

    def listen(self, listener: Callable[[str, Array], object] | None, names: Iterable[str] = ()) -> None:
        """See `backends.Runner`; it hears what `self.listener` has made of a value."""
        self._hearing = hearing(self.config, listener, names)

    @np.errstate(all="ignore")  # infinities are part of the arithmetic; NaN shows in the logits
    def step(self, rows: Sequence[npt.NDArray[np.int64]], states: Sequence[Array], every: bool = False) -> list[Array]:
        layout = Layout.of(rows)
        hearing, heard = self._hearing, dict[str, Array]()
        o = Ops(layout, self.config.n_head, ear(self.listener, hearing, heard))
        layers = [SimpleNamespace(**pieces) for pieces in gather(self.config, states)]
        x = forward.embed(o, self.model, np.concatenate(rows))
        x = forward.blocks(o, version(self.config), self.model, x, layers)
        logits = forward.head(o, self.model, x if every else x[layout.ends])
        scatter(self.config, [vars(layer) for layer in layers], states)
        if hearing:
            for name, values in heard.items():
                hearing.listener(name, values)
        return np.split(logits, layout.starts[1:]) if every else list(logits)

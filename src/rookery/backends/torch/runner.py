"""A model on torch: the same step as the other back ends, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rookery.backends.alone import Alone
from rookery.backends.layout import Layout
from rookery.backends.reference.points import Hearing, ear, hearing
from rookery.backends.torch.module import Network
from rookery.errors import BackendError
from rookery.state import gather, scatter
from rookery.weights import Weights

Array = npt.NDArray[Any]


class Runner(Alone):
    """`dtype`: "float32" (default) or "float64"; `device`: "cpu" (default), "cuda", ..."""

    name = "torch"

    def __init__(
        self, weights: Weights, dtype: str | None = None, device: str | None = None, threads: int | None = None
    ) -> None:
        if dtype not in (None, "float32", "float64"):
            raise BackendError(f"dtype {dtype!r}: the torch back end computes in float32 or float64")
        self.dtype = np.dtype(dtype or "float32")
        self.arithmetic = f"torch {self.dtype} {device or 'cpu'}"
        self.config = weights.config
        if threads:
            torch.set_num_threads(threads)
        try:
            self.device = torch.device(device or "cpu")
            self.network = Network.of(weights, getattr(torch, self.dtype.name)).to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise BackendError(f"device {device!r}: {str(error).splitlines()[0]}") from None
        self.listener: Callable[[str, torch.Tensor], torch.Tensor] | None = None  # what it returns goes on
        self._hearing: Hearing | None = None

    def adapted(self, weights: Weights) -> Runner:
        """See `backends.Runner`; nothing is shared, and adapters are merged."""
        return Runner(weights, str(self.dtype), str(self.device))

    def listen(self, listener: Callable[[str, Array], object] | None, names: Iterable[str] = ()) -> None:
        """See `backends.Runner`; it hears what `self.listener` has made of a value."""
        self._hearing = hearing(self.config, listener, names)

    @torch.inference_mode()
    def step(self, rows: Sequence[npt.NDArray[np.int64]], states: Sequence[Array], every: bool = False) -> list[Array]:
        layout = Layout.of(rows)
        batches = [{name: self._tensor(x) for name, x in layer.items()} for layer in gather(self.config, states)]
        select = None if every else self._tensor(layout.ends)
        hearing, heard = self._hearing, dict[str, torch.Tensor]()
        listener = ear(self.listener, hearing, heard)
        logits, after = self.network.rows(layout, self._tensor(np.concatenate(rows)), batches, select, listener)
        scatter(self.config, [{name: x.cpu().numpy() for name, x in layer.items()} for layer in after], states)
        if hearing:
            for name, values in heard.items():
                hearing.listener(name, values.cpu().numpy())
        out = logits.cpu().numpy()
        return np.split(out, layout.starts[1:]) if every else list(out)

    def _tensor(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

"""rwkv.cpp's names and values (ggmf files), brought to BlinkDL's.

The format stores some tensors transformed; the rules are those of its converter, undone:
time_decay is kept as -exp(raw) in v4 and exp(-exp(raw)) in v5, v5's time_first as exp(raw), low-rank pairs
transposed, v7's six mixes stacked. Shapes are left to `load`, which knows each tensor's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from rookery.formats.tensor import Array, Tensor
from rookery.weights.names import Tensors

_TRANSPOSED = {
    "6": ("time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2"),
    "7": tuple(f"{letter}{i}" for letter in "wavg" for i in "12"),
}


def _log_of_negative(x: Array) -> Array:
    return np.log(-x)


def _log_of_negative_log(x: Array) -> Array:
    return np.log(-np.log(x))


_VALUES: dict[tuple[str, str], Callable[[Array], Array]] = {
    ("4", "time_decay"): _log_of_negative,
    ("5", "time_decay"): _log_of_negative_log,
    ("5", "time_first"): np.log,
}


def to_blinkdl(tensors: Mapping[str, Tensor], major: str) -> Tensors:
    """BlinkDL's tensors from rwkv.cpp's, for version `major` ("4" .. "7")."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        base = name.rsplit(".", 1)[-1]
        if base == "x_rwkvag":
            for letter, row in zip("rwkvag", tensor.array().reshape(6, -1), strict=True):
                out[name.replace(base, f"x_{letter}")] = Tensor.of(row)
        elif (major, base) in _VALUES:
            # decays of exactly 0 or 1 come back as infinite raw values, which give 0 and 1 again
            with np.errstate(divide="ignore", invalid="ignore"):
                values = _VALUES[major, base](tensor.array().astype(np.float64))
            out[name] = Tensor.of(values.astype(np.float32))
        elif base in _TRANSPOSED.get(major, ()):
            out[name] = Tensor.of(tensor.array().swapaxes(-1, -2))
        elif (major, base) == ("6", "time_decay"):  # [H,N,1]
            out[name] = tensor.reshape(1, 1, tensor.size)
        else:
            out[name] = tensor
    return out

"""Foreign names, transposes and rescalings, one table a format, and BlinkDL's names inside.

Each module offers `to_blinkdl` and, where the format is written, `from_blinkdl`.
"""

from __future__ import annotations

from collections.abc import Mapping

from rookery.formats.tensor import Tensor

Tensors = dict[str, Tensor]
PREFIXES = ("_forward_module.", "module.")  # wrappers that training frameworks leave behind


def without_prefix(tensors: Mapping[str, Tensor]) -> Tensors:
    """Drop a wrapper's prefix where every name has it."""
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): t for name, t in tensors.items()}
    return dict(tensors)

"""The torch back end: the same version files over autograd."""

from __future__ import annotations

try:
    import torch as torch
except ImportError:
    from rookery.errors import MissingExtra

    raise MissingExtra("the torch back end", "train") from None

from rookery.backends.torch.module import Network
from rookery.backends.torch.runner import Runner

__all__ = ["Network", "Runner"]

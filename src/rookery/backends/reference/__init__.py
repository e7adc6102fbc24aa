"""The reference back end: NumPy, float32 or float64, written to be read and to be right."""

from __future__ import annotations

from rookery.backends.reference.runner import Runner

__all__ = ["Runner"]

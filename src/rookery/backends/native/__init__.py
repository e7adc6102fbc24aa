"""The native back end: a version file run over symbols becomes a plan, and the C++ core runs the plan."""

from __future__ import annotations

from rookery.backends.native.runner import Runner

__all__ = ["Runner"]

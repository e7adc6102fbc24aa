"""How fast a model runs here, and in how much memory.

`Settings` says what to measure, `measure` does it for several thread counts and returns one JSON-ready report,
`table` prints that for people. benchmarks/peers_cpu.py sets other engines beside it.
"""

from __future__ import annotations

from rookery.bench.report import measure
from rookery.bench.settings import Settings
from rookery.bench.table import table

__all__ = ["Settings", "measure", "table"]

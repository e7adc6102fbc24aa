"""What RWKV is: the mathematics of every version, stated once. Standard library only.

Read `vocabulary.py` (the words), then `v7.py` (a sentence), then `forward.py` (the whole text).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from rookery.architecture import v4, v5, v6, v7
from rookery.architecture.spec import Config, Param, Shapes, StatePiece
from rookery.architecture.vocabulary import Array, LayerState, Params, Vocabulary


class Version(Protocol):
    """What a version file offers; the modules v4 .. v7 are of this shape."""

    def config(self, shapes: Shapes) -> Config: ...

    def params(self, c: Config) -> list[Param]: ...

    def state(self, c: Config) -> list[StatePiece]: ...

    def time_mix(
        self, o: Vocabulary, p: Params, x: Array, state: LayerState, v_first: Array | None
    ) -> tuple[Array, Array | None]: ...

    def channel_mix(self, o: Vocabulary, p: Params, x: Array, state: LayerState) -> Array: ...


VERSIONS: Mapping[str, Version] = {"4": v4, "5.0": v5, "5.1": v5, "5.2": v5, "6": v6, "7": v7}


def version(c: Config) -> Version:
    """The version file that runs a model of this configuration."""
    return VERSIONS[c.version]


__all__ = ["VERSIONS", "Config", "Param", "StatePiece", "Version", "version"]

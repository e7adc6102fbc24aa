"""From files to models: foreign names, detection, checked parameters, conversion, fingerprints."""

from __future__ import annotations

from rookery.weights.convert import convert
from rookery.weights.load import Weights, load, locate, tree

__all__ = ["Weights", "convert", "load", "locate", "tree"]

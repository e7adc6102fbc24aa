"""A native model for tests: opened, asked for all its bits, or run in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import rookery
from rookery import Model

FIXTURES = Path(__file__).parent.parent / "fixtures"
PROMPT = np.random.default_rng(9).integers(0, 256, 70)


def load(name: str = "gosling", threads: int = 3) -> Model:
    path = name if name == "gosling" or os.path.isabs(name) else FIXTURES / f"{name}.safetensors"
    return rookery.load(path, backend="native", threads=threads)


def outcome(model: Model, prompt: Any = PROMPT) -> bytes:
    """Logits and state, to the bit."""
    logits, state = model.forward(prompt, every=True)
    return bytes(logits.tobytes() + state.vector().tobytes())


def child(code: str, *args: object, **more: str) -> str:
    """What a process of its own prints; it must end with code 0 and say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **more},
    )
    assert (done.returncode, done.stderr) == (0, ""), (done.returncode, done.stderr, done.stdout)
    return done.stdout

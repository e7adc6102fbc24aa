"""What the tests of sessions share: models, a template whose replies are short, talks to compare."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import rookery
from rookery import Session, _native

FIXTURES = Path(__file__).parent.parent / "fixtures"
VERSIONS = ("v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7")
BACKENDS = ("native", "reference") if _native.available() else ("reference",)
SAMPLINGS = {
    "greedy": rookery.Sampling(temperature=0),
    "seeded": rookery.Sampling(temperature=1.3, top_p=0.9, presence=0.4, frequency=0.3),
}
SAID = ("Hello there.", "And then?", "What did the fox say,\nexactly?", "Why?")


@lru_cache(maxsize=32)
def tiny(version: str = "v7", backend: str = "auto") -> rookery.Model:
    """A random model of 256 bytes; its replies are noise of the length asked for."""
    return rookery.load(FIXTURES / f"{version}.safetensors", backend=backend, tokenizer="bytes")


@lru_cache(maxsize=2)
def gosling(backend: str = "auto") -> rookery.Model:
    return rookery.load("gosling", backend=backend)


def same(a: Session, b: Session) -> None:
    """Two sessions stand at the same place: words, tokens, random numbers, and the state to the bit."""
    assert [(t.user, t.reply, t.stop_reason) for t in a.turns] == [(t.user, t.reply, t.stop_reason) for t in b.turns]
    assert a.tokens == b.tokens
    assert a.state.vector().tobytes() == b.state.vector().tobytes()
    assert a._sampler_state(a.at) == b._sampler_state(b.at)

"""What the tests of the engine share: requests of mixed lengths, an engine that is stepped by hand, each alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import rookery
from rookery import Sampling, _native
from rookery.engine import Ended, Engine, Event, Start, Wrote
from rookery.engine import Sequence as Asked
from rookery.stream import Draft

FIXTURES = Path(__file__).parent.parent / "fixtures"
VERSIONS = ("v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7")
BACKENDS = ("native", "reference") if _native.available() else ("reference",)
SAMPLINGS = (
    Sampling(temperature=0),
    Sampling(temperature=1.2, top_p=0.9, presence=0.4, frequency=0.3),
    Sampling(temperature=0.7, top_k=5, logit_bias={65: 3.0}),
)


@lru_cache(maxsize=32)
def tiny(version: str = "v7", backend: str = "auto") -> rookery.Model:
    return rookery.load(FIXTURES / f"{version}.safetensors", backend=backend, tokenizer="bytes")


@lru_cache(maxsize=1)
def gosling() -> rookery.Model:
    return rookery.load("gosling")


class Ask:
    """One request of a load, and what came of it."""

    def __init__(
        self, model: rookery.Model, prompt: Sequence[int], tokens: int = 8, n: int = 1, seed: int = 0,
        sampling: Sampling = SAMPLINGS[0], stop: Sequence[str] = (), constraint: Callable[[], Any] = lambda: None,
        marks: tuple[int, ...] = (), **options: Any,
    ) -> None:  # fmt: skip
        self.model, self.prompt, self.tokens, self.n, self.seed = model, prompt, tokens, n, seed
        self.sampling, self.stop, self.constraint = sampling, stop, constraint
        self.events: list[Event] = []
        self.drafts = tuple(self.draft(k) for k in range(n))
        start = Start(model.state(), prompt, marks=marks, drafts=self.drafts)
        self.sequence = Asked(lambda: start, self.events.append, places=max(1, n), model=model, **options)

    def draft(self, k: int) -> Draft:
        sampler = self.model.sampler(self.sampling, self.seed + k)
        return Draft(self.model.tokenizer, self.tokens, sampler, self.stop, self.constraint())

    def alone(self, k: int = 0) -> rookery.stream.Stream:
        """The slow truth: the same by itself."""
        sampler = self.model.sampler(self.sampling, self.seed + k)
        stream = rookery.stream.Stream(
            self.model, list(self.prompt), self.tokens, sampler, stop=self.stop, constraint=self.constraint()
        )
        assert "".join(stream) is not None
        return stream

    def text(self, k: int = 0) -> str:
        wrote = "".join(e.text for e in self.events if isinstance(e, Wrote) and e.index == k)
        return wrote + self.ended(k).text

    def ended(self, k: int = 0) -> Ended:
        (found,) = [e for e in self.events if isinstance(e, Ended) and e.index == k]
        return found

    @property
    def over(self) -> bool:
        return bool(self.events) and not self.sequence.branches


def drive(engine: Engine, until: Callable[[], bool], steps: int = 100_000) -> None:
    """Step by hand. What opens in the pool is waited for."""
    for _ in range(steps):
        if until():
            return
        if not engine.step():
            time.sleep(0.0005)
    raise AssertionError("the engine did not come to an end")


def asks(model: rookery.Model, count: int = 12) -> list[Ask]:
    """Mixed lengths, settings and numbers of drafts; the same each time."""
    rng = np.random.default_rng(7)
    vocab = min(model.config.n_vocab, model.tokenizer.vocab_size)
    lengths = [1, 2, 700, 31, 16, 257, 64, 5, 300, 90, 17, 3]
    return [
        Ask(
            model,
            rng.integers(1, vocab, lengths[k % len(lengths)]).tolist(),
            tokens=int(rng.integers(1, 40)),
            n=1 + (k % 5 == 3),
            seed=k,
            sampling=SAMPLINGS[k % 3],
        )
        for k in range(count)
    ]

"""Small experiments for the tests: texts of a few bytes, tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rookery
from rookery.lab.design import Design
from rookery.lab.hosts import Models

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TEXTS = tuple(
    (topic, f"{word} {i} and {word} again, {word}.") for i in range(4) for topic, word in (("a", "ant"), ("b", "bear"))
)


def tiny(name: str = "v7", **settings: Any) -> rookery.Model:
    return rookery.load(FIXTURES / f"{name}.safetensors", tokenizer="bytes", **settings)


def design(*substrates: str, **settings: Any) -> Design:
    given = {"prompts": 3, "ticks": 8, "seeds": 2, "prefix": 3, "passages": TEXTS, **settings}
    return Design(substrates=substrates, **given)


def models(**settings: Any) -> Models:
    return Models(rwkv=tiny(backend="reference"), physics={"n": 16, "inner_steps": 2}, **settings)

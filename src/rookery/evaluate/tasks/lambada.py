"""LAMBADA, OpenAI's form, as the reference and lm-eval's lambada_openai score it: the last word, from all before it.

A passage is split at its last blank. A word counts as right when each of its tokens is the likeliest; perplexity is
over words (passages), not tokens. (Paperno et al., arXiv 1606.06031)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rookery.errors import DamagedFile
from rookery.evaluate import data, statistics
from rookery.evaluate.requests import Answer, Coder, Likelihood, Likely
from rookery.evaluate.task import Item

FILES = ("lambada_test.jsonl", "lambada_test_en.jsonl")
SOURCE = "5,153 lines {'text': ...}, as in BlinkDL's RWKV-LM or EleutherAI/lambada_openai on the Hugging Face hub"


@dataclass(frozen=True)
class Settings:
    """None: the passages say all."""


class Lambada:
    name = "lambada"

    def __init__(self, settings: Settings, path: str | None) -> None:
        self.settings, self.path = settings, data.needed(self.name, path, FILES, SOURCE)

    def items(self, coder: Coder) -> Iterator[Item]:
        for number, row in data.rows(self.path, {"text": str}):
            context, blank, word = row["text"].rpartition(" ")
            if not context.strip() or not word:
                raise DamagedFile(self.path, f"line {number}: 'text' has no last word after a blank")
            yield Item((Likelihood(context, blank + word),), {"word": word})

    def row(self, item: Item, answers: Sequence[Answer]) -> dict[str, Any]:
        (likely,) = answers
        assert isinstance(likely, Likely)
        return {"right": likely.greedy, "logprob": likely.logprob, "tokens": likely.tokens}

    def summary(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        acc, acc_stderr = statistics.mean([float(row["right"]) for row in rows])
        perplexity, error = statistics.perplexity([row["logprob"] for row in rows])
        low, high = statistics.wilson(sum(row["right"] for row in rows), len(rows))
        return {
            "perplexity": perplexity,
            "perplexity_stderr": error,
            "acc": acc,
            "acc_stderr": acc_stderr,
            "acc_low": low,
            "acc_high": high,
            "chance": 0.0,
        }


TASK = Lambada

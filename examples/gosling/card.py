"""The measurements on gosling's model card (docs/gosling.md), of any model of its kind.

    python examples/gosling/card.py BOOK ... [--model gosling] [--json]

Each BOOK (.txt, .txt.gz) is brought to ASCII, one paragraph a line, and read from an empty state on with the state
carried to its end, at most --tokens tokens. Bits per byte count every token but the first. A zero of the channel
mixing is an element of relu(key x)^2 that is 0: work that sparse code can leave out. Samples are unpicked: seeds 1 on.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

import rookery

MARKS = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": "--", "\u2013": "--"}
STEP = 512  # tokens read at a time
STORIES = ("Once upon a time", "The little girl opened the door and")
TALKS = (
    ("Tell me a story about a fox.",),
    ("Hello! How are you?", "What is your name?"),
    ("Tom had 3 apples and found 4 more. How many apples did Tom have?",),
    ("Repeat after me: the red ship sailed away.",),
)


def plain(path: Path) -> bytes:
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    for mark, typed in MARKS.items():
        text = text.replace(mark, typed)
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    return "\n\n".join(p for p in paragraphs if p).encode("ascii", "ignore")


def bits_per_byte(model: rookery.Model, text: bytes, tokens: int) -> float:
    ids = model.tokenizer.encode(text)[:tokens]
    state, nats = None, 0.0
    for at in range(0, len(ids) - 1, STEP):
        part = ids[at : at + STEP + 1]
        logits, state = model.forward(part[:-1], state, every=True)
        wide = logits.astype(np.float64)
        top = wide.max(1, keepdims=True)
        total = np.log(np.exp(wide - top).sum(1)) + top[:, 0]
        nats += float((total - wide[np.arange(len(wide)), part[1:]]).sum())
    return nats / np.log(2) / len(model.tokenizer.decode_bytes(ids[1:]))


def zero_rates(model: rookery.Model, text: bytes, tokens: int) -> list[float]:
    """Per layer, of the elements of relu^2 over the text's first tokens."""
    zeros = [0] * model.config.n_layer
    seen = [0] * model.config.n_layer

    def listen(name: str, rows: Any) -> None:
        layer = int(name.split(".")[1])
        zeros[layer] += int((rows == 0).sum())
        seen[layer] += rows.size

    model.runner.listen(listen, ["ffn.k"])
    model.forward(model.tokenizer.encode(text)[:tokens])
    model.runner.listen(None)
    return [z / s for z, s in zip(zeros, seen, strict=True)]


def talk(model: rookery.Model, questions: tuple[str, ...], seed: int) -> str:
    """Each question after the answers before it; an answer ends at a blank line."""
    said = ""
    for question in questions:
        said += f"User: {question}\n\nAssistant:"
        answer = ""
        for piece in model.stream(said, max_tokens=200, seed=seed, temperature=0.8, top_p=0.7):
            answer += piece
            if "\n\n" in answer:
                break
        said += f" {answer.strip()}\n\n"
    return said.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("books", nargs="+", type=Path)
    parser.add_argument("--model", default="gosling")
    parser.add_argument("--tokens", type=int, default=65_536, help="of each book, at most (default: 65536)")
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    model = rookery.load(o.model)
    texts = {path.name.split(".")[0]: plain(path) for path in o.books}
    bits = {name: bits_per_byte(model, text, o.tokens) for name, text in texts.items()}
    rates = zero_rates(model, next(iter(texts.values())), 4096)
    stories = {p: p + "".join(model.stream(p, max_tokens=150, seed=i + 1)) for i, p in enumerate(STORIES)}
    talks = [talk(model, questions, i + 1) for i, questions in enumerate(TALKS)]
    if o.json:
        print(json.dumps({"bits_per_byte": bits, "zero_rates": rates, "stories": stories, "talks": talks}))
        return
    for name, value in bits.items():
        print(f"{name:<40} {value:.3f} bits per byte")
    print("zeros of relu^2 by layer:", ", ".join(f"{rate:.1%}" for rate in rates))
    for text in [*stories.values(), *talks]:
        print(f"\n---\n{text}")


if __name__ == "__main__":
    main()

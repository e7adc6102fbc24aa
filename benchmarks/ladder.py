"""The ladder that needs no weights but gosling's: what chance, counting and a small network make of the same texts.

    python examples/gosling/data.py ../shared/data/stories ../shared/data/instruct -o gosling
    python benchmarks/ladder.py gosling/train.jsonl gosling/valid.jsonl --books ../shared/data/books/*.txt \
        --data ../shared/data/eval --limit 500 [--orders 0,1,2,3,4] [--model gosling] [--json]

On it stand the uniform distribution (order 0), n-gram models counted on exactly the documents that gosling was trained
on (once; gosling read 1.6 times as many), a network of gosling's shapes with its first random values, and gosling. All
have the same tokens, and after each document's beginning (token 0) the same text before them.

First bits per byte: of the held-out documents, of each book (brought to ASCII as gosling's model card does). Intervals
are 95 %, over documents, of a book over 32 stretches; "less than" is gosling's difference, paired by document or
stretch. With --data, then, the share of right answers in LAMBADA, HellaSwag, PIQA and MMLU, the first --limit of each.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import rookery
from rookery.evaluate import Local, Scorer, make, run
from rookery.evaluate.ngram import Counter, NGram
from rookery.evaluate.statistics import Z, ratio
from rookery.evaluate.tasks.perplexity import columns, documents
from rookery.evaluate.text import aligned

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "gosling"))

TASKS = ("lambada", "hellaswag", "piqa", "mmlu")


def fresh(like: rookery.Model, folder: Path, seed: int) -> rookery.Model:
    """A model of the same shapes and vocabulary with the first values that training begins with."""
    from rookery.backends.torch import Network

    path = folder / f"fresh{seed}.safetensors"
    Network.fresh(like.config, seed).save(str(path))
    return rookery.load(path, tokenizer=like.tokenizer)


def scorers(model: rookery.Model, train: Path, orders: list[int], folder: Path, seed: int) -> Iterator[tuple[str, Any]]:
    own, vocab = Local(model), model.config.n_vocab
    texts = [[*own.prefix, *own.coder.encode(text)] for _, text in documents(train)]
    for order in orders:
        counted = NGram.counted(texts, vocab, order)
        yield f"{order}-gram" if order else "uniform", Counter(counted, own.coder, own.prefix)
    yield "random network", Local(fresh(model, folder, seed))
    yield "gosling", own


def rows(scorer: Scorer, path: Path) -> list[dict[str, Any]]:
    """Of the perplexity task: one a document."""
    task = make("perplexity", data=path)
    return [task.row(item, scorer.answer(list(item.requests))) for item in task.items(scorer.coder)]


def compare(of: dict[str, list[dict[str, Any]]], best: str) -> list[dict[str, Any]]:
    """Bits per byte of each scorer's rows of one text."""
    found = []
    nats_best, _ = columns(of[best], "bytes")
    for name, mine in of.items():
        nats, sizes = columns(mine, "bytes")
        bits, error = (float(x) for x in np.asarray(ratio(nats, sizes)) / np.log(2))
        less, less_error = (float(x) for x in np.asarray(ratio(np.subtract(nats, nats_best), sizes)) / np.log(2))
        found.append({"model": name, "bits": bits, "half": Z * error, "more": less, "more_half": Z * less_error})
    return found


def table(texts: dict[str, list[dict[str, Any]]], best: str) -> list[str]:
    lines: list[list[str]] = [["text", "model", "bits per byte", f"{best} takes less by"]]
    for text, found in texts.items():
        for row in found:
            less = "" if row["model"] == best else f"{row['more']:.3f} ± {row['more_half']:.3f}"
            lines.append([text, row["model"], f"{row['bits']:.3f} ± {row['half']:.3f}", less])
    return aligned(lines)


def answers(found: dict[str, dict[str, Any]]) -> list[str]:
    lines: list[list[str]] = [["model", *TASKS]]
    for name, results in found.items():
        figures = (results[task] for task in TASKS)
        lines.append([name, *(f"{f['acc']:.3f} ({f['acc_low']:.3f} to {f['acc_high']:.3f})" for f in figures)])
    some = next(iter(found.values()))
    return aligned([*lines, ["chance", *(f"{some[task]['chance']:.3f} of {some[task]['n']}" for task in TASKS)]])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("valid", type=Path)
    parser.add_argument("--books", type=Path, nargs="*", default=[])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--orders", type=lambda s: [int(n) for n in s.split(",")], default=[0, 1, 2, 3, 4])
    parser.add_argument("--model", default="gosling")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()

    from card import plain

    with tempfile.TemporaryDirectory() as name:
        folder, texts = Path(name), {"held out": o.valid}
        for book in o.books:
            texts[book.stem] = folder / f"{book.stem}.txt"
            texts[book.stem].write_bytes(plain(book))
        read: dict[str, dict[str, Any]] = {text: {} for text in texts}
        right = {}
        for who, scorer in scorers(rookery.load(o.model), o.train, o.orders, folder, o.seed):
            for text, path in texts.items():
                read[text][who] = rows(scorer, path)
            if o.data:
                right[who] = run(scorer, [make(task, data=o.data) for task in TASKS], o.limit)["results"]
    figures = {text: compare(of, "gosling") for text, of in read.items()}
    if o.json:
        print(json.dumps({"bits_per_byte": figures, "tasks": right}))
        return
    print(*table(figures, "gosling"), sep="\n")
    if right:
        print("", *answers(right), sep="\n")


if __name__ == "__main__":
    main()

"""What a store of float16 states costs: a long text read with its state kept, dropped and taken up again all the time.

    python benchmarks/half_states.py BOOK [--model gosling ...] [--tokenizer NAME ...] [--dtype float32] [--turn 256]

The text is read twice: as it is, and with the state going through the store's float16 form after every --turn tokens,
as if a talk were stopped and resumed there. "kl" is the next token's distribution, exact against halved, in nats: its
mean over all tokens, its mean over the first token after each resumption, and its largest value. v4 is never halved.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import rookery
from rookery import State
from rookery.store import Snapshot


def through_store(model: rookery.Model, state: State) -> State:
    """What comes back of a state that was kept in float16."""
    kept = Snapshot(state.flat, None, 0, model.weights.fingerprint, model.config.version).encode(half=True)
    return State(model.config, Snapshot.decode(kept).flat.copy(), model.weights)


def log_probabilities(logits: Any) -> Any:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def measure(path: str, tokenizer: str | None, dtype: str | None, book: bytes, turn: int, limit: int) -> dict[str, Any]:
    model = rookery.load(path, tokenizer=tokenizer, dtype=dtype)
    ids = np.asarray(model.tokenizer.encode(book.decode())[: limit + 1])
    exact_state, half_state = model.state(), model.state()
    bits, halved_bits, kls, first, same = 0.0, 0.0, [], [], 0
    for at in range(0, len(ids) - 1, turn):
        chunk, following = ids[at : at + turn][: len(ids) - 1 - at], ids[at + 1 : at + turn + 1]
        exact, exact_state = model.forward(chunk, exact_state, every=True)
        halved, half_state = model.forward(chunk, half_state, every=True)
        a, b = log_probabilities(exact), log_probabilities(halved)
        kl = (np.exp(a) * (a - b)).sum(1)
        kls.append(kl)
        first += [float(kl[0])] if at else []
        same += int((a.argmax(1) == b.argmax(1)).sum())
        rows = np.arange(len(following))
        bits -= float(a[rows, following].sum() / np.log(2))
        halved_bits -= float(b[rows, following].sum() / np.log(2))
        half_state = through_store(model, half_state)
    every, size = np.concatenate(kls), len(model.tokenizer.decode_bytes(ids[1:].tolist()))
    return {
        "model": Path(path).name,
        "version": model.config.version,
        "tokens": len(ids) - 1,
        "resumed": len(first),
        "bits_per_byte": bits / size,
        "change": (halved_bits - bits) / size,
        "kl_mean": float(every.mean()),
        "kl_after": float(np.mean(first)),
        "kl_max": float(every.max()),
        "same": same / (len(ids) - 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("book", type=Path)
    parser.add_argument("--model", nargs="+", default=["gosling"])
    parser.add_argument("--tokenizer", nargs="+", default=[None], help="of each model, `-` for its own")
    parser.add_argument("--dtype", help="float32: nothing but the state is rounded (default: as the file is stored)")
    parser.add_argument("--turn", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    names = [*o.tokenizer, *[None] * len(o.model)]
    print(
        f"{'model':<28}{'v':>4}{'tokens':>8}{'resumed':>8}{'bits/byte':>10}{'change':>10}"
        f"{'kl mean':>10}{'kl after':>10}{'kl max':>10}{'same':>10}"
    )
    for path, name in zip(o.model, names, strict=False):
        row = measure(path, None if name == "-" else name, o.dtype, o.book.read_bytes(), o.turn, o.tokens)
        if o.json:
            print(json.dumps(row))
            continue
        print(
            f"{row['model']:<28}{row['version']:>4}{row['tokens']:>8}{row['resumed']:>8}{row['bits_per_byte']:>10.5f}"
            f"{row['change']:>10.1e}{row['kl_mean']:>10.1e}{row['kl_after']:>10.1e}{row['kl_max']:>10.1e}"
            f"{100 * row['same']:>9.3f}%"
        )


if __name__ == "__main__":
    main()

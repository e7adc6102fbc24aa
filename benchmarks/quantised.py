"""What each type of `rookery quantize` costs: size, distance from the unquantised model, bits per byte.

    python benchmarks/quantised.py BOOK [--model gosling ...] [--tokens 8192] [--lora] [--json]

BOOK is a text, brought into the form that gosling was trained on (examples/gosling) and read in windows of 1024
tokens, each from an empty state. KL is the mean over tokens, in nats, of the model as it lies in its file, computed in
float32, against the quantised one; "same" is how often the likeliest token is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import rookery
from rookery.weights.quantise import TYPES, Plan, quantise

WINDOW = 1024


def plain(book: str) -> bytes:
    """ASCII, one paragraph a line."""
    for mark, typed in {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": "--"}.items():
        book = book.replace(mark, typed)
    paragraphs = (" ".join(part.split()) for part in book.split("\n\n"))
    return "\n\n".join(p for p in paragraphs if p).encode("ascii", "ignore")


def log_probabilities(model: rookery.Model, windows: list[Any]) -> Any:
    """float64 [tokens, V], of the token that follows each but the last of a window."""
    logits = [out for out, _ in model.forward_batch([window[:-1] for window in windows], every=True)]
    joined = np.concatenate(logits).astype(np.float64)
    joined -= joined.max(1, keepdims=True)
    return joined - np.log(np.exp(joined).sum(1, keepdims=True))


def row(name: str, path: str, ours: Any, exact: Any, following: Any, length: int) -> dict[str, Any]:
    return {
        "type": name,
        "bytes": os.path.getsize(path),
        "kl": float((np.exp(exact) * (exact - ours)).sum(1).mean()),
        "same": float((exact.argmax(1) == ours.argmax(1)).mean()),
        "bits_per_byte": float(-np.take_along_axis(ours, following[:, None], 1).sum() / np.log(2) / length),
    }


def table(path: str, tokenizer: str | None, text: bytes, tokens: int, lora: bool) -> list[dict[str, Any]]:
    original = rookery.load(path, tokenizer=tokenizer)
    ids = np.asarray(original.tokenizer.encode(text[: 8 * tokens])[:tokens])
    windows = [ids[at : at + WINDOW] for at in range(0, len(ids) - 1, WINDOW)]
    following = np.concatenate([window[1:] for window in windows])
    length = sum(len(original.tokenizer.decode_bytes([int(i)])) for i in following)
    exact = log_probabilities(original, windows)
    out = [row("as it is", original.weights.path, exact, exact, following, length)]
    with tempfile.TemporaryDirectory() as folder:
        for dtype in TYPES:
            target = os.path.join(folder, f"{dtype}.gguf")
            quantise(path, target, Plan(dtype, lora=lora))
            ours = log_probabilities(rookery.load(target, tokenizer=tokenizer), windows)
            out.append(row(dtype, target, ours, exact, following, length))
    return sorted(out, key=lambda row: -row["bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("book", type=Path)
    parser.add_argument("--model", nargs="+", default=["gosling"], metavar="FILE")
    parser.add_argument("--tokenizer", help="of models that do not name theirs")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--lora", action="store_true", help="quantise low-rank pairs too")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    text = plain(args.book.read_text("utf-8"))
    tables = {path: table(path, args.tokenizer, text, args.tokens, args.lora) for path in args.model}
    if args.json:
        print(json.dumps(tables))
        return
    for path, rows in tables.items():
        print(f"{Path(path).name}\ntype          MB   KL, nats    same   bits/byte")
        for r in rows:
            print(f"{r['type']:8} {r['bytes'] / 1e6:7.2f} {r['kl']:10.2e} {r['same']:7.2%} {r['bits_per_byte']:11.4f}")


if __name__ == "__main__":
    main()

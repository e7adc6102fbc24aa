"""How far the native engine and llama.cpp lie from the numbers that are in a GGUF.

    python benchmarks/accuracy_cpu.py MODEL ... [--types q8_0,q4_0,bf16] [--peer .llama/bin/python] [--json]

Each model is quantised to each type. On the same file, and the same tokens, three programs give logits: the reference
back end in float32 on the dequantised weights (the truth), the native engine, and llama.cpp (`--peer` is a Python with
llama-cpp-python; v6 and v7 only). Printed are the mean and largest KL from the truth in nats, the largest difference of
a logit and how often the likeliest token is the same; and for the native engine the mean KL from the model before it
was quantised.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from peers_gguf import PEER, TEXT

import rookery
from rookery.weights.quantise import Plan, quantise


def log_softmax(logits: Any) -> Any:
    x = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def distance(truth: Any, logits: Any) -> dict[str, float]:
    """KL(truth || logits) over rows [T,V], and friends."""
    p, q = log_softmax(truth), log_softmax(logits)
    kl = (np.exp(p) * (p - q)).sum(1)
    return {
        "kl": float(kl.mean()),
        "kl_max": float(kl.max()),
        "difference": float(np.abs(truth - logits).max()),
        "same": float((truth.argmax(1) == logits.argmax(1)).mean()),
    }


def llama(peer: str, path: str, ids: list[int], folder: str) -> Any | None:
    out = f"{folder}/llama.npz"
    done = subprocess.run([peer, "-c", PEER, path, json.dumps([ids]), out], capture_output=True, text=True)
    if done.returncode:
        print(f"llama.cpp did not run {path}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    with np.load(out) as file:
        return file["arr_0"]


def rows(source: Path, dtype: str, arguments: argparse.Namespace, folder: str) -> list[dict[str, Any]]:
    path = f"{folder}/{source.stem}-{dtype}.gguf"
    quantise(source, path, Plan(dtype))
    model = rookery.load(path, backend="reference", tokenizer=arguments.tokenizer)
    ids = model.tokenizer.encode(TEXT)[: arguments.tokens]
    truth, _ = model.forward(ids, every=True)
    ours, _ = rookery.load(path, backend="native").forward(ids, every=True)
    whole, _ = rookery.load(source, backend="reference").forward(ids, every=True)
    found = [("native", ours)]
    if arguments.peer and (theirs := llama(arguments.peer, path, ids, folder)) is not None:
        found.append(("llama.cpp", theirs))
    named = {"model": source.stem, "type": dtype, "tokens": len(ids)}
    out = [{**named, "program": name, **distance(truth, logits)} for name, logits in found]
    out[0]["kl_from_unquantised"] = distance(whole, ours)["kl"]
    Path(path).unlink()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--types", default="q8_0,q4_0,q4_k,q5_k,q6_k,bf16,f16")
    parser.add_argument("--peer", help="a Python that has llama-cpp-python")
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--tokenizer", help="for models that do not name theirs")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for source in arguments.models:
            for dtype in arguments.types.split(","):
                found += rows(source, dtype, arguments, folder)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    heads = ("model", "type", "program", "KL", "max", "logit", "same")
    print("{:28} {:6} {:10} {:>9} {:>9} {:>8} {:>7}  from unquantised".format(*heads))
    for r in found:
        last = f"{r['kl_from_unquantised']:9.1e}" if "kl_from_unquantised" in r else ""
        print(
            f"{r['model']:28} {r['type']:6} {r['program']:10} {r['kl']:9.1e} {r['kl_max']:9.1e} "
            f"{r['difference']:8.1e} {r['same']:7.2%}  {last}"
        )


if __name__ == "__main__":
    main()

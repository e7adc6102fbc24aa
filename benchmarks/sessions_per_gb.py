"""How many conversations fit into a gigabyte: states of RWKV against the key-value caches of Transformers.

    python benchmarks/sessions_per_gb.py                              # computed, for published shapes
    python benchmarks/sessions_per_gb.py --measure model-Q8_0.gguf    # and measured

Computed: a state has L * (2 D + 64 D) numbers (v7, head size 64), float32 in memory, float16 in a store that halves; a
cache has 2 * layers * key-value heads * head size numbers a token, in 16 bits. Measured: how much this process grows
for each conversation that is held after so many tokens; the Transformer has Qwen2.5-0.5B's shape, random weights and a
small vocabulary, neither of which its cache depends on, and needs torch and transformers.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import rookery
from rookery.bench import memory
from rookery.tune.plan_serve import TRANSFORMERS

GIGA, MEGA = 1e9, 1e6
RWKV = {  # layers, width
    "RWKV-7 0.19B": (12, 768),
    "RWKV-7 0.4B": (24, 1024),
    "RWKV-7 1.5B": (24, 2048),
    "RWKV-7 2.9B": (32, 2560),
    "RWKV-7 7.2B": (32, 4096),
}
CONTEXTS = (1_000, 10_000, 100_000)


def computed() -> dict[str, dict[str, float]]:
    """Sessions a gigabyte, by model and context."""
    found: dict[str, dict[str, float]] = {}
    for name, (layers, width) in RWKV.items():
        numbers = layers * (2 * width + 64 * width)
        found[f"{name}, float32"] = {f"{n:,}": GIGA / (4 * numbers) for n in CONTEXTS}
        found[f"{name}, float16"] = {f"{n:,}": GIGA / (2 * numbers) for n in CONTEXTS}
    for name, (layers, heads, size, _) in TRANSFORMERS.items():
        token = 2 * layers * heads * size * 2
        found[name] = {f"{n:,}": GIGA / (token * n) for n in CONTEXTS}
    return found


def growth(make: Callable[[int], Any], sessions: int) -> float:
    """Bytes that each of `sessions` adds, while all are held."""
    held = [make(-1)]  # what the first one costs besides
    gc.collect()
    before = memory.anonymous()
    held += [make(seed) for seed in range(sessions)]
    gc.collect()
    after = memory.anonymous()
    assert before is not None
    assert after is not None
    return (after - before) / sessions


def tokens_of(seed: int, count: int) -> Any:
    return np.random.default_rng(seed + 1).integers(1, 4000, count)


def rwkv(path: str, tokens: int, sessions: int) -> tuple[str, float]:
    model = rookery.load(path)
    return str(model), growth(lambda seed: model.forward(tokens_of(seed, tokens))[1], sessions)


def transformer(path: str, tokens: int, sessions: int) -> tuple[str, float]:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = Qwen2Config(
        vocab_size=4096, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=131072,
    )  # fmt: skip
    model = Qwen2ForCausalLM(shape).to(torch.bfloat16).eval()

    def cache(seed: int) -> Any:
        ids = torch.from_numpy(tokens_of(seed, tokens))[None]
        with torch.no_grad():
            return model(ids, use_cache=True, logits_to_keep=1).past_key_values

    return "Transformer of Qwen2.5-0.5B's shape, bfloat16", growth(cache, sessions)


def measured(path: str, tokens: int, sessions: int) -> dict[str, float]:
    """Bytes a session, each kind in a process of its own: memory that was used before would be used again unseen."""
    found = {}
    for kind in (rwkv, transformer):
        with get_context("spawn").Pool(1) as pool:
            name, size = pool.apply(kind, (path, tokens, sessions))
        found[name] = size
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", help="an RWKV to measure")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 2048], help="read by each session")
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write all figures there")
    o = parser.parse_args()
    found: dict[str, Any] = {"sessions a gigabyte": computed()}
    print(f"{'sessions a gigabyte after':34}" + "".join(f"{n:>14,}" for n in CONTEXTS) + "  tokens")
    for name, row in found["sessions a gigabyte"].items():
        print(f"{name:34}" + "".join(f"{value:>14,.1f}" for value in row.values()))
    for tokens in o.tokens if o.measure else ():
        found[f"measured, {tokens} tokens"] = rows = measured(o.measure, tokens, o.sessions)
        for name, size in rows.items():
            print(f"{tokens} tokens, {name}: {size / MEGA:.2f} MB a session, {GIGA / size:,.0f} a gigabyte")
    if o.json:
        o.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

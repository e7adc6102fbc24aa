"""GGUFs that Rookery writes, run by llama.cpp: how far its logits lie from ours.

    python benchmarks/peers_gguf.py --peer .llama/bin/python MODEL.pth ...

`--peer` is a Python that has llama-cpp-python (`pip install llama-cpp-python` builds llama.cpp from its sdist). Each
model is written as a GGUF, its matrices in the type asked for, and fed prompts of several lengths on both sides, token
by token in llama.cpp's case too, so that the last row and every row before it are compared. Exit status 1 when a
difference is over the bar or an argmax differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import rookery
from rookery import formats, weights
from rookery.formats.tensor import Deferred, Tensor
from rookery.weights.names import gguf

BAR = 1e-2  # logits, in F16
LENGTHS = (1, 7, 64, 300)
TEXT = (
    "Once upon a time there was a small river that ran from the hills to the sea. On its bank stood a mill, and in "
    "the mill lived an old man with his three daughters. Every morning the eldest went to the market, the second swept "
    "the house, and the youngest, who was called Ann, fed the birds. One day a rook came to the window and said: "
    '"If you give me half of your bread, I shall tell you where the river begins." She did not think about it for '
    "long. She broke the bread in two, and the rook, having eaten, flew up and called to her to follow it over the "
    "fields, past the church and the last farm, until they came to a wood that nobody in the village had ever entered. "
) * 3

PEER = """
import json, sys
import llama_cpp, numpy as np
path, prompts, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
model = llama_cpp.Llama(path, n_ctx=512, logits_all=True, verbose=False)
rows = []
for prompt in prompts:
    model.reset()
    model.eval(prompt)
    rows.append(np.array(model.scores[: len(prompt)]))
np.savez(out, *rows)
print(llama_cpp.__version__)
"""


def write(source: Path, target: Path, dtype: str | None) -> None:
    """The model as a GGUF, its float matrices stored as `dtype`."""
    model = weights.load(source)
    given = model.tensors
    matrices = {p.name for p in model.params if p.kind in ("embedding", "head", "att", "ffn", "lora")}
    tensors = {name: _as(t, dtype) if dtype and name in matrices else t for name, t in given.items()}
    model = replace(model, tensors=tensors)
    formats.write(target, *gguf.from_blinkdl(model.tensors, model.config, model.metadata))


def _as(tensor: Tensor, dtype: str) -> Tensor:
    return Deferred(dtype, tensor.shape, lambda: Tensor.of(tensor.float32(), dtype))


def compare(path: Path, peer: str, folder: Path, tokenizer: str | None) -> dict[str, Any]:
    """The largest distance of any logit, and how many of the rows have the same argmax."""
    model = rookery.load(path, tokenizer=tokenizer)
    prompts = [model.tokenizer.encode(TEXT)[:n] for n in LENGTHS]
    done = subprocess.run(
        [peer, "-c", PEER, str(path), json.dumps(prompts), str(folder / "peer.npz")], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"llama.cpp did not run {path.name}:\n{done.stderr[-2000:]}")
    with np.load(folder / "peer.npz") as file:
        theirs = [file[f"arr_{i}"] for i in range(len(prompts))]
    ours = [model.forward(prompt, every=True)[0] for prompt in prompts]
    last = [(a[-1].argmax(), b[-1].argmax()) for a, b in zip(ours, theirs, strict=True)]
    return {
        "llama-cpp-python": done.stdout.split()[-1],
        "backend": model.backend,
        "largest difference": float(max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))),
        "largest logit": float(max(np.abs(a).max() for a in ours)),
        "same argmax, last": f"{sum(int(a == b) for a, b in last)} of {len(last)}",
        "same argmax, all": sum(int((a.argmax(1) == b.argmax(1)).sum()) for a, b in zip(ours, theirs, strict=True)),
        "rows": sum(map(len, prompts)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="v6 or v7 models of any format")
    parser.add_argument("--peer", required=True, help="a Python that has llama-cpp-python")
    parser.add_argument("--dtype", default="f16", help="f16, bf16, f32, or stored (default: f16)")
    parser.add_argument("--tokenizer", help="for models that do not name theirs")
    arguments = parser.parse_args()
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        for source in arguments.models:
            target = Path(folder) / f"{source.stem}.gguf"
            write(source, target, None if arguments.dtype == "stored" else arguments.dtype)
            found = compare(target, arguments.peer, Path(folder), arguments.tokenizer)
            print(json.dumps({"model": source.name, "dtype": arguments.dtype, **found}))
            last = found["same argmax, last"]
            passed &= found["largest difference"] <= BAR and last == f"{len(LENGTHS)} of {len(LENGTHS)}"
    sys.exit(not passed)


if __name__ == "__main__":
    main()

"""`rookery info`: what a model file is and holds, read without running or widening anything."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from rookery.cli import options
from rookery.cli.main import printable
from rookery.cli.progress import Job

if TYPE_CHECKING:
    from rookery.architecture import Param
    from rookery.formats import Tensor
    from rookery.weights import Weights

CHEAP = 100_000_000  # bytes that are read for a fingerprint without being asked to
CLASSES = {
    "embedding": "embedding", "head": "head", "att": "attention", "ffn": "FFN", "lora": "LoRA", "vector": "vectors",
    "state": "time_state",
}  # fmt: skip


def parser() -> options.Parser:
    made = options.Parser("rookery info", "[options] [FILE]", "Say what a model file, or an adapter, is and holds.")
    made.add_argument(
        "file",
        nargs="?",
        default="gosling",
        metavar="FILE",
        help="a .pth, .safetensors, .gguf or rwkv.cpp .bin file, or a Hugging Face folder (default: gosling)",
    )
    made.add_argument(
        "--fingerprint", action="store_true", help="read the whole file for its digest (below 100 MB always done)"
    )
    options.add_general(made, json="print one object")
    return made


def run(args: argparse.Namespace) -> int:
    from rookery import formats, weights
    from rookery.cli import info_adapter
    from rookery.weights import adapters

    if adapters.is_one(args.file):
        return info_adapter.run(args.file, args.json)
    with Job(f"reading {args.file}"):
        model = weights.load(args.file)
        size = formats.size(model.path)
        facts = describe(model, size, fingerprint=args.fingerprint or size < CHEAP)
    print(json.dumps(facts, indent=2) if args.json else page(facts))
    return 0


def describe(model: Weights, size: int, fingerprint: bool) -> dict[str, Any]:
    """All that is known of a model file, as plain JSON values; sizes in bytes, `state` for one sequence."""
    from rookery import state

    c = model.config
    numbers = state.size(c)
    return {
        "path": model.path,
        "format": model.format,
        "bytes": size,
        "name": c.name,
        "version": c.version,
        "parameters": model.parameters,
        "n_layer": c.n_layer,
        "n_embd": c.n_embd,
        "n_head": c.n_head,
        "head_size": c.head_size,
        "n_ffn": c.n_ffn,
        "n_vocab": c.n_vocab,
        "ranks": dict(c.ranks),
        "group_norm_eps": None if c.version == "4" else c.group_norm_eps,
        "time_state": c.tuned_state,
        "tokenizer": _tokenizer(model),
        "state": {"numbers": numbers, "bytes": 4 * numbers},
        "types": _types(model),
        "native": _native(model),
        "fingerprint": model.fingerprint if fingerprint else None,
        "lineage": model.metadata.get("rookery.lineage") or (model.fingerprint if fingerprint else None),
        "metadata": {key: _plain(value) for key, value in model.metadata.items()},
    }


def _tokenizer(model: Weights) -> dict[str, str | None]:
    """`source`: "file" when the file names it, "stored" when it comes with the weights, "guess" by size, "none"."""
    from rookery.tokenizer import stored

    if name := model.metadata.get("rookery.tokenizer"):
        return {"name": name, "source": "file"}
    if name := stored.where(model.path, model.format, model.metadata):
        return {"name": name, "source": "stored"}
    if model.config.n_vocab == 65536:
        return {"name": "world", "source": "guess"}
    return {"name": None, "source": "none"}


def _plain(value: Any) -> Any:
    """A GGUF's arrays may hold a whole vocabulary: how many values they have."""
    return value if isinstance(value, str | int | float | dict) else f"{len(value)} values"


def _types(model: Weights) -> list[dict[str, Any]]:
    """One entry for each class of tensor and type it is stored in."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for p in model.params:
        tensor = model.tensors[p.name]
        key = CLASSES[p.kind], tensor.dtype
        row = found.setdefault(key, {"class": key[0], "dtype": key[1], "tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += 1
        row["parameters"] += tensor.size
        row["bytes"] += tensor.nbytes
    order = list(CLASSES.values())
    return sorted(found.values(), key=lambda row: (order.index(row["class"]), row["dtype"]))


def _native(model: Weights) -> dict[str, Any]:
    """What the native engine uses where it lies in the mapped file, and what it makes anew in memory, in the file's
    bytes: one entry for each class of tensor, type and reason. `ready`: vectors at most are made anew. Tensors that
    nothing reads are left out.
    """
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for p in model.params:
        if p.optional:
            continue
        tensor = model.tensors[p.name]
        mapped, why = _fate(p, tensor)
        key = CLASSES[p.kind], tensor.dtype, why
        row = found.setdefault(key, {"class": key[0], "dtype": key[1], "mapped": 0, "copied": 0, "why": why})
        row["mapped" if mapped else "copied"] += tensor.nbytes
    order = list(CLASSES.values())
    rows = sorted(found.values(), key=lambda row: (order.index(row["class"]), row["dtype"], row["why"]))
    ready = not any(row["copied"] for row in rows if row["class"] not in (CLASSES["vector"], CLASSES["state"]))
    return {what: sum(row[what] for row in rows) for what in ("mapped", "copied")} | {"ready": ready, "tensors": rows}


def _fate(param: Param, tensor: Tensor) -> tuple[bool, str]:
    """Whether the native engine maps a tensor, and why (not)."""
    from rookery.backends.native.pack import Table, Weight
    from rookery.formats.raw import is_mapped
    from rookery.formats.tensor import Deferred

    if param.kind == "vector":
        return False, "vectors become float32"
    if param.kind == "state":
        return False, "a sequence begins with a copy"
    held = (
        Table(param.name, tensor)
        if param.kind == "embedding"
        else Weight(param.name, tensor, turned=param.kind == "lora")
    )
    if isinstance(tensor, Deferred) or not is_mapped(tensor.data):
        return False, "the file holds it otherwise"
    if held.mapped:
        return True, "rows are widened when used" if isinstance(held, Table) else "panels"
    if isinstance(held, Weight) and not tensor.in_panels:
        return False, "laid out in panels"
    return False, held.why if isinstance(held, Weight) and held.ready else "the file holds it otherwise"


def page(facts: dict[str, Any]) -> str:
    """The same for people."""
    heads = f", {facts['n_head']} heads x {facts['head_size']}" if facts["n_head"] else ""
    ranks = ", ".join(f"{name} {rank}" for name, rank in facts["ranks"].items())
    name, source = facts["tokenizer"]["name"], facts["tokenizer"]["source"]
    rows = {
        "model": facts["name"],
        "file": f"{facts['path']} ({facts['format']}, {_size(facts['bytes'])})",
        "parameters": f"{facts['parameters']:,}",
        "layers": f"{facts['n_layer']} x width {facts['n_embd']}{heads}, FFN {facts['n_ffn']}",
        "LoRA ranks": ranks,
        "vocabulary": f"{facts['n_vocab']:,} tokens",
        "tokenizer": {
            "file": name,
            "stored": f"{name} (came with the weights)",
            "guess": f"{name} (a guess, by the size of the vocabulary)",
        }.get(source, "unknown; name it with --tokenizer bytes|utf16le|world|FILE"),
        "state": f"{facts['state']['numbers']:,} numbers, {_size(facts['state']['bytes'])} a sequence in float32",
        "group norm": facts["group_norm_eps"] and f"eps {facts['group_norm_eps']:g}",
        "time_state": facts["time_state"] and "present: starts from a tuned state",
        "native": f"maps {_size(facts['native']['mapped'])} of the file, copies {_size(facts['native']['copied'])}"
        + ("" if facts["native"]["ready"] else "; `rookery quantize --packed` writes a file that is mapped"),
        "fingerprint": facts["fingerprint"] or "not computed; --fingerprint reads the whole file",
        "lineage": facts["lineage"] if facts["lineage"] != facts["fingerprint"] else None,
    }
    # Some of it is the file's own words, which must not reach a terminal as codes.
    lines = [f"{label:<12} {printable(value)}" for label, value in rows.items() if value]
    wide = max(len(r["dtype"]) for r in facts["types"])
    lines += ["", f"{'class':<12} {'type':<{wide}} {'tensors':>7} {'parameters':>15} {'MB':>9}"]
    lines += [
        f"{r['class']:<12} {r['dtype']:<{wide}} {r['tensors']:>7} {r['parameters']:>15,} {r['bytes'] / 1e6:>9.2f}"
        for r in facts["types"]
    ]
    lines += ["", f"{'native':<12} {'type':<{wide}} {'mapped MB':>9} {'copied MB':>9}  why"]
    lines += [
        f"{r['class']:<12} {r['dtype']:<{wide}} {r['mapped'] / 1e6:>9.2f} {r['copied'] / 1e6:>9.2f}  {r['why']}"
        for r in facts["native"]["tensors"]
    ]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"

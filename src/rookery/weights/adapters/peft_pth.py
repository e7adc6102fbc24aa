"""RWKV-PEFT's adapters, and those of RWKV-LM-RLHF: a flat .pth of `{module}.lora_A` [r,in] and `.lora_B` [out,r], or
`.disha` (before: `.bone`) [r,out] or, in its mode "bat", [in/r,r,r]; and the tensors that were tuned in full.

What such a file does not say its training script did: a LoRA's alpha, and whether a LoRA is not a PiSSA, which means
nothing without the matrices it began with (init_pissa.pth: `{module}.init_lora_A`, `.init_lora_B`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from rookery import formats
from rookery.errors import AdapterError, CannotWrite
from rookery.formats.raw import brief
from rookery.formats.tensor import Array, Tensor
from rookery.weights.adapters import foreign
from rookery.weights.adapters.adapter import Adapter, Bat, Dora, LowRank, Miss, Part, Pissa, Whole
from rookery.weights.adapters.file import numbers, told

INIT = "init_pissa.pth"
LEAVES = ("lora_A", "lora_B", "lora_M", "disha", "bone")
BLOCKS = ("disha", "bone")
OTHER_FORMS = "a Hugging Face folder (--to hf) or Rookery's own .safetensors"

_WRAPPERS = re.compile(r"(?:(?:_forward_module|module|model)\.)+")
_NO_ALPHA = (
    "a LoRA of RWKV-PEFT, whose file does not hold its alpha: give it as --alpha X (alpha=), it was lora_alpha in "
    f"--lora_config of the training script; or, if it is a PiSSA, its {INIT} as --init FILE (init=)"
)

Found = dict[str, dict[str, Array]]  # module -> leaf -> values


def is_one(file: formats.File) -> bool:
    """Whether these tensors are such an adapter's."""
    return any(name.rpartition(".")[2] in LEAVES for name in file.tensors)


def wants_alpha(file: formats.File) -> bool:
    """Whether it has LoRA pairs, and does not hold their alpha."""
    return foreign.ALPHA not in file.metadata and any(name.endswith(".lora_A") for name in file.tensors)


def of_file(file: formats.File, alpha: float | None = None, init: formats.PathLike | None = None) -> Adapter:
    """The adapter in a file. `alpha`: of a LoRA; `init`: the init_pissa.pth of a PiSSA. Raises AdapterError."""
    path = file.path
    found, whole = _split(path, file.tensors, LEAVES)
    if any("lora_M" in leaves for leaves in found.values()):
        raise AdapterError(
            f"{path}: a DoRA of RWKV-LM-RLHF, whose magnitudes (lora_M) are those of columns; Rookery's and Hugging "
            "Face's are of rows, and neither says the other: merge it with RWKV-LM-RLHF"
        )
    pairs = any("lora_A" in leaves or "lora_B" in leaves for leaves in found.values())
    if not pairs and (alpha, init) != (None, None):
        raise AdapterError(f"{path}: has no LoRA pairs; --alpha and --init (alpha=, init=) are for those")
    first = _first(init, found) if init is not None else None
    if first is not None and alpha is not None:
        raise AdapterError(f"{path}: alpha and init say two things: a PiSSA has no alpha, a LoRA no {INIT}; give one")
    if first is None and pairs:
        alpha = _alpha(path, alpha, file.metadata)
    parts: dict[str, Part] = {}
    for module, leaves in found.items():
        parts[f"{module}.weight"] = _part(path, module, leaves, alpha, first[module] if first else None)
    kinds = {foreign.METHODS[type(part)] for part in parts.values()}
    method = kinds.pop() if len(kinds) == 1 else "mixed"
    for name, value in whole.items():
        if name in parts:
            raise AdapterError(f"{path}: holds {name} and a low-rank change of it; wanted one of them")
        parts[name] = Whole(value)
    return told(path, parts, method, file.metadata)


def write(path: str | os.PathLike[str], adapter: Adapter, force: bool = False) -> None:
    """Write `adapter` as RWKV-PEFT does, float32; of a PiSSA also init_pissa.pth, beside it (over one with `force`).

    A LoRA's alpha, for which there is no place, is left in a record that other programs pass over.
    Raises AdapterError for what the form cannot hold: DoRA, and parts of several methods, ranks or scales; CannotWrite.
    """
    path = os.fspath(path)
    kind = foreign.main_kind(adapter, path)
    if kind is Dora:
        raise AdapterError(f"{path}: RWKV-PEFT's .pth has no place for a DoRA's magnitudes; {OTHER_FORMS} has")
    parts = {name: part for name, part in adapter.parts.items() if not isinstance(part, Whole)}
    if kind is not None:
        foreign.one(adapter, path, "rank", {_rank(part) for part in parts.values()}, f"{OTHER_FORMS} holds them all")
    tensors: dict[str, Tensor] = {}
    init: dict[str, Tensor] = {}
    for name, part in adapter.parts.items():
        module = name.removesuffix(".weight")
        if isinstance(part, LowRank | Pissa):
            tensors |= {f"{module}.lora_A": Tensor.of(part.a), f"{module}.lora_B": Tensor.of(part.b)}
        if isinstance(part, Pissa):
            init |= {f"{module}.init_lora_A": Tensor.of(part.a0), f"{module}.init_lora_B": Tensor.of(part.b0)}
        elif isinstance(part, Miss | Bat):
            tensors[f"{module}.disha"] = Tensor.of(part.d)
        elif isinstance(part, Whole):
            tensors[name] = Tensor.of(part.value)
    said = foreign.story(adapter)
    if kind is LowRank:
        alphas = {foreign.alpha_of(part) for part in parts.values() if isinstance(part, LowRank)}
        said[foreign.ALPHA] = repr(foreign.one(adapter, path, "alpha", alphas, f"{OTHER_FORMS} holds them all"))
    if init:
        beside = os.path.join(os.path.dirname(path), INIT)
        if os.path.lexists(beside) and not force:
            raise CannotWrite(
                beside, "exists already, and is where the first matrices of the PiSSA go; --force overwrites it"
            )
        formats.write(beside, init, format="pth")
    formats.write(path, tensors, said, format="pth")


def _split(path: str, tensors: Mapping[str, Tensor], leaves: tuple[str, ...]) -> tuple[Found, dict[str, Array]]:
    """The tensors with one of these leaves by their module, and all others; wrappers' prefixes are dropped."""
    found: Found = {}
    whole: dict[str, Array] = {}
    for given, tensor in tensors.items():
        name = _WRAPPERS.sub("", given, count=1) if _WRAPPERS.match(given) else given
        module, _, leaf = name.rpartition(".")
        if leaf == "time_state":
            raise AdapterError(f"{path}: holds {name}: a tuned state is given by a file of its own, with --state")
        place, key = (found.setdefault(module, {}), leaf) if leaf in leaves else (whole, name)
        if key in place:
            raise AdapterError(f"{path}: holds {name} twice, under two prefixes")
        place[key] = numbers(path, given, tensor)
    return found, whole


def _first(init: formats.PathLike, found: Found) -> dict[str, tuple[Array, Array]]:
    """What each LoRA pair began as, from init_pissa.pth."""
    file = formats.read(init)
    first, _ = _split(file.path, file.tensors, ("init_lora_A", "init_lora_B"))
    out: dict[str, tuple[Array, Array]] = {}
    for module, leaves in found.items():
        pair = first.get(module, {})
        if set(pair) != {"init_lora_A", "init_lora_B"}:
            raise AdapterError(
                f"{file.path}: has no init_lora_A and init_lora_B of {module}; wanted its PiSSA's {INIT}"
            )
        out[module] = pair["init_lora_A"], pair["init_lora_B"]
        if [x.shape for x in out[module]] != [leaves[leaf].shape for leaf in ("lora_A", "lora_B") if leaf in leaves]:
            raise AdapterError(f"{file.path}: the first matrices of {module} have other shapes than the adapter's")
    return out


def _part(
    path: str, module: str, leaves: dict[str, Array], alpha: float | None, first: tuple[Array, Array] | None
) -> Part:
    if set(leaves) == {"lora_A", "lora_B"}:
        a, b = leaves["lora_A"], leaves["lora_B"]
        if first is not None:
            return Pissa(a, b, *first)
        if a.ndim != 2 or not len(a) or alpha is None:
            raise AdapterError(f"{path}: {module}.lora_A has shape {list(a.shape)}; [rank, in] is wanted")
        return LowRank(a, b, alpha / len(a))
    if len(leaves) == 1 and (d := next((leaves[leaf] for leaf in BLOCKS if leaf in leaves), None)) is not None:
        return Bat(d) if d.ndim == 3 else Miss(d)
    raise AdapterError(f"{path}: {module} has {', '.join(sorted(leaves))} alone, which makes no part of an adapter")


def _alpha(path: str, given: float | None, said: Mapping[str, Any]) -> float:
    if given is not None:
        return foreign.number(path, "alpha", given)
    try:
        return foreign.number(path, foreign.ALPHA, float(said[foreign.ALPHA]))
    except KeyError:
        raise AdapterError(f"{path}: {_NO_ALPHA}") from None
    except ValueError:
        raise AdapterError(f"{path}: {foreign.ALPHA} is {brief(str(said[foreign.ALPHA]))}; give --alpha X") from None


def _rank(part: Part) -> int:
    return int(part.d.shape[-1] if isinstance(part, Bat) else len(part.d if isinstance(part, Miss) else part.a))  # type: ignore[attr-defined]

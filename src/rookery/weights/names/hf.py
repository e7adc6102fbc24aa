"""Hugging Face's names: transformers' RwkvForCausalLM (v4), its remote-code kin (v5, v6), and the fla library's v7.

transformers and its kin rename only. fla keeps low-rank pairs as linears (transposed, the base vector as the second
one's bias), drops the ones of vectors [1,1,C], and has no value residual in the first layer, whose unused v0, v1 and
v2 are therefore not written. Older fla files stack v7's six mixes. Every value stays what it is.

Sources: transformers models/rwkv, fla utils/convert_from_rwkv7.py and models/rwkv7 (load_state_dict).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rookery.errors import UnknownArchitecture, WrongShape
from rookery.formats.tensor import Tensor, plain
from rookery.weights.names import Tensors

Pairs = list[tuple[str, str]]

# BlinkDL's part of a name -> theirs, in transformers and its kin
_KIN: Pairs = [
    ("emb", "embeddings"), ("ln0", "pre_ln"), ("att", "attention"), ("ffn", "feed_forward"),
    ("time_mix_k", "time_mix_key"), ("time_mix_v", "time_mix_value"), ("time_mix_r", "time_mix_receptance"),
    ("time_mix_g", "time_mix_gate"),
]  # fmt: skip
_FLA: Pairs = [
    ("emb", "embeddings"), ("ln_out", "norm"), ("blocks", "layers"), ("ln0", "pre_norm"), ("ln1", "attn_norm"),
    ("ln2", "ffn_norm"), ("att", "attn"), ("ln_x", "g_norm"),
]  # fmt: skip
_FLA_LINEARS = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
_FLA_LORA = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}

_ANY_KIN = re.compile(r"((rwkv|model)\.)?blocks\.0\.(att|attention)\.")
_ANY_FLA = "model.layers.0.attn.w_lora.lora."
_LORA = re.compile(r"(.*\.)([wavg])_lora\.lora\.(0\.weight|2\.weight|2\.bias)")

EPS = 1e-5  # of every LayerNorm in every version


def style(tensors: Mapping[str, Tensor]) -> str | None:
    """ "fla", "kin" (transformers' own, or remote code like it), or None for names that are not Hugging Face's."""
    if any(name.startswith(_ANY_FLA) for name in tensors):
        return "fla"
    kin = any(m and (m[1] or m[3] == "attention") for m in map(_ANY_KIN.match, tensors))
    return "kin" if kin else None


def to_blinkdl(path: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Tensors:
    """BlinkDL's tensors; shapes are left to `load`, which knows them. Names that are not theirs pass unchanged.

    `config` is the folder's config.json. Raises UnknownArchitecture for settings of another computation, WrongShape.
    """
    kind, config = style(tensors), config or {}
    if kind is None:
        return dict(tensors)
    _check(path, config)
    out: Tensors = {}
    for name, tensor in tensors.items():
        try:
            known = _from_fla(name, tensor) if kind == "fla" else [(_from_kin(name), tensor)]
        except ValueError:
            raise WrongShape(f"{path}: {name} has the impossible shape {list(tensor.shape)}") from None
        for ours, value in known:
            if ours in out:
                raise UnknownArchitecture(f"{path}: two of its tensors would be {ours}")
            out[ours] = value
    if config.get("tie_word_embeddings") is True and "emb.weight" in out:
        out.setdefault("head.weight", out["emb.weight"])
    return out


def group_norm_eps(tensors: Mapping[str, Tensor], n_head: int) -> float | None:
    """What a file in these foreign names means by ln_x: fla takes the head size times 1e-5, the others have no rule."""
    if style(tensors) != "fla" or not n_head:
        return None
    return tensors["model.embeddings.weight"].shape[-1] // n_head * EPS


def from_blinkdl(tensors: Mapping[str, Tensor], major: str) -> Tensors:
    """The names and shapes of the usual loader of version `major` ("4" .. "7")."""
    if major == "7":
        unused = re.compile(r"blocks\.0\.att\.v[012]")
        return dict(_to_fla(name, tensor) for name, tensor in tensors.items() if not unused.fullmatch(name))
    return {_to_kin(name): tensor for name, tensor in tensors.items()}


def parameter(name: str) -> tuple[str, bool]:
    """BlinkDL's name of a parameter by its name in any of these ways or BlinkDL's own; whether theirs is transposed."""
    if re.match(r"(model\.)?(layers|norm)\.", name):
        return _from_fla_name(name)
    return _from_kin(name), False


def _check(path: str, config: Mapping[str, Any]) -> None:
    """Settings that would make another computation of the same tensors."""
    wanted = {"layer_norm_epsilon": (EPS,), "norm_eps": (EPS,), "hidden_act": ("sqrelu",), "attn": ()}
    for key, values in wanted.items():
        if config.get(key) is not None and config[key] not in values:
            raise UnknownArchitecture(
                f"{path}: a variant that Rookery does not run; config.json says {key} {str(config[key])[:40]}"
            )


def _renamed(parts: list[str], table: Pairs) -> list[str]:
    names = dict(table)
    return [names.get(part, part) for part in parts]


def _back(table: Pairs) -> Pairs:
    return [(theirs, ours) for ours, theirs in table]


def _from_kin(name: str) -> str:
    if name in ("head.weight", "lm_head.weight"):
        return "head.weight"
    return ".".join(_renamed(re.sub(r"^(rwkv|model)\.", "", name).split("."), _back(_KIN)))


def _to_kin(name: str) -> str:
    if name == "head.weight":
        return name
    return ".".join(["rwkv", *_renamed(name.split("."), _KIN)])


def _from_fla_name(name: str) -> tuple[str, bool]:
    """BlinkDL's name, and whether it is that of the transposed."""
    if name == "lm_head.weight":
        return "head.weight", False
    parts = _renamed(name.removeprefix("model.").split("."), _back(_FLA))
    if "att" in parts[2:3]:
        linears = {theirs: ours for ours, theirs in _FLA_LINEARS.items()}
        parts = parts[:3] + [linears.get(part, part) for part in parts[3:]]
    ours = ".".join(parts)
    if found := _LORA.fullmatch(ours):
        place = next(digit for digit, place in _FLA_LORA.items() if place == found[3])
        return f"{found[1]}{found[2]}{place}", place != "0"
    return ours, False


def _from_fla(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    ours, turned = _from_fla_name(name)
    if ours.endswith(".att.x_x"):
        tensor = plain(tensor)
        rows = tensor.data.reshape(6, -1)
        shape = (1, 1, tensor.size // 6)
        return [(ours[:-1] + letter, Tensor(tensor.dtype, shape, rows[i])) for i, letter in enumerate("rwkvag")]
    return [(ours, tensor.permuted(1, 0) if turned else tensor)]


def _to_fla(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    if name == "head.weight":
        return "lm_head.weight", tensor
    parts = _renamed(name.split("."), _FLA)
    leaf = parts[-1]
    if "attn" in parts[2:3]:
        parts[3] = _FLA_LINEARS.get(parts[3], parts[3])
        if re.fullmatch("[wavg][012]", leaf):
            parts[3:] = [f"{leaf[0]}_lora", "lora", _FLA_LORA[leaf[1]]]
            tensor = tensor.reshape(tensor.size) if leaf[1] == "0" else tensor.permuted(1, 0)
    if leaf in ("k_k", "k_a") or parts[2:] == ["ffn", "x_k"]:
        tensor = tensor.reshape(tensor.size)
    return ".".join(["model", *parts]), tensor

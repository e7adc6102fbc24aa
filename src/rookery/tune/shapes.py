"""Sizes of models that need no file: published ones by name, and any by `v7:24x2048`.

Low-rank widths are those of the released files, which differ from what the recipe makes of the same width today.
Sources: BlinkDL/RWKV-LM and RWKV-LM-V7 (README), the configurations of RWKV's repositories on Hugging Face.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

from rookery.architecture import Config
from rookery.errors import InputError
from rookery.train import shape

HEAD_SIZE, WORLD, PILE = 64, 65_536, 50_277
MOST_LAYERS = 1000  # every tensor of each is listed
_RANKS = {  # of v7, by what a model is called: w and a, v, g
    "0.1b": (64, 32, 128),
    "0.4b": (64, 32, 128),
    "1.5b": (96, 64, 256),
    "2.9b": (96, 64, 320),
    "7.2b": (128, 96, 480),
    "13.3b": (192, 128, 384),
}
_SIZES: Mapping[str, tuple[str, int, Mapping[str, tuple[int, int]]]] = {  # family: version, tokens, name: layers, width
    "rwkv7-g1": (
        "7", WORLD, {"0.1b": (12, 768), "0.4b": (24, 1024), "1.5b": (24, 2048), "2.9b": (32, 2560),
                     "7.2b": (32, 4096), "13.3b": (61, 4096)},
    ),
    "rwkv7-world": ("7", WORLD, {"0.1b": (12, 768), "0.4b": (24, 1024), "1.5b": (24, 2048), "2.9b": (32, 2560)}),
    "rwkv6-world": ("6", WORLD, {"1.6b": (24, 2048), "3b": (32, 2560), "7b": (32, 4096), "14b": (61, 4096)}),
    "rwkv5-world": ("5.2", WORLD, {"0.4b": (24, 1024), "1.5b": (24, 2048), "3b": (32, 2560), "7b": (32, 4096)}),
    "rwkv4-world": (
        "4", WORLD, {"0.1b": (12, 768), "0.4b": (24, 1024), "1.5b": (24, 2048), "3b": (32, 2560), "7b": (32, 4096)},
    ),
    "rwkv4-pile": (
        "4", PILE, {"169m": (12, 768), "430m": (24, 1024), "1.5b": (24, 2048), "3b": (32, 2560), "7b": (32, 4096),
                    "14b": (40, 5120)},
    ),
}  # fmt: skip
NAMES = tuple(f"{family}-{name}" for family, (_, _, sizes) in _SIZES.items() for name in sizes)
_SHAPE = re.compile(r"v(4|5|5\.0|5\.1|5\.2|6|7):(\d{1,7})x(\d{1,7})((?:,\w+=\d{1,7})*)")
GRAMMAR = "v7:24x2048 (version, layers, width; then vocab=, ffn=, head=, w= a= v= g= maa= decay= with commas)"


def find(text: str) -> Config:
    """The sizes that `text` means: a name of NAMES, or a shape as GRAMMAR says it. Raises InputError."""
    wanted = text.strip().lower()
    if wanted in NAMES:
        return _published(wanted)
    found = _SHAPE.fullmatch(wanted)
    if found:
        version, layers, width, more = found.groups()
        pairs = (pair.split("=") for pair in more.split(",") if pair)
        return _made(text, version, int(layers), int(width), {key: int(value) for key, value in pairs})
    near = get_close_matches(wanted, NAMES, 3, 0.0)
    raise InputError(f"--shape {text}: {GRAMMAR} is wanted, or a published name; the nearest are {', '.join(near)}")


def _published(name: str) -> Config:
    family, _, size = name.rpartition("-")
    version, vocabulary, sizes = _SIZES[family]
    layers, width = sizes[size]
    ranks = {}
    if version == "7":
        wide, value, gate = _RANKS[size]
        ranks = {"w": wide, "a": wide, "v": value, "g": gate}
    elif version == "6":  # RWKV-LM's v6 doubles both at a width of 4096
        ranks = {"maa": 64, "decay": 128} if width == 4096 else {"maa": 32, "decay": 64}
    return _config(version, layers, width, vocabulary, shape.ffn(version, width), HEAD_SIZE, ranks)


def _made(text: str, version: str, layers: int, width: int, more: dict[str, int]) -> Config:
    version = {"5": "5.2"}.get(version, version)
    ranks = shape.ranks(version, width)
    own = {"vocab": WORLD, "ffn": shape.ffn(version, width), "head": HEAD_SIZE} | ranks
    for key in more:
        if key not in own:
            raise InputError(f"--shape {text}: v{version} has no {key!r}; it has {', '.join(own)}")
    own |= more
    if layers < 1 or min(own.values()) < 1 or width < 1:
        raise InputError(f"--shape {text}: every size is 1 or more")
    if layers > MOST_LAYERS:
        raise InputError(f"--shape {text}: {layers:,} layers; {MOST_LAYERS:,} at most are counted")
    if version != "4" and width % own["head"]:
        raise InputError(f"--shape {text}: a width of {width} is not a multiple of the head size {own['head']}")
    return _config(version, layers, width, own["vocab"], own["ffn"], own["head"], {r: own[r] for r in ranks})


def _config(
    version: str, layers: int, width: int, vocabulary: int, ffn: int, head: int, ranks: dict[str, int]
) -> Config:  # fmt: skip
    return Config(version, layers, width, vocabulary, ffn, 0 if version == "4" else width // head, ranks)

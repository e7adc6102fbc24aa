"""The sizes of a fresh model: the settings' own, and where they are silent those of the version's recipe.

Sources: RWKV-LM RWKV-v7/train_temp, RWKV-v5 and RWKV-v4neo, each src/model.py and train.py. C width.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from rookery.architecture.spec import Config
from rookery.errors import InputError
from rookery.train.config import Settings

FACTORS = {"w": 2.5, "a": 2.5, "v": 1.7, "g": 5.0}  # of sqrt(C): ranks of v7's low-rank pairs
UNIT = 32  # the recipe's ranks and channel-mixing widths are multiples of it


def config(settings: Settings, vocab_size: int) -> Config:
    """The configuration of a model to begin with; `vocab_size` is the number of its tokens.

    Raises InputError for a rank that the version does not have and for a width that its heads do not divide.
    """
    m = settings.model
    if m.version != "4" and m.n_embd % m.head_size:
        raise InputError(f"model.n_embd = {m.n_embd}: a multiple of head_size = {m.head_size} is wanted")
    return Config(
        version=m.version,
        n_layer=m.n_layer,
        n_embd=m.n_embd,
        n_vocab=vocab_size,
        n_ffn=m.n_ffn or ffn(m.version, m.n_embd),
        n_head=0 if m.version == "4" else m.n_embd // m.head_size,
        ranks=_ranks(m.version, m.n_embd, m.ranks),
    )


def ffn(version: str, width: int) -> int:
    """The recipe's width of channel mixing: 4 C, or 3.5 C in whole units where time mixing has a gate matrix too."""
    return 4 * width if version in ("4", "5.0", "7") else max(UNIT, width * 7 // 2 // UNIT * UNIT)


def ranks(version: str, width: int) -> dict[str, int]:
    """The recipe's low-rank widths; never more than C, where a pair would be larger than the matrix it stands for."""
    if version == "7":
        wanted = {x: max(UNIT, UNIT * round(f * sqrt(width) / UNIT)) for x, f in FACTORS.items()}
    else:
        wanted = {"maa": 32, "decay": 64} if version == "6" else {}
    return {name: min(width, rank) for name, rank in wanted.items()}


def _ranks(version: str, width: int, given: Mapping[str, int]) -> dict[str, int]:
    own = ranks(version, width)
    for name in given:
        if name not in own:
            has = ", ".join(own) or "none"
            raise InputError(f"model.ranks: v{version} has no rank {name!r}; its low-rank pairs are: {has}")
    return {**own, **given}

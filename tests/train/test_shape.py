"""The sizes that a recipe gives, against sizes known from the dossier, and that every version begins with them."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from rookery.backends.torch import Network
from rookery.errors import InputError
from rookery.train import shape
from rookery.train.config import DataSettings, ModelSettings, Settings

VERSIONS = ["4", "5.0", "5.1", "5.2", "6", "7"]


def settings(**model: object) -> Settings:
    return Settings(ModelSettings(**model), DataSettings(train=("x",)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("width", "wavg"),
    # training.md 1.2: today's formula gives 128/64/224 at 2048; others by hand from max(32, 32 round(f sqrt(C) / 32)).
    [(64, (32, 32, 32, 32)), (768, (64, 64, 32, 128)), (1024, (64, 64, 64, 160)), (2048, (128, 128, 64, 224))],
)
def test_ranks_of_v7(width: int, wavg: tuple[int, ...]) -> None:
    found = shape.config(settings(n_embd=width), 100).ranks
    assert tuple(found[x] for x in "wavg") == wavg


@pytest.mark.parametrize(
    ("version", "width", "n_ffn"),
    [
        ("7", 768, 3072),
        ("4", 768, 3072),
        ("6", 768, 2688),
        ("5.2", 2048, 7168),
        ("6", 208, 704),
        ("5.2", 4, 32),
        ("5.1", 64, 224),
        ("5.0", 64, 256),
    ],
)
def test_width_of_channel_mixing(version: str, width: int, n_ffn: int) -> None:
    assert shape.config(settings(version=version, n_embd=width, head_size=4), 100).n_ffn == n_ffn


def test_what_is_given_is_taken() -> None:
    c = shape.config(settings(n_embd=128, n_ffn=96, head_size=32, ranks={"w": 5, "g": 7}), 300)
    assert (c.n_ffn, c.n_head, c.n_vocab, c.ranks) == (96, 4, 300, {"w": 5, "a": 32, "v": 32, "g": 7})
    c6 = shape.config(settings(version="6", n_embd=128, ranks={"decay": 9}), 300)
    assert c6.ranks == {"maa": 32, "decay": 9}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("width", [8, 64])
def test_every_version_begins_and_runs(version: str, width: int) -> None:
    c = shape.config(settings(version=version, n_layer=2, n_embd=width, head_size=8), 19)
    network = Network.fresh(c)
    logits, _ = network(torch.tensor([[1, 2, 3], [4, 5, 18]]))
    assert logits.shape == (2, 3, 19)
    assert torch.isfinite(logits).all()
    assert max(c.ranks.values(), default=0) <= width


def test_a_rank_of_another_version_is_refused() -> None:
    with pytest.raises(InputError, match=r"v7 has no rank 'maa'.*w, a, v, g"):
        shape.config(settings(ranks={"maa": 3}), 10)
    with pytest.raises(InputError, match=r"v4 has no rank 'w'.*none"):
        shape.config(settings(version="4", ranks={"w": 3}), 10)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(InputError, match=r"n_embd = 100: a multiple of head_size = 64"):
        shape.config(settings(n_embd=100), 10)

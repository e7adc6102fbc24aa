"""The recipe, tensor by tensor: how each begins, at which learning-rate scale it trains and whether it decays.

The tables are written out here a second time, from research/training.md 1.2 and 1.3 (v7; v4, 5.2, 6), and for 5.0 and
5.1, of which the dossier says nothing, from RWKV-LM RWKV-v4neo/src/model.py. l layer, L layers, C width, N head size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest

from tolerances import INIT_CURVE, INIT_ORTHOGONAL

pytest.importorskip("torch")

from rookery.architecture import Config
from rookery.backends.torch import Network
from rookery.train.optimiser import groups

Array = npt.NDArray[np.float64]
L, C, N, V = 3, 64, 16, 96
H, DECAY = C // N, 0.125
CONFIGS = {
    "4": Config("4", L, C, V, 4 * C),
    "5.0": Config("5.0", L, C, V, 4 * C, H),
    "5.1": Config("5.1", L, C, V, 224, H),
    "5.2": Config("5.2", L, C, V, 224, H),
    "6": Config("6", L, C, V, 224, H, {"maa": 32, "decay": 64}),
    "7": Config("7", L, C, V, 4 * C, H, {"w": 32, "a": 24, "v": 16, "g": 40}),
}


@dataclass(frozen=True)
class Orth:
    gain: float


@dataclass(frozen=True)
class Uniform:
    bound: float


@dataclass(frozen=True)
class Row:
    """What the dossier says of one tensor."""

    shape: tuple[int, ...]
    init: Array | float | Orth | Uniform
    lr: float = 1
    decay: bool = False


Rows = Iterator[tuple[str, Row]]
i = np.arange(C, dtype=np.float64)
LIN = i / (C - 1) - 0.5
ZIG = (i % N - (N - 1) / 2) / ((N - 1) / 2)
Z = ZIG * np.abs(ZIG)
ZIGZAG3 = 0.1 * ((i + 1) % 3 - 1)


def weight(rows: int, columns: int, gain: float) -> Row:
    return Row((rows, columns), Orth(gain) if gain else 0.0, decay=True)


def norm(name: str, gain: float = 1.0) -> Rows:
    yield f"{name}.weight", Row((C,), gain)
    yield f"{name}.bias", Row((C,), 0.0)


def vector(value: Array | float, lr: float = 1) -> Row:
    return Row((C,), value, lr)


def outer(c: Config, embedding: float) -> Rows:
    yield "emb.weight", Row((c.n_vocab, C), Uniform(embedding), decay=True)
    yield "head.weight", weight(c.n_vocab, C, 0.5 * math.sqrt(c.n_vocab / C) if c.n_vocab > C else 0.5)
    yield from norm("ln_out")
    yield from norm("blocks.0.ln0")


def block_v7(c: Config, layer: int) -> Rows:
    r01, r10 = layer / (L - 1), 1 - layer / L
    for name, power in {"r": 0.2, "g": 0.2, "w": 0.9, "a": 0.9, "k": 0.7, "v": 0.7}.items():
        yield f"att.x_{name}", vector(1 - (i / C) ** (power * r10))
    yield "att.w0", vector(-6 + 6 * (i / (C - 1)) ** (1 + r01**0.3) + 0.5 + 2.5 * Z, lr=2)
    yield "att.a0", vector(-0.19 + 0.3 * Z + 0.4 * LIN)
    if layer:  # the first layer's v0, v1, v2 do nothing
        yield "att.v0", vector(0.73 - 0.4 * LIN)
    for name in "wavg" if layer else "wag":
        yield f"att.{name}1", Row((C, c.ranks[name]), 0.0)
        yield f"att.{name}2", Row((c.ranks[name], C), Orth(0.1))
    yield "att.k_k", vector(0.71 - 0.1 * LIN)
    yield "att.k_a", vector(1.02)
    yield "att.r_k", Row((H, N), -0.04)
    for name, gain in {"receptance": 1.0, "value": 1.0, "key": 0.1, "output": 0.0}.items():
        yield f"att.{name}.weight", weight(C, C, gain)
    yield from norm("att.ln_x", ((1 + layer) / L) ** 0.7)
    yield "ffn.x_k", vector(1 - (i / C) ** (r10**4))
    yield "ffn.key.weight", weight(4 * C, C, 1)
    yield "ffn.value.weight", weight(C, 4 * C, 0)


def gated(c: Config, layer: int, key: float = 0.1, gate: float = 0.1, ffn_key: float = 1.0) -> Rows:
    """The matrices of v5 and v6."""
    for name, gain in {"receptance": 1.0, "value": 1.0, "key": key, "gate": gate, "output": 0.0}.items():
        if name != "gate" or c.version != "5.0":
            yield f"att.{name}.weight", weight(C, C, gain)
    yield from norm("att.ln_x", ((1 + layer) / L) ** 0.7)
    yield "ffn.key.weight", weight(c.n_ffn, C, ffn_key)
    yield "ffn.receptance.weight", weight(C, C, 0)
    yield "ffn.value.weight", weight(C, c.n_ffn, 0)


def block_v6(c: Config, layer: int) -> Rows:
    r01, r10 = layer / (L - 1), 1 - layer / L
    for name in "xwk":
        yield f"att.time_maa_{name}", vector(1 - (i / C) ** r10)
    yield "att.time_maa_v", vector(1 - ((i / C) ** r10 + 0.3 * r01))
    for name in "rg":
        yield f"att.time_maa_{name}", vector(1 - (i / C) ** (0.5 * r10))
    yield "att.time_maa_w1", Row((C, 5 * 32), 0.0)
    yield "att.time_maa_w2", Row((5, 32, C), Uniform(0.01))
    yield "att.time_decay", vector(-6 + 5 * (i / (C - 1)) ** (0.7 + 1.3 * r01), lr=2)
    yield "att.time_decay_w1", Row((C, 64), 0.0)
    yield "att.time_decay_w2", Row((64, C), Uniform(0.01))
    yield "att.time_faaaa", Row((H, N), (r01 * (1 - i / (C - 1)) + ZIGZAG3).reshape(H, N))
    yield from gated(c, layer)
    for name in "kr":
        yield f"ffn.time_maa_{name}", vector(1 - (i / C) ** (r10**3))


def mixes_v4(layer: int, gate: bool) -> Rows:
    r01, r10 = layer / (L - 1), 1 - layer / L
    yield "att.time_mix_k", vector((i / C) ** r10)
    yield "att.time_mix_v", vector((i / C) ** r10 + 0.3 * r01)
    for name in "rg" if gate else "r":
        yield f"att.time_mix_{name}", vector((i / C) ** (0.5 * r10))
    for name in "kr":
        yield f"ffn.time_mix_{name}", vector((i / C) ** r10)


def block_v5_2(c: Config, layer: int) -> Rows:
    r01 = layer / (L - 1)
    yield from mixes_v4(layer, gate=True)
    yield "att.time_decay", Row((H, N), (-6 + 5 * (i / (C - 1)) ** (0.7 + 1.3 * r01)).reshape(H, N), lr=2)
    yield "att.time_faaaa", Row((H, N), (r01 * (1 - i / (C - 1)) + ZIGZAG3).reshape(H, N))
    yield from gated(c, layer)


def block_v5_early(c: Config, layer: int) -> Rows:
    """5.0 and 5.1: one decay and one bonus a head; 5.1 has the gate."""
    r01, h = layer / (L - 1), np.arange(H, dtype=np.float64)[:, None]
    yield from mixes_v4(layer, gate=c.version == "5.1")
    yield "att.time_decay", Row((H, 1), -6 + 5 * (h / (H - 1)) ** (0.7 + 1.3 * r01), lr=2)
    if c.version == "5.1":
        yield "att.time_faaaa", Row((H, 1), r01 * (1 - h / (H - 1)))
    else:
        yield "att.time_first", Row((H, 1), -3.0, lr=3)
    yield from gated(c, layer, key=1, gate=1, ffn_key=math.sqrt(c.n_ffn / C))


def block_v4(c: Config, layer: int) -> Rows:
    r01 = layer / (L - 1)
    yield from mixes_v4(layer, gate=False)
    yield "att.time_decay", vector(-5 + 8 * (i / (C - 1)) ** (0.7 + 1.3 * r01), lr=2)
    yield "att.time_first", vector(math.log(0.3) + 0.5 * ((i + 1) % 3 - 1), lr=3)
    for name in ("key", "receptance", "output"):
        yield f"att.{name}.weight", weight(C, C, 0)
    yield "att.value.weight", weight(C, C, 1)
    yield "ffn.key.weight", weight(4 * C, C, math.sqrt(4))
    yield "ffn.receptance.weight", weight(C, C, 0)
    yield "ffn.value.weight", weight(C, 4 * C, 0)


BLOCKS = {"4": block_v4, "5.0": block_v5_early, "5.1": block_v5_early, "5.2": block_v5_2, "6": block_v6, "7": block_v7}


def expected(c: Config) -> dict[str, Row]:
    early = c.version in ("4", "5.0", "5.1")
    table = dict(outer(c, 6e-4 if early else 1e-4))
    for layer in range(L):
        table |= {f"blocks.{layer}.{name}": row for name, row in BLOCKS[c.version](c, layer)}
        table |= {f"blocks.{layer}.{name}": row for ln in ("ln1", "ln2") for name, row in norm(ln)}
    return table


def check_init(name: str, found: Array, row: Row) -> None:
    match row.init:
        case Orth(gain):
            small = found @ found.T if found.shape[0] <= found.shape[1] else found.T @ found
            np.testing.assert_allclose(
                small / gain**2, np.eye(min(found.shape)), rtol=0, atol=INIT_ORTHOGONAL, err_msg=name
            )
        case Uniform(bound):
            size = math.sqrt(found.size)
            assert 0.98 * bound < np.abs(found).max() <= bound * (1 + INIT_CURVE), name
            assert abs(found.mean()) < 4 * bound / size, name  # standard error bound / sqrt(3 n): seven of them
            assert abs(found.std() * math.sqrt(3) / bound - 1) < 4 / size, name  # that of it is 0.45 / sqrt(n): nine
        case value:
            np.testing.assert_allclose(
                found, np.broadcast_to(value, found.shape), rtol=0, atol=INIT_CURVE, err_msg=name
            )


@pytest.mark.parametrize("vocab", [V, 48])
@pytest.mark.parametrize("version", CONFIGS)
def test_every_tensor_begins_and_trains_as_the_recipe_says(version: str, vocab: int) -> None:
    c = replace(CONFIGS[version], n_vocab=vocab)
    network, table = Network.fresh(c, seed=5), expected(c)
    parameters = {n: p.detach().double().numpy() for n, p in network.named_parameters()}
    assert set(parameters) == set(table)
    trained = {
        name: (group["scale"], group["weight_decay"])
        for group in groups(network, c, DECAY)
        for name in group["names"]
    }  # fmt: skip
    assert trained == {name: (row.lr, DECAY if row.decay else 0.0) for name, row in table.items()}
    for name, row in table.items():
        assert parameters[name].shape == row.shape, name
        check_init(name, parameters[name], row)


@pytest.mark.parametrize("version", CONFIGS)
def test_groups_hold_each_trained_tensor_once(version: str) -> None:
    network = Network.fresh(CONFIGS[version])
    network.emb.weight.requires_grad_(False)
    held = [id(p) for group in groups(network, CONFIGS[version], DECAY) for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in network.parameters() if p is not network.emb.weight}


def test_the_decay_set_of_v7_is_the_matrices() -> None:
    """Stated once more as RWKV-LM's rule: two dimensions after squeezing, and `.weight` in the name."""
    network = Network.fresh(CONFIGS["7"])
    decays = {n for g in groups(network, CONFIGS["7"], DECAY) if g["weight_decay"] for n in g["names"]}
    assert decays == {n for n, p in network.named_parameters() if p.squeeze().dim() >= 2 and ".weight" in n}


def test_another_seed_is_another_model_and_the_same_seed_the_same() -> None:
    one, same, other = (Network.fresh(CONFIGS["7"], seed).emb.weight for seed in (1, 1, 2))
    assert one.equal(same)
    assert not one.equal(other)


def test_a_planted_error_is_seen() -> None:
    table = expected(CONFIGS["7"])
    network = Network.fresh(CONFIGS["7"], seed=5)
    parameters = {n: p.detach().double().numpy() for n, p in network.named_parameters()}
    for name, factor in {"blocks.1.att.w2": 1.001, "blocks.1.att.w0": 1.0001, "emb.weight": 0.9}.items():
        with pytest.raises(AssertionError):
            check_init(name, parameters[name] * factor, table[name])

"""Make tests/fixtures: tiny random models of every version, and what the oracle says about them.

    python scripts/make_fixtures.py [FOLDER]

Every shape is chosen so that a mistake shows: heads differ from head size, low-rank widths differ, no matrix but the
C x C ones is square. Every scale is chosen so that each tensor matters; the script refuses to write otherwise. The same
seeds give the same files.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from oracle import Oracle  # noqa: E402
from tolerances import MATTERS  # noqa: E402

Tensors = dict[str, npt.NDArray[np.float32]]

VOCABULARY = 256  # plain bytes, so that the byte tokenizers fit
LENGTH = 40
POSITIONS = (0, 1, 12, 39)  # logits of all forty positions would be most of the bytes


@dataclass(frozen=True)
class Shape:
    """What distinguishes one fixture: `heads` x `size` = width; `seed` is NumPy's default_rng's."""

    version: str
    seed: int
    layers: int = 2
    heads: int = 2
    size: int = 6
    hidden: int = 20
    time_state: bool = False

    @property
    def width(self) -> int:
        return self.heads * self.size


SHAPES = {
    "v4": Shape("4", 400, hidden=28),
    "v5.0": Shape("5.0", 500),
    "v5.1": Shape("5.1", 510, heads=3, size=4),
    "v5.2": Shape("5.2", 520, heads=3, size=4, hidden=28),
    "v6": Shape("6", 600, hidden=28),
    "v6-timestate": Shape("6", 601, heads=3, size=4, time_state=True),
    "v7": Shape("7", 700, layers=3),
}


class Maker:
    """Draws the tensors of one model, in BlinkDL's names and .pth shapes."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.rng, self.tensors = shape, np.random.default_rng(shape.seed), Tensors()

    def normal(self, name: str, *dims: int, scale: float = 1.0, mean: float = 0.0) -> None:
        self.tensors[name] = (mean + scale * self.rng.standard_normal(dims)).astype(np.float32)

    def uniform(self, name: str, *dims: int, low: float, high: float) -> None:
        self.tensors[name] = self.rng.uniform(low, high, dims).astype(np.float32)

    def linear(self, name: str, out: int, into: int, gain: float = 1.0) -> None:
        self.normal(name + ".weight", out, into, scale=gain / into**0.5)

    def norm(self, name: str) -> None:
        self.uniform(name + ".weight", self.shape.width, low=0.6, high=1.4)
        self.normal(name + ".bias", self.shape.width, scale=0.2)

    def mix(self, *names: str) -> None:
        for name in names:
            self.uniform(name, 1, 1, self.shape.width, low=0.1, high=0.9)

    def model(self) -> Tensors:
        s = self.shape
        self.normal("emb.weight", VOCABULARY, s.width)
        self.norm("blocks.0.ln0")
        time_mix = {"4": self.time_mix_4, "6": self.time_mix_6, "7": self.time_mix_7}.get(s.version, self.time_mix_5)
        for i in range(s.layers):
            self.norm(f"blocks.{i}.ln1")
            self.norm(f"blocks.{i}.ln2")
            self.square(f"blocks.{i}.att.")
            time_mix(f"blocks.{i}.att.")
            self.channel_mix(f"blocks.{i}.ffn.")
        self.norm("ln_out")
        self.linear("head", VOCABULARY, s.width, gain=2)
        return self.tensors

    def square(self, att: str) -> None:
        """The C x C linears. Small r and k keep a head's variance near the group-norm epsilon, so that it matters."""
        gains = {"receptance": 0.3, "key": 0.3, "value": 0.7, "output": 1.0}
        if self.shape.version == "4":
            gains = dict.fromkeys(gains, 1.0)
        if self.shape.version not in ("4", "5.0", "7"):
            gains["gate"] = 1.5
        for name, gain in gains.items():
            self.linear(att + name, self.shape.width, self.shape.width, gain)

    def time_mix_4(self, att: str) -> None:
        self.uniform(att + "time_decay", self.shape.width, low=-3, high=0.5)
        self.normal(att + "time_first", self.shape.width)
        self.mix(*(att + "time_mix_" + letter for letter in "kvr"))

    def time_mix_5(self, att: str) -> None:
        s = self.shape
        per = (s.heads, s.size) if s.version == "5.2" else (s.heads,)
        self.uniform(att + "time_decay", *per, low=-3, high=0.5)
        self.normal(att + ("time_first" if s.version == "5.0" else "time_faaaa"), *per, mean=0.5)
        self.mix(*(att + "time_mix_" + letter for letter in ("kvr" if s.version == "5.0" else "kvrg")))
        self.norm(att + "ln_x")

    def time_mix_6(self, att: str) -> None:
        s, rank, decay_rank = self.shape, 3, 5
        self.mix(*(att + "time_maa_" + letter for letter in "xwkvrg"))
        self.normal(att + "time_maa_w1", s.width, 5 * rank, scale=s.width**-0.5)
        self.normal(att + "time_maa_w2", 5, rank, s.width, scale=0.3)
        self.uniform(att + "time_decay", 1, 1, s.width, low=-3, high=0.5)
        self.normal(att + "time_decay_w1", s.width, decay_rank, scale=s.width**-0.5)
        self.normal(att + "time_decay_w2", decay_rank, s.width, scale=0.4)
        self.normal(att + "time_faaaa", s.heads, s.size, mean=0.5)
        self.norm(att + "ln_x")
        if s.time_state:
            self.normal(att + "time_state", s.heads, s.size, s.size, scale=0.3)

    def time_mix_7(self, att: str) -> None:
        s = self.shape
        self.mix(*(att + "x_" + letter for letter in "rwkvag"))
        # Released files carry v0, v1, v2 in block 0 too, where nothing reads them.
        for letter, rank in {"w": 4, "a": 5, "v": 3}.items():
            self.uniform(att + letter + "0", 1, 1, s.width, low=-2, high=1)
            self.normal(att + letter + "1", s.width, rank, scale=s.width**-0.5)
            self.normal(att + letter + "2", rank, s.width, scale=0.7)
        self.normal(att + "g1", s.width, 7, scale=s.width**-0.5)
        self.normal(att + "g2", 7, s.width)
        self.uniform(att + "k_k", 1, 1, s.width, low=0.5, high=1.5)
        self.uniform(att + "k_a", 1, 1, s.width, low=0.5, high=1.2)
        self.normal(att + "r_k", s.heads, s.size, scale=2)
        self.norm(att + "ln_x")

    def channel_mix(self, ffn: str) -> None:
        s = self.shape
        self.linear(ffn + "key", s.hidden, s.width)
        self.linear(ffn + "value", s.width, s.hidden)
        if s.version == "7":
            self.mix(ffn + "x_k")
            return
        self.linear(ffn + "receptance", s.width, s.width)
        self.mix(*(ffn + ("time_maa_" if s.version == "6" else "time_mix_") + letter for letter in "kr"))


def unused(name: str) -> bool:
    """The tensors that matter nowhere by design: v7's value residual in block 0."""
    return name in ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")


def weights_of_tensors(tensors: Tensors, tokens: npt.NDArray[np.uint16]) -> dict[str, float]:
    """By name, how far zeroing that tensor alone moves the most moved logit."""
    whole = Oracle(tensors).run(tokens)
    moved = {}
    for name in tensors:
        changed = dict(tensors)
        changed[name] = np.zeros_like(tensors[name])
        moved[name] = float(np.abs(Oracle(changed).run(tokens) - whole).max())
    return moved


def make(name: str, folder: Path) -> None:
    shape = SHAPES[name]
    tensors = Maker(shape).model()
    tokens = np.random.default_rng(shape.seed + 1000).integers(0, VOCABULARY, LENGTH).astype(np.uint16)
    moved = weights_of_tensors(tensors, tokens)
    idle = {tensor: value for tensor, value in moved.items() if value <= MATTERS and not unused(tensor)}
    if idle:
        raise SystemExit(f"{name}: these tensors do not matter enough: {idle}")
    oracle = Oracle(tensors)
    logits = oracle.run(tokens)
    golden = {"tokens": tokens, "positions": np.array(POSITIONS), "logits_f64": logits[list(POSITIONS)]}
    for i, layer in enumerate(oracle.layers):
        golden |= {f"state/{i}/{piece}": value for piece, value in layer.items()}
    save_file(tensors, folder / f"{name}.safetensors")
    np.savez_compressed(folder / f"{name}.npz", **golden)
    least = min((value, tensor) for tensor, value in moved.items() if not unused(tensor))
    print(f"{name:13} {len(tensors):3} tensors, largest logit {np.abs(logits).max():.2f}, least moved {least}")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests" / "fixtures"
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHAPES:
        make(name, folder)
    print(f"{sum(file.stat().st_size for file in folder.iterdir()):,} bytes in {folder}")


if __name__ == "__main__":
    main()

"""The state of a sequence: everything the model knows of what it has read, as a vector with named pieces.

Per layer `att_shift` [C], `ffn_shift` [C] and `wkv` [H, N_key, N_value] (v4: [3, C], numerator, denominator and
exponent), float32. The vector holds them layer after layer in that order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from types import MappingProxyType, SimpleNamespace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rookery import formats
from rookery.architecture import Config, StatePiece, version
from rookery.errors import StateError
from rookery.formats.tensor import Tensor

Array = npt.NDArray[Any]


class Origin(Protocol):
    """Whose state this is: digests that may cost a pass over the weights, so they are asked for only when needed."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def lineage(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Known:
    """An origin read from a file."""

    fingerprint: str
    lineage: str


def pieces(c: Config) -> list[StatePiece]:
    """One layer's pieces, in the order of the vector."""
    return version(c).state(c)


@lru_cache(64)  # asked for at every token
def size(c: Config) -> int:
    """Numbers in the state of one sequence."""
    return c.n_layer * sum(p.size for p in pieces(c))


def shapes(c: Config) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of every piece of every layer."""
    return [(f"layers.{i}.{p.name}", p.shape) for i in range(c.n_layer) for p in pieces(c)]


def layers(c: Config, flat: Array) -> list[dict[str, Array]]:
    """Views of a flat vector [n], by layer and piece."""
    views: list[dict[str, Array]] = []
    at = 0
    for _ in range(c.n_layer):
        views.append({})
        for p in pieces(c):
            views[-1][p.name] = flat[at : at + p.size].reshape(p.shape)
            at += p.size
    return views


def gather(c: Config, flats: Sequence[Array]) -> list[dict[str, Array]]:
    """The states of B sequences as batches [B, ...], by layer and piece."""
    each = [layers(c, flat) for flat in flats]
    return [{p.name: np.stack([s[i][p.name] for s in each]) for p in pieces(c)} for i in range(c.n_layer)]


def scatter(c: Config, batches: Sequence[dict[str, Array]], flats: Sequence[Array]) -> None:
    """The reverse of `gather`, into the given vectors."""
    for b, flat in enumerate(flats):
        for views, batch in zip(layers(c, flat), batches, strict=True):
            for name, view in views.items():
                view[...] = batch[name][b]


class State:
    """One sequence's state. A model never changes a state that is passed to it."""

    def __init__(self, config: Config, flat: Array, origin: Origin) -> None:
        if flat.shape != (size(config),):
            raise StateError(f"a state of {flat.size} numbers where {config.name} of this size has {size(config)}")
        self.config, self.flat, self.origin = config, flat, origin

    @classmethod
    def start(cls, config: Config, origin: Origin, dtype: Any = np.float32) -> State:
        """The state before the first token."""
        state = cls(config, np.zeros(size(config), dtype), origin)
        for views in layers(config, state.flat):
            for p in pieces(config):
                views[p.name].reshape(len(p.start), -1)[...] = np.array(p.start)[:, None]
        return state

    def layer(self, i: int) -> SimpleNamespace:
        """Layer i's pieces by attribute, as views that may be written to: `state.layer(3).wkv`."""
        return SimpleNamespace(**layers(self.config, self.flat)[i])

    def vector(self) -> Array:
        """All numbers, layer-major, a copy: [n]."""
        return self.flat.copy()

    def copy(self) -> State:
        return State(self.config, self.flat.copy(), self.origin)

    def delta(self, other: State) -> float:
        """L2 distance over sqrt(n). In v4 the exponents count too, and an empty state's are -1e30."""
        self._same_shape(other)
        d = self.flat.astype(np.float64) - other.flat
        return float(np.sqrt((d * d).mean()))

    def delta_by_layer(self, other: State) -> Array:
        """`delta` of every layer alone: [layers]."""
        self._same_shape(other)
        moved = self.flat.astype(np.float64) - other.flat
        each: Array = np.sqrt(np.square(moved).reshape(self.config.n_layer, -1).mean(1))
        return each

    def diff(self, other: State) -> dict[str, float]:
        """`delta` of every piece alone: {"layers.0.att_shift": ...}."""
        self._same_shape(other)
        out: dict[str, float] = {}
        for i, (mine, theirs) in enumerate(
            zip(layers(self.config, self.flat), layers(other.config, other.flat), strict=True)
        ):
            for name in mine:
                d = mine[name].astype(np.float64) - theirs[name]
                out[f"layers.{i}.{name}"] = float(np.sqrt((d * d).mean()))
        return out

    def mix(self, other: State, share: float) -> State:
        """(1 - share) of this state and share of the other; v4's sums are brought to one exponent first.

        Raises StateError for states of two models.
        """
        self._same_shape(other)
        if self.origin is not other.origin and self.origin.lineage != other.origin.lineage:
            raise StateError("states of two models cannot be mixed")
        if self.config.version != "4":
            return State(self.config, (1 - share) * self.flat + share * other.flat, self.origin)
        mixed = self.copy()
        for i in range(self.config.n_layer):
            out, a, b = mixed.layer(i), self.layer(i), other.layer(i)
            top = np.maximum(a.wkv[2], b.wkv[2])
            old, new = (1 - share) * np.exp(a.wkv[2] - top), share * np.exp(b.wkv[2] - top)
            out.att_shift[...] = (1 - share) * a.att_shift + share * b.att_shift
            out.ffn_shift[...] = (1 - share) * a.ffn_shift + share * b.ffn_shift
            out.wkv[...] = np.stack([old * a.wkv[0] + new * b.wkv[0], old * a.wkv[1] + new * b.wkv[1], top])
        return mixed

    # BlinkDL's layout

    def to_reference(self) -> list[Array]:
        """The `rwkv` package's list: per layer att shift, wkv (v4: three rows; v7: [H, value, key]), ffn shift."""
        out: list[Array] = []
        for views in layers(self.config, self.flat):
            out += [views["att_shift"].copy(), *_to_blinkdl(self.config, views["wkv"]), views["ffn_shift"].copy()]
        return out

    @classmethod
    def from_reference(cls, arrays: Sequence[Any], model: Any) -> State:
        """The reverse of `to_reference`, for a state of `model`."""
        state: State = model.state()
        arrays, wanted = [np.asarray(a) for a in arrays], [a.shape for a in state.to_reference()]
        if len(arrays) != len(wanted):
            raise StateError(f"{len(arrays)} arrays where {state.config.name} has {len(wanted)}")
        for i, (array, shape) in enumerate(zip(arrays, wanted, strict=True)):
            if array.shape != shape:
                raise StateError(f"array {i} has shape {list(array.shape)} where {list(shape)} is wanted")
        per = len(arrays) // state.config.n_layer
        for i, views in enumerate(layers(state.config, state.flat)):
            views["att_shift"][...], *wkv, views["ffn_shift"][...] = arrays[i * per : (i + 1) * per]
            views["wkv"][...] = np.stack(wkv) if per > 3 else _transposed(state.config, wkv[0])
        return state

    # files

    def save(self, path: str | os.PathLike[str], story: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write a safetensors file: the pieces by name as float32, and whose state it is; `story` is more to say."""
        tensors = {
            f"layers.{i}.{name}": Tensor.of(np.ascontiguousarray(view, np.float32))
            for i, views in enumerate(layers(self.config, self.flat))
            for name, view in views.items()
        }
        metadata = {
            **story,
            "rookery.kind": "state",
            "rookery.config": json.dumps(asdict(self.config)),
            "rookery.fingerprint": self.origin.fingerprint,
            "rookery.lineage": self.origin.lineage,
        }
        formats.write(path, tensors, metadata, format="safetensors")

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any = None, allow_lineage: bool = False) -> State:
        """Read a state; with `model`, check that it is that model's (or, if allowed, of its lineage).

        A tuned state as RWKV-PEFT and its kin write it does not say whose it is, so `model` must be given.
        """
        from rookery import tuned_state  # which is made of States

        file = formats.read(path)
        if tuned_state.is_one(file):
            return tuned_state.of_file(file, model, allow_lineage)
        state = cls.of_file(file)
        if model is None:
            return state
        try:
            model.check(state, allow_lineage)
        except StateError as error:
            raise StateError(f"{file.path}: {error}") from None
        return cls(model.config, state.flat, model.weights)

    @classmethod
    def of_file(cls, file: formats.File) -> State:
        """The state that a file's tensors and metadata hold."""
        meta = file.metadata
        if meta.get("rookery.kind") != "state":
            raise StateError(f"{file.path}: not a state file of Rookery (a model is opened with rookery.load)")
        try:
            config = Config(**json.loads(meta["rookery.config"]))
            origin = Known(meta["rookery.fingerprint"], meta["rookery.lineage"])
            if not all(type(n) is int for n in (config.n_layer, config.n_embd, config.n_head)):
                raise ValueError("a size that is no whole number")
            if config.n_layer * len(pieces(config)) != len(file.tensors):
                raise ValueError("another number of layers than the file has")
            wanted = dict(shapes(config))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise StateError(f"{file.path}: damaged state metadata ({error})") from None
        if {name: t.shape for name, t in file.tensors.items()} != wanted:
            raise StateError(f"{file.path}: its tensors are not the state of {config.name}")
        flat = np.concatenate([file.tensors[name].float32().reshape(-1) for name in wanted])
        return cls(config, flat, origin)

    def _same_shape(self, other: State) -> None:
        if shapes(self.config) != shapes(other.config):
            raise StateError(f"states of two models: {self.config.name} and {other.config.name} of other sizes")

    def __repr__(self) -> str:
        return f"State({self.config.name}, {self.config.n_layer} layers, {self.flat.size} numbers)"


def _to_blinkdl(c: Config, wkv: Array) -> list[Array]:
    return [row.copy() for row in wkv] if c.version == "4" else [_transposed(c, wkv).copy()]


def _transposed(c: Config, wkv: Array) -> Array:
    """Between our [H, key, value] and the package's layout, which is [H, value, key] in v7 alone."""
    return wkv.swapaxes(1, 2) if c.version == "7" else wkv

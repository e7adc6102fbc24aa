"""A file becomes checked parameters. Nothing is widened or copied until a back end asks for numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import nan
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rookery import formats
from rookery.architecture import VERSIONS, Config, Param, version
from rookery.errors import InputError, MissingFile, MissingTensor, UnknownArchitecture, WrongShape
from rookery.formats.tensor import Tensor
from rookery.weights import detect, names
from rookery.weights.names import ggmf, gguf, hf

if TYPE_CHECKING:
    from rookery.weights.adapters import Adapter, Side

PACKAGED = {"gosling": "gosling.gguf"}
LAYER_NORM_EPS = 1e-5


@dataclass
class Weights:
    """One model's tensors in BlinkDL's names and shapes, as stored in the file.

    With adapters beside it (`adapters.beside`): `sides` by the names of their tensors, `adapted` what was applied,
    and `base` the weights without it.
    """

    path: str
    format: str
    config: Config
    tensors: dict[str, Tensor] = field(repr=False)
    metadata: dict[str, Any] = field(default_factory=dict)
    sides: dict[str, Side] = field(default_factory=dict, repr=False)
    adapted: tuple[Adapter, ...] = field(default=(), repr=False)
    base: Weights | None = field(default=None, repr=False)

    @cached_property
    def params(self) -> list[Param]:
        """The table's entries that this file has, in the table's order."""
        return [p for p in version(self.config).params(self.config) if p.name in self.tensors]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tensors (names, types, shapes, bytes); a pass over the whole file, made once."""
        if self.base is not None:
            return self._with_adapters(self.base.fingerprint)
        import hashlib  # 3 ms that opening a file need not wait for

        digest = hashlib.sha256()
        for p in sorted(self.params, key=lambda p: p.name):
            t = self.tensors[p.name]
            digest.update(f"{p.name}\0{t.dtype}\0{p.file_shape}\0".encode())
            digest.update(t.data.data)
        return digest.hexdigest()

    @cached_property
    def lineage(self) -> str:
        """The fingerprint of the model that this one was converted or quantised from."""
        if self.base is not None:
            return self._with_adapters(self.base.lineage)
        return str(self.metadata.get("rookery.lineage") or self.fingerprint)

    def _with_adapters(self, base: str) -> str:
        import hashlib

        return hashlib.sha256("\0".join((base, *(a.fingerprint for a in self.adapted))).encode()).hexdigest()

    @property
    def parameters(self) -> int:
        return sum(t.size for t in self.tensors.values())


class _Shapes(dict[str, tuple[int, ...]]):
    def __init__(self, path: str, tensors: dict[str, Tensor]) -> None:
        super().__init__((name, t.shape) for name, t in tensors.items())
        self.path = path

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise MissingTensor(f"{self.path}: has no tensor {name}")


def locate(path: str | os.PathLike[str]) -> str:
    """The path of a model file; "gosling" is the packaged one, and `org/name` one of the Hugging Face hub."""
    if isinstance(path, str) and path in PACKAGED:
        from importlib.resources import files

        return str(files("rookery.models") / PACKAGED[path])
    if isinstance(path, str) and "://" in path:
        raise MissingFile(path, "an address, not a file; download it and give the file's path")
    if isinstance(path, str) and os.sep not in path and not os.path.exists(path):
        raise MissingFile(path, f"no such file here, and no packaged model (those are: {', '.join(PACKAGED)})")
    if isinstance(path, str) and not os.path.exists(path):
        from rookery import hub  # not at the top: opening a file should cost little more than importing NumPy

        if hub.is_name(path):
            return hub.find(path)
    return os.fspath(path)


def load(path: str | os.PathLike[str], group_norm_eps: float | None = None) -> Weights:
    """Read a model file of any known format, the packaged model "gosling", or `org/name[@revision][:file]`: from the
    Hugging Face hub's cache, else downloaded into it (see `rookery.hub`).

    `group_norm_eps` overrides ln_x's epsilon (64e-5 unless the file's metadata says otherwise; rwkv.cpp ran v5
    with 1e-5). Raises FileError and ModelError subclasses.
    """
    return of_file(formats.read(locate(path)), group_norm_eps)


def of_file(file: formats.File, group_norm_eps: float | None = None) -> Weights:
    """The model that a file's tensors make."""
    given = names.without_prefix(file.tensors)
    if file.format == "gguf":
        given = gguf.to_blinkdl(file.path, given, file.metadata)
    settings = file.metadata["hf.config"] if file.format == "hf" else {}
    tensors = hf.to_blinkdl(file.path, given, settings)
    major = detect.major(tensors, file.path, settings.get("model_type"))
    try:
        if file.format == "ggmf":
            tensors = ggmf.to_blinkdl(tensors, major)
        config = VERSIONS[{"5": "5.2"}.get(major, major)].config(_Shapes(file.path, tensors))
        table = version(config).params(config)
        if min(config.n_vocab, config.n_embd, config.n_ffn) < 1:
            raise ValueError("a width of 0")
        if major != "4" and config.n_head * config.head_size != config.n_embd:
            raise ValueError(f"{config.n_head} heads do not divide a width of {config.n_embd}")
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise WrongShape(f"{file.path}: its tensor shapes make no RWKV-{major} ({error})") from None
    config = config.with_eps(hf.group_norm_eps(given, config.n_head)).with_eps(_eps(file, group_norm_eps))
    return Weights(file.path, file.format, config, _checked(file.path, table, tensors), file.metadata)


def _eps(file: formats.File, asked: float | None) -> float | None:
    """The epsilon asked for, else the one in the file's metadata, else None."""
    said = file.metadata.get("rookery.group_norm_eps") if asked is None else asked
    try:
        eps = None if said is None else float(said)
    except (ValueError, TypeError):
        eps = nan
    if eps is not None and not 0 < eps < 1:
        raise InputError(f"{file.path}: group_norm_eps {said!r}: a number between 0 and 1 is wanted (usual: 64e-5)")
    return eps


def _checked(path: str, table: list[Param], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor that the table names, in BlinkDL's shape; nothing missing, nothing unknown, file order kept."""
    wanted = {p.name: p for p in table}
    for p in table:
        if p.name not in tensors and not p.optional:
            raise MissingTensor(f"{path}: has no tensor {p.name}; a damaged or partial model")
    unknown = [name for name in tensors if name not in wanted]
    if unknown:
        raise UnknownArchitecture(
            f"{path}: a variant that Rookery does not run; unknown tensors {', '.join(unknown[:3])}"
            f"{', ...' if len(unknown) > 3 else ''}"
        )
    return {name: _shaped(path, wanted[name], t) for name, t in tensors.items()}


def _shaped(path: str, p: Param, t: Tensor) -> Tensor:
    if t.shape == p.file_shape:
        return t
    free = p.optional and t.size > 0 and p.kind in ("lora", "vector")  # unused: any shape, kept as it is
    if free:
        return t
    if [n for n in t.shape if n != 1] != [n for n in p.file_shape if n != 1]:
        raise WrongShape(f"{path}: {p.name} has shape {list(t.shape)}, but the other tensors want {list(p.file_shape)}")
    return t.reshape(*p.file_shape)


def tree(
    weights: Weights, make: Callable[[Param, Tensor], Any], side: Callable[[Param, Side], Any] | None = None
) -> SimpleNamespace:
    """The parameters by attribute, as version files read them: m.blocks[3].att.key.weight, m.ln_out.eps.

    A linear that has something beside it has it as `side`: what `side(param, Side)` makes of it.
    """
    root = SimpleNamespace(blocks=[SimpleNamespace() for _ in range(weights.config.n_layer)])
    for p in weights.params:
        if p.optional:
            continue
        *folders, leaf = p.name.split(".")
        node = root
        if folders[0] == "blocks":
            node, folders = root.blocks[int(folders[1])], folders[2:]
        for folder in folders:
            if not hasattr(node, folder):
                setattr(node, folder, SimpleNamespace())
            node = getattr(node, folder)
            if folder.startswith("ln"):
                node.eps = weights.config.group_norm_eps if folder == "ln_x" else LAYER_NORM_EPS
        setattr(node, leaf, make(p, weights.tensors[p.name]))
        if side is not None and p.name in weights.sides:
            node.side = side(p, weights.sides[p.name])
    return root

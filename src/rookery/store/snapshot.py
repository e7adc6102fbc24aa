"""A state as a store keeps it, and the key under which: whose it is and which tokens it has read.

The bytes are a safetensors file: `state` [n], `logits` [V] if kept, and metadata that says whose state it is and holds
a digest of the rest, so that a flipped bit anywhere is found. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rookery import errors
from rookery.formats import Tensor, safetensors
from rookery.state import Array

BLOCK = 256  # tokens of one link of a prefix's chain
KIND = "snapshot"
EXACT = "4"  # the version whose running exponents fp16 cannot hold

_ALIGNMENT = 64
_PATH = "snapshot"  # in messages, where a snapshot lies in no file of its own


@dataclass(frozen=True)
class Snapshot:
    """A state after `tokens` tokens, with the logits that the last one gave where they are kept.

    n numbers of the state, V of the vocabulary; float32, or float64 of a back end that computes so.
    """

    flat: Array
    logits: Array | None
    tokens: int
    fingerprint: str
    version: str  # of the model: "4" .. "7"

    def encode(self, half: bool = False) -> bytes:
        """The bytes that `decode` reads. With `half` the state is rounded to float16, the logits never.

        A state that float16 cannot hold stays as it is: v4's, and one with a value beyond 65,504.
        """
        flat = _halved(self.flat) if half and self.version != EXACT else self.flat
        arrays = {"state": flat} | ({} if self.logits is None else {"logits": self.logits})
        tensors = {name: Tensor.of(array) for name, array in arrays.items()}
        metadata = {
            "rookery.kind": KIND,
            "rookery.tokens": str(self.tokens),
            "rookery.fingerprint": self.fingerprint,
            "rookery.version": self.version,
        }
        return _write(tensors, metadata | {"rookery.digest": _digest(tensors, metadata)})

    @classmethod
    def decode(cls, data: bytes) -> Snapshot:
        """The reverse of `encode`, float16 as float32; the arrays are read-only. Raises DamagedFile."""
        if len(data) < 9 or data[8:9] != b"{":
            raise errors.DamagedFile(_PATH, "its bytes are no snapshot")
        tensors, metadata = safetensors.parse(_PATH, np.frombuffer(data, np.uint8))
        if metadata.pop("rookery.digest", None) != _digest(tensors, metadata):
            raise errors.DamagedFile(_PATH, "its content is not what its digest says")
        try:
            state, logits = tensors.pop("state"), tensors.pop("logits", None)
            kind, tokens = metadata["rookery.kind"], int(metadata["rookery.tokens"])
            fingerprint, version = metadata["rookery.fingerprint"], metadata["rookery.version"]
        except (KeyError, ValueError) as error:
            raise errors.DamagedFile(_PATH, f"its metadata lacks what a snapshot has ({error})") from None
        known = state.dtype in ("f16", "f32", "f64") and (logits is None or logits.dtype in ("f32", "f64"))
        flat = len(state.shape) == 1 and (logits is None or len(logits.shape) == 1)
        if kind != KIND or tensors or tokens < 0 or not known or not flat:
            raise errors.DamagedFile(_PATH, "its tensors are not those of a snapshot")
        numbers = state.float32() if state.dtype == "f16" else state.array()
        numbers.flags.writeable = False
        return cls(numbers, None if logits is None else logits.array(), tokens, fingerprint, version)


def _halved(flat: Array) -> Array:
    with np.errstate(over="ignore"):
        half = flat.astype(np.float16)
    return half if np.isfinite(half).all() else flat


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of all that the file says: names, types, shapes, metadata, and the tensors' bytes."""
    said = [[name, t.dtype, t.shape] for name, t in sorted(tensors.items())]
    digest = hashlib.sha256(json.dumps([said, sorted(metadata.items())]).encode())
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.data.data)
    return digest.hexdigest()


def _write(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {safetensors.METADATA: metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": safetensors.NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return b"".join((len(text).to_bytes(8, "little"), text, *(tensor.data.data for tensor in tensors.values())))


def root(fingerprint: str, tokenizer_digest: str, initial_digest: str, arithmetic: str, salt: str = "") -> bytes:
    """Where a chain of prefixes begins: two models, tokenizers, initial states, kinds of arithmetic (back end and
    number type) or owners (`salt`) never share a key.
    """
    said = ["rookery prefix 1", fingerprint, tokenizer_digest, initial_digest, arithmetic, salt]
    return hashlib.sha256(json.dumps(said).encode()).digest()


@dataclass(frozen=True, slots=True)
class Prefix:
    """A sequence of tokens from the start, as far as its key goes: however it was cut into pieces, the key is the same.

    A chain of sha256 over blocks of 256 tokens, and the rest at hand: to extend it costs the new tokens and that rest.
    """

    _link: bytes  # over all whole blocks
    _rest: bytes  # of fewer than BLOCK tokens, four bytes each
    count: int

    @classmethod
    def start(cls, root: bytes) -> Prefix:
        """The prefix of no tokens."""
        return cls(root, b"", 0)

    def extend(self, tokens: Sequence[int] | Array) -> Prefix:
        """The prefix with these token ids behind it. Raises TokenError for one outside 0 .. 2^32 - 1."""
        ids = np.asarray(tokens)
        if ids.size and not (ids.dtype.kind in "iu" and 0 <= ids.min() <= ids.max() < 2**32):
            raise errors.TokenError("token ids are whole numbers from 0 to 2^32 - 1")
        data, link, size = self._rest + ids.astype("<u4").tobytes(), self._link, 4 * BLOCK
        whole = len(data) - len(data) % size
        for at in range(0, whole, size):
            link = hashlib.sha256(b"block" + link + data[at : at + size]).digest()
        return Prefix(link, data[whole:], self.count + ids.size)

    @property
    def key(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(b"key" + self._link + self._rest).hexdigest()

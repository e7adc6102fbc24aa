"""Memory and arithmetic of a model in torch, counted before there is one.

Fake tensors have sizes and no bytes: code that runs over them makes and drops what the real run will, and `Live` adds
up what is held at a time. Nothing of it is guessed but what a library takes inside one of its own functions.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rookery.architecture import Config, version
from rookery.backends.torch.wkv import ops

WIDE = 4  # bytes of a float32
SAMPLE = 64  # tokens for which the inside of a WKV operator is counted; all is linear in them


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors made inside `with`: those held `now`, and the most at once in each phase.

    So are those that a WKV operator makes within itself, where it runs in plain torch; the native core needs none.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """The storages of `known` were there before."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.phase, self.peaks = "", dict[str, int]()
        self._known = [t.untyped_storage() for t in known]
        self._seen = {id(s) for s in self._known}
        self._inner = dict[Any, float]()  # bytes a token

    @property
    def peak(self) -> int:
        return max(self.peaks.values(), default=0)

    def begin(self, phase: str) -> None:
        self.phase = phase
        self._note(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "rookery" and args[-1] == "plain":
            self._note(self._inside(func._opname, [x for x in args if isinstance(x, Tensor)]))
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        size, key = storage.nbytes(), id(storage)
        if size and key not in self._seen:
            self._seen.add(key)
            self.now += size
            self._note(0)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def _note(self, more: int) -> None:
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.now + more)

    def _inside(self, name: str, tensors: list[Tensor]) -> int:
        """The most that a WKV operator holds while it computes; the first of `tensors` is [B,T,..]."""
        like = tensors[0]
        length = min(SAMPLE, like.shape[1])
        key = name, *like.shape[:1], *like.shape[2:]
        if key not in self._inner:
            operator, _, backward = name.partition("_")
            of: Any = ops.FORMS[operator]["plain"][1 if backward else 0]
            given = [x.float() for x in tensors if x.dtype != torch.bool]
            with Live(given) as live:  # this mode is off while it looks at an operator
                of(*(x[:, :length] if x.shape[1:] == like.shape[1:] else x for x in given), None)
            self._inner[key] = live.peak / length
        return int(self._inner[key] * like.shape[1])


def fake() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode  # the only way to run code on sizes alone

    return FakeTensorMode()


def parameters(config: Config) -> dict[str, int]:
    """Numbers by kind."""
    kinds = dict.fromkeys(("embedding", "head", "att", "ffn", "lora", "vector", "state"), 0)
    for p in version(config).params(config):
        if not p.optional:
            kinds[p.kind] += prod(p.shape)
    return kinds


def wkv_flops(config: Config) -> int:
    """Of one token through all layers, forwards, as a recurrence: decay, products with the state, outer products."""
    per_channel = {"4": 10, "7": 9 * config.head_size}.get(config.version, 5 * config.head_size)
    return config.n_layer * config.n_embd * per_channel


def device_of(name: str) -> torch.device:
    """The device that `run.device` means here."""
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(auto if name == "auto" else name)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that a new process may have on `device`, where the system says so."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) if torch.cuda.is_available() else None
    with suppress(OSError, StopIteration), open("/proc/meminfo") as file:
        return 1024 * int(next(line for line in file if line.startswith("MemAvailable")).split()[1])
    return None


def timed(do: Callable[[], Any], device: torch.device) -> float:
    """Seconds of `do()`."""
    begin = time.perf_counter()
    do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def short(n: int) -> str:
    return f"{n / 1e9:.2f} G" if n >= 1e9 else f"{n / 1e6:.1f} M" if n >= 1e5 else f"{n:,}"


def in_bytes(n: float) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB" if n >= 1e5 else f"{n:,.0f} bytes"

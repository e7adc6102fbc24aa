"""The state of a batch of sequences as transformers passes it about: where others have a cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rookery.architecture import Config
from rookery.backends.torch.module import States
from rookery.errors import InputError, StateError
from rookery.state import State, layers, pieces, shapes


class RwkvCache:
    """B states, and how many positions they have seen (padding counts). A forward pass makes a new one and leaves the
    one that it was given as it was; only what has "reorder", "repeat", "select" or "reset" in its name changes one.
    """

    is_compileable = False  # what generate() asks of every cache

    def __init__(self, states: States | None = None, seen: int = 0) -> None:
        self.states, self.seen = states, seen

    @classmethod
    def of(cls, state: State) -> RwkvCache:
        """A batch of one: a state of Rookery's, such as a tuned one. It has seen nothing of the text to come."""
        return cls(
            [
                {name: torch.from_numpy(view.copy())[None] for name, view in views.items()}
                for views in layers(state.config, state.flat)
            ]
        )

    @property
    def batch(self) -> int:
        return 0 if self.states is None else len(self.states[0]["wkv"])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1  # no limit

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row beam_idx[i] was."""
        self._change(lambda x: x.index_select(0, beam_idx.to(x.device)))

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, one after the other."""
        self._change(lambda x: x.repeat_interleave(repeats, 0))

    def reset(self) -> None:
        self.states, self.seen = None, 0

    def crop(self, max_length: int) -> None:
        raise InputError("a recurrent state cannot forget its last tokens: keep a copy from before them")

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.states is not None:
            self.states = [{name: change(x) for name, x in layer.items()} for layer in self.states]


def begin(config: Config, batch: int, tuned: Sequence[Tensor], device: torch.device) -> States:
    """States before the first token, float32; `tuned` holds a WKV state [H, value, key] a layer where there are any."""
    one = {
        p.name: torch.tensor(p.start, device=device).reshape(-1, *[1] * (len(p.shape) - 1)).expand(batch, *p.shape)
        for p in pieces(config)
    }
    if not tuned:
        return [dict(one) for _ in range(config.n_layer)]
    return [one | {"wkv": t.float().mT.expand(batch, -1, -1, -1)} for t in tuned]


def given(config: Config, cache: Any, batch: int, device: torch.device) -> RwkvCache:
    """What was passed as past_key_values or state, as a cache for `batch` rows. Raises InputError and StateError."""
    if isinstance(cache, State):
        if shapes(cache.config) != shapes(config):
            raise StateError(f"the state is of {cache.config.name} of another size")
        cache = RwkvCache.of(cache)
        cache.batch_repeat_interleave(batch)
    if not isinstance(cache, RwkvCache):
        if cache is not None and (not hasattr(cache, "get_seq_length") or cache.get_seq_length()):
            raise InputError(f"past_key_values is a {type(cache).__name__}; pass on what forward() or generate() gave")
        return RwkvCache()  # an empty cache of keys and values says as much as none
    if cache.states is None:
        return cache
    if cache.batch != batch:
        raise InputError(
            f"{batch} sequences with the states of {cache.batch}; cache.batch_repeat_interleave(n) repeats them"
        )
    if len(cache.states) != config.n_layer or any(
        cache.states[0][p.name].shape[1:] != p.shape for p in pieces(config) if p.name in cache.states[0]
    ):
        raise StateError("the states are of another model")
    return RwkvCache([{name: x.to(device) for name, x in layer.items()} for layer in cache.states], cache.seen)

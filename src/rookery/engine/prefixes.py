"""States of prompts that may come again, in memory: what is left to read of a prompt is what nobody has read before.

A state is kept under its owner and the very tokens that were read, so that a hit gives the same bits as reading them
anew would: the cache changes the time, never an answer. The least recently used go first.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from rookery import tokenizer as tokenizers
from rookery.model import Model
from rookery.state import Array, State
from rookery.store import Prefix, root

BUDGET = 512 << 20


class Prefixes:
    """`budget`: bytes of states and logits. Any thread may use it. V vocabulary."""

    def __init__(self, model: Model, budget: int = BUDGET) -> None:
        self.budget, self.bytes = budget, 0
        self.hits = self.misses = self.evicted = 0
        self._model = model
        self._initial = sha256(model.state().flat.tobytes()).hexdigest()
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[str, int, Array, State]] = OrderedDict()  # owner, tokens, logits, state
        self._lengths: dict[str, Counter[int]] = {}  # by owner: how many tokens what is kept has read

    def find(self, owner: str, tokens: Sequence[int] | Array) -> tuple[int, Array | None, State]:
        """The longest beginning of `tokens` that was read before: its length, the logits [V] after it, and the state,
        a copy. Where there is none: 0, None and the model's state before the first token.
        """
        ids = np.asarray(tokens)
        with self._lock:
            lengths = sorted(n for n in self._lengths.get(owner, ()) if n <= len(ids))
        prefix, keys = self._start(owner), []
        for n in lengths:
            prefix = prefix.extend(ids[prefix.count : n])
            keys.append(prefix.key)
        with self._lock:
            for key in reversed(keys):
                if key in self._kept:
                    self._kept.move_to_end(key)
                    self.hits += 1
                    _, count, logits, state = self._kept[key]
                    return count, logits, state.copy()
            self.misses += 1
        return 0, None, self._model.state()

    def put(self, owner: str, tokens: Sequence[int] | Array, logits: Array, state: State) -> None:
        """Keep what the model knows after `tokens`; both arrays are the cache's from now on."""
        size = state.flat.nbytes + logits.nbytes
        if not len(tokens) or size > self.budget:
            return
        key = self._start(owner).extend(tokens).key
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return
            self._kept[key] = owner, len(tokens), logits, state
            self._lengths.setdefault(owner, Counter())[len(tokens)] += 1
            self.bytes += size
            while self.bytes > self.budget:
                self._drop()

    def _drop(self) -> None:
        _, (owner, count, logits, state) = self._kept.popitem(last=False)
        self.bytes -= state.flat.nbytes + logits.nbytes
        self.evicted += 1
        lengths = self._lengths[owner]
        lengths[count] -= 1
        if not lengths[count]:
            del lengths[count]
        if not lengths:
            del self._lengths[owner]

    def _start(self, owner: str) -> Prefix:
        of = self._model
        digest = tokenizers.digest(of.tokenizer)
        return Prefix.start(root(of.weights.fingerprint, digest, self._initial, of.arithmetic, owner))

"""States of prompts that may come again, in memory: what is left to read of a prompt is what nobody has read before.

A state is kept under its owner, what it began with and the very tokens that were read, so that a hit gives the same
bits as reading them anew would: the cache changes the time, never an answer. The least recently used go first.
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


class Kept:
    """What is kept, in `budget` bytes of states and logits, by the prefix of all that was read. Any thread may use it.
    V vocabulary.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget, self.bytes = budget, 0
        self.hits = self.misses = self.evicted = 0
        self._lock = threading.Lock()
        self._points: OrderedDict[str, tuple[str, int, Array, State]] = OrderedDict()  # start, tokens, logits, state
        self._lengths: dict[str, Counter[int]] = {}  # by the key of the start: how many tokens what is kept has read

    def find(self, start: Prefix, ids: Array) -> tuple[int, Array, State] | None:
        """The longest beginning of `ids` after `start` that is kept: its length, the logits [V] and the state there."""
        with self._lock:
            lengths = sorted(n for n in self._lengths.get(start.key, ()) if n <= len(ids))
        prefix, keys = start, []
        for n in lengths:
            prefix = prefix.extend(ids[prefix.count : n])
            keys.append(prefix.key)
        with self._lock:
            for key in reversed(keys):
                if key in self._points:
                    self._points.move_to_end(key)
                    self.hits += 1
                    return self._points[key][1:]
            self.misses += 1
        return None

    def put(self, start: Prefix, tokens: Sequence[int] | Array, logits: Array, state: State) -> None:
        """Both arrays are the cache's from now on."""
        size = state.flat.nbytes + logits.nbytes
        if not len(tokens) or size > self.budget:
            return
        key = start.extend(tokens).key
        with self._lock:
            if key in self._points:
                self._points.move_to_end(key)
                return
            self._points[key] = start.key, len(tokens), logits, state
            self._lengths.setdefault(start.key, Counter())[len(tokens)] += 1
            self.bytes += size
            while self.bytes > self.budget:
                self._drop()

    def _drop(self) -> None:
        _, (start, count, logits, state) = self._points.popitem(last=False)
        self.bytes -= state.flat.nbytes + logits.nbytes
        self.evicted += 1
        lengths = self._lengths[start]
        lengths[count] -= 1
        if not lengths[count]:
            del lengths[count]
        if not lengths:
            del self._lengths[start]


class Prefixes:
    """Those of `model`'s prompts that begin with the state `initial` (None: the model's own). Several may share what is
    `kept`: other models' and other beginnings' states are never found.
    """

    def __init__(self, model: Model, budget: int = BUDGET, initial: State | None = None) -> None:
        self.kept = Kept(budget)
        self._model, self.initial = model, initial
        self._digest = sha256(self._begin().flat.tobytes()).hexdigest()

    def beside(self, model: Model, initial: State | None = None) -> Prefixes:
        """Of another model or another beginning, in the same memory."""
        made = Prefixes(model, initial=initial)
        made.kept = self.kept
        return made

    def find(self, owner: str, tokens: Sequence[int] | Array) -> tuple[int, Array | None, State]:
        """The longest beginning of `tokens` that was read before: its length, the logits [V] after it, and the state,
        a copy. Where there is none: 0, None and the state before the first token.
        """
        found = self.kept.find(self._start(owner), np.asarray(tokens))
        if found is None:
            return 0, None, self._begin()
        count, logits, state = found
        return count, logits, state.copy()

    def put(self, owner: str, tokens: Sequence[int] | Array, logits: Array, state: State) -> None:
        """Keep what the model knows after `tokens`; both arrays are the cache's from now on."""
        self.kept.put(self._start(owner), tokens, logits, state)

    def _begin(self) -> State:
        return self._model.state() if self.initial is None else self.initial.copy()

    def _start(self, owner: str) -> Prefix:
        of = self._model
        digest = tokenizers.digest(of.tokenizer)
        return Prefix.start(root(of.weights.fingerprint, digest, self._digest, of.arithmetic, owner))

"""A model with a voice: tokens in, logits and state out; text in, text out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rookery import tokenizer as tokenizers
from rookery import weights as weights_room
from rookery.architecture import Config
from rookery.backends import Runner, runner
from rookery.errors import InputError, StateError, TokenError
from rookery.sampling import Sampler, Sampling, free_tokens
from rookery.state import State, layers, shapes, size
from rookery.stream import Constraint, Progress, Stream
from rookery.tokenizer import Tokenizer
from rookery.weights import Weights

if TYPE_CHECKING:
    from rookery.lab.trace import Trace
    from rookery.lab.traced import Traces
    from rookery.weights.adapters import Adapter

Array = npt.NDArray[Any]
Tokens = int | Sequence[int] | Array
Adapters: TypeAlias = "Adapter | str | os.PathLike[str] | Sequence[Adapter | str | os.PathLike[str]] | None"

CHUNK = 256  # rows of one step: bounds memory, and lets Ctrl-C through


def load(
    path: str | os.PathLike[str] | Weights = "gosling",
    backend: str = "auto",
    threads: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    group_norm_eps: float | None = None,
    adapter: Adapters = None,
) -> Model:
    """Open a model: "gosling" (the packaged one), a .pth, .safetensors, .gguf or rwkv.cpp .bin file, a Hugging Face
    folder, or Weights that `weights.load` gave.

    `backend`: "native", "reference", "torch", or "auto": native, or the reference where the core is missing or float64
    is wanted. `dtype`: "float32" or "float64" (not native); native's default rounds activations as the file rounded the
    weights, and its "float32" rounds nothing. `threads`: of native (default: one a physical core, at most 16) and
    torch; NumPy's are those of its BLAS (OPENBLAS_NUM_THREADS). `device` ("cpu", "cuda"): torch's.
    `tokenizer`: "world", "bytes", "utf16le", a vocabulary file, a tokenizer.json, or an object; default: what the file
    says, or what lies in it or beside it in its folder. `adapter`: a file or a `weights.adapters.Adapter` that was
    tuned for the model, or several, which add up; see `Model.adapted`.
    Raises FileError, ModelError, TokenizerError and BackendError subclasses.
    """
    opened = path if isinstance(path, Weights) else weights_room.load(path, group_norm_eps=group_norm_eps)
    weights = _beside(opened, adapter)
    made = tokenizers.load(tokenizer) if isinstance(tokenizer, str | os.PathLike) else tokenizer
    run = runner(weights, backend, threads=threads, device=device, dtype=dtype)
    return Model(weights, run, made)


def _beside(weights: Weights, adapter: Adapters) -> Weights:
    """Checked before a back end has made anything of the weights."""
    if adapter is None:
        return weights
    from rookery.weights import adapters  # not at the top: most models run without

    given = [adapter] if isinstance(adapter, str | os.PathLike | adapters.Adapter) else adapter
    return adapters.beside(weights, *(a if isinstance(a, adapters.Adapter) else adapters.load(a) for a in given))


class Model:
    """One model on one back end. Shapes: T tokens, V vocabulary."""

    def __init__(self, weights: Weights, runner: Runner, tokenizer: Tokenizer | None = None) -> None:
        self.weights, self.runner, self._tokenizer = weights, runner, tokenizer
        self.traces: Traces | None = None  # those that are open, as rookery.lab.trace keeps them

    @property
    def config(self) -> Config:
        return self.weights.config

    @property
    def backend(self) -> str:
        return self.runner.name

    @property
    def arithmetic(self) -> str:
        """How it computes, in words: back end and number type. Two that compute otherwise differ in the last bits."""
        return self.runner.arithmetic

    @property
    def state_size(self) -> int:
        """Numbers in one sequence's state, whatever its length."""
        return size(self.config)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer given to `load`, else the one that is named by or came with the file, else a guess by size."""
        of = self.weights
        return tokenizers.fitting(of.path, of.format, of.metadata, of.config.n_vocab, self._tokenizer)

    @property
    def source(self) -> str:
        """The model's file, and the adapters beside it."""
        of = self.weights
        return of.path + (f" with {' and '.join(a.path or a.method for a in of.adapted)}" if of.adapted else "")

    def adapted(self, *adapter: Adapter | str | os.PathLike[str]) -> Model:
        """This model with adapters (or their files) beside it, and beside those it has: a model of its own, whose
        states are not this one's.

        Both may be used side by side. The native back end has the weights that they share in memory once; the others
        make them anew. Raises FileError and AdapterError.
        """
        weights = _beside(self.weights, adapter)
        return Model(weights, self.runner.adapted(weights), vars(self).get("tokenizer", self._tokenizer))

    def state(self) -> State:
        """The state before the first token: `att.time_state` where the file has one, else nothing seen."""
        state = State.start(self.config, self.weights, self.runner.dtype)
        if self.config.tuned_state:
            for i, views in enumerate(layers(self.config, state.flat)):
                tuned = self.weights.tensors[f"blocks.{i}.att.time_state"].float32()  # [H, value, key]
                views["wkv"][...] = tuned.swapaxes(1, 2)
        return state

    def check(self, state: State, allow_lineage: bool = False) -> None:
        """StateError unless `state` is this model's (or, if allowed, of another quantisation of it)."""
        if state.config is not self.config and shapes(state.config) != shapes(self.config):
            raise StateError(f"the state is of {state.config.name} of another size, not of {self.source}")
        if state.origin is self.weights or state.origin.fingerprint == self.weights.fingerprint:
            return
        if state.origin.lineage != self.weights.lineage:
            base = self.weights.base
            if base is not None and state.origin.lineage == base.lineage:
                raise StateError(f"the state is of {base.path} alone, not of {self.source}; leave the adapter out")
            raise StateError(f"the state was made by another model than {self.source}")
        if not allow_lineage:
            raise StateError(
                f"the state was made by another quantisation of {self.source}; "
                "State.load(file, model, allow_lineage=True) accepts it"
            )

    def forward(
        self, tokens: Tokens, state: State | None = None, every: bool = False, progress: Progress | None = None
    ) -> tuple[Array, State]:
        """Feed one or more token ids; the logits after the last, [V] (every=True: [T,V]), and the new state.

        Both are of the back end's dtype, float32 unless asked otherwise. A passed state is never changed. Raises
        InputError for no tokens, TokenError for an id outside [0,V), StateError for another model's state.
        """
        return self._forward([self._ids(tokens)], [state], every, progress)[0]

    def forward_batch(
        self, tokens: Sequence[Tokens], states: Sequence[State | None] | None = None, every: bool = False
    ) -> list[tuple[Array, State]]:
        """`forward` for several sequences of any lengths, side by side."""
        ids = [self._ids(t) for t in tokens]
        given = [None] * len(ids) if states is None else states
        if len(given) != len(ids):
            raise InputError(f"{len(ids)} token lists but {len(given)} states")
        return self._forward(ids, given, every)

    def _forward(
        self, ids: Sequence[Array], given: Sequence[State | None], every: bool, progress: Progress | None = None
    ) -> list[tuple[Array, State]]:
        own, traces = [self._own(state) for state in given], self.traces
        if traces is None:
            return self._steps(ids, own, every, progress)
        return traces.forward(self._steps, ids, given, own, every, progress)

    def _steps(
        self, ids: Sequence[Array], states: Sequence[State], every: bool, progress: Progress | None = None
    ) -> list[tuple[Array, State]]:
        """Steps of at most CHUNK rows a sequence, over the sequences that have any left; `states` are changed."""
        out: list[list[Array]] = [[] for _ in ids]
        longest = max(map(len, ids), default=0)
        for at in range(0, longest, CHUNK):
            if progress:
                progress(at, longest)
            active = [b for b, rows in enumerate(ids) if len(rows) > at]
            chunk = [ids[b][at : at + CHUNK] for b in active]
            for b, logits in zip(active, self.runner.step(chunk, [states[b].flat for b in active], every), strict=True):
                out[b] = [*out[b], logits] if every else [logits]
        return [(np.concatenate(rows) if every else rows[-1], s) for rows, s in zip(out, states, strict=True)]

    def trace(
        self,
        *points: str,
        every: int = 1,
        last: int | None = None,
        file: str | os.PathLike[str] | None = None,
        dtype: str | None = None,
    ) -> Trace:
        """Watch what runs inside a `with` block: `with model.trace("state.layers.*.wkv", every=16) as t:`, then
        `t["state.layers.0.wkv"]`, [captures, ...]; see rookery.lab.trace for the names and what else is there.

        `points`: names, with * for any. `every`: capture after every so many tokens of a sequence. `last`: keep only
        the last captures, so many. `file`: write them to this new file instead of keeping them; rookery.lab.trace.read
        reads it. `dtype`: keep "float16", "float32" or "float64". Raises InputError, of a name too that no point has.
        """
        from rookery.lab.trace import Trace

        return Trace(self, points, every, last, file, dtype)

    def stream(
        self,
        prompt: str | bytes | Sequence[int],
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        seed: int | None = None,
        state: State | None = None,
        progress: Progress | None = None,
        stop: Sequence[str] = (),
        constraint: Constraint | None = None,
        **settings: Any,
    ) -> Stream:
        """Continue `prompt` piece by piece: `for piece in model.stream("Once"): ...`.

        `settings` are fields of Sampling. Ends after `max_tokens`, where the tokenizer's end token is drawn, or before
        a text of `stop`. `constraint`: what may be written, see rookery.chat.grammar.
        """
        if settings and sampling is not None:
            raise InputError(f"sampling= and {', '.join(settings)}= say the same thing twice; give one")
        for name in settings:
            if name not in Sampling.names():
                raise InputError(f"no sampling setting {name!r}: choose from {', '.join(Sampling.names())}")
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str | bytes) else prompt
        sampler = self.sampler(sampling or Sampling(**settings), seed)
        limit = whole("max_tokens", max_tokens)
        rows = self._ids(ids)
        return Stream(self, rows, limit, sampler, state, progress=progress, stop=stop, constraint=constraint)

    def sampler(self, sampling: Sampling, seed: int | None = None) -> Sampler:
        """A sampler for this model's logits and vocabulary."""
        return Sampler(sampling, self.config.n_vocab, seed, free=free_tokens(self.tokenizer.encode))

    def generate(self, prompt: str | bytes | Sequence[int], max_tokens: int = 256, **settings: Any) -> str:
        """The whole continuation; takes what `stream` takes."""
        return "".join(self.stream(prompt, max_tokens, **settings))

    def _ids(self, tokens: Tokens) -> npt.NDArray[np.int64]:
        try:
            ids = np.atleast_1d(np.asarray(tokens))
        except ValueError:
            raise InputError("tokens must be whole numbers in one list, not lists of several lengths") from None
        if ids.size == 0:
            raise InputError("an empty prompt: give at least one token")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InputError(f"tokens must be whole numbers in one list, not {ids.dtype} of shape {list(ids.shape)}")
        wrong = ids[(ids < 0) | (ids >= self.config.n_vocab)]
        if wrong.size:
            raise TokenError(
                f"token {wrong[0]} is outside the vocabulary of {self.weights.path} (0 to {self.config.n_vocab - 1})"
            )
        return ids.astype(np.int64)

    def _own(self, state: State | None) -> State:
        """A state this call may change."""
        if state is None:
            return self.state()
        self.check(state)
        return State(self.config, state.flat.astype(self.runner.dtype, copy=True), self.weights)

    def __repr__(self) -> str:
        c = self.config
        beside = "".join(f", {a.method} {a.path}".rstrip() for a in self.weights.adapted)
        return f"Model({c.name}, {c.n_layer} layers x {c.n_embd}, {c.n_vocab} tokens, {self.backend}{beside})"


def whole(name: str, value: Any) -> int:
    """`value`, if it is a whole number, 0 or more. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise InputError(f"{name} {value!r}: a whole number, 0 or more, is wanted")
    return int(value)

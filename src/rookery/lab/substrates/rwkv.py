"""An RWKV as a substrate: its state is carried from token to token, whatever version, back end or quantisation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rookery.errors import InputError, StateError, TokenizerError
from rookery.lab import pieces
from rookery.lab.substrates.common import Array, displacement
from rookery.model import Model, load
from rookery.sampling import Sampler, Sampling
from rookery.state import State

GREEDY = Sampling(temperature=0)


@dataclass(frozen=True)
class Snapshot:
    """Everything a run depends on from here. Holds copies."""

    state: State
    logits: Array | None
    tick: int
    last: int | None
    sampler: Mapping[str, Any]


class RWKV:
    """One sequence of `model` (a Model, or what `rookery.load` opens). A tick is one token.

    `sampling` chooses the tokens that it draws itself. `prefix`: tokens read at each reset, before tick 0; RWKV is used
    to begin with token 0, the end of a text. Without a prefix the first step must be given its token.
    Components are the state's pieces, "layers.0.att_shift", "layers.0.ffn_shift", "layers.0.wkv", .. as `lab.pieces`
    reads them; v4's wkv is a mean value [C], whose weight is not shown and stays as it is when it is perturbed.
    """

    name = "rwkv"

    def __init__(
        self,
        model: Model | str | os.PathLike[str] = "gosling",
        sampling: Sampling = GREEDY,
        prefix: Sequence[int] = (0,),
    ) -> None:
        self.model = model if isinstance(model, Model) else load(model)
        self.sampling, self.prefix = sampling, tuple(prefix)
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Begin anew. The seed is the sampler's; a run that is given its tokens, or greedy, is the same for all."""
        self.tick = 0
        self.last: int | None = None  # the token read last
        self._state, self._logits = self.model.state(), None
        self._sampler = _sampler(self.model, self.sampling, seed)
        if self.prefix:
            self._logits, self._state = self.model.forward(self.prefix, self._state)
            self.last = self.prefix[-1]

    def step(self, token: int | None = None) -> None:
        """Read `token`; without one, draw it from the logits of the step before (a perturbation shows one step later).

        Raises InputError where nothing was read that it could be drawn from.
        """
        drawn = token is None
        if token is None:
            if self._logits is None:
                raise InputError("nothing was read yet to draw a token from: give the first one, or a prefix")
            token = self._sampler.sample(self._logits)
        self._logits, self._state = self.model.forward(token, self._state)
        if drawn:
            self._sampler.accept(token)
        self.last = int(token)
        self.tick += 1

    @property
    def state(self) -> State:
        """A copy of the state."""
        return self._state.copy()

    @state.setter
    def state(self, state: State) -> None:
        """Go on from another state of this model, such as one that `lab.surgery` made; the logits stay."""
        self.model.check(state)
        self._state = state.copy()

    def snapshot(self) -> Snapshot:
        return Snapshot(self._state.copy(), self.logits(), self.tick, self.last, self._sampler.state())

    def restore(self, snapshot: Any) -> None:
        """Raises StateError for another substrate's snapshot, or another model's."""
        if not isinstance(snapshot, Snapshot):
            raise StateError(f"not a snapshot of an RWKV but a {type(snapshot).__name__}")
        self.model.check(snapshot.state)
        self._state = snapshot.state.copy()
        self._logits = None if snapshot.logits is None else snapshot.logits.copy()
        self.tick, self.last = snapshot.tick, snapshot.last
        self._sampler.restore(snapshot.sampler)

    def components(self) -> dict[str, Array]:
        return dict(pieces.read_all(self._state))

    def perturb(self, component: str, direction: Array, size: float) -> None:
        """Adds into the state itself; the next step reads it. Rounded to the state's float32."""
        now = self.components()
        push = displacement(now, component, direction, size)
        self._state = pieces.write(self._state, {component: now[component] + push})

    def logits(self) -> Array | None:
        return None if self._logits is None else self._logits.copy()


def _sampler(model: Model, sampling: Sampling, seed: int) -> Sampler:
    try:
        return model.sampler(sampling, seed)
    except TokenizerError:  # a model of no known tokenizer runs on token ids
        return Sampler(sampling, model.config.n_vocab, seed)

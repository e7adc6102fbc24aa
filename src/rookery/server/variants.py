"""The model ids of a server: the model itself, and what adapters and tuned states make of it, on the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from rookery.engine import Prefixes
from rookery.errors import InputError, StateError
from rookery.model import Model
from rookery.server.settings import Settings
from rookery.session import Session
from rookery.session.tree import INITIAL
from rookery.state import State


@dataclass(frozen=True, eq=False)
class Variant:
    """Who answers to `names`, the first of them its id. `initial`: what its texts begin with; None: the model's own
    state. `prefixes`: what it has read.
    """

    names: tuple[str, ...]
    model: Model
    initial: State | None
    prefixes: Prefixes

    @property
    def name(self) -> str:
        return self.names[0]

    @cached_property
    def digest(self) -> str | None:
        """Of the initial state, as a talk notes it."""
        return None if self.initial is None else sha256(self.initial.flat.tobytes()).hexdigest()

    def state(self) -> State:
        """The state before the first token."""
        return self.model.state() if self.initial is None else self.initial.copy()


def variants(settings: Settings, model: Model) -> tuple[Variant, ...]:
    """The model, then one with each of the settings' adapters beside it, then each of their states, of whichever of
    these models it is. Raises AdapterError, StateError and FileError.
    """
    first = Prefixes(model, settings.prefix_bytes)
    if settings.state is not None:
        first = first.beside(model, _read(settings.state, [model])[1])
    made = [Variant(_names(settings, model), model, first.initial, first)]
    for name, given in settings.adapters.items():
        adapted = model.adapted(*given)
        made.append(Variant((name,), adapted, None, first.beside(adapted)))
    models = [each.model for each in made]
    for name, path in settings.states.items():
        of, state = _read(path, models)
        made.append(Variant((name,), of, state, first.beside(of, state)))
    _check([name for each in made for name in each.names])
    return tuple(made)


def of_talk(found: Sequence[Variant], talk: Session) -> Variant:
    """Who holds a stored talk: the one with its model and the state that it began with; of a state that came from
    elsewhere, the first with its model.
    """
    mine = [each for each in found if each.model is talk.model]
    began = talk.settings.get(INITIAL)
    return next((each for each in mine if each.digest == began), mine[0])


def _names(settings: Settings, model: Model) -> tuple[str, ...]:
    given = (name.strip() for name in (settings.alias or "").split(","))
    return tuple(name for name in given if name) or (Path(model.weights.path).stem,)


def _read(path: str, models: Sequence[Model]) -> tuple[Model, State]:
    """The state in a file, and the first of the models that it is of. Raises what the first says where none is."""
    wrong: StateError | None = None
    for model in models:
        try:
            state = State.load(path, model, allow_lineage=True)
        except StateError as error:
            wrong = wrong or error
        else:
            logits, _ = model.forward(0, state)
            if not np.isfinite(logits).all():
                raise StateError(f"{path}: the state holds numbers with which the model gives none; it is damaged")
            return model, state
    assert wrong is not None
    raise wrong


def _check(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two models cannot both be called {name!r}; choose another NAME")

"""What a talk notes of how it is held, so that it can be gone on with elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rookery import chat
from rookery.chat.jinja import Jinja
from rookery.chat.roles import BUILTIN
from rookery.errors import InputError
from rookery.model import Model
from rookery.sampling import Sampling
from rookery.session.tree import Tree
from rookery.store import Node
from rookery.stream import Constraint

GREEDY = Sampling(temperature=0)


def noted(
    template: str | chat.Template | None,
    system: str | None,
    think: str | None,
    tools: Sequence[Any],
    seed: int,
    owner: str,
    title: str,
) -> dict[str, Any]:
    """What a new talk notes. Raises InputError."""
    return {
        "template": source(template),
        "system": text("system", system),
        "think": text("think", think),
        "tools": listed(tools),
        "seed": seed,
        "owner": text("owner", owner) or "",
        "title": text("title", title) or "",
    }


def source(template: str | chat.Template | None) -> str | dict[str, str] | None:
    """A builtin template's name, the text of a Jinja template, or that there was one of another kind."""
    if template is None:
        return None
    made = chat.load(template)
    if isinstance(made, Jinja):
        return made.source
    return made.name if BUILTIN.get(made.name) == made else {"own": made.name}


def template(source: Any, tree: Tree) -> chat.Template:
    """What `source` noted. It is never a file: a talk from elsewhere must not choose what is opened."""
    weights = tree.model.weights
    if source is None:
        return chat.load(None, weights.metadata, weights.path if weights.format == "hf" else None)
    if not isinstance(source, str):
        raise InputError(f"the talk {tree.talk.name!r} was held with a template object of your own; give it: template=")
    return BUILTIN[source] if source in BUILTIN else Jinja(source)


def sampling(node: Node | None) -> Sampling:
    """How the reply of a turn was drawn; greedy before the first."""
    if node is None:
        return GREEDY
    said = json.loads(node.sampling)["settings"]
    return Sampling.of_plain(said)


def text(name: str, value: Any) -> str | None:
    """`value`, if it is a text or None. Raises InputError."""
    if value is not None and not isinstance(value, str):
        raise InputError(f"{name}={value!r}: wanted a text")
    return value


def listed(given: Sequence[Any]) -> list[Any]:
    """As JSON has them. Raises InputError."""
    try:
        if isinstance(given, str):
            raise TypeError("one text, not a list of them")
        return list(json.loads(json.dumps([*given])))
    except (TypeError, ValueError) as error:
        raise InputError(f"tools: wanted a list of signatures as text, or of JSON objects ({error})") from None


def note(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """As JSON has it. Raises InputError."""
    try:
        return dict(json.loads(json.dumps(dict(given or {}), allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"note: wanted a JSON object ({error})") from None


def constraint(model: Model, template: chat.Template, limits: Mapping[str, Any]) -> Constraint | None:
    """What a reply under these limits (schema, regex, grammar) may be. Raises InputError, MissingExtra."""
    if not limits:
        return None
    from rookery.chat.blank import AfterBlank
    from rookery.chat.grammar import constraint

    made = constraint(model.tokenizer, model.config.n_vocab, **limits)
    return AfterBlank(made, model.tokenizer) if template.shown(" x") == "x" else made

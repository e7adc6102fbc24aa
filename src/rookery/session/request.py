"""What a reply depends on besides the talk so far, and what its turn notes of it, so that it can be gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rookery.chat import Template
from rookery.sampling import Sampler, Sampling
from rookery.session.tree import Place
from rookery.store import Node, Span
from rookery.stream import Constraint
from rookery.tokenizer import Tokenizer


@dataclass(frozen=True)
class Asked:
    """What a reply answers, as tokens that continue `base`, and who said them."""

    base: Place
    tokens: list[int]
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Request:
    """One call of `say` or `proceed`: all that a reply depends on besides the talk so far."""

    parent: str | None
    messages: tuple[tuple[str, str], ...]  # role and content of each that is said
    asked: Callable[[], Asked]
    template: Template
    options: Mapping[str, Any]  # of the template: think, tools
    max_tokens: int
    sampling: Sampling
    sampler: Mapping[str, Any]  # its state before
    limits: Mapping[str, Any] = field(default_factory=dict)  # schema, regex or grammar
    constraint: Constraint | None = None  # made of these
    before: tuple[int, ...] = ()  # tokens of this reply that were written in an earlier call
    begun: str = ""  # what the prompt has already written of the reply
    note: dict[str, Any] = field(default_factory=dict)  # of whoever asks; JSON
    stops: tuple[str, ...] = ()  # texts that end it, besides the template's


def going_on(node: Node, record: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields of the request that the reply of `node`, which was cut, is a part of. `record`: what it noted."""
    cut = record["asked"]
    spans = tuple(Span(s.role, s.begin, min(s.end, cut)) for s in node.spans if s.begin < cut)
    return {
        "parent": node.parent,
        "messages": node.messages[:-1],
        "asked": lambda: Asked(Place(node.base, node.kept), [*node.tokens[:cut]], spans),
        "sampler": record["after"],
        "limits": record["limits"],
        "before": node.tokens[cut:],
        "begun": node.messages[-1][1].removesuffix(tokenizer.decode(node.tokens[cut:])),
        "note": dict(record.get("note", {})),
        "stops": tuple(record.get("stops", ())),
    }


def record(request: Request, asked: int, sampler: Sampler) -> str:
    """What a turn notes, as JSON. `asked`: how many of its tokens the model did not draw."""
    noted = {name: value for name, value in (("note", request.note), ("stops", request.stops)) if value}
    return json.dumps(
        noted
        | {
            "settings": request.sampling.plain(),
            "asked": asked,
            **request.options,
            "before": dict(request.sampler),
            "after": sampler.state(),
            "limits": dict(request.limits),
        },
        sort_keys=True,
    )

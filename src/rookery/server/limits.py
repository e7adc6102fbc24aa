"""What a reply must be: one schema, regular expression or grammar of a request, compiled where it can do no harm.

A grammar is compiled in a process of its own (`rookery.chat.grammar`). Here no more than a few are at once, few may
wait, and one that was refused is not tried again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from rookery.chat.blank import AfterBlank
from rookery.chat.grammar import Grammar, constraint
from rookery.chat.schema import schema_text
from rookery.errors import InputError
from rookery.server.errors import ApiError
from rookery.server.shapes import Format, Limited
from rookery.stream import Constraint
from rookery.tokenizer import Tokenizer

AT_ONCE, WAITING = 2, 8
REMEMBERED = 1024


@dataclass(frozen=True)
class Limit:
    """`kind`: schema, regex, grammar (GBNF or Lark) or lark. `blank`: whether the one space after a speaker's colon may
    stand before it.
    """

    kind: str
    text: str
    blank: bool = False


def limit(request: Limited) -> Limit | None:
    """What the fields ask for, None where that is nothing. 400 for two at once. Raises InputError for a schema with
    keywords that cannot be followed.
    """
    schema = of_format(request.response_format) if request.response_format else None
    given = {
        "response_format": ("schema", schema),
        "json_schema": ("schema", request.json_schema),
        "regex": ("regex", request.regex),
        "grammar": ("grammar", request.grammar),
    }
    asked = {name: (kind, value) for name, (kind, value) in given.items() if value is not None}
    if len(asked) > 1:
        raise ApiError(400, f"{' and '.join(asked)}: a reply follows one of them; leave the others out")
    for kind, value in asked.values():
        return Limit(kind, value if isinstance(value, str) else schema_text(value), blank=True)
    return None


def of_format(format: Format) -> Mapping[str, Any] | None:
    """The schema of a response_format. 400 where it lacks one."""
    if format.type == "text":
        return None
    if format.type == "json_object":
        return format.schema_ or {"type": "object"}
    if format.json_schema is None or format.json_schema.schema_ is None:
        raise ApiError(400, "response_format: json_schema wants its schema", param="response_format.json_schema.schema")
    return format.json_schema.schema_


class Compiler:
    """Call it in a worker thread. Raises InputError as Grammar does, and ApiError 429 where too many wait."""

    def __init__(self, make: Callable[..., Grammar] = constraint) -> None:
        self._make = make
        self._free, self._lock = threading.Semaphore(AT_ONCE), threading.Lock()
        self._waiting = 0
        self._refused: OrderedDict[bytes, str] = OrderedDict()

    def __call__(self, limit: Limit, tokenizer: Tokenizer, n_vocab: int) -> Constraint:
        key = sha256(f"{tokenizer.name}\0{limit.kind}\0{limit.text}".encode("utf-8", "surrogatepass")).digest()
        self._enter(key)
        try:
            with self._free:
                self._known(key)  # by one that was before us
                made = self._compiled(limit, tokenizer, n_vocab)
        except InputError as error:
            with self._lock:
                self._refused[key] = str(error)
                while len(self._refused) > REMEMBERED:
                    self._refused.popitem(last=False)
            raise
        finally:
            with self._lock:
                self._waiting -= 1
        return AfterBlank(made, tokenizer) if limit.blank else made

    def _enter(self, key: bytes) -> None:
        self._known(key)
        with self._lock:
            if self._waiting >= AT_ONCE + WAITING:
                headers = {"Retry-After": "2"}
                raise ApiError(429, "too many grammars wait to be compiled; try again", code="busy", headers=headers)
            self._waiting += 1

    def _known(self, key: bytes) -> None:
        with self._lock:
            if (said := self._refused.get(key)) is not None:
                self._refused.move_to_end(key)
                raise InputError(said)

    def _compiled(self, limit: Limit, tokenizer: Tokenizer, n_vocab: int) -> Grammar:
        if limit.kind == "lark":
            return Grammar.from_lark(limit.text, tokenizer, n_vocab)
        return self._make(tokenizer, n_vocab, **{limit.kind: limit.text})


compiler = Compiler()  # one for all: what it spares is the machine

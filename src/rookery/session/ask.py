"""How what is said becomes tokens that continue the talk so far.

Tokens do not concatenate: encode(a) + encode(b) is not encode(a + b) where a token spans the joint. The only joint
that is meant is the one before a reply, for that is where the model takes over. At the end of a reply the joint is
moved back so that the tokens are those of the whole text.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

from rookery import chat
from rookery.errors import InputError, TemplateError
from rookery.session.request import Asked
from rookery.session.tree import Place, Tree
from rookery.store import Node, Span
from rookery.tokenizer.simple import encode_text

LOOKBACK = 8  # tokens at the end of a reply that a token across the joint may reach into


class Writer:
    """Writes what is said as `template` says, with its `options`, and finds the place whose tokens that continues."""

    def __init__(self, tree: Tree, template: chat.Template, options: Mapping[str, Any]) -> None:
        self._tree, self._template, self._options = tree, template, options
        self._tokenizer = tree.model.tokenizer
        self._tools = json.loads(tree.talk.settings)["tools"]  # of turns that did not note theirs

    def ask(self, at: str | None, messages: Sequence[chat.Message], new: int) -> Asked:
        """`messages`: the talk up to turn `at`, and `new` ones, what is said."""
        asked, text = self._ask(at, messages, new)
        if chat.trailing_space(text):
            warnings.warn(
                f"the template {self._template.name} ends a prompt with a blank after the speaker's colon, "
                "which RWKV never saw in training; take it away",
                stacklevel=5,
            )
        return asked

    def _ask(self, at: str | None, messages: Sequence[chat.Message], new: int) -> tuple[Asked, str]:
        """The second result: the text that was written for it."""
        if at is not None and new == 1 and (text := self._follow(at, messages)) is not None:
            place, data = Place(at), self._tree.nodes[at].tail + self._bytes(text)
            fresh = len(data)
        else:
            text = self._template.render(messages, reply=True, **self._options)
            place, data = self._common(Place(at), self._bytes(text))
            fresh = len(self._bytes(text[self._old(messages, text) :]))
        if place.id is not None and place.kept is None:
            place, data = self._joined(self._tree.nodes[place.id], data)
        tokens = self._tokenizer.encode(data)
        if not tokens:
            raise InputError("nothing was said: give a text")
        return Asked(place, tokens, self._spans(place, tokens, data, fresh, messages)), text

    def _old(self, messages: Sequence[chat.Message], text: str) -> int:
        """How much of `text` the last message has no part in: that is how the talk will begin next time, too."""
        with suppress(TemplateError):  # some insist on a last word of the user
            if len(messages) > 1:
                old = self._template.render(messages[:-1], reply=False, **self._options)
                return len(old) if text.startswith(old) else 0
        return 0

    def _spans(
        self, place: Place, tokens: list[int], data: bytes, fresh: int, messages: Sequence[chat.Message]
    ) -> tuple[Span, ...]:
        """Who said which of the tokens: the system text, what was there before the last message, the `fresh` bytes at
        the end of `data`, and the reply that the template has begun, stand apart.
        """
        begun = self._bytes(self._template.begun(**self._options))
        opening = b"" if place.id is not None else self._bytes(self._template.opening(messages, **self._options))
        first = self._whole(tokens, len(opening))
        last = max(first, self._whole(tokens, len(data) - len(begun)))
        if self._ends(tokens)[last] != len(data) - len(begun):  # a token spans it
            last = len(tokens)
        again = min(max(first, self._whole(tokens, max(0, len(data) - fresh))), last)
        found = (
            Span("system", 0, first),
            Span(messages[-1]["role"], first, again),
            Span(messages[-1]["role"], again, last),
            Span("assistant", last, len(tokens)),
        )
        return tuple(span for span in found if span.begin < span.end)

    def _follow(self, at: str, messages: Sequence[chat.Message]) -> str | None:
        """What comes after the last reply, unless that was asked for in another think mode or with other tools. Blanks
        around it do not matter: the template would write it without, but it is what the model wrote.
        """
        record = json.loads(self._tree.nodes[at].sampling)
        tools = record.get("tools", self._tools)
        if (record["think"], tools) != (self._options["think"], self._options["tools"]):
            return None
        *before, reply, asked = messages
        written = reply["content"]
        for content in dict.fromkeys((written, f" {written.strip()}", written.strip())):
            again: chat.Message = {"role": "assistant", "content": content}
            if (text := self._template.follow([*before, again, asked], **self._options)) is not None:
                return text
        return None

    def _joined(self, node: Node, data: bytes) -> tuple[Place, bytes]:
        """Where `data` behind the last reply is to be read, and with how much of that: a token that spans the joint is
        written as one, unless the reply is not written as the tokenizer would.
        """
        own = next((span.begin for span in reversed(node.spans) if span.role == "assistant"), 0)
        last = node.tokens[max(own, len(node.tokens) - LOOKBACK) :]
        read = self._tokenizer.decode_bytes(last)
        joined = self._tokenizer.encode(read + data)
        kept = self._whole(joined, len(read))
        end = self._ends(joined)[kept]
        if end == len(read) or tuple(joined[:kept]) != last[:kept]:
            return Place(node.id), data
        return Place(node.id, len(node.tokens) - len(last) + kept), read[end:] + data

    def _common(self, place: Place, data: bytes) -> tuple[Place, bytes]:
        """The latest place on the way to this one up to which the talk reads as `data` does, and the rest of `data`.

        Places are where a state is kept: the ends of turns and the beginnings of spans.
        """
        chain = self._tree.chain(place)
        size = 0
        best = Place(None), data
        for node, tokens in chain:
            ends = [size + end for end in self._ends(tokens)]
            for mark in sorted({*(span.begin for span in node.spans), len(tokens)}):
                if 0 < mark <= len(tokens) and data[size : ends[mark]] == self._tokenizer.decode_bytes(tokens[:mark]):
                    best = Place(node.id, None if mark == len(node.tokens) else mark), data[ends[mark] :]
            if best[0].id != node.id or data[size : ends[-1]] != self._tokenizer.decode_bytes(tokens):
                break
            size = ends[-1]
        return best

    def _bytes(self, text: str) -> bytes:
        """The text as the tokenizer's bytes."""
        return encode_text(text, getattr(self._tokenizer, "encoding", "utf-8"))

    def _ends(self, tokens: Sequence[int]) -> list[int]:
        """Bytes before each token, and after the last."""
        return [*accumulate((len(self._tokenizer.token_bytes(token)) for token in tokens), initial=0)]

    def _whole(self, tokens: Sequence[int], size: int) -> int:
        """How many tokens lie within the first `size` bytes."""
        return max(n for n, end in enumerate(self._ends(tokens)) if end <= size)

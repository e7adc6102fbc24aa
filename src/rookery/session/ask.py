"""How what is said becomes tokens that continue the talk so far.

Tokens do not concatenate: encode(a) + encode(b) is not encode(a + b) where a token spans the joint. The only joint
that is meant is the one before a reply, for that is where the model takes over. At the end of a reply the joint is
moved back so that the tokens are those of the whole text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rookery import chat
from rookery.errors import InputError
from rookery.session.reply import Asked
from rookery.session.tree import Tree
from rookery.store import Node, Span

LOOKBACK = 8  # tokens at the end of a reply that a token across the joint may reach into


class Writer:
    """Writes what is said as `template` says, with its `options`, and finds the turn whose tokens that continues."""

    def __init__(self, tree: Tree, template: chat.Template, options: Mapping[str, Any]) -> None:
        self._tree, self._template, self._options = tree, template, options
        self._tokenizer = tree.model.tokenizer

    def ask(self, at: str | None, messages: Sequence[chat.Message]) -> tuple[Asked, str]:
        """`messages`: the talk up to turn `at`, and one more. The second result: the text that was written for it."""
        role = messages[-1]["role"]
        if at is not None and (follows := self._follow(messages)) is not None:
            node = self._tree.nodes[at]
            return self._after(node, node.tail + self._bytes(follows), role), follows
        text = self._template.render(messages, reply=True, **self._options)
        data = self._bytes(text)
        for node in reversed(self._tree.chain(at)):  # the template writes old turns in another way: since where?
            read = self._tokenizer.decode_bytes(self._tree.tokens(node.id))
            if data.startswith(read) and len(read) < len(data):
                return self._after(node, data[len(read) :], role), text
        tokens = self._tokenizer.encode(data)
        if not tokens:
            raise InputError("nothing was said: give a text")
        begin = self._whole(tokens, len(self._bytes(self._template.opening(messages, **self._options))))
        spans = (*((Span("system", 0, begin),) if begin else ()), Span(role, begin, len(tokens)))
        return Asked(None, tokens, spans, (begin,)), text

    def _follow(self, messages: Sequence[chat.Message]) -> str | None:
        """What comes after the last reply. Blanks around that do not matter: the template would write it without, but
        it is what the model wrote.
        """
        *before, reply, asked = messages
        written = reply["content"]
        for content in dict.fromkeys((written, f" {written.strip()}", written.strip())):
            again: chat.Message = {"role": "assistant", "content": content}
            if (text := self._template.follow([*before, again, asked], **self._options)) is not None:
                return text
        return None

    def _after(self, node: Node, data: bytes, role: str) -> Asked:
        """`data` read after the tokens of `node`."""
        own = next((s.begin for s in reversed(node.spans) if s.role == "assistant"), 0)
        last = node.tokens[max(own, len(node.tokens) - LOOKBACK) :]
        joint = len(self._tokenizer.decode_bytes(last))
        joined = self._tokenizer.encode(self._tokenizer.decode_bytes(last) + data)
        ends = self._ends(joined)
        kept = max(n for n, end in enumerate(ends) if end <= joint)  # tokens of `joined` before the joint
        if ends[kept] == joint:
            return self._continue(node, joined[kept:], role)
        if tuple(joined[:kept]) != last[:kept]:  # the reply is not written as the tokenizer would: leave it so
            return self._continue(node, self._tokenizer.encode(data), role)
        left = len(node.tokens) - len(last) + kept
        spans = [Span(s.role, s.begin, min(s.end, left)) for s in node.spans]
        tokens = [*node.tokens[:left], *joined[kept:]]
        return Asked(node.base, tokens, (*spans, Span(role, left, len(tokens))), (own, left))

    def _continue(self, node: Node, tokens: list[int], role: str) -> Asked:
        if not tokens:
            raise InputError("nothing was said: give a text")
        return Asked(node.id, tokens, (Span(role, 0, len(tokens)),))

    def _bytes(self, text: str) -> bytes:
        """The text as the tokenizer's bytes."""
        return text.encode(getattr(self._tokenizer, "encoding", "utf-8"))

    def _ends(self, tokens: Sequence[int]) -> list[int]:
        """Bytes before each token, and after the last."""
        ends = [0]
        for token in tokens:
            ends.append(ends[-1] + len(self._tokenizer.token_bytes(token)))
        return ends

    def _whole(self, tokens: Sequence[int], size: int) -> int:
        """How many tokens lie within the first `size` bytes."""
        return max(n for n, end in enumerate(self._ends(tokens)) if end <= size)

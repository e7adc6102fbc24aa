"""What is to be learnt as tokens, and which of them are targets of the loss.

A talk is written as a session writes it: what is asked is one encoding, and every reply begins a new one, for there the
model takes over. What the model writes is trained: the reply and what ends it, which is the template's stop text where
the talk goes on ("\\n\\nUser:") and the tokenizer's end of text after the last reply. A token is trained if it begins
in what is trained: one that reaches out of it is, one that reaches into it is not.

Where a template writes the history otherwise than it was said (g1 leaves old thoughts out), a session reads the talk
anew; so the talk becomes as many documents as there are such beginnings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from rookery.chat.template import Message, Template
from rookery.errors import InputError, TemplateError
from rookery.tokenizer import Tokenizer
from rookery.tokenizer.simple import encode_text
from rookery.tune.rows import Row, rows

MASKS = ("reply", "last", "all")
_ASKED, _ANSWERED = "qzasked", "qzanswered"


@dataclass(frozen=True, slots=True)
class Example:
    """A document: its ids [n], and of each whether it is a target of the loss. Nothing predicts the first."""

    ids: list[int]
    trained: list[bool]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text that is encoded as one, of which the first `trained` characters are learnt."""

    text: str
    trained: int


@dataclass(frozen=True, slots=True)
class _Reply:
    """What stands before a reply, what the model writes of it, what the template writes after one that is the last."""

    prompt: str
    body: str
    closing: str


class Writer:
    """Writes rows as `template` says and `tokenizer` spells.

    mask: what of a talk is trained, "reply" all replies, "last" the last one, "all" everything; texts are all trained.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template, mask: str = "reply") -> None:
        if mask not in MASKS:
            raise InputError(f"data.mask = {mask!r}: {', '.join(MASKS[:-1])} or {MASKS[-1]} is wanted")
        self.tokenizer, self.template, self.mask = tokenizer, template, mask
        self._encoding = getattr(tokenizer, "encoding", "utf-8")

    def of_json(self, row: Any, fields: Sequence[str] = ()) -> list[Example]:
        """The documents of a row as `rows.rows` reads it. Raises InputError and TemplateError."""
        return [example for one in rows(row, fields) for example in self.examples(one)]

    def examples(self, row: Row) -> list[Example]:
        """The documents of a row. Raises InputError and TemplateError."""
        if row.text is None:
            return self.talk(row.messages, row.tools)
        ids = self.tokenizer.encode(row.text)
        return [self._ended(ids, [True] * len(ids))]

    def talk(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[Example]:
        """The documents of a talk, most often one. What is said after the last reply is left out.

        Raises InputError for a talk in which nobody is answered, an empty reply and what the template has no form for.
        """
        said = [message["role"] != "assistant" for message in messages]
        replies = [n for n in range(len(messages)) if not said[n] and any(said[:n])]
        if not replies:
            raise InputError("has no assistant turn that answers something, so there is nothing to learn")
        documents: list[list[_Piece]] = []
        text, closing = "", ""
        for n in replies:
            reply = self._reply(messages, n, tools)
            if documents and reply.prompt.startswith(text):
                documents[-1][-1] = self._followed(documents[-1][-1], reply.prompt[len(text) :])
            else:
                if documents:
                    documents[-1][-1] = self._last(documents[-1][-1], closing)
                documents.append([_Piece(reply.prompt, 0)])
            learnt = self.mask != "last" or n == replies[-1]
            documents[-1].append(_Piece(reply.body, len(reply.body) * learnt))
            text, closing = reply.prompt + reply.body, reply.closing
        documents[-1][-1] = self._last(documents[-1][-1], closing)
        return [self._document(pieces) for pieces in documents if self.mask == "all" or any(p.trained for p in pieces)]

    def _reply(self, messages: Sequence[Message], n: int, tools: Sequence[Any]) -> _Reply:
        """Reply n as the model writes it, which is not always how the template writes it into the history."""
        content = messages[n]["content"]
        if not content.strip():
            raise InputError(f"message {n + 1}: the reply is empty")
        prompt = self.template.render(messages[:n], reply=True, tools=tools)
        begun = self.template.begun(tools=tools) if tools else self._begun
        bare = prompt.removesuffix(begun)
        whole = self.template.render(messages[: n + 1], reply=False, tools=tools)
        written = whole[len(bare) :] if whole.startswith(bare) else ""
        if content.strip() not in written:  # the history has it without its thoughts
            written = self._around[0] + content.strip() + self._around[1]
        inner = content if content in written else content.strip()
        size = written.index(inner) + len(inner)
        body, closing = written[:size], written[size:]
        for opened in (begun, begun.rpartition("\n")[2]):  # all that the template opens a reply with, or its last line
            if opened.strip() and body.lstrip().startswith(opened.lstrip()):
                return _Reply(prompt, body.lstrip()[len(opened.lstrip()) :], closing)
        return _Reply(bare, body, closing)

    @cached_property
    def _begun(self) -> str:
        return self.template.begun()

    @cached_property
    def _around(self) -> tuple[str, str]:
        """What the template writes before and after a reply that is the last. Raises InputError where it has none."""
        asked, answered = Message(role="user", content=_ASKED), Message(role="assistant", content=_ANSWERED)
        silent = False
        for head in ([], [Message(role="system", content="")]):  # some insist on a system message
            try:
                bare = self.template.render([*head, asked], reply=True).removesuffix(self._begun)
                before, found, after = self.template.render([*head, asked, answered], reply=False).partition(_ANSWERED)
            except TemplateError:
                continue
            if found and before.startswith(bare):
                return before[len(bare) :], after
            silent = silent or not found
        if silent:
            name = self.template.name
            raise InputError(f"cannot be written: the template {name} has no assistant turn; wanted one that has")
        return "", ""

    def _followed(self, reply: _Piece, text: str) -> _Piece:
        """A reply with what is said to it. The model has to write as much of that as ends a reply."""
        return _Piece(reply.text + text, reply.trained + len(self._stop(text)) if reply.trained else 0)

    def _last(self, reply: _Piece, closing: str) -> _Piece:
        """The last reply of a document, with its end: the stop text in what the template closes it with; else the one
        that would follow, if it is a blank line or the tokenizer has no end of text; else all of the closing.
        """
        stop, follows = self._stop(closing), self._stop(self.template.follows_reply())
        if not stop and follows.startswith(closing) and (self.tokenizer.end is None or not follows.strip()):
            closing = stop = follows
        return _Piece(reply.text + closing, reply.trained + len(stop or closing) if reply.trained else 0)

    def _stop(self, text: str) -> str:
        """The shortest stop text with which `text` begins, "" if none."""
        return min((stop for stop in self.template.stops if text.startswith(stop)), key=len, default="")

    def _document(self, pieces: Sequence[_Piece]) -> Example:
        ids: list[int] = []
        trained: list[bool] = []
        for piece in pieces:
            some, learnt = self._encoded(piece.text, len(piece.text) if self.mask == "all" else piece.trained)
            ids += some
            trained += learnt
        return self._ended(ids, trained)

    def _ended(self, ids: list[int], trained: list[bool]) -> Example:
        end = [] if self.tokenizer.end is None else [self.tokenizer.end]
        return Example(ids + end, trained + [True] * len(end))

    def _encoded(self, text: str, size: int) -> tuple[list[int], list[bool]]:
        """Ids, and whether each begins within the first `size` characters."""
        encode = self.tokenizer.encode
        ids = encode(encode_text(text, self._encoding))
        if size in (0, len(text)):
            return ids, [size > 0] * len(ids)
        begins = [0, *accumulate(len(self.tokenizer.token_bytes(id)) for id in ids)]
        if begins.pop() != len(encode_text(text, self._encoding)):  # a normaliser, or tokens that stand for no bytes
            ids, rest = encode(text[:size]), encode(text[size:])
            return ids + rest, [True] * len(ids) + [False] * len(rest)
        limit = len(encode_text(text[:size], self._encoding))
        return ids, [begin < limit for begin in begins]

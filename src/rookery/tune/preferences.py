"""A row of preference data: two replies to one prompt of which one is better, or one that is good or bad.

{"prompt", "chosen", "rejected"}, each text or messages; "messages" may stand for the prompt, and chosen and rejected
may be whole talks. For single replies {"prompt", "completion", "label"} with label true or false. Other columns are
left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rookery.chat.template import Message, Template
from rookery.errors import InputError
from rookery.tokenizer import Tokenizer
from rookery.tune.examples import Example, Writer
from rookery.tune.rows import messages

WANTED = {
    "pairs": ("prompt", "chosen", "rejected"),
    "labels": ("prompt", "completion", "label"),
}


class PairWriter:
    """Writes the replies that a row compares as documents, in each of which the last reply alone is trained.

    The mark of a document's first token, which nothing predicts, says whether its reply is the good one; documents
    of pairs alternate, the good one first.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template, kind: str) -> None:
        self.tokenizer, self.template, self.mask = tokenizer, template, kind
        self._writer = Writer(tokenizer, template, "last")

    def of_json(self, row: Any, fields: Sequence[str] = ()) -> list[Example]:
        """The documents of a row, two of a pair. Raises InputError and TemplateError."""
        out = []
        for talk, good in compared(_renamed(row, fields, self.mask), self.mask):
            example = self._writer.talk(talk)[-1]
            out.append(Example(example.ids, [good, *example.trained[1:]]))
        return out


def compared(row: Mapping[str, Any], kind: str) -> list[tuple[tuple[Message, ...], bool]]:
    """The talks of a row and whether each ends well; a pair also where single replies are wanted. Raises InputError."""
    if "chosen" in row and "rejected" in row:
        good, bad = (_talk(row, name) for name in ("chosen", "rejected"))
        if good[:-1] != bad[:-1]:
            raise InputError('"chosen" and "rejected" answer different prompts; wanted two replies to one')
        return [(good, True), (bad, False)]
    lacking = [name for name in WANTED[kind][1:] if name not in row]
    if lacking:
        here = ", ".join(map(str, row))[:100]
        raise InputError(f'has no "{lacking[0]}", but the columns {here}; wanted {{{", ".join(WANTED[kind])}}}')
    if not isinstance(row["label"], bool):
        raise InputError('"label": wanted true for a good reply, false for a bad one')
    return [(_talk(row, "completion"), row["label"])]


def _renamed(row: Any, fields: Sequence[str], kind: str) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise InputError(f"is no object; wanted {{{', '.join(WANTED[kind])}}}")
    return {**row, **{ours: row[theirs] for ours, theirs in zip(WANTED[kind], fields, strict=False) if theirs in row}}


def _talk(row: Mapping[str, Any], name: str) -> tuple[Message, ...]:
    """What leads to the reply `name`, and it. A reply may be text, messages, or the whole talk."""
    reply = row[name]
    if isinstance(reply, list):
        said = messages(reply, name)
        if said[-1]["role"] != "assistant":
            raise InputError(f'"{name}" ends with what the {said[-1]["role"]} says; wanted the assistant\'s reply')
        return said if said[0]["role"] != "assistant" else (*_prompt(row), *said)
    if not isinstance(reply, str) or not reply.strip():
        raise InputError(f'"{name}": wanted text that is not empty, or messages')
    return (*_prompt(row), Message(role="assistant", content=reply))


def _prompt(row: Mapping[str, Any]) -> tuple[Message, ...]:
    prompt = row.get("prompt", row.get("messages"))
    if isinstance(prompt, str) and prompt.strip():
        return (Message(role="user", content=prompt),)
    if not isinstance(prompt, list):
        raise InputError('"prompt": wanted text that is not empty, or messages')
    return messages(prompt, "prompt")

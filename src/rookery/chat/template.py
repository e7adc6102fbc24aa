"""What every chat template offers, and the text rules that all of them share.

RWKV has no special tokens between speakers: a talk is one text, in which a blank line separates the turns. So a
template is about text alone, and its tokens may be cut only where no token can reach across: after a speaker's colon.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Protocol, TypedDict

from rookery.errors import InputError
from rookery.sampling import Sampling

ROLES = ("system", "user", "assistant", "tool")

_BLANK = re.compile(r"\n(?:[ \t]*\n)+")
_WAITING = re.compile(r"(?:\A|\n)\w{1,30}: +\Z")


class Message(TypedDict):
    """One speaker's words; a reply's as the model wrote them, or with what its opening began (`Template.begun`)."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Template(Protocol):
    """How a talk becomes the text that a model reads. `think` and `tools` are for templates that have a form for them.

    All methods raise InputError for a message that is none, for a role, a think mode or tools that the template has no
    form for; a Jinja template also TemplateError.
    """

    @property
    def name(self) -> str: ...

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a reply; they are no part of it."""

    @property
    def sampling(self) -> Sampling | None:
        """The settings it recommends."""

    def render(
        self, messages: Sequence[Message], reply: bool = True, *, think: str | None = None, tools: Sequence[Any] = ()
    ) -> str:
        """The whole talk as the model reads it; with reply=True it ends with the assistant's opening.

        InputError for an empty talk.
        """

    def follow(self, messages: Sequence[Message], *, think: str | None = None, tools: Sequence[Any] = ()) -> str | None:
        """What to write directly after the last reply, messages[-2], so that messages[-1] is asked.

        It closes the reply, asks and opens the next one: what was read before, the reply and this are together
        `render(messages)`. None where they are not, because the template would now write the history in another way
        (without the old thoughts, with trimmed ends) or the last reply was opened in another think mode: then render
        anew.
        """

    def opening(self, messages: Sequence[Message], *, think: str | None = None, tools: Sequence[Any] = ()) -> str:
        """The beginning of `render(messages)` that is the same whatever the first user says; "" if there is none."""

    def begun(self, *, think: str | None = None, tools: Sequence[Any] = ()) -> str:
        """What the opening has already written of the reply itself, such as " <think"; "" where it leaves it all."""

    def shown(self, reply: str) -> str:
        """A reply as a person wants it: without the space that follows the colon. Thoughts stay."""

    def follows_reply(self) -> str:
        """What always comes after a reply and before the next user's words, such as "\\n\\nUser:"; "" if unknown."""


def clean(text: str) -> str:
    """`text` as it may stand in one turn: LF line ends, no blank lines, no space at the ends.

    In the training data a blank line separates the speakers, so inside a message it would read as a new one. Lines
    keep their indentation. (`clean_txt` of RWKV-LM's RWKV7-G1x-templates.txt; ours takes a line of spaces for blank.)
    """
    return _BLANK.sub("\n", re.sub(r"(?<!\r)\r+\n", "\n", text)).strip()


def trailing_space(prompt: str) -> bool:
    """Whether `prompt` ends with a speaker's colon and a space, as in "Assistant: ".

    The space then becomes a token of its own, whereas in training it was the first letter of the reply: leave it out.
    """
    return _WAITING.search(prompt) is not None


def check(messages: Sequence[Message], roles: Collection[str], name: str) -> None:
    """Raises InputError unless all are messages of `roles`."""
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise InputError(f"message {place + 1}: wanted a role and a content that is text")
        role = message.get("role")
        if role not in roles:
            raise InputError(
                f"message {place + 1}: the template {name} has no role {str(role)[:40]!r}: {', '.join(roles)}"
            )


def continued(template: Template, messages: Sequence[Message], think: str | None, tools: Sequence[Any]) -> str | None:
    """`Template.follow` for any template: the difference between the text before and the text now."""
    whole = template.render(messages, think=think, tools=tools)
    if [message["role"] == "assistant" for message in messages[-2:]] != [True, False]:
        raise InputError("wanted a reply of the assistant as the message before the last, and then what is said to it")
    if len(messages) == 2:
        return None  # nobody asked for this reply
    reply = messages[-2]["content"]
    before = template.render(messages[:-2], think=think, tools=tools) + reply
    if not whole.startswith(before):
        return None
    rest = whole[len(before) :]
    # " x\n" trimmed and closed by "\n\n" would go on with "\n": the same text, but cut into other tokens
    return None if reply[-1:].isspace() and not rest.startswith(template.follows_reply()) else rest

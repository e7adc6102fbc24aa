"""Chat templates in Jinja, as model files carry them. A file's template is hostile: it runs in a process of its own.

What a template does not say, where a reply ends and what stands after it, is found out by rendering a talk of three
words and looking at what the template writes between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from itertools import takewhile
from typing import Any

from rookery.chat.template import ROLES, Message, check, continued
from rookery.chat.worker import Worker
from rookery.errors import InputError, MissingExtra, TemplateError
from rookery.sampling import Sampling

MAX_SOURCE = 1 << 20  # characters
SECONDS = 5.0  # for one rendering
THINK = {"off": False, "fake": False, "on": True, "short": True, "medium": True, "long": True}

_STOPS = ("\n\nUser:", "\n\nAssistant:", "\n\nSystem:")  # where the template writes no talk of three words
_ASKED, _ANSWERED, _AGAIN = "qzasked", "qzanswered", "qzagain"


class Jinja:
    """A template whose source is `source`. It is given the messages, `add_generation_prompt`, `tools` (none if there
    are none), `enable_thinking` if a think mode is asked for (modes without a thought: false), `bos_token` and
    `eos_token` (both empty: no token is added), and nothing else. What a message says is data, never template.

    Raises MissingExtra without jinja2; InputError for a think mode where the source knows no `enable_thinking`;
    TemplateError, in one line, for a source that is wrong, too long, takes more than `seconds` or too much memory.
    """

    sampling: Sampling | None = None

    def __init__(self, source: str, name: str = "jinja", seconds: float = SECONDS) -> None:
        if find_spec("jinja2") is None:
            raise MissingExtra(f"the chat template {name}", "chat")
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"{name}: has {len(source)} characters; at most {MAX_SOURCE} are allowed")
        self.name, self.source = name, source
        self._worker = Worker(source, name, seconds)

    def render(
        self, messages: Sequence[Message], reply: bool = True, *, think: str | None = None, tools: Sequence[Any] = ()
    ) -> str:
        """See Template. A reply is handed over without the space that follows the colon, which the template writes."""
        check(messages, ROLES, self.name)
        if not messages:
            raise InputError("an empty talk: wanted at least one message")
        talk = [
            {"role": m["role"], "content": self.shown(m["content"]) if m["role"] == "assistant" else m["content"]}
            for m in messages
        ]
        variables = {"messages": talk, "add_generation_prompt": reply, "tools": list(tools) or None}
        if think is not None:
            variables["enable_thinking"] = self._thinks(think)
        return self._worker.render(variables | {"bos_token": "", "eos_token": ""})

    def follow(self, messages: Sequence[Message], *, think: str | None = None, tools: Sequence[Any] = ()) -> str | None:
        return continued(self, messages, think, tools)

    def opening(self, messages: Sequence[Message], *, think: str | None = None, tools: Sequence[Any] = ()) -> str:
        """Up to the first user's words, without the spaces before them; "" if there is nothing to tell the model."""
        system = list(takewhile(lambda message: message["role"] == "system", messages))
        if not (system or tools) or len(system) == len(messages):
            return ""
        probe = self.render([*system, Message(role="user", content=_ASKED)], think=think, tools=tools)
        head = probe.partition(_ASKED)[0].rstrip(" ")
        return head if self.render(messages, think=think, tools=tools).startswith(head) else ""

    def begun(self, *, think: str | None = None, tools: Sequence[Any] = ()) -> str:
        bare = self._between[0].rstrip(" ")
        asked = self.render([Message(role="user", content=_ASKED)], think=think, tools=tools)
        opened = asked.rpartition(_ASKED)[2]
        return opened.removeprefix(bare) if opened.startswith(bare) else ""

    def shown(self, reply: str) -> str:
        return reply.removeprefix(" ")

    def follows_reply(self) -> str:
        return self._between[1].rstrip(" ")

    @cached_property
    def stops(self) -> tuple[str, ...]:
        """What the template writes after a reply and before one, up to the words that follow.

        Of a mark such as `<|im_end|>` the mark alone. Never only a blank line: a reply may have paragraphs.
        """
        ends = (_stop(text) for text in reversed(self._between))
        return tuple(dict.fromkeys(filter(str.strip, ends))) or _STOPS

    @cached_property
    def _between(self) -> tuple[str, str]:
        """What stands between a question and its reply, and between the reply and the next question."""
        talk = [
            Message(role="user", content=_ASKED),
            Message(role="assistant", content=_ANSWERED),
            Message(role="user", content=_AGAIN),
        ]
        for head in ([], [Message(role="system", content="")]):  # some insist on a system message
            try:
                _, asked, rest = self.render([*head, *talk], reply=False).partition(_ASKED)
            except TemplateError:
                continue
            before, answered, rest = rest.partition(_ANSWERED)
            after, again, _ = rest.partition(_AGAIN)
            if asked and answered and again:
                return before, after
        return "", ""

    def _thinks(self, think: str) -> bool:
        if "enable_thinking" not in self.source:
            raise InputError(f"think={think!r}: the template {self.name} knows no thinking")
        if think not in THINK:
            raise InputError(f"think={think!r}: not a mode of the template {self.name}; choose from {', '.join(THINK)}")
        return THINK[think]


def _stop(text: str) -> str:
    return text.split("\n")[0].strip() if text[:1].strip() else text.rstrip()

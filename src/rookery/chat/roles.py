"""The builtin templates, as data: who is called what, how a reply is opened, what ends it.

raven  `Bob: ...`, `Alice:` of v4 Raven (ChatRWKV README.md and v2/prompt/default/English-2.py, where the scene is set
       by a paragraph that nobody speaks: a system message is written like that)
world  `User: ...`, `Assistant:` of the World models (ChatRWKV README.md and API_DEMO_CHAT.py). They have no system
       message of their own; it is written `System: ...`, as G1 learnt it and llama.cpp's rwkv-world writes it. The
       demo's other way is two ordinary messages: the user says "hi", and the assistant how helpful it will be
g1     RWKV-7 G1: world with think modes and tools (RWKV-LM, RWKV-v7/RWKV7-G1x-templates.txt)
coder  g1 that answers in Python at once: after an empty thought the opening begins the code block, as RWKV is prompted
       for HumanEval; BlinkDL's repositories name no form of their own for code
plain  the contents as they are, one after the other
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from types import MappingProxyType
from typing import Any

from rookery.chat.profiles import PROFILES
from rookery.chat.template import ROLES, Message, check, clean, continued
from rookery.errors import InputError
from rookery.sampling import Sampling

SEPARATOR = "\n\n"
_FENCE = "```"
_CLOSED = "</think>"
_EMPTY = re.compile(r"<think>\s*</think>\n*")

# mode -> (what is added to the question, how the reply is opened)
THINK: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "off": ("", ""),
        "fake": ("", " <think>\n</think"),
        "on": ("", " <think"),
        "short": (" (think a bit)", " <think"),
        "medium": (" (think)", " <think"),
        "long": (" (think a lot)", " <think"),
    }
)


@dataclass(frozen=True)
class Roles:
    """A template of named speakers.

    A blank line inside a message of a person or a tool is taken out (`clean`); a reply keeps its own and loses only
    the space at its ends. Templates that think leave old thoughts, all up to `</think>`, out of the history, so
    `follow` is None after a reply that began with a thought, be it a fake one.
    """

    name: str
    speakers: Mapping[str, str] = field(hash=False)  # role -> what stands before its words
    stops: tuple[str, ...]
    sampling: Sampling | None = None
    think: Mapping[str, tuple[str, str]] = field(default_factory=dict, hash=False)
    begin: str = ""  # how a reply is opened when no think mode is asked for
    fence: str = ""  # the language of the code block that `begin` leaves open
    tools: bool = False

    def render(
        self, messages: Sequence[Message], reply: bool = True, *, think: str | None = None, tools: Sequence[Any] = ()
    ) -> str:
        """See Template. The think modes off, fake, on, short, medium and long are g1's and coder's."""
        talk = self._talk(messages, tools)
        if not talk:
            raise InputError("an empty talk: wanted at least one message")
        turns = [self._turn(message, tools) for message in talk]
        if reply:
            turns[-1] += self._mode(think, tools)[0] if talk[-1]["role"] == "user" else ""
            turns.append(self.speakers["assistant"].rstrip() + self.begun(think=think, tools=tools))
        return SEPARATOR.join(filter(None, turns))

    def follow(self, messages: Sequence[Message], *, think: str | None = None, tools: Sequence[Any] = ()) -> str | None:
        # No turn looks further back than the reply: what was said before it, be it a book, is not rendered again.
        said = [Message(role=message["role"], content=".") for message in messages[-3:-2]]
        return continued(self, [*said, *messages[-2:]], think, tools)

    def opening(self, messages: Sequence[Message], *, think: str | None = None, tools: Sequence[Any] = ()) -> str:
        self._mode(think, tools)
        system = takewhile(lambda message: message["role"] == "system", self._talk(messages, tools))
        return "".join(turn + SEPARATOR for message in system if (turn := self._turn(message, tools)))

    def begun(self, *, think: str | None = None, tools: Sequence[Any] = ()) -> str:
        """With tools and no think mode it begins a call, " ```json"; "off" leaves the model free to answer in words."""
        return self._mode(think, tools)[1]

    def shown(self, reply: str) -> str:
        text = reply.removeprefix(" ")
        if not self.think:
            return text
        if text.startswith(">"):  # the opening wrote "<think" or "<think>\n</think", the model the rest
            text = f"<think{text}" if _CLOSED in text else f"<think>{_CLOSED}{text[1:]}"
        return _EMPTY.sub("", text, count=1) if text.startswith("<think>") else text

    def follows_reply(self) -> str:
        return SEPARATOR + self.speakers["user"].rstrip()

    def _mode(self, think: str | None, tools: Sequence[Any]) -> tuple[str, str]:
        if think is None:
            return "", f" {_FENCE}json" if tools else self.begin
        if think not in self.think:
            modes = f"choose from {', '.join(self.think)}" if self.think else "it does not think"
            raise InputError(f"think={think!r}: not a mode of the template {self.name}; {modes}")
        return self.think[think]

    def _talk(self, messages: Sequence[Message], tools: Sequence[Any]) -> list[Message]:
        """The messages, checked, the tools among them: they stand in the first system message."""
        check(messages, self.speakers, self.name)
        if not tools:
            return list(messages)
        if not self.tools:
            raise InputError(f"the template {self.name} has no form for tools; g1 has one")
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        text = f"Tools:\n{_listed(tools)}\nReturn only a JSON function call."
        first = Message(role="system", content=text if system is None else f"{system}\n{text}")
        return [first, *messages[system is not None :]]

    def _turn(self, message: Message, tools: Sequence[Any]) -> str:
        spoken = message["role"] == "assistant"
        text = self._reply(message["content"], tools) if spoken else clean(message["content"])
        return (self.speakers[message["role"]] + text).rstrip(" ")

    def _reply(self, text: str, tools: Sequence[Any]) -> str:
        """A reply as it stands in the history, whether `text` begins before or after what its opening wrote."""
        if self.think:
            _, closed, answer = text.rpartition(_CLOSED)
            text = answer if closed else text.removeprefix(">")
        fence = "json" if tools else self.fence
        if fence and text.startswith("\n") and text.count(_FENCE) % 2 and not text.lstrip().startswith(_FENCE):
            text = f"{_FENCE}{fence}{text}"
        return text.strip()


def _listed(tools: Sequence[Any]) -> str:
    """Signatures as a list of lines, JSON objects as a JSON list with an object a line; OpenAI's form is unwrapped."""
    if all(isinstance(tool, str) for tool in tools):
        return "\n".join(f"- {clean(tool)}" for tool in tools)
    return (
        "[\n" + ",\n".join(json.dumps(_tool(tool), ensure_ascii=False, separators=(",", ":")) for tool in tools) + "\n]"
    )


def _tool(tool: Any) -> dict[str, Any]:
    if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping):
        tool = tool["function"]
    if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str):
        raise InputError("tools: wanted signatures as text, or JSON objects that have a name")
    made = {key: tool[key] for key in ("name", "description", "arguments") if key in tool}
    schema = tool.get("parameters")
    if isinstance(schema, Mapping):
        made["arguments"] = schema.get("properties", schema)
    return made


@dataclass(frozen=True)
class Plain:
    """No speakers, no separators: whoever writes the contents decides."""

    name: str = "plain"
    stops: tuple[str, ...] = ()
    sampling: Sampling | None = None

    def render(
        self, messages: Sequence[Message], reply: bool = True, *, think: str | None = None, tools: Sequence[Any] = ()
    ) -> str:
        self._only(messages, think, tools)
        if not messages:
            raise InputError("an empty talk: wanted at least one message")
        return "".join(message["content"] for message in messages)

    def follow(self, messages: Sequence[Message], *, think: str | None = None, tools: Sequence[Any] = ()) -> str | None:
        return continued(self, messages, think, tools)

    def opening(self, messages: Sequence[Message], *, think: str | None = None, tools: Sequence[Any] = ()) -> str:
        self._only(messages, think, tools)
        system = takewhile(lambda message: message["role"] == "system", messages)
        return "".join(message["content"] for message in system)

    def begun(self, *, think: str | None = None, tools: Sequence[Any] = ()) -> str:
        self._only((), think, tools)
        return ""

    def shown(self, reply: str) -> str:
        return reply

    def follows_reply(self) -> str:
        return ""

    def _only(self, messages: Sequence[Message], think: str | None, tools: Sequence[Any]) -> None:
        check(messages, ROLES, self.name)
        if think is not None or tools:
            what = "tools" if tools else f"think={think!r}"
            raise InputError(f"{what}: the template {self.name} has no form for it; g1 has one")


_WORLD = {"system": "System: ", "user": "User: ", "assistant": "Assistant: "}
_ENDS = ("\n\nUser:", "\n\nAssistant:", "\n\nSystem:")
_G1 = Roles("g1", _WORLD | {"tool": "User: Function output:\n"}, _ENDS, PROFILES["g1"], think=THINK, tools=True)

BUILTIN: Mapping[str, Roles | Plain] = MappingProxyType(
    {
        template.name: template
        for template in (
            Roles(
                "raven",
                {"system": "", "user": "Bob: ", "assistant": "Alice: "},
                ("\n\nBob:", "\n\nAlice:"),
                PROFILES["raven"],
            ),
            Roles("world", _WORLD, _ENDS, PROFILES["demo"]),
            _G1,
            replace(
                _G1,
                name="coder",
                sampling=PROFILES["careful"],
                begin=f" <think>\n</think>\n{_FENCE}python",
                fence="python",
            ),
            Plain(),
        )
    }
)

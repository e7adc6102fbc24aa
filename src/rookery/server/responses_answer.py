"""A response as OpenAI's client reads it: of one that is being made, or of a stored turn.

What a turn does not say by itself is noted in it when it is made (`Note`), so that it can be shown as it was answered
after a restart and by another server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rookery.server import talk_ids
from rookery.server.parts import Call, Parts, Thought, Words
from rookery.server.responses_events import Event, Item, Kind, Output
from rookery.session import Session
from rookery.session.turns import Turn

STATUS = {"end": "completed", "stop": "completed", "length": "incomplete", "cancelled": "cancelled"}

ASKED: Mapping[str, Any] = {
    "max_output_tokens": None, "metadata": {}, "parallel_tool_calls": False, "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None}, "store": True, "temperature": None,
    "text": {"format": {"type": "text"}}, "tool_choice": "auto", "top_p": None, "user": None,
}  # fmt: skip  # what a turn that no response made repeats of its request


@dataclass
class Note:
    """What the request asked and how it went; plain JSON values. `response`: the second half of its id."""

    response: str
    created: int
    asked: dict[str, Any] = field(default_factory=dict)  # fields of the answer that repeat the request's
    read: int = 0  # tokens of the input, the talk so far included
    cached: int = 0  # those of them that were not read anew
    thoughts: int = 0  # tokens written before the answer began
    written: int = 0  # tokens drawn
    calls: bool = False  # whether it might call a tool
    ended: int = 0

    @classmethod
    def of(cls, turn: Turn) -> Note:
        """What a turn notes; of one that no response made, what it is known by."""
        found: dict[str, Any] = {"response": turn.id, "created": int(turn.created)}
        return cls(**found | {name: turn.note[name] for name in cls.__dataclass_fields__ if name in turn.note})


@dataclass
class Answer:
    """One response. `talk`, `system` and `tools` are the talk's: its name, how it began, and what may be called."""

    talk: str
    model: str
    note: Note
    system: str | None
    tools: Sequence[Any]
    output: Output = field(init=False)

    def __post_init__(self) -> None:
        self.output = Output(self.note.response)

    @property
    def id(self) -> str:
        return f"resp_{self.talk}{self.note.response}"

    def body(self, status: str, error: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What is answered; usage only when it is over."""
        over = status in STATUS.values()
        return {
            **ASKED,
            **self.note.asked,
            "id": self.id,
            "object": "response",
            "created_at": self.note.created,
            "completed_at": self.note.ended if status == "completed" else None,
            "status": status,
            "background": False,
            "error": dict(error) if error else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self.system,
            "model": self.model,
            "output": self.output.items if over else [],
            "service_tier": "default",
            "tools": [*self.tools],
            "top_logprobs": 0,
            "truncation": "disabled",
            "usage": self._usage() if over else None,
            "rookery": {"state": f"state_{self.talk}"},
        }

    def _usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.note.read,
            "input_tokens_details": {"cached_tokens": self.note.cached, "cache_write_tokens": 0},
            "output_tokens": self.note.written,
            "output_tokens_details": {"reasoning_tokens": self.note.thoughts},
            "total_tokens": self.note.read + self.note.written,
        }


class Told:
    """What a model writes, taken apart into an answer's items."""

    def __init__(self, output: Output, begun: str, *, blank: bool, calls: bool) -> None:
        self._output = output
        self._parts = Parts(begun, blank=blank, calls=calls)

    @property
    def thinking(self) -> bool:
        """Whether the last of what was written is thoughts."""
        return self._output.kind == "reasoning"

    def push(self, text: str) -> list[Event]:
        return self._events(self._parts.push(text))

    def end(self, stop: str) -> list[Event]:
        """Nothing more comes."""
        status = "completed" if STATUS[stop] == "completed" else "incomplete"
        return [*self._events(self._parts.end()), *self._output.finish(status)]

    def _events(self, parts: Sequence[Any]) -> list[Event]:
        events: list[Event] = []
        for part in parts:
            kind: Kind = "message" if isinstance(part, Words) else "reasoning"
            if isinstance(part, Call):
                events += self._output.push("function_call", "", part.name)
            elif isinstance(part, Words | Thought):
                events += self._output.push(kind, part.text)
            else:
                events += self._output.push("function_call", part.text)
        return events


def of_turn(session: Session, turn: Turn, model: str) -> dict[str, Any]:
    """What is answered for a stored turn of the talk of `session`."""
    note = Note.of(turn)
    answer = Answer(talk_ids.code(session.name), model, note, session.system, session.tools)
    told = Told(answer.output, turn.reply, blank=False, calls=note.calls)
    told.end(turn.stop_reason)
    return answer.body(STATUS[turn.stop_reason])


def said(turn: Turn, response: str) -> list[Item]:
    """The items that were said in a turn; `response`: its id's second half."""
    return [_said(message["role"], message["content"], f"{response}{n:04x}") for n, message in enumerate(turn.messages)]


def _said(role: str, text: str, tag: str) -> Item:
    if role == "tool":
        item: Item = {"id": f"fco_{tag}", "type": "function_call_output", "output": text}
        return item | {"call_id": None, "status": "completed"}
    part: Item = {"type": "input_text", "text": text}
    if role == "assistant":
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"id": f"msg_{tag}", "type": "message", "role": role, "content": [part], "status": "completed"}

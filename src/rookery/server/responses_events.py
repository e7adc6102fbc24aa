"""What a response says while it is made: its output items as they grow, and the events of OpenAI's stream.

An event is a dict with its `type`. The order for one item is output_item.added, content_part.added (not of a call), the
deltas, their done, content_part.done, output_item.done; the next item begins after that. All items of all answers are
built here, so that what is streamed, what is answered at once and what is read from the store later are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

Event: TypeAlias = dict[str, Any]
Item: TypeAlias = dict[str, Any]
Kind: TypeAlias = Literal["message", "reasoning", "function_call"]

PREFIXES = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}  # of an item's id
TEXTS = {
    "message": "response.output_text",
    "reasoning": "response.reasoning_text",
    "function_call": "response.function_call_arguments",
}  # of the events of its text


class Output:
    """The output items of the response whose id ends with `tag`. One item at most is open, the last."""

    def __init__(self, tag: str) -> None:
        self.items: list[Item] = []
        self._tag = tag
        self._open: Kind | None = None

    @property
    def kind(self) -> Kind | None:
        """Of the open item."""
        return self._open

    def push(self, kind: Kind, text: str, name: str = "") -> Iterator[Event]:
        """More of the reply. An item goes on while its kind does; a `name` begins a call."""
        if kind != self._open or name:
            yield from self.end("completed")
            yield from self._begin(kind, name)
        if not text:
            return
        item = self.items[-1]
        delta: Event = self._event(f"{TEXTS[kind]}.delta") | {"delta": text}
        if kind == "function_call":
            item["arguments"] += text
        else:
            item["content"][0]["text"] += text
            delta |= _place(kind)
        yield delta

    def end(self, status: str) -> Iterator[Event]:
        """Nothing more comes in the open item."""
        if self._open is None:
            return
        kind, item = self._open, self.items[-1]
        self._open = None
        item["status"] = status
        done = self._event(f"{TEXTS[kind]}.done")
        if kind == "function_call":
            yield done | {"arguments": item["arguments"]}
        else:
            part = item["content"][0]
            yield done | _place(kind) | {"text": part["text"]}
            yield self._event("response.content_part.done") | {"content_index": 0, "part": _copy(part)}
        yield self._whole("response.output_item.done")

    def finish(self, status: str) -> Iterator[Event]:
        """The reply is over: an answer has at least one item."""
        if not self.items:
            yield from self._begin("message")
        yield from self.end(status)

    def _begin(self, kind: Kind, name: str = "") -> Iterator[Event]:
        at = len(self.items)
        item: Item = {"id": f"{PREFIXES[kind]}{self._tag}{at:02x}", "type": kind, "status": "in_progress"}
        if kind == "function_call":
            item |= {"call_id": f"call_{self._tag}{at:02x}", "name": name, "arguments": ""}
        elif kind == "message":
            item |= {"role": "assistant", "content": []}
        else:
            item |= {"summary": [], "content": []}
        self.items.append(item)
        self._open = kind
        yield self._whole("response.output_item.added")
        if kind != "function_call":
            item["content"].append(_part(kind))
            yield self._event("response.content_part.added") | {"content_index": 0, "part": _part(kind)}

    def _event(self, type: str) -> Event:
        return {"type": type, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}

    def _whole(self, type: str) -> Event:
        return {"type": type, "output_index": len(self.items) - 1, "item": _copy(self.items[-1])}


def _part(kind: Kind) -> dict[str, Any]:
    if kind == "message":
        return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": ""}


def _place(kind: Kind) -> Event:
    """Of a part's text, in its events; log-probabilities are not given here, but the field is a must."""
    return {"content_index": 0, "logprobs": []} if kind == "message" else {"content_index": 0}


def _copy(item: dict[str, Any]) -> dict[str, Any]:
    """An item or a part as it is now: it may grow before the event is written."""
    return {
        key: [_copy(part) for part in value] if key == "content" else [*value] if isinstance(value, list) else value
        for key, value in item.items()
    }

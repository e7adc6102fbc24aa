"""Replies in OpenAI's shape, as they come and as a whole: text, calls, logprobs, why they ended, what they cost."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from rookery.engine import Ended, Score, Wrote
from rookery.errors import TokenError
from rookery.server.parts import Arguments, Call, Part, Parts, Plain, Thought, Words
from rookery.server.work import Work
from rookery.tokenizer import Tokenizer

REASONS = {"end": "stop", "stop": "stop", "length": "length"}


class Choice:
    """One reply on its way. `parts`: how it is taken apart."""

    def __init__(self, index: int, tokenizer: Tokenizer, parts: Parts | Plain) -> None:
        self.index, self.reason = index, ""
        self.tokens: list[int] = []  # known when it has ended
        self._tokenizer, self._parts = tokenizer, parts
        self._scores: list[Score] = []  # of tokens whose scores are not out yet
        self._sure = 0  # of these, tokens up to the last that gave text: a later one may end in a stop text
        self._given = 0  # tokens whose scores are out

    def wrote(self, event: Wrote) -> list[Part]:
        if event.score is not None:
            self._scores.append(event.score)
            self._sure = len(self._scores) if event.text else self._sure
        return self._parts.push(event.text)

    def ended(self, event: Ended) -> list[Part]:
        found = [*self._parts.push(event.text), *self._parts.end()]
        if (draft := event.draft) is not None:
            self.tokens = draft.tokens
            shown = draft.kept + bool(draft.tail)  # of a token that spans the beginning of a stop text some is shown
            del self._scores[max(0, shown - self._given) :]
            self._sure = len(self._scores)
            self.reason = REASONS.get(draft.stop_reason or "", "stop")
        if self._parts.calls and self.reason == "stop":
            self.reason = "tool_calls"
        return found

    @property
    def unsaid(self) -> bool:
        """Whether there are scores that no text took along."""
        return bool(self._scores)

    def scores(self) -> list[Score]:
        """Those of the tokens since the last time whose text is out."""
        scores, self._scores = self._scores[: self._sure], self._scores[self._sure :]
        self._given, self._sure = self._given + len(scores), 0
        return scores


def delta(parts: Iterable[Part]) -> dict[str, Any]:
    """The pieces as the next piece of a message."""
    found: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        match part:
            case Thought(text):
                found["reasoning_content"] = found.get("reasoning_content", "") + text
            case Words(text):
                found["content"] = found.get("content", "") + text
            case Call(index, id, name):
                function = {"name": name, "arguments": ""}
                calls[index] = {"index": index, "id": id, "type": "function", "function": function}
            case Arguments(index, text):
                call = calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                call["function"]["arguments"] += text
    return found | ({"tool_calls": list(calls.values())} if calls else {})


def message(parts: Iterable[Part]) -> dict[str, Any]:
    """All the pieces as a message."""
    whole = delta(parts)
    calls = [{name: call[name] for name in ("id", "type", "function")} for call in whole.pop("tool_calls", ())]
    content = whole.pop("content", None if calls else "")
    return {"role": "assistant", "content": content, "refusal": None, **whole} | (
        {"tool_calls": calls} if calls else {}
    )


def chat_logprobs(scores: Sequence[Score], tokenizer: Tokenizer) -> dict[str, Any]:
    """In the shape of chat completions."""
    return {"content": [_scored(score, tokenizer) for score in scores], "refusal": None}


def _scored(score: Score, tokenizer: Tokenizer) -> dict[str, Any]:
    top = [_token(token, logprob, tokenizer) for token, logprob in score.top]
    return _token(score.token, score.logprob, tokenizer) | {"top_logprobs": top}


def _token(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    data = token_data(token, tokenizer)
    text = data.decode(getattr(tokenizer, "encoding", "utf-8"), "replace")
    return {"token": text, "logprob": logprob, "bytes": list(data)}


class Columns:
    """Log-probabilities in the shape of completions: `tokens`, `token_logprobs`, `top_logprobs`, `text_offset`, one of
    each a token. Add the tokens in their order; offsets are in characters.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._offset = tokenizer, 0
        self._decoder = codecs.getincrementaldecoder(getattr(tokenizer, "encoding", "utf-8"))("replace")

    def skip(self, tokens: Iterable[int]) -> None:
        """These come before, unseen."""
        for token in tokens:
            self._offset += len(self._decoder.decode(token_data(token, self._tokenizer)))

    def add(self, scores: Iterable[tuple[int, Score | None]]) -> dict[str, Any]:
        """Tokens, and how likely each was where something stood before it."""
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, score in scores:
            pairs = (*score.top, (token, score.logprob)) if score else ()
            found["tokens"].append(self._name(token))
            found["token_logprobs"].append(score.logprob if score else None)
            found["top_logprobs"].append({self._name(id): logprob for id, logprob in pairs} if score else None)
            found["text_offset"].append(self._offset)
            self.skip([token])
        return found

    def _name(self, token: int) -> str:
        """As OpenAI's: the text, or where that is half a character its bytes."""
        if token == self._tokenizer.end:
            return "<|endoftext|>"
        data = token_data(token, self._tokenizer)
        try:
            return data.decode(getattr(self._tokenizer, "encoding", "utf-8"))
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def token_data(token: int, tokenizer: Tokenizer) -> bytes:
    """The bytes of a token, none for one of the head's rows that has no text."""
    try:
        return tokenizer.token_bytes(token)
    except TokenError:
        return b""


def usage(works: Sequence[Work], written: int) -> dict[str, Any]:
    """What was read and written."""
    prompt = sum(len(work.ask.tokens) for work in works)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": sum(work.cached for work in works)},
    }

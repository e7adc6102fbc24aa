"""Sessions under attack: errors in the middle of a reply, mistakes of every kind, and random programs of calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from talks import SAMPLINGS, tiny

from rookery import Session, errors
from rookery.store.memory import Memory


class Trap:
    """Raises at the n-th call from when it is set, and at as many more as told, through whatever it was put into."""

    def __init__(self) -> None:
        self.set(0, times=0)

    def set(self, n: int, error: type[BaseException] = KeyboardInterrupt, times: int = 1) -> None:
        self.n, self.times, self.error = n, times, error

    def step(self) -> None:
        self.n -= 1
        if -self.times < self.n <= 0:
            raise self.error

    def around(self, call: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
        def trapped(*args: Any, **more: Any) -> Any:
            if not after:
                self.step()
            result = call(*args, **more)
            if after:
                self.step()
            return result

        return trapped


class Trapped:
    """A model whose `forward` and whose samplers' `sample` pass a trap."""

    def __init__(self, model: Any, trap: Trap, where: str) -> None:
        self._model, self._trap, self._where = model, trap, where

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, *args: Any, **more: Any) -> Any:
        return (self._trap.around(self._model.forward) if self._where == "forward" else self._model.forward)(
            *args, **more
        )

    def sampler(self, *args: Any, **more: Any) -> Any:
        made = self._model.sampler(*args, **more)
        if self._where == "sample":
            made.sample = self._trap.around(made.sample)
        return made


class Interrupted(Memory):
    """A store whose `add` passes a trap, before or after the work."""

    def __init__(self, trap: Trap, after: bool) -> None:
        super().__init__()
        self.add = trap.around(super().add, after)  # type: ignore[method-assign]


def whole(talk: Session, model: Any) -> None:
    """What holds of every talk at any moment."""
    before, at = [], talk.at
    for node in talk.tree_.path(at):
        reply = next(span for span in reversed(node.spans) if span.role == "assistant")
        data = model.tokenizer.decode_bytes(node.tokens[reply.begin :]) + node.tail
        assert node.messages[-1][1] == data.decode("utf-8", "replace")
        before.append(node.id)
    if at is not None:
        expected = model.forward(talk.tokens)[1]
        talk.tree_._live.clear()
        assert talk.state.vector().tobytes() == expected.vector().tobytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, errors.BackendError])
@pytest.mark.parametrize("where", ["forward", "sample"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 13, 14])
def test_an_error_in_the_middle_keeps_what_was_written(where: str, n: int, error: type[BaseException]) -> None:
    trap = Trap()
    model: Any = Trapped(tiny(), trap, where)
    talk = Session(model, "world", SAMPLINGS["seeded"], seed=5)
    _ = talk.say("a", max_tokens=12).text
    once = Session(tiny(), "world", SAMPLINGS["seeded"], seed=5)
    _ = once.say("a", max_tokens=12).text
    uncut = once.say("b", max_tokens=12)
    _ = uncut.text
    reply = talk.say("b", max_tokens=12)
    trap.set(n, error)
    try:
        shown = "".join(reply)
    except error:
        shown = None
    if shown is None:
        assert reply.stop_reason is not None
    trap.set(0, times=0)
    whole(talk, tiny())
    if len(talk.turns) == 1:
        assert n <= 2
        reply = talk.say("b", max_tokens=12)
        assert reply.text == uncut.text
    else:
        assert uncut.tokens[: len(reply.tokens)] == reply.tokens
        if talk.turns[-1].stop_reason == "cancelled":
            whole(talk, tiny())
            rest = talk.proceed(12 - len(reply.tokens))
            assert rest.text == uncut.text
            assert talk.tokens == once.tokens
    whole(talk, tiny())


def test_interrupted_twice_nothing_is_lost() -> None:
    trap = Trap()
    model: Any = Trapped(tiny(), trap, "forward")
    talk = Session(model, "world", seed=5)
    reply = talk.say("b", max_tokens=12)
    _ = [next(reply) for _ in range(4)]
    trap.set(1, times=2)
    with pytest.raises(KeyboardInterrupt):
        next(reply)
    assert len(talk.turns) == 1
    assert len(reply.tokens) >= 4
    whole(talk, tiny())


@pytest.mark.parametrize("after", [False, True])
def test_interrupted_while_a_turn_is_kept(after: bool) -> None:
    trap = Trap()
    store = Interrupted(trap, after)
    talk = Session(tiny(), "world", store=store, name="t")
    _ = talk.say("a", max_tokens=3).text
    trap.set(1)
    with pytest.raises(KeyboardInterrupt):
        _ = talk.say("b", max_tokens=3).text
    assert [turn.user for turn in talk.turns] == ["a", "b"]
    _ = talk.say("c", max_tokens=3).text
    assert talk.head == "main"
    assert [turn.user for turn in Session.resume(store, "t", tiny()).turns] == ["a", "b", "c"]

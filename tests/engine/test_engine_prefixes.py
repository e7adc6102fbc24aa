"""The cache of prompts changes the time, never an answer, and no owner sees another's."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from loads import SAMPLINGS, Ask, drive, tiny

from rookery.engine import Ended, Engine, Marked, Prefixes, Sequence, Start


def test_found_is_what_was_put() -> None:
    model = tiny()
    cache = Prefixes(model)
    tokens = np.random.default_rng(0).integers(0, 256, 1500).tolist()
    for n in (3, 256, 700, 1500):
        cache.put("me", tokens[:n], *model.forward(tokens[:n]))
    for size, known in ((2, 0), (3, 3), (255, 3), (256, 256), (699, 256), (1499, 700), (1500, 1500)):
        n, logits, state = cache.find("me", tokens[:size])
        assert n == known
        if known:
            expected = model.forward(tokens[:n])
            assert logits is not None
            assert (logits.tobytes(), state.flat.tobytes()) == (expected[0].tobytes(), expected[1].flat.tobytes())
            state.flat[:] = 0  # a copy
        else:
            assert logits is None
            assert state.flat.tobytes() == model.state().flat.tobytes()
    assert cache.find("me", tokens)[2].flat.any()
    assert cache.find("you", tokens)[0] == 0
    cache.put("you", [9, 9, 9], *model.forward([9, 9, 9]))
    assert cache.find("you", tokens)[0] == 0
    other = [*tokens[:699], tokens[699] ^ 1, *tokens[700:]]
    assert cache.find("me", other)[0] == 256


def test_the_least_recently_used_go() -> None:
    model = tiny()
    logits, state = model.forward([1])
    size = logits.nbytes + state.flat.nbytes
    cache = Prefixes(model, 3 * size)
    for token in (1, 2, 3):
        cache.put("", [token], *model.forward([token]))
    assert cache.find("", [1])[0] == 1
    cache.put("", [4], *model.forward([4]))
    assert [cache.find("", [token])[0] for token in (1, 2, 3, 4)] == [1, 0, 1, 1]
    assert (cache.kept.bytes, cache.kept.evicted) == (3 * size, 1)
    small = Prefixes(model, size - 1)
    small.put("", [1], logits, state)
    assert small.kept.bytes == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.booleans()), max_size=40))
def test_against_a_list(steps: list[tuple[list[int], bool]]) -> None:
    model = tiny()
    cache, known = Prefixes(model), set()
    for tokens, puts in steps:
        if puts:
            cache.put("", tokens, *model.forward(tokens))
            known.add(tuple(tokens))
        longest = max((n for n in range(len(tokens) + 1) if tuple(tokens[:n]) in known), default=0)
        assert cache.find("", tokens)[0] == longest


def test_warm_is_cold_to_the_bit() -> None:
    model = tiny()
    cache, engine = Prefixes(model), Engine(model)
    rng = np.random.default_rng(3)
    prompt = rng.integers(0, 256, 400).tolist()
    for turn, marks in enumerate(pairwise((0, 400, 800, 1200))):
        asked = Ask(model, prompt, 20, seed=turn, sampling=SAMPLINGS[1])
        events: list[object] = []
        n, logits, state = cache.find("", prompt)
        assert n == (0 if turn == 0 else marks[0] + 20 * turn)
        draft = asked.draft(0)
        start = Start(state, prompt[n:], logits=logits, marks=(len(prompt) - n,), drafts=(draft,))
        engine.submit(Sequence(lambda start=start: start, events.append))
        drive(engine, lambda events=events: any(isinstance(event, Ended) for event in events))
        alone = asked.alone()
        assert draft.tokens == alone.tokens
        (end,) = [event for event in events if isinstance(event, Ended)]
        assert end.point is not None
        assert end.point[1].flat.tobytes() == alone.state.flat.tobytes()
        (mark,) = [event for event in events if isinstance(event, Marked)]
        cache.put("", prompt, mark.logits, mark.state)
        cache.put("", [*prompt, *draft.tokens], *end.point)
        prompt = [*prompt, *draft.tokens, *rng.integers(0, 256, 400).tolist()]

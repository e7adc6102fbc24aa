"""Turns, headers, snapshots and prefixes as bytes: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_things import ROOT, key_of, same, snapshot, talk, turn

from rookery import errors, store
from rookery.store import Node, Prefix, Snapshot, Span, Talk

# turns

TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # half surrogate pairs too
NODES = st.builds(
    turn,
    st.none() | st.just("0" * 32),
    *[st.integers(0, 2**32 - 1)] * 3,
    base=st.just("1" * 32),
    kept=st.none() | st.integers(0, 9),
    tail=st.binary(max_size=4),
    messages=st.lists(st.tuples(st.sampled_from(("system", "user", "assistant", "tool")), TEXT), max_size=3).map(tuple),
    stop=st.sampled_from(("end", "stop", "length", "cancelled")),
    created=st.floats(0, 1e12),
)


@given(NODES)
@settings(deadline=None)
def test_a_turn_is_read_as_written(node: Node) -> None:
    text = node.to_json()
    assert text.isascii()
    assert "\n" not in text
    assert Node.from_json(text, node.id) == node
    assert replace(node, created=0.0).id == node.id


@pytest.mark.parametrize(
    "change",
    [
        {"parent": "0" * 32},
        {"base": "0" * 32},
        {"tokens": (1, 2, 4)},
        {"spans": (Span("user", 0, 2),)},
        {"spans": (Span("tool", 0, 3),)},
        {"tail": b""},
        {"messages": (("user", "other"),)},
        {"stop": "end"},
        {"sampling": "{}"},
        {"key": key_of(9)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_id_names_all_of_the_content(change: dict[str, Any]) -> None:
    node = turn(None, 1, 2, 3)
    assert replace(node, **change).id != node.id
    damaged = replace(node, **change).to_json()
    with pytest.raises(ValueError, match="not what its id says"):
        Node.from_json(damaged, node.id)


def test_the_id_names_how_much_of_its_base_a_turn_keeps() -> None:
    assert len({turn("0" * 32, 1, kept=kept).id for kept in (None, 0, 1)}) == 3


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"parent": "0" * 31}, "parent"),
        ({"base": "../" + "0" * 29}, "base"),
        ({"base": 7}, "base"),
        ({"tokens": (-1,)}, "tokens"),
        ({"tokens": (2**32,)}, "tokens"),
        ({"tokens": (True,)}, "tokens"),
        ({"tokens": (1.0,)}, "tokens"),
        ({"tokens": [1, 2]}, "tokens"),
        ({"tokens": (np.int64(3),)}, "tokens"),
        ({"spans": (Span("user", 0, 4),)}, "span"),
        ({"spans": (Span("user", 2, 1),)}, "span"),
        ({"spans": (Span("user", -1, 1),)}, "span"),
        ({"spans": (Span("stranger", 0, 1),)}, "span"),
        ({"spans": (("user", 0, 1),)}, "span"),
        ({"tail": "text"}, "tail"),
        ({"messages": (("nobody", "x"),)}, "message"),
        ({"messages": (("user", 3),)}, "message"),
        ({"messages": (("user",),)}, "message"),
        ({"stop": "bored"}, "stop"),
        ({"sampling": "[]"}, "sampling"),
        ({"sampling": "{"}, "sampling"),
        ({"sampling": "[" * 100_000}, "sampling"),
        ({"sampling": None}, "sampling"),
        ({"key": "k"}, "key"),
        ({"created": float("nan")}, "time"),
        ({"created": float("inf")}, "time"),
        ({"created": "now"}, "time"),
        ({"created": -1.0}, "time"),
        ({"kept": 3}, "keeps"),
        ({"base": "0" * 32, "kept": -1}, "keeps"),
        ({"base": "0" * 32, "kept": True}, "keeps"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_fields_that_cannot_be(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(turn(None, 1, 2, 3), **change)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "{}", "[" * 200_000, '{"parent":null}', "\x00"])
def test_what_is_no_turn(text: str) -> None:
    for kind in (Node, Talk):
        with pytest.raises(ValueError, match=r"not JSON|fields are not"):
            kind.from_json(text)


PLAIN = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.floats()


@given(
    st.sampled_from(sorted(json.loads(turn(None, 1, 2).to_json()))),
    st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3)),
)
@settings(deadline=None)
def test_a_hostile_field_is_a_value_error_or_right(field: str, value: Any) -> None:
    node = turn(None, 1, 2)
    plain = json.loads(node.to_json()) | {field: value}
    try:
        found = Node.from_json(json.dumps(plain), node.id)
    except ValueError:
        return
    assert replace(found, created=node.created) == node


def test_a_header_is_read_as_written() -> None:
    text = talk("name", settings='{"system": "€"}').to_json()
    assert Talk.from_json(text, "name") == talk("name", settings='{"system": "€"}')
    with pytest.raises(ValueError, match="another talk's"):
        Talk.from_json(text, "other")
    with pytest.raises(ValueError, match="digest says"):
        Talk.from_json(text.replace('"lineage":"l"', '"lineage":"m"'))


@pytest.mark.parametrize(
    "change", [{"schema": 0}, {"schema": "1"}, {"settings": "x"}, {"lineage": None}, {"created": -1}]
)
def test_headers_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change)).replace("created", "time")):
        replace(talk(), **change)


# snapshots


def test_halves_are_within_rounding_and_half_the_size() -> None:
    state = snapshot(n=20_000, vocabulary=None)
    whole, half = state.encode(), state.encode(half=True)
    assert len(half) < 0.52 * len(whole)
    error = np.abs(Snapshot.decode(half).flat - state.flat)
    assert 0 < error.max() <= np.abs(state.flat).max() * 2.0**-11


def test_v4_is_never_halved() -> None:
    state = snapshot(version="4")
    assert same(Snapshot.decode(state.encode(half=True)), state)


@pytest.mark.parametrize("value", [65_520.0, -1e30, np.nan])
def test_what_float16_cannot_hold_stays_whole(value: float) -> None:
    state = snapshot()
    state.flat[3] = value
    assert same(Snapshot.decode(state.encode(half=True)), state)


def test_float64_stays_so_unless_halved() -> None:
    state = snapshot(dtype=np.float64)
    assert same(Snapshot.decode(state.encode()), state)
    found = Snapshot.decode(state.encode(half=True))
    assert found.flat.dtype == np.float32
    assert found.logits is not None
    assert state.logits is not None
    assert found.logits.tobytes() == state.logits.tobytes()


def test_every_flipped_bit_is_found() -> None:
    data = snapshot(n=9, vocabulary=3).encode()
    assert same(Snapshot.decode(data), snapshot(n=9, vocabulary=3))
    for at in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(errors.DamagedFile):
            Snapshot.decode(bytes(damaged))


def test_every_truncation_is_found() -> None:
    data = snapshot(n=9, vocabulary=3).encode()
    for end in range(len(data)):
        with pytest.raises(errors.DamagedFile):
            Snapshot.decode(data[:end])
    with pytest.raises(errors.DamagedFile):
        Snapshot.decode(data + b"\0")


@pytest.mark.parametrize(
    "change",
    [
        {"flat": np.zeros((3, 3), np.float32)},
        {"flat": np.zeros(3, np.int32)},
        {"logits": np.zeros(3, np.float16)},
        {"logits": np.zeros((1, 3), np.float32)},
        {"tokens": -1},
        {"tokens": "many"},
    ],
    ids=str,
)
def test_a_snapshot_of_another_make_is_refused_though_its_digest_is_right(change: dict[str, Any]) -> None:
    with pytest.raises(errors.DamagedFile):
        Snapshot.decode(replace(snapshot(), **change).encode())


# prefixes


@given(st.lists(st.integers(0, 2**32 - 1), max_size=900), st.data())
@settings(max_examples=60, deadline=None)
def test_a_prefix_is_the_same_however_it_was_cut(tokens: list[int], data: st.DataObject) -> None:
    whole = Prefix.start(ROOT).extend(tokens)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=6)))
    pieces = Prefix.start(ROOT)
    for begin, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        pieces = pieces.extend(tokens[begin:end])
    assert pieces == whole
    assert pieces.key == whole.key
    assert whole.count == len(tokens)
    assert Prefix.start(ROOT).extend(np.array(tokens, np.uint32)).key == whole.key


def test_keys_differ_where_tokens_do() -> None:
    random = np.random.default_rng(5)
    tokens = random.integers(0, 65_536, 1100)
    start = Prefix.start(ROOT)
    keys = {start.extend(tokens[:n]).key for n in range(1101)}
    for at in range(1100):
        other = tokens.copy()
        other[at] += 1
        keys.add(start.extend(other).key)
    assert len(keys) == 2201
    assert all(len(key) == 64 for key in keys)


def test_roots_differ_where_anything_does() -> None:
    said = ("f", "t", "i", "a", "s")
    roots = {store.root(*said)} | {store.root(*said[:i], "x", *said[i + 1 :]) for i in range(5)}
    roots |= {store.root("ft", "", "i", "a", "s"), store.root("f", "t", "i", "as", "")}
    assert len(roots) == 8
    assert len({Prefix.start(root).key for root in roots}) == 8


@pytest.mark.parametrize("tokens", [[-1], [2**32], [2**64], [1.5], ["a"], np.array([-5]), np.array([2.0])])
def test_no_token_ids(tokens: Any) -> None:
    with pytest.raises(errors.TokenError):
        Prefix.start(ROOT).extend(tokens)

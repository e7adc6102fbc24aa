"""Any bytes come back, token by token or at once, from every tokenizer; both tries agree."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery import _native, errors
from rookery import tokenizer as room
from rookery.tokenizer import UTF16LE, Bytes, Tokenizer, World, load

PYTHON = World(native=False)
ALL: list[Tokenizer] = [World(), PYTHON, Bytes(), UTF16LE()]
# Draws that reach far into the trie: pieces of vocabulary, text of many scripts, and plain noise.
CHUNKS = st.one_of(
    st.integers(1, 65_529).map(PYTHON.token_bytes),
    st.text(max_size=12).map(str.encode),
    st.binary(max_size=8),
    st.sampled_from([b" ", b"\n", b"\r\n", b"\0", b"  ", b"0", b"\xf0\x9f", b"\xed\xa0\x80"]).flatmap(
        lambda piece: st.integers(1, 40).map(lambda times: piece * times)
    ),
)
BYTES = st.lists(CHUNKS, max_size=12).map(b"".join)
IDS = st.lists(st.integers(0, 65_529), max_size=12)


@given(BYTES)
def test_bytes_come_back(data: bytes) -> None:
    for tokenizer in ALL:
        assert tokenizer.decode_bytes(tokenizer.encode(data)) == data


@given(st.text())
def test_text_comes_back(text: str) -> None:
    for tokenizer in ALL:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= id < tokenizer.vocab_size for id in ids)


@given(BYTES)
def test_matches_are_longest(data: bytes) -> None:
    ids, at = PYTHON.encode(data), 0
    for id in ids:
        longest = max(n for n in range(1, min(129, len(data) - at + 1)) if data[at : at + n] in PYTHON._trie._ids)
        assert PYTHON.token_bytes(id) == data[at : at + longest]
        at += longest


@pytest.mark.skipif(not _native.available(), reason="the native core is not built")
@given(BYTES)
def test_native_equals_python(data: bytes) -> None:
    assert ALL[0].encode(data) == PYTHON.encode(data)


@given(IDS, BYTES)
def test_streaming_equals_decode(ids: list[int], data: bytes) -> None:
    for tokenizer in ALL:
        for whole in (tokenizer.encode(data), [id % tokenizer.vocab_size for id in ids]):
            stream = tokenizer.stream()
            pieces = [stream.push(id) for id in whole] + [stream.flush()]
            assert "".join(pieces) == tokenizer.decode(whole)
            assert stream.push(tokenizer.encode(b"a\0")[0]) in ("a", "")  # as new after flush


@given(st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])))
def test_stream_holds_back_half_characters(text: str) -> None:
    for tokenizer in ALL:
        stream = tokenizer.stream()
        sofar = ""
        for id in tokenizer.encode(text):
            sofar += stream.push(id)
            assert text.startswith(sofar)
        assert sofar == text
        assert stream.flush() == ""


@pytest.mark.parametrize(
    ("tokenizer", "pieces"),
    [
        (Bytes(), {0xE2: "", 0x82: "", 0x41: "\ufffdA"}),
        (UTF16LE(), {0x3D: "", 0xD8: "", 0x00: "", 0xDE: "\U0001f600"}),
    ],
    ids=["utf-8 that can never become valid", "a surrogate pair"],
)
def test_stream_by_hand(tokenizer: Tokenizer, pieces: dict[int, str]) -> None:
    stream = tokenizer.stream()
    assert {id: stream.push(id) for id in pieces} == pieces


def test_what_a_tokenizer_says_of_itself() -> None:
    seen = [(t.name, t.vocab_size, t.end) for t in (load("world"), load("bytes"), load("utf16le"))]
    assert seen == [("world", 65_536, 0), ("bytes", 256, None), ("utf16le", 256, None)]
    assert UTF16LE().encode("hé") == [0x68, 0, 0xE9, 0]
    assert Bytes().encode("hé") == [0x68, 0xC3, 0xA9]


def test_end_of_text_has_no_bytes(world: World) -> None:
    assert world.token_bytes(0) == b""
    assert world.decode_bytes([0, *world.encode("hi"), 0]) == b"hi"
    assert 0 not in world.encode("\0<|endoftext|>")


def test_arrays_are_sequences_of_ids(world: World) -> None:
    for tokenizer in (world, Bytes()):
        ids = tokenizer.encode("Two households")
        assert tokenizer.decode(np.array(ids)) == "Two households"  # type: ignore[arg-type]


@pytest.mark.parametrize("id", [-1, 65_530, 65_535, 65_536, 2**64, 1.0, "a", None])
def test_unknown_ids(world: World, id: int) -> None:
    for tokenizer in (world, Bytes()):
        with pytest.raises(
            errors.TokenError, match=rf"^{id} is no token of this vocabulary of {tokenizer.vocab_size}$"
        ):
            tokenizer.decode([97, id])
        with pytest.raises(errors.TokenError):
            tokenizer.stream().push(id)


def test_many_threads_may_share_one(world: World) -> None:
    text = "The rooks of RWKV, 乌鸦, кошка 123\n" * 300
    with ThreadPoolExecutor(4) as pool:
        assert len(set(map(tuple, pool.map(world.encode, [text] * 16)))) == 1


def test_public_names() -> None:
    assert [room.World, room.Bytes, room.UTF16LE] == [World, Bytes, UTF16LE]
    assert set(room.__all__) <= set(dir(room))
    assert all(hasattr(room, name) for name in room.__all__)


def test_half_a_surrogate_pair(world: World) -> None:
    for tokenizer in (world, Bytes(), UTF16LE()):
        with pytest.raises(errors.InputError, match=r"character 2 .*U\+DC80"):
            tokenizer.encode("ab\udc80")

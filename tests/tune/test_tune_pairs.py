"""Preference data, read back as text: what is compared, what is trained, what is cut, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rookery import chat, tokenizer
from rookery.errors import DamagedFile, InputError
from rookery.tune.pairs import PairData

BYTES, WORLD = tokenizer.load("bytes"), tokenizer.load("world")
USER, REPLY = "User: {}\n\nAssistant:", "« {}<end>»"


@dataclass(frozen=True)
class Given:
    """[data] of a run."""

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    hold_out: float = 0.0
    ctx_len: int = 64
    mask: str = "reply"
    packing: bool = True
    fields: tuple[str, ...] = ()


def write(path: Path, *rows: Any) -> tuple[str, ...]:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return (str(path),)


def pair(n: int) -> dict[str, str]:
    return {"prompt": f"{n}+{n}", "chosen": f"{2 * n}" + "!" * (n % 4), "rejected": f"{2 * n + 1}"}


def single(n: int, prompt: int | None = None) -> dict[str, Any]:
    return {"prompt": f"{n if prompt is None else prompt}?", "completion": f"reply {n}", "label": n % 3 == 0}


def data(folder: Path, rows: list[Any], kind: str = "dpo", known: Any = WORLD, **given: Any) -> PairData:
    batch, seed = given.pop("batch", 4), given.pop("seed", 1)
    settings = Given(train=write(folder / "rows.jsonl", *rows), **given)
    return PairData(settings, known, chat.load("world"), "cpu", batch, seed, folder / "data", objective=kind)


def text(prompt: str, reply: str) -> str:
    return USER.format(prompt) + REPLY.format(reply)


TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Go"}]


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK, "chosen": "Left", "rejected": "Right"},
        {"prompt": TALK, "chosen": [assistant("Left")], "rejected": [assistant("Right")]},
        {"chosen": [*TALK, assistant("Left")], "rejected": [*TALK, assistant("Right")]},
        {"prompt": "Hi", "chosen": [*TALK, assistant("Left")], "rejected": [*TALK, assistant("Right")], "score": 3},
    ],
    ids=["text", "messages", "whole talks", "whole talks beside a prompt"],
)
def test_the_forms_of_a_pair(tmp_path: Path, row: dict[str, Any]) -> None:
    """Of a talk the last reply alone is compared."""
    (found,) = data(tmp_path, [row], batch=1).texts(0)
    history = "User: Hi\n\nAssistant: Yes?\n\nUser: Go\n\nAssistant:"
    assert found == f"{history}« Left<end>»\n---\n{history}« Right<end>»"


def test_columns_of_other_names(tmp_path: Path) -> None:
    row = {"q": "1+1", "better": "2", "worse": "3"}
    (found,) = data(tmp_path, [row], batch=1, fields=("q", "better", "worse")).texts(0)
    assert found == f"{text('1+1', '2')}\n---\n{text('1+1', '3')}"


def test_single_replies_and_those_of_pairs(tmp_path: Path) -> None:
    made = data(tmp_path, [single(0), single(1), pair(5)], "kto", batch=4)
    good = made.batch(0)[4].tolist()
    found = {row.split("\n---\n")[0]: ok for row, ok in zip(made.texts(0), good, strict=True)}
    assert found == {
        text("0?", "reply 0"): True,
        text("1?", "reply 1"): False,
        text("5+5", "10!"): True,
        text("5+5", "11"): False,
    }


def test_every_epoch_reads_every_pair_once_in_its_own_order(tmp_path: Path) -> None:
    made = data(tmp_path, [pair(n) for n in range(8)])
    assert made.steps_per_epoch(4) == 2
    epochs = [made.texts(2 * e) + made.texts(2 * e + 1) for e in range(2)]
    wanted = {
        f"{text(row['prompt'], row['chosen'])}\n---\n{text(row['prompt'], row['rejected'])}"
        for row in map(pair, range(8))
    }
    assert set(epochs[0]) == set(epochs[1]) == wanted
    assert epochs[0] != epochs[1]
    assert data(tmp_path, [pair(n) for n in range(8)], seed=2).texts(0) != made.texts(0)


def test_a_batch_is_shared_out(tmp_path: Path) -> None:
    made = data(tmp_path, [pair(n) for n in range(9)], batch=6)
    whole = made.batch(1)
    parts = [made.batch(1, rank, 3) for rank in range(3)]
    assert sum(float(part[3].sum()) for part in parts) == pytest.approx(1)
    for rank, part in enumerate(parts):
        for x, y in zip(part, whole, strict=True):
            wanted = y[rank::3]
            assert torch.equal(x, wanted[..., : x.shape[-1]])
            assert not wanted[..., x.shape[-1] :].any()


def test_held_out_shares_are_one(tmp_path: Path) -> None:
    made = data(tmp_path, [pair(n) for n in range(40)], hold_out=0.3)
    held = list(made.held_out())
    rows = sum(len(batch[0]) for batch in held)
    assert 4 < rows < 20
    assert rows + len(made.halves["train"]) == 40
    assert sum(float(batch[3].sum()) for batch in held) == pytest.approx(1)
    (one,) = made.held_out(1)
    assert one[3].tolist() == [1]


def test_a_long_prompt_loses_its_beginning_alike_in_both(tmp_path: Path) -> None:
    row = {"prompt": "abcdefghij" * 20, "chosen": "short", "rejected": "rather longer"}
    made = data(tmp_path, [row, pair(1)], known=BYTES, ctx_len=48, batch=2)
    found = next(t for t in made.texts(0) if "short" in t)
    chosen, rejected = found.split("\n---\n")
    prompts = [x[: x.index("«")] for x in (chosen, rejected)]
    assert prompts[0] == prompts[1] == (row["prompt"] + "\n\nAssistant:")[-28:]
    assert chosen.endswith("« short\n\nUser:»")  # bytes have no end of text
    assert rejected.endswith("« rather longer\n\nUser:»")
    tokens, _, trained, _ = made.batch(0)
    assert tokens.shape[-1] == 48
    assert int(trained.sum(-1).max()) == len(" rather longer\n\nUser:") == 49 - 28
    assert "1 prompts cut at ctx_len, 0 pairs left out" in made.summary()


def test_a_reply_that_does_not_fit_is_left_out(tmp_path: Path) -> None:
    long = {"prompt": "Go", "chosen": "yes", "rejected": "no " * 40}
    made = data(tmp_path, [long, pair(1)], known=BYTES, batch=1)
    assert len(made.halves["train"]) == 1
    assert "1 pairs left out" in made.summary()
    with pytest.raises(InputError, match=r"data\.train: no reply fits into ctx_len 64 .*; 127 would hold the longest"):
        data(tmp_path, [long], known=BYTES)
    assert len(data(tmp_path, [long], known=BYTES, ctx_len=127, batch=1).texts(0)) == 1


def test_another_prompts_reply(tmp_path: Path) -> None:
    """The second sequence is the prompt with the reply of the next row that has another prompt, around the end."""
    rows = [single(0, 7), single(1, 7), single(2, 8), single(3, 9), single(4, 7)]
    made = data(tmp_path, rows, "kto", batch=5)
    found = dict(row.split("\n---\n") for row in made.texts(0))
    assert found == {
        text("7?", "reply 0"): text("7?", "reply 2"),
        text("7?", "reply 1"): text("7?", "reply 2"),
        text("8?", "reply 2"): text("8?", "reply 3"),
        text("9?", "reply 3"): text("9?", "reply 4"),
        text("7?", "reply 4"): text("7?", "reply 2"),
    }


def test_where_all_prompts_are_one_the_next_reply_serves(tmp_path: Path) -> None:
    made = data(tmp_path, [single(n, 7) for n in range(3)], "kto", batch=3)
    found = dict(row.split("\n---\n") for row in made.texts(0))
    assert found == {text("7?", f"reply {n}"): text("7?", f"reply {(n + 1) % 3}") for n in range(3)}


def test_fingerprints_tell_rows_and_layouts_apart(tmp_path: Path) -> None:
    rows = [pair(n) for n in range(4)]
    first = data(tmp_path, rows).fingerprint()
    assert data(tmp_path, rows).fingerprint() == first
    others = [
        data(tmp_path, [*rows[:3], {**rows[3], "chosen": "4"}]),
        data(tmp_path, [{**rows[0], "chosen": "1", "rejected": "0"}, *rows[1:]]),
        data(tmp_path, rows, ctx_len=10),
        data(tmp_path, rows, "kto"),
        data(tmp_path, rows, hold_out=0.4),
    ]
    assert len({first, *(made.fingerprint() for made in others)}) == 6


@pytest.mark.parametrize(
    ("row", "kind", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, "dpo", 'has no "rejected", but the columns prompt, chosen'),
        ({"prompt": "a", "completion": "b", "label": True}, "simpo", 'has no "chosen"'),
        ({"prompt": "a", "chosen": "b"}, "kto", 'has no "completion"'),
        ({"prompt": "a", "completion": "b", "label": 1}, "kto", '"label": wanted true .* or|"label": wanted true'),
        ({"chosen": "b", "rejected": "c"}, "dpo", '"prompt": wanted text'),
        ({"prompt": " ", "chosen": "b", "rejected": "c"}, "dpo", '"prompt": wanted text that is not empty'),
        ({"prompt": "a", "chosen": "", "rejected": "c"}, "dpo", '"chosen": wanted text that is not empty'),
        ({"prompt": "a", "chosen": TALK, "rejected": "c"}, "orpo", '"chosen" ends with what the user says'),
        ({"prompt": "a", "chosen": [*TALK, assistant("b")], "rejected": "c"}, "dpo", "answer different prompts"),
        ({"prompt": [{"role": "asistant", "content": "x"}], "chosen": "b", "rejected": "c"}, "dpo", "nearest is assi"),
        ([1], "dpo", "is no object"),
        ("{", "dpo", "is not JSON"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, row: Any, kind: str, said: str) -> None:
    good = pair(1)
    with pytest.raises(DamagedFile, match=rf"rows\.jsonl: line 2 .*{said}"):
        data(tmp_path, [good, row], kind)


def test_what_has_no_pairs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("text\n")
    with pytest.raises(InputError, match=r"x\.txt: wanted \.jsonl with the replies that are compared"):
        data(tmp_path, [pair(1)], validation=(str(tmp_path / "x.txt"),))
    with pytest.raises(InputError, match=r"data\.fields = \['a', 'b'\]: wanted the names of prompt, chosen, rejected"):
        data(tmp_path, [pair(1)], fields=("a", "b"))

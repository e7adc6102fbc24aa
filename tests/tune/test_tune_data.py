"""The batch of a tuning step, read back as text: what is in it and trained, where documents begin, what it weighs."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tolerances import LOSS

torch = pytest.importorskip("torch")

import rookery
from rookery import chat, tokenizer, weights
from rookery.backends.torch import Network
from rookery.errors import DamagedFile, FileError, InputError
from rookery.train import binidx
from rookery.tune import documents, packing
from rookery.tune.data import TuneData

FIXTURES = Path(__file__).parents[1] / "fixtures"
BYTES, WORLD = tokenizer.load("bytes"), tokenizer.load("world")
END = "<end>»"


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
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return (str(path),)


def pairs(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"{n}+{n}", "completion": f"{2 * n}" + "!" * (n % 5)} for n in range(count)]


def data(folder: Path, given: Given, batch: int = 4, seed: int = 1, known: Any = WORLD, **more: Any) -> TuneData:
    return TuneData(given, known, chat.load("world"), "cpu", batch, seed, folder / "data", **more)


def epoch(made: TuneData) -> list[str]:
    """The documents of the first epoch as they stand in its batches."""
    steps, rest = divmod(len(made.train), made.batch_rows)
    assert not rest, "choose a batch that divides the rows"
    return [part for step in range(steps) for row in made.texts(step) for part in row.split("\n---\n")]


def read(row: dict[str, str]) -> str:
    return f"User: {row['prompt']}\n\nAssistant:« {row['completion']}{END}"


# what is in a batch


@pytest.mark.parametrize("pack", [True, False])
def test_every_document_is_read_once_an_epoch(tmp_path: Path, pack: bool) -> None:
    """Packed or not: each whole, its reply trained, alone in a row or behind the beginning of its own."""
    rows = pairs(41)
    given = Given(write(tmp_path / "rows.jsonl", *rows), packing=pack)
    made = data(tmp_path, given, batch=1)
    assert Counter(epoch(made)) == Counter(map(read, rows))
    assert len(made.train) == (41 if not pack else pytest.approx(41 / 5, abs=2))  # 10 to 13 tokens each
    assert all(made.train.length(row) <= 64 for row in range(len(made.train)))


def test_the_parts_of_a_batch(tmp_path: Path) -> None:
    """Targets are the tokens one further, padding is nothing, and only packed rows say where documents begin."""
    rows = pairs(7)
    files = write(tmp_path / "rows.jsonl", *rows)
    tokens, targets, weights_ = data(tmp_path, Given(files, packing=False), batch=7).batch(0)
    assert tokens.shape == targets.shape == weights_.shape == (7, 16)
    assert (tokens.dtype, targets.dtype, weights_.dtype) == (torch.int64, torch.int64, torch.float32)
    for t, y, w in zip(tokens, targets, weights_, strict=True):
        n = int(w.nonzero()[-1]) + 1
        assert t[1:n].equal(y[: n - 1])
        assert int(y[n - 1]) == 0 == WORLD.end
        assert not t[n:].any()
        assert not y[n:].any()
        assert not w[n:].any()
    packed, _, _, resets = data(tmp_path, Given(files, packing=True), batch=7).batch(0)
    assert packed.shape == (7, 64)
    begins = [packed[b, t].item() for b, t in resets.nonzero().tolist()]
    assert begins == WORLD.encode("User")[:1] * len(begins)
    assert len(begins) == sum(row.count("\n---\n") + 1 for row in data(tmp_path, Given(files), batch=7).texts(0))


def test_a_long_text_is_cut_into_windows(tmp_path: Path) -> None:
    text = "".join(f"{n:03}, " for n in range(50))
    for pack in (True, False):
        made = data(tmp_path, Given(write(tmp_path / "a.jsonl", {"text": text}), packing=pack), batch=1, known=BYTES)
        found = sorted(epoch(made), key=lambda part: text.index(part[:1] + part[2:-1]))
        assert [len(part) - 3 for part in found] == [64, 64, 64, 57]
        assert text[0] + "".join(part[2:-1] for part in found) == text
        assert made.train.cut == made.train.left_out == 0


def test_a_reply_keeps_its_question(tmp_path: Path) -> None:
    """A talk that is too long loses its end, and with it all of its reply where the question is long enough."""
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "b" * 200},
        {"prompt": "a" * 200, "completion": "b"},
    ]
    made = data(tmp_path, Given(write(tmp_path / "a.jsonl", *rows)), batch=len(rows) - 1, known=BYTES)
    head = "User: a\n\nAssistant:«"
    assert Counter(epoch(made)) == Counter([f"{head} b\n\nUser:»", f"{head} {'b' * (65 - len(head))}»"])
    assert (made.train.cut, made.train.left_out) == (2, 1)
    assert "2 documents" not in made.summary()
    assert "3 documents in 2 rows" in made.summary()
    assert "2 cut at ctx_len, 1 left out" in made.summary()


def test_texts_token_files_and_packed_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One line.\nAnother.\n")
    with binidx.writing(tmp_path / "tokens") as writer:
        writer.add([*WORLD.encode("First item"), 0])
        writer.add([*WORLD.encode("Second"), 0])
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"text": "Packed"}\n\n{"question": "q", "answer": "a"}')
    sources = tuple(str(tmp_path / name) for name in ("a.txt", "tokens", "b.jsonl.gz"))
    made = data(tmp_path, Given(sources), batch=1)
    wanted = ["One« line.\nAnother.\n<end>»", "First« item<end>»", "Second«<end>»", "Pack«ed<end>»"]
    assert Counter(epoch(made)) == Counter([*wanted, "User: q\n\nAssistant:« a<end>»"])
    made = data(tmp_path, Given((str(tmp_path),)), batch=1)  # a folder: its texts
    assert len(epoch(made)) == 3


# what it weighs


@pytest.mark.parametrize("pack", [True, False])
def test_weights_are_the_mean_over_all_trained_tokens(tmp_path: Path, pack: bool) -> None:
    rows = [*pairs(39), {"prompt": "a", "completion": " b c" * 10}]
    made = data(tmp_path, Given(write(tmp_path / "rows.jsonl", *rows), packing=pack), batch=4)
    for step in range(10):
        found = made.batch(step)
        tokens, targets, weights_ = found[:3]
        shares = [made.batch(step, rank, 2) for rank in range(2)]
        assert all(share[0].shape[0] == 2 and share[0].shape[1] == tokens.shape[1] for share in shares)
        together = torch.cat([share[0] for share in shares])
        assert sorted(together.tolist()) == sorted(tokens.tolist())
        assert sum(float(share[2].double().sum()) for share in shares) == pytest.approx(1, abs=1e-6)
        assert float(weights_.double().sum()) == pytest.approx(1, abs=1e-6)
        assert len(set(weights_[weights_ > 0].tolist())) == 1
        trained = sum(text.count("<end>") for text in made.texts(step))
        assert int(((weights_ > 0) & (targets == 0)).sum()) == trained


def test_packed_documents_do_not_know_of_each_other(tmp_path: Path) -> None:
    """The loss of packed rows is the mean over the trained tokens of the documents, each run alone."""
    rows = [*pairs(9), {"text": "A text without a question. " * 4}]
    made = data(tmp_path, Given(write(tmp_path / "rows.jsonl", *rows)), batch=4, known=BYTES)
    network = Network.of(weights.load(str(FIXTURES / "v7.safetensors")))
    tokens, targets, share, resets = made.batch(0)

    def nats(*batch: Any) -> Any:
        with torch.no_grad():
            logits, _ = network(batch[0], None, *batch[2:])
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[1], reduction="none")

    packed = float((nats(tokens, targets, resets) * share).sum())
    alone, count = 0.0, 0
    for b in range(4):
        cuts = [*resets[b].nonzero().flatten().tolist(), 64]
        for first, last in pairwise(cuts):
            piece = slice(b, b + 1), slice(first, last)
            trained = share[piece] > 0
            alone += float(nats(tokens[piece], targets[piece])[trained].sum())
            count += int(trained.sum())
    assert packed == pytest.approx(alone / count, abs=LOSS)
    assert abs(float((nats(tokens, targets) * share).sum()) - packed) > 10 * LOSS


# the order


def test_the_order_follows_from_seed_and_step(tmp_path: Path) -> None:
    files = write(tmp_path / "rows.jsonl", *pairs(13))
    made = data(tmp_path, Given(files, packing=False), batch=4)
    assert made.steps_per_epoch(4) == 4
    read_ = [text for step in range(13) for text in made.texts(step)]  # four epochs, whose ends are inside steps
    for n in range(4):
        assert Counter(read_[13 * n : 13 * n + 13]) == Counter(map(read, pairs(13)))
    assert len({tuple(read_[13 * n : 13 * n + 13]) for n in range(4)}) == 4
    again = data(tmp_path, Given(files, packing=False), batch=4)
    assert again.texts(7) == made.texts(7)
    other = data(tmp_path, Given(files, packing=False), batch=4, seed=2)
    assert other.texts(7) != made.texts(7)
    assert other.fingerprint() == made.fingerprint()


def test_a_batch_may_be_larger_than_the_data(tmp_path: Path) -> None:
    made = data(tmp_path, Given(write(tmp_path / "rows.jsonl", *pairs(3)), packing=False), batch=8)
    assert Counter(Counter(made.texts(0)).values()) == Counter([3, 3, 2])


def test_rows_are_full(tmp_path: Path) -> None:
    """Packing leaves less than a tenth of the room free, and one document's worth where all have one length."""
    lengths = torch.randint(1, 65, (2000,), generator=torch.Generator().manual_seed(1)).numpy()
    rows = packing.packed(lengths, 64, seed=3)
    assert sorted(n for row in rows for n in row) == [*range(2000)]
    assert max(int(lengths[row].sum()) for row in rows) <= 64
    assert lengths.sum() / (64 * len(rows)) > 0.9
    assert packing.packed(lengths, 64, seed=3) == rows != packing.packed(lengths, 64, seed=4)


# held-out rows


def test_what_is_held_out_is_never_trained(tmp_path: Path) -> None:
    rows = pairs(200)
    given = Given(write(tmp_path / "rows.jsonl", *rows), hold_out=0.2, packing=False)
    made = data(tmp_path, given, batch=1)
    trained = set(epoch(made))
    held = list(made.held_out())
    assert 20 < len(held) < 60
    assert len(held) + len(trained) == 200
    assert sum(float(batch[2].double().sum()) for batch in held) == pytest.approx(1, abs=1e-5)
    more = data(tmp_path, replace(given, train=write(tmp_path / "more.jsonl", *rows[::-1], *pairs(300)[200:])), batch=1)
    assert trained <= set(epoch(more))  # a row stays on its side


def test_rows_that_are_alike_are_held_out_apart() -> None:
    """Of every fifty neighbours some, as chance has it."""
    rows = [json.dumps({"prompt": "x", "completion": f"{n:04}"}).encode() for n in range(1000)]
    held = [documents._chosen(row, 0.2) for row in rows]
    assert all(1 < sum(held[n : n + 50]) < 25 for n in range(0, 1000, 50))


def test_validation_files_are_held_out(tmp_path: Path) -> None:
    files = write(tmp_path / "rows.jsonl", *pairs(30)), write(tmp_path / "held.jsonl", *pairs(35)[30:])
    for pack in (True, False):
        made = data(tmp_path, Given(*files, packing=pack), batch=2)
        batches = list(made.held_out())
        one = 1 / sum(len(WORLD.encode(f" {row['completion']}")) + 1 for row in pairs(35)[30:])
        weighed = torch.cat([batch[2].flatten() for batch in batches])
        assert set(weighed[weighed > 0].tolist()) == {torch.tensor(one, dtype=torch.float32).item()}
        assert int((weighed > 0).sum()) == pytest.approx(1 / one)
    assert not list(data(tmp_path, Given(files[0])).held_out())


@pytest.mark.parametrize(("limit", "rows"), [(0, 40), (320, 40), (160, 20), (1, 1)])
def test_not_more_is_held_out_than_asked_for(tmp_path: Path, limit: int, rows: int) -> None:
    same = [{"prompt": f"{n}", "completion": "same"} for n in range(10, 50)]  # 8 tokens each
    files = write(tmp_path / "rows.jsonl", *pairs(3)), write(tmp_path / "held.jsonl", *same)
    made = data(tmp_path, Given(*files, packing=False))
    found = list(made.held_out(limit))
    assert sum(len(batch[0]) for batch in found) == rows
    assert sum(float(batch[2].double().sum()) for batch in found) == pytest.approx(1, abs=1e-6)
    assert [batch[0].tolist() for batch in made.held_out(limit)] == [batch[0].tolist() for batch in found]
    seen = torch.cat([batch[0] for batch in found])
    assert len(set(map(tuple, seen.tolist()))) == rows


# states that do not begin empty


def test_no_packing_where_a_row_does_not_begin_empty(tmp_path: Path) -> None:
    made = data(tmp_path, Given(write(tmp_path / "rows.jsonl", *pairs(5))), batch=5, resets_possible=False)
    assert not made.packing
    assert len(made.batch(0)) == 3
    assert Counter(made.texts(0)) == Counter(map(read, pairs(5)))


# the files of a run


def test_rows_are_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(tmp_path / "rows.jsonl", *pairs(9))
    heard: list[tuple[int, int]] = []
    first = data(tmp_path, Given(files), progress=lambda *at: heard.append(at))
    assert heard[-1][0] == heard[-1][1] == Path(files[0]).stat().st_size
    with monkeypatch.context() as patched:
        patched.setattr(documents, "_write", lambda *_: pytest.fail("tokenised again"))
        assert data(tmp_path, Given(files, ctx_len=32)).fingerprint() != first.fingerprint()
        assert data(tmp_path, Given(files)).fingerprint() == first.fingerprint()
    changed = [Given(files, mask="all"), Given(files, hold_out=0.5), Given(files, fields=("completion", "prompt"))]
    for given in changed:
        assert data(tmp_path, given).fingerprint() != first.fingerprint()
    assert data(tmp_path, Given(files), known=BYTES).fingerprint() != first.fingerprint()
    write(tmp_path / "rows.jsonl", *pairs(8))
    assert data(tmp_path, Given(files)).fingerprint() != first.fingerprint()


def test_a_mask_of_another_size_is_damage(tmp_path: Path) -> None:
    given = Given(write(tmp_path / "rows.jsonl", *pairs(9)))
    data(tmp_path, given)
    mask = tmp_path / "data" / "train.mask"
    mask.write_bytes(mask.read_bytes()[:-3])
    with pytest.raises(DamagedFile, match=r"train\.mask: has \d+ marks for \d+ tokens"):
        data(tmp_path, given)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([b'{"prompt": "a", "completion": "b"}', b"{'text': 3}"], "line 2 is not JSON"),
        ([b"", b'{"text": "a b"}', b'{"text": 3}'], 'line 3 "text" is a number; wanted text'),
        ([b'{"messages": [{"role": "usr", "content": "a"}]}'], "line 1 message 1 has the unknown role 'usr'; .* user,"),
        ([b'{"messages": [{"role": "user", "content": "a"}]}'], "line 1 has no assistant turn"),
        ([b'{"text": "\xff"}'], "line 1 is not UTF-8"),
        ([b'{"text": "\\ud800"}'], "line 1 character 0 of the text is half a surrogate pair"),
        ([b"[" * 100_000], "line 1 is not JSON"),
        ([b'["a"]'], "line 1 is a list; wanted an object"),
        ([b""], "has no text in it|empty|no bytes"),
    ],
)
def test_rows_that_will_not_do(tmp_path: Path, lines: list[bytes], said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(FileError, match=said) as caught:
        data(tmp_path, Given((str(path),)))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("rows", "change", "said"),
    [
        (
            [{"prompt": "a " * 300, "completion": "b"}] * 3,
            {},
            r"data.train: .*ctx_len 64 cuts the reply off.* its 3 rows",
        ),
        ([{"text": "a"}], {}, "data.train: nothing would be trained: none of its 1 rows has a token"),
        (pairs(2), {"hold_out": 1.0}, "data.hold_out = 1.0: a share from 0 to less than 1"),
        (pairs(2), {"hold_out": 0.999999}, "data.train: there is no row in it"),
        (pairs(2), {"mask": "none"}, "data.mask = 'none'"),
        (pairs(2), {"train": ()}, "no data"),
        (pairs(2), {"fields": ("a", "b")}, 'line 1 has no "a"'),
    ],
)
def test_data_that_will_not_do(tmp_path: Path, rows: list[Any], change: dict[str, Any], said: str) -> None:
    given = replace(Given(write(tmp_path / "rows.jsonl", *rows)), **change)
    with pytest.raises(rookery.errors.RookeryError, match=said) as caught:
        data(tmp_path, given, known=BYTES)
    assert "\n" not in str(caught.value)


def test_tokens_of_another_vocabulary(tmp_path: Path) -> None:
    with binidx.writing(tmp_path / "tokens") as writer:
        writer.add([300, 2])
    with pytest.raises(InputError, match="document 0 holds token 300, but the vocabulary has 256"):
        data(tmp_path, Given((str(tmp_path / "tokens"),)), known=BYTES)


# real data


def test_gsm8k(tmp_path: Path, shared: Path) -> None:
    """Every one of its rows is read back, the answer and its end trained and nothing else."""
    path = shared / "data" / "instruct" / "gsm8k_train.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    made = data(tmp_path, Given((str(path),), ctx_len=1024), batch=1)
    wanted = {f"User: {chat.clean(r['question'])}\n\nAssistant:« {r['answer'].strip()}{END}" for r in rows}
    assert set(epoch(made)) == wanted
    assert (made.train.cut, made.train.left_out) == (0, 0)
    assert made.train.targets.sum() / (1024 * len(made.train)) > 0.5


@pytest.mark.parametrize("name", ["self_instruct_seed_tasks.jsonl", "rwkv_demo.jsonl"])
def test_instruct_files(tmp_path: Path, shared: Path, name: str) -> None:
    path = shared / "data" / "instruct" / name
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    made = data(tmp_path, Given((str(path),), ctx_len=8192), batch=1)
    parts = epoch(made)
    assert len(parts) == len(rows)
    if "text" in rows[0]:
        assert {part.replace("«", "").replace("»", "") for part in parts} == {row["text"] + "<end>" for row in rows}
        return
    outputs = {f"« {row['instances'][0]['output'].strip()}{END}" for row in rows}
    assert {part[part.index("«") :] for part in parts} == outputs

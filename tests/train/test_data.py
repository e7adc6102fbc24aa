"""The batch of a step: the recipe's samples, whole windows, documents apart; and data that will not do."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tolerances import LOSS
from training_runs import config_file

torch = pytest.importorskip("torch")

from rookery import errors
from rookery.errors import InputError, RookeryError
from rookery.train import binidx, config, order
from rookery.train.data import Data
from rookery.train.parallel import Parallel
from rookery.train.trainer import Trainer

VOCABULARY = "".join(f"{i + 1} {bytes([i])!r} 1\n" for i in range(256))  # and 0 ends a text


def data(folder: Path, *overrides: str) -> Data:
    settings = config.load(str(config_file(folder)), [f"out={folder / 'run'}", *overrides])
    return Data(settings, Parallel("cpu"))


def stream(folder: Path, ids: list[int]) -> str:
    with binidx.writing(folder / "tokens", 256) as writer:
        writer.add(ids)
    return f"train={folder / 'tokens'}"


@pytest.mark.parametrize("n", [48, 49, 63, 64, 65, 96, 97, 320, 1000])
def test_every_window_is_whole(tmp_path: Path, n: int) -> None:
    """Targets follow inputs even at the end of the stream, and a cycle reads every window of the prime once."""
    ids = [i % 251 for i in range(n)]
    made = data(tmp_path, stream(tmp_path, ids), "batch=1")
    begins = []
    for step in range(made.prime):
        tokens, targets = made.batch(step)
        assert tokens.shape == targets.shape == (1, 16)
        at = order.start(step + 1, made.prime, 16)
        assert tokens[0].tolist() == ids[at : at + 16]
        assert targets[0].tolist() == ids[at + 1 : at + 17]
        begins.append(at)
    assert sorted(begins) == [16 * i for i in range(made.prime)]


@pytest.mark.parametrize("world", [2, 4])
def test_shares_make_the_batch(tmp_path: Path, world: int) -> None:
    made = data(tmp_path)
    for step in (0, 5):
        whole, _ = made.batch(step)
        shares = torch.cat([made.batch(step, rank, world)[0] for rank in range(world)])
        assert sorted(whole.tolist()) == sorted(shares.tolist())


def test_documents_apart(tmp_path: Path) -> None:
    """With data.reset the loss of a window is that of its documents, each by itself."""
    (tmp_path / "vocabulary.txt").write_text(VOCABULARY)
    texts = ["the cat", "a dog and a bird", "x", "one more of them", "no"] * 12
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    changes = [f"train={tmp_path / 'text.jsonl'}", f"tokenizer={tmp_path / 'vocabulary.txt'}", "batch=2", "ctx_len=40"]
    settings = config.load(str(config_file(tmp_path)), [*changes, "l2wrap=0", f"out={tmp_path / 'run'}"])
    apart = Trainer(config.load(str(config_file(tmp_path)), [*changes, "l2wrap=0", "reset=true"]), live=False)
    together = Trainer(settings, live=False)
    for trainer in (apart, together):  # a fresh model's blocks do nothing yet
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for p in trainer.network.parameters():
                p += 0.2 * torch.randn(p.shape, generator=generator)
    tokens, targets, resets = apart.data.batch(0)
    wanted, network = 0.0, apart.network
    for row, aims, begins in zip(tokens, targets, resets, strict=True):
        cuts = [0, *begins.nonzero().flatten().tolist(), len(row)]
        assert len(cuts) > 4
        assert all(row[cut - 1] == 0 for cut in cuts[1:-1])
        for a, b in pairwise(cuts):
            with torch.no_grad():
                logits, _ = network(row[None, a:b])
            wanted += float(torch.nn.functional.cross_entropy(logits[0], aims[a:b], reduction="sum"))
    wanted /= tokens.numel()
    losses = apart.step()[0], together.step()[0]
    assert losses[0] == pytest.approx(wanted, abs=LOSS)
    assert abs(losses[1] - wanted) > 10 * LOSS


def test_a_text_is_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data(tmp_path)
    settings = config.load(str(tmp_path / "run.toml"))
    monkeypatch.setattr("rookery.train.corpus.build", lambda *_, **__: pytest.fail("tokenised again"))
    assert np.array_equal(Data(settings, Parallel("cpu")).stream, first.stream)


def test_other_sources_are_tokenised_anew(tmp_path: Path) -> None:
    first = data(tmp_path)
    (tmp_path / "other.txt").write_text("now for something else " * 20)
    second = data(tmp_path, f"train={tmp_path / 'other.txt'}")
    assert len(second.stream) == 460 != len(first.stream)
    (tmp_path / "other.txt").write_text("and now for something else " * 20)
    changed = data(tmp_path, f"train={tmp_path / 'other.txt'}")
    assert len(changed.stream) == 540
    (tmp_path / "other.txt").write_text("now for something else " * 20)
    third = data(tmp_path, f"train={tmp_path / 'other.txt'}", "tokenizer=utf16le")
    assert len(third.stream) == 920


def test_the_fingerprint_is_of_the_tokens(tmp_path: Path) -> None:
    ids = list(np.random.default_rng(1).integers(0, 200, 5000))
    first = data(tmp_path, stream(tmp_path, ids)).fingerprint()
    assert data(tmp_path, stream(tmp_path, ids)).fingerprint() == first
    for change in (ids[:-1], [*ids[:700], 201, *ids[701:]]):
        assert data(tmp_path, stream(tmp_path, change)).fingerprint() != first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("validation={folder}/one.txt", "data.validation has 1 tokens: 2 or more"),
        ("train={folder}/empty.txt", "empty"),
        ("train={folder}/spaces", "no files|holds no|no text"),
        ("train={folder}/nowhere.txt", "nowhere.txt"),
        ("train={folder}/picture.png", "picture.png"),
        ("ctx_len=100000", r"\d+ tokens are too few for ctx_len 100000.*ctx_len \d+ would fit"),
        ("reset=true", "data.reset: the tokenizer bytes has no end of text"),
        ("tokenizer={folder}/nowhere.txt", "nowhere.txt"),
        ("vocab_size=100", "data.train holds token 122, but the vocabulary has 100"),
    ],
)
def test_data_that_will_not_do(tmp_path: Path, change: str, said: str) -> None:
    (tmp_path / "one.txt").write_text("x")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "spaces").mkdir()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\x00" * 100)
    with pytest.raises(RookeryError, match=said) as caught:
        data(tmp_path, change.format(folder=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_token_file_that_is_cut_off(tmp_path: Path) -> None:
    source = stream(tmp_path, list(range(100)))
    target, _ = binidx.paths(tmp_path / "tokens")
    target.write_bytes(target.read_bytes()[:-40])
    with pytest.raises(errors.TruncatedFile, match=r"tokens\.bin"):
        data(tmp_path, source)


def test_an_id_that_hides_behind_the_first_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rookery.train.data.LOOKED_AT", 10)
    made = data(tmp_path, stream(tmp_path, [1] * 20 + [99] * 300), "vocab_size=50", "batch=1")
    behind = next(n for n in range(made.prime) if order.start(n + 1, made.prime, 16) > 20)
    with pytest.raises(InputError, match="holds token 99, but the vocabulary has 50"):
        made.batch(behind)

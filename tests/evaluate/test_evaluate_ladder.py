"""The ladder: what knows nothing scores chance, counting scores more, gosling more again on what it was made for."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rookery
from rookery.evaluate import Local, make, run
from tolerances import BITS_UNTRAINED

ROOT = Path(__file__).resolve().parents[2]
BOOKS = ("lang_blue_fairy_book", "nesbit_railway_children")
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> rookery.Model:
    """Gosling's shapes and vocabulary with random numbers, also where training begins with zeros: what stands before
    matters, and says nothing.
    """
    from rookery.backends.torch import Network

    gosling, generator = rookery.load("gosling"), torch.Generator().manual_seed(1)
    network = Network.fresh(gosling.config, seed=1)
    for values in network.parameters():
        if values.ndim == 2 and not values.any():
            torch.nn.init.normal_(values, std=0.05, generator=generator)
    path = tmp_path_factory.mktemp("untrained") / "untrained.safetensors"
    network.save(str(path))
    return rookery.load(path, tokenizer=gosling.tokenizer)


@pytest.mark.parametrize(("task", "chance"), [("hellaswag", 1 / 4), ("piqa", 1 / 2), ("mmlu", 1 / 4)])
def test_a_model_that_knows_nothing_scores_chance(
    untrained: rookery.Model, shared: Path, task: str, chance: float
) -> None:
    found = run(Local(untrained), [make(task, data=shared / "data/eval")], limit=48)["results"][task]
    assert (found["chance"], found["n"]) == (chance, 48)
    for of in {"acc", "acc_norm"} & set(found):
        assert abs(found[of] - chance) < 3 * math.sqrt(chance * (1 - chance) / 48)


def test_and_no_last_word(untrained: rookery.Model, shared: Path) -> None:
    found = run(Local(untrained), [make("lambada", data=shared / "data/eval")], limit=48)["results"]["lambada"]
    assert found["acc"] == 0
    assert found["perplexity"] > untrained.config.n_vocab / 2


def test_and_takes_the_bits_of_the_vocabulary(untrained: rookery.Model, shared: Path) -> None:
    task = make("perplexity", {"tokens": 1000}, shared / "data/books/alice.txt")
    found = run(Local(untrained), [task])["results"]["perplexity"]
    uniform = math.log2(found["chance"]) * found["tokens"] / found["bytes"]
    assert found["chance"] == untrained.config.n_vocab
    assert found["bits_per_byte"] == pytest.approx(uniform, rel=BITS_UNTRAINED)


def ladder(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, Any]]:
    """What benchmarks/ladder.py says of the held-out text, gosling last."""
    spec = importlib.util.spec_from_file_location("ladder", ROOT / "benchmarks" / "ladder.py")
    assert spec
    assert spec.loader
    module: ModuleType = importlib.util.module_from_spec(spec)
    path, argv = list(sys.path), sys.argv
    try:
        spec.loader.exec_module(module)
        sys.argv = ["ladder.py", *map(str, arguments), "--json"]
        module.main()
    finally:
        sys.path[:], sys.argv = path, argv
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["bits_per_byte"]["held out"]
    return found


def test_counting_beats_chance_and_gosling_beats_counting(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted here on one book only; the slow test below has all."""
    chapters = [gzip.decompress((shared / f"data/stories/{name}.txt.gz").read_bytes()).decode() for name in BOOKS]
    for name, text in zip(("train", "valid"), chapters, strict=True):
        parts = [text[at : at + 4000] for at in range(0, 8 * 4000, 4000)] if name == "valid" else [text]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": part}) + "\n" for part in parts))
    found = ladder(capsys, tmp_path / "train.jsonl", tmp_path / "valid.jsonl", "--orders", "0,1,2,4")
    bits = {row["model"]: row["bits"] for row in found}
    assert list(bits) == ["uniform", "1-gram", "2-gram", "4-gram", "random network", "gosling"]
    assert bits["uniform"] > bits["1-gram"] > bits["2-gram"] > bits["gosling"]
    assert all(row["more"] > row["more_half"] > 0 for row in found[:-1])


@pytest.mark.slow
def test_gosling_beats_what_is_counted_on_all_it_was_trained_on(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, data = ROOT / "examples" / "gosling" / "data.py", shared / "data"
    subprocess.run([sys.executable, script, data / "stories", data / "instruct", "-o", tmp_path], check=True)
    found = ladder(capsys, tmp_path / "train.jsonl", tmp_path / "valid.jsonl", "--orders", "3,4")
    assert [row["model"] for row in found] == ["3-gram", "4-gram", "random network", "gosling"]
    assert all(row["more"] > row["more_half"] > 0 for row in found[:-1])

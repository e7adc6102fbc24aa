"""Workers of Ray Data answer as this process does, and leave the same files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rookery
from rookery import evaluate
from rookery.cli.main import main
from rookery.errors import InputError, MissingExtra
from rookery.evaluate import Continue, Item, Likelihood, Local, Passage, jobs, run

GOSLING = jobs.opened("gosling")
OTHER = jobs.opened(Path(__file__).parents[1] / "fixtures" / "v7.safetensors", tokenizer="bytes")
# Ray's own warnings, of its own deprecated settings and of files that it leaves to the collector
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "ResourceWarning", "pytest.PytestUnraisableExceptionWarning")
]


class Settings:
    pass


class Mixed:
    """Every kind of request, and ids beside texts. The item `broken` asks for a token that no model has."""

    name, settings = "mixed", Settings()

    def __init__(self, count: int = 9, broken: int | None = None) -> None:
        self.count, self.broken = count, broken

    def items(self, coder: Any) -> Iterator[Item]:
        for i in range(self.count):
            odd = (99_999,) if i == self.broken else (65, 66)
            yield Item((Likelihood(f"{i} It was a", " day"), Passage(odd), Continue(f"{i} It was", 4)), {"i": i})

    def row(self, item: Item, answers: Any) -> dict[str, Any]:
        likely, read, text = answers
        return {"logprob": likely.logprob, "read": read.logprobs.tolist(), "text": text}

    def summary(self, rows: Any) -> dict[str, Any]:
        return {"sum": sum(row["logprob"] for row in rows)}


@pytest.fixture(scope="module")
def scorer() -> Local:
    return Local(rookery.load("gosling"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="wants the extra ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_the_same_bytes_by_workers_after_a_stop_too(cluster: None, scorer: Local, tmp_path: Path) -> None:
    run(scorer, [Mixed()], out=tmp_path / "here")
    by_two = jobs.reader(GOSLING, scorer.about, 2, batch=2)
    run(scorer, [Mixed()], out=tmp_path / "there", reader=by_two)
    run(scorer, [Mixed()], limit=4, out=tmp_path / "both")
    run(scorer, [Mixed()], out=tmp_path / "both", reader=by_two)
    assert contents(tmp_path / "there") == contents(tmp_path / "here") == contents(tmp_path / "both")


def test_what_a_worker_refuses_is_one_line_and_the_rows_before_it_are_kept(
    cluster: None, scorer: Local, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^token 99999 is outside the model's vocabulary"):
        run(scorer, [Mixed(broken=3)], out=tmp_path, reader=jobs.reader(GOSLING, scorer.about, 1, batch=1))
    assert len((tmp_path / "mixed.jsonl").read_bytes().splitlines()) == 3


def test_a_worker_that_dies_is_replaced(cluster: None, scorer: Local, tmp_path: Path) -> None:
    flag = tmp_path / "died"

    def fickle(threads: int) -> Local:
        made = Local(rookery.load("gosling", threads=threads))
        if not flag.exists():
            flag.touch()
            made.answer = lambda asked: os.kill(os.getpid(), 9)  # type: ignore[assignment, method-assign]
        return made

    by_two = jobs.reader(fickle, scorer.about, 2, batch=2)
    assert run(scorer, [Mixed()], reader=by_two) == run(scorer, [Mixed()])
    assert flag.exists()


@pytest.mark.parametrize(
    ("make", "workers", "said"),
    [
        (GOSLING, 3, "^3 workers: Ray has 2 processors here; ask for fewer workers$"),
        (OTHER, 1, "^a worker's model differs in .*fingerprint"),
        (jobs.opened("none.gguf"), 1, "^a worker cannot begin: .*none.gguf"),
    ],
)
def test_workers_that_cannot_be(cluster: None, scorer: Local, make: jobs.Make, workers: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(scorer, [Mixed(3)], reader=jobs.reader(make, scorer.about, workers, batch=1))


def test_the_command_with_workers(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # files named from here are found by workers that stand elsewhere
    (tmp_path / "model.gguf").symlink_to(rookery.load("gosling").weights.path)
    given = ["eval", "multihop", "hops=0,1", "distances=0", "repeats=2", "-m", "model.gguf", "--batch", "2", "-t", "1"]
    assert main([*given, "--out", "here"]) == main([*given, "--out", "there", "--workers", "2"]) == 0
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_a_model_that_is_open_cannot_be_given_to_workers(scorer: Local) -> None:
    with pytest.raises(InputError, match="give the model by its path"):
        evaluate.evaluate(scorer.model, "multihop", workers=2)


def test_without_ray(monkeypatch: pytest.MonkeyPatch, scorer: Local) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'rookery\[ray\]'"):
        jobs.reader(GOSLING, scorer.about, 2)


def test_no_worker_at_all(scorer: Local) -> None:
    with pytest.raises(InputError, match="workers 0"):
        jobs.reader(GOSLING, scorer.about, 0)

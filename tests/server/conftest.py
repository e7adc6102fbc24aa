"""Fixtures of the server's tests; serving.py says what they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from serving import FIXTURES, Here, Process

import rookery


@pytest.fixture(scope="session")
def tiny_v7() -> Any:
    """The smallest v7, on bytes."""
    return rookery.load(FIXTURES / "v7.safetensors", tokenizer="bytes", threads=1)


@pytest.fixture(scope="session")
def gosling() -> Any:
    return rookery.load("gosling", threads=1)


@pytest.fixture
def serving(tiny_v7: Any) -> Iterator[Callable[..., Here]]:
    """serving(model=tiny_v7, **settings): a server in a thread; it ends with the test."""
    with ExitStack() as stack:
        yield lambda model=tiny_v7, **settings: stack.enter_context(Here(model, **settings))


@pytest.fixture(scope="module")
def server(tiny_v7: Any) -> Iterator[Here]:
    """One server in a thread for all tests of a file, on the smallest v7."""
    with Here(tiny_v7) as made:
        yield made


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """process(*args): `rookery serve` with these arguments, on gosling; killed with the test."""
    made: list[Process] = []

    def start(*args: object, **options: Any) -> Process:
        made.append(Process(tmp_path, *args, **options))
        return made[-1]

    yield start
    for each in made:
        each.kill()


@pytest.fixture(scope="session")
def gosling_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One real server on gosling for all tests that change nothing others would notice."""
    made = Process(tmp_path_factory.mktemp("server"))
    yield made
    made.terminate()

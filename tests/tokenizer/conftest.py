"""Every tokenizer test of World runs on both tries."""

from __future__ import annotations

from functools import cache

import pytest

from rookery import _native
from rookery.tokenizer import World


@cache
def world_of(native: bool) -> World:
    return World(native=native)


@pytest.fixture(params=["native", "python"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "native" and not _native.available():
        pytest.skip("the native core is not built")
    return world_of(request.param == "native")

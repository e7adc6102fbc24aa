"""`Runner.listen` means the same on every back end, and the points read from a version file are those that it taps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery.backends.reference.points import points
from rookery.errors import InputError
from tolerances import LOGITS_CHUNKED

FIXTURES = Path(__file__).parents[1] / "fixtures"
VERSIONS = ["v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7"]


def open_(backend: str, name: str = "v7") -> rookery.Model:
    if backend == "torch":
        pytest.importorskip("torch")
    return rookery.load(FIXTURES / f"{name}.safetensors", backend=backend, tokenizer="bytes")


@pytest.mark.parametrize("name", VERSIONS)
def test_points_are_what_is_tapped(name: str) -> None:
    model = open_("reference", name)
    heard: dict[str, Any] = {}
    model.runner.listener = heard.setdefault  # type: ignore[attr-defined]
    model.forward([1, 2, 3, 4])
    found = points(model.config)
    assert list(found) == list(heard)
    for point, what in found.items():
        assert heard[point].shape == (what.shape if what.constant else (4, *what.shape)), point
        assert what.constant == (point.endswith("att.w") and name[1] in "45")


@pytest.mark.parametrize("backend", ["reference", "torch", "native"])
def test_each_hears_what_it_named_once_a_step(backend: str) -> None:
    model = open_(backend)
    heard: list[tuple[str, tuple[int, ...], type]] = []

    def listen(name: str, rows: Any) -> None:
        heard.append((name, rows.shape, type(rows)))

    before = model.forward([1, 2, 3])[0]
    model.runner.listen(listen, ["att.k", "layers.1.att.wkv_out"])
    after = model.forward_batch([[1, 2, 3], [4]])[0][0]
    assert np.abs(after - before).max() <= (LOGITS_CHUNKED if backend == "torch" else 0)
    assert sorted(heard) == [
        ("layers.0.att.k", (4, 12), np.ndarray),
        ("layers.1.att.k", (4, 12), np.ndarray),
        ("layers.1.att.wkv_out", (4, 2, 6), np.ndarray),
        ("layers.2.att.k", (4, 12), np.ndarray),
    ]
    heard.clear()
    for none in ((None,), (listen,), (listen, [])):
        model.runner.listen(*none)
        model.forward([1])
    assert not heard


@pytest.mark.parametrize("backend", ["reference", "torch", "native"])
def test_names_that_no_point_has(backend: str) -> None:
    model = open_(backend)
    said = r"^no point 'layers.3.att.k' in RWKV-7 Goose; points are named as layers.0.att.k"
    for names in ("layers.3.att.k", ["att.k", "layers.3.att.k"]):
        with pytest.raises(InputError, match=said):
            model.runner.listen(print, names)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_value_changed_by_a_listener_is_heard_changed(backend: str) -> None:
    model = open_(backend)
    before = model.forward([1, 2])[0]
    model.runner.listener = lambda name, x: x * 0 if name == "layers.0.att.wkv_out" else x  # type: ignore[attr-defined]
    with model.trace("layers.*.att.wkv_out") as t:
        after = model.forward([1, 2])[0]
    assert not np.array_equal(before, after)
    assert not t["layers.0.att.wkv_out"].any()
    assert t["layers.1.att.wkv_out"].any()

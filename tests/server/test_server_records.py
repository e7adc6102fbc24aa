"""Records: a whole line for each, private, rotated; off by default; and never in a request's way."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import Here, wait_for

from rookery.server import records
from rookery.server.records import NAME, Records


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_whole_and_private(tmp_path: Path) -> None:
    made = Records(str(tmp_path))
    assert made.on

    def write(worker: int) -> None:
        for n in range(50):
            made.write(request=f"{worker}-{n}", owner="0123456789abcdef", entered={"tokens": list(range(100))})

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made.close()
    found = lines(tmp_path / NAME)
    assert {line["request"] for line in found} == {f"{worker}-{n}" for worker in range(4) for n in range(50)}
    assert {line["owner"] for line in found} == {"01234567"}
    assert all(line["time"] > 1e9 for line in found)
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    assert made.stats() == {"written": 200, "lost": 0}


def test_a_file_that_grew_large_makes_room(tmp_path: Path) -> None:
    made = Records(str(tmp_path), rotate=200)
    for n in range(30):
        made.write(n=n, text="x" * 50)
    made.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == sorted([NAME, *(f"records.{n}.jsonl" for n in range(1, records.FILES + 1))])
    assert all(file.stat().st_size <= 200 for file in files)
    kept = [line["n"] for file in files for line in lines(file)]
    assert max(kept) == 29
    assert sorted(kept) == list(range(min(kept), 30))


def test_off_it_writes_nothing_and_forgives(tmp_path: Path) -> None:
    made = Records(None)
    assert not made.on
    made.write(anything=object())
    made.close()
    assert made.stats() == {"written": 0, "lost": 0}


def test_what_cannot_be_written_is_counted_and_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Records(str(tmp_path))
    made.write(n=0)
    wait_for(lambda: made.written == 1)
    write = os.write
    monkeypatch.setattr(records.os, "write", lambda handle, data: write(handle, data[:3]))
    made.write(n=1)
    wait_for(lambda: made.lost == 1)
    monkeypatch.undo()
    made.write(n=2)
    made.write(n=float("nan"))
    made.write(n=object())
    made.close()
    assert [line["n"] for line in lines(tmp_path / NAME)] == [0, 2]
    assert made.lost == 3


def test_nobody_waits_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(records, "WAITING", 2)
    made = Records(str(tmp_path))
    monkeypatch.setattr(made, "_append", lambda line: go_on.wait())
    for n in range(10):
        made.write(n=n)
    assert made.lost >= 7
    go_on.set()
    made.close()


def test_a_server_keeps_one_for_a_reply(serving: Callable[..., Here], tmp_path: Path) -> None:
    here = serving(store=str(tmp_path), records=True)
    with here.client() as client:
        headers = {"x-request-id": "the-id", "authorization": "Bearer sk-SECRET"}
        request = {"prompt": "abc", "max_tokens": 4, "seed": 1, "logit_bias": {"0": -100}}
        client.post("/v1/completions", json=request, headers=headers)
    wait_for(lambda: here.service.records.written)
    (found,) = lines(tmp_path / NAME)
    assert found["request"] == "the-id"
    assert found["route"] == "/v1/completions"
    assert found["model"] == here.service.model.weights.fingerprint
    assert found["entered"] == {"tokens": list(b"abc"), "cached": 0}
    assert len(found["left"]["tokens"]) == 4
    assert found["left"]["stop_reason"] == "length"
    assert len(found["changed"]["delta"]) == here.service.model.config.n_layer
    assert all(delta > 0 for delta in found["changed"]["delta"])
    assert "SECRET" not in (tmp_path / NAME).read_text()


def test_a_reply_that_nobody_waited_for_has_one_too(serving: Callable[..., Here], tmp_path: Path) -> None:
    here = serving(store=str(tmp_path), records=True)
    request = {"prompt": "abc", "max_tokens": 100_000, "stream": True, "logit_bias": {"0": -100}}
    with here.client() as client, client.stream("POST", "/v1/completions", json=request) as answer:
        pieces = answer.iter_text()
        next(pieces)
    wait_for(lambda: here.service.records.written)
    (found,) = lines(tmp_path / NAME)
    assert found["left"]["stop_reason"] == "cancelled"
    assert 0 < len(found["left"]["tokens"]) < 100_000


def test_by_default_there_are_none(serving: Callable[..., Here], tmp_path: Path) -> None:
    here = serving(store=str(tmp_path))
    with here.client() as client:
        client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 4})
    assert not (tmp_path / NAME).exists()

"""`rookery bench`: its table, its JSON, and a user's mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from terminal import MODEL, check_mistake

from rookery import _native, backends

SMALL = ["-p", "3", "-n", "2", "--rows", "1,2", "--repeats", "2"]


@pytest.mark.parametrize("backend", [name for name in backends.NAMES if name != "torch"])
def test_a_table(rookery: Any, backend: str) -> None:
    if backend == "native" and not _native.available():
        pytest.skip("no native core")
    code, out, err = rookery("bench", *SMALL, "--depth", "0,7", "--backend", backend, "-t", "1,2")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "RWKV-7 Goose, 4 layers x 192, 3.6 M parameters" in lines[0]
    assert lines[1].startswith(f"{backend} back end")
    assert lines[1].endswith("random tokens, seed 0; medians of 2 interleaved")
    assert lines[3].split()[:5] == ["threads", "test", "rows", "depth", "tokens/s"]
    assert [line.split()[:5] for line in lines[4:14]] == [
        [threads, test, tokens, rows, depth]
        for threads in "12"
        for test, tokens, rows, depth in [
            ("prefill", "3", "1", "0"),
            ("decode", "2", "1", "0"),
            ("decode", "2", "2", "0"),
            ("decode", "2", "1", "7"),
            ("decode", "2", "2", "7"),
        ]
    ]
    assert lines[15].startswith("threads 1: first token ")
    assert lines[16].startswith("threads 2: first token ")
    assert "weights read per step" in lines[15]
    assert len(lines) == 17


def test_json(rookery: Any) -> None:
    code, out, err = rookery("bench", "-m", MODEL, *SMALL, "--json", "--seed", "4")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert set(report) == {"model", "settings", "runs"}
    assert report["settings"] == {
        "prefill": 3, "decode": 2, "depths": [0], "rows": [1, 2], "repeats": 2, "seed": 4,
    }  # fmt: skip
    assert report["model"]["path"] == MODEL
    (run,) = report["runs"]
    assert len(run["tests"]) == 3
    assert {"threads", "first_token_seconds", "load_peak_bytes", "peak_bytes", "weight_bytes", "tests"} <= set(run)


def test_the_native_back_end_is_held_against_a_stream(rookery: Any) -> None:
    if not _native.available():
        pytest.skip("no native core")
    report = json.loads(rookery("bench", *SMALL, "--backend", "native", "-t", "2", "--json").out)
    (run,) = report["runs"]
    assert run["threads"] == 2
    assert run["isa"]
    assert run["stream_gb_per_second"]["median"] > 0
    assert all(test["share_of_stream"]["median"] > 0 for test in run["tests"] if test["test"] == "decode")
    assert "of stream" in rookery("bench", *SMALL, "--backend", "native").out


def test_mistakes(rookery: Any, tmp_path: Path) -> None:
    check_mistake(rookery("bench", "--rows", "0"), "--rows", "'0' is no whole number of 1 or more")
    check_mistake(rookery("bench", "--rows", "1,,2"), "--rows", "''")
    check_mistake(rookery("bench", "--depth", "1e3"), "--depth", "'1e3'", "0 or more")
    check_mistake(rookery("bench", "-t", "2,many"), "--threads", "'many'")
    check_mistake(rookery("bench", "--repeats", "0"), "--repeats")
    check_mistake(rookery("bench", "-p", "0", "-n", "0"), "nothing to measure")
    check_mistake(rookery("bench", "-m", tmp_path / "none.pth"), "none.pth", "No such file")
    check_mistake(rookery("bench", "--backend", "abacus"), "no back end 'abacus'")
    check_mistake(rookery("bench", "gosling"), "unrecognized arguments: gosling")


def test_numbers_said_twice_count_once(rookery: Any) -> None:
    given = ["-p", "2", "-n", "1", "--repeats", "1", "--rows", "2,2,1", "--json"]
    assert json.loads(rookery("bench", *given).out)["settings"]["rows"] == [2, 1]

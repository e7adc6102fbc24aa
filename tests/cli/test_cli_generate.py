"""`rookery generate`: where the prompt comes from, what goes where, and that the flags reach the sampler."""

from __future__ import annotations

import io
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from terminal import BYTES, MODEL, check_mistake, finish, start

from rookery import Sampling, load
from rookery.cli import options, progress
from rookery.cli.progress import Job
from rookery.formats import Tensor, write

SHORT = ["generate", *BYTES, "-n", "12", "--seed", "7"]


@pytest.fixture(scope="module")
def model() -> Any:
    return load(MODEL, tokenizer="bytes")


def test_only_the_continuation_goes_to_stdout(rookery: Any, model: Any) -> None:
    code, out, err = rookery(*SHORT, "Once", "upon")
    assert code == 0
    text = model.generate("Once upon", max_tokens=12, seed=7)
    assert out == text + "\n" * (not text.endswith("\n"))
    assert err.startswith("rookery: prompt 9 tokens, ")
    assert "new 12 tokens, " in err
    assert err.endswith(" tokens/s; seed 7\n")
    assert rookery(*SHORT, "--echo", "Once upon").out == "Once upon" + out


def test_another_process_says_the_same(rookery: Any) -> None:
    assert finish(start(*SHORT, "Once")).out == rookery(*SHORT, "Once").out


def test_where_the_prompt_comes_from(rookery: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"from file\n")

    def echoed(*args: object, stdin: bytes = b"") -> str:
        reply = json.loads(rookery(*SHORT, "--echo", "--json", *args, stdin=stdin).out)
        assert reply["prompt_tokens"] == len(reply["prompt"])
        prompt: str = reply["prompt"]
        return prompt

    assert echoed("one", "two") == "one two"
    assert echoed("-f", file) == "from file\n"
    assert echoed(stdin=b"piped\n") == "piped\n"
    assert echoed("one", stdin=b"piped") == "one\npiped"
    assert echoed("one", "-f", file, stdin=b"piped") == "one\nfrom file\n\npiped"
    assert finish(start(*SHORT, "--echo", stdin=-1), b"piped").out.startswith("piped")


def test_json(rookery: Any, model: Any) -> None:
    code, out, err = rookery(*SHORT, "--json", "Once")
    assert (code, err) == (0, "")
    reply = json.loads(out)
    stream = model.stream("Once", max_tokens=12, seed=7)
    assert reply["text"] == "".join(stream)
    assert reply["tokens"] == stream.tokens
    assert reply["stop_reason"] == "length"
    assert (reply["model"], reply["seed"], reply["prompt_tokens"]) == (MODEL, 7, 4)
    assert reply["prefill_seconds"] > 0
    assert reply["decode_seconds"] > 0
    assert "prompt" not in reply


def test_the_seed_that_was_drawn_repeats_the_text(rookery: Any) -> None:
    first = json.loads(rookery("generate", *BYTES, "-n", 30, "--json", "x").out)
    assert (
        json.loads(rookery("generate", *BYTES, "-n", 30, "--json", "--seed", first["seed"], "x").out)["text"]
        == (first["text"])
    )


def test_no_tokens_is_a_line_end(rookery: Any) -> None:
    assert rookery("generate", *BYTES, "-n", "0", "x").out == "\n"


CHOSEN = {
    "temperature": 0.5, "top_p": 0.6, "top_k": 7, "min_p": 0.01, "typical_p": 0.9, "presence": 0.1, "frequency": 0.2,
    "penalty": "rapid", "decay": 0.9,
}  # fmt: skip


def test_every_sampling_flag_arrives(rookery: Any, model: Any) -> None:
    flags = [text for name, value in CHOSEN.items() for text in (f"--{name.replace('_', '-')}", value)]
    assert json.loads(rookery(*SHORT, "--json", *flags, "x").out)["tokens"] == (
        self_tokens := _tokens(model, Sampling(**CHOSEN))
    )
    assert self_tokens != _tokens(model, Sampling())
    args = __import__("rookery.cli.generate", fromlist=["parser"]).parser().parse_args([str(f) for f in flags])
    assert options.sampling(args) == Sampling(**CHOSEN)

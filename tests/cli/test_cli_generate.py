"""`rookery generate`: where the prompt comes from, what goes where, and that the flags reach the sampler."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from terminal import BYTES, MODEL, check_mistake, finish, start

from rookery import Sampling, load
from rookery.cli import generate, options, progress
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
    assert echoed("one", stdin=b"piped") == "one"
    assert echoed("one", "-", stdin=b"piped") == "one\npiped"
    assert echoed("one", "-", "-f", file, stdin=b"piped") == "one\nfrom file\n\npiped"
    assert finish(start(*SHORT, "--echo", stdin=subprocess.PIPE), b"piped").out.startswith("piped")


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
    flags = [str(word) for name, value in CHOSEN.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert options.sampling(generate.parser().parse_args(flags)) == Sampling(**CHOSEN)
    stream = model.stream("x", 12, Sampling(**CHOSEN), seed=7)
    assert json.loads(rookery(*SHORT, "--json", *flags, "x").out)["text"] == "".join(stream)


def test_the_flags_are_those_of_sampling_with_its_defaults() -> None:
    """Stated a second time in cli/options.py so that --help need not import NumPy; held together here."""
    assert [*options.SAMPLING, "logit_bias"] == list(Sampling.names())
    assert options.sampling(generate.parser().parse_args([])) == Sampling()


BAD = {
    "no prompt": ([*BYTES], b"", "an empty prompt; give a text"),
    "an empty prompt": ([*BYTES, ""], b"", "an empty prompt"),
    "an empty prompt file": ([*BYTES, "-f", os.devnull], b"", "an empty prompt"),
    "no prompt file": ([*BYTES, "-f", "/no/such"], b"", "/no/such: no such file"),
    "a folder as prompt": ([*BYTES, "-f", "."], b"", ".: is a folder"),
    "no model": (["-m", "/no/such.pth", "x"], b"", "/no/such.pth: "),
    "a folder as model": (["-m", ".", "x"], b"", ".: "),
    "text as model": (["-m", __file__, "x"], b"", "looks like text"),
    "no tokenizer": (["-m", MODEL, "x"], b"", "--tokenizer bytes|utf16le|world|FILE"),
    "an unknown tokenizer": (["-m", MODEL, "--tokenizer", "gpt2", "x"], b"", "gpt2"),
    "an unknown back end": ([*BYTES, "--backend", "cuda", "x"], b"", "cuda"),
    "a temperature below 0": ([*BYTES, "--temperature", "-1", "x"], b"", "temperature=-1.0: wanted"),
    "a temperature that is no number": ([*BYTES, "--temperature", "warm", "x"], b"", "--temperature: invalid float"),
    "an infinite temperature": ([*BYTES, "--temperature", "inf", "x"], b"", "temperature=inf: wanted"),
    "no probability": ([*BYTES, "--top-p", "nan", "x"], b"", "top_p=nan: wanted a number from 0 to 1"),
    "half a k": ([*BYTES, "--top-k", "1.5", "x"], b"", "--top-k: invalid int"),
    "an unknown penalty": ([*BYTES, "--penalty", "gpt", "x"], b"", "wanted one of rwkv, rapid, openai"),
    "a negative length": ([*BYTES, "-n", "-1", "x"], b"", "'-1' is no whole number of 0 or more"),
    "no threads": ([*BYTES, "-t", "0", "x"], b"", "'0' is no whole number of 1 or more"),
    "a large seed": ([*BYTES, "--seed", "18446744073709551616", "x"], b"", "seed=18446744073709551616: wanted"),
    "invalid UTF-8": (["-m", MODEL, "--tokenizer", "utf16le"], b"ab\xff", "stdin: byte 2 (0xff) is not valid UTF-8"),
    "invalid UTF-8 for bytes": (
        ["-m", MODEL, "--tokenizer", "bytes"],
        b"ab\xff",
        "stdin: byte 2 (0xff) is not valid UTF-8",
    ),
    "invalid UTF-8 in an argument": (
        ["-m", MODEL, "--tokenizer", "utf16le", "a\udcfe"],
        b"",
        "the prompt: byte 1 (0xfe)",
    ),
}


@pytest.mark.parametrize(("args", "stdin", "part"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(rookery: Any, args: list[str], stdin: bytes, part: str) -> None:
    check_mistake(rookery("generate", *args, stdin=stdin), part)


def test_a_tokenizer_of_more_tokens_than_the_model(rookery: Any, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_text("".join(f"{i + 1} {bytes([i])!r} 1\n" for i in range(256)) + "300 'ab' 2\n")
    check_mistake(
        rookery("generate", "-m", MODEL, "--tokenizer", vocabulary, "x"), "has 301 tokens, the model only 256"
    )


def test_a_model_of_another_architecture(rookery: Any, tmp_path: Path) -> None:
    gpt2 = tmp_path / "gpt2.safetensors"
    write(gpt2, {"transformer.h.0.attn.c_attn.weight": Tensor.of(np.zeros((2, 6), np.float32))})
    check_mistake(rookery("generate", "-m", gpt2, "x"), "looks like GPT-2")
    check_mistake(rookery("info", gpt2), "looks like GPT-2")


def test_bad_input_in_a_process_of_its_own() -> None:
    """No interpreter's goodbye is added to the line."""
    process = start("generate", "-m", MODEL, "--tokenizer", "utf16le", stdin=subprocess.PIPE)
    check_mistake(finish(process, b"\xc3"), "stdin: byte 0 (0xc3)")
    check_mistake(finish(start("generate", "-m", "/no/such", "x")), "/no/such: ")


def test_stdin_that_cannot_be_read_is_no_prompt(rookery: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate.sys, "stdin", None)
    assert generate._piped() == b""


def test_an_interrupted_job_prints_what_it_has(rookery: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(job: Job, stream: Any) -> Any:
        pieces = iter(stream)
        yield next(pieces)
        yield next(pieces)
        raise KeyboardInterrupt

    whole = json.loads(rookery(*SHORT, "--json", "x").out)
    monkeypatch.setattr(generate, "_patiently", interrupted)
    code, out, err = rookery(*SHORT, "--json", "x")
    cut = json.loads(out)
    assert (code, err, cut["stop_reason"]) == (130, "", "interrupt")
    assert whole["text"].startswith(cut["text"])
    code, out, err = rookery(*SHORT, "x")
    assert (code, out, err) == (130, cut["text"] + "\n", "")


def test_each_piece_is_shown_at_once_and_the_last_line_is_ended(rookery: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Buffered(io.StringIO):
        shown = ""

        def flush(self) -> None:
            self.shown = self.getvalue()

    screen = Buffered()
    words: list[str] = []

    def pieces(job: Job, stream: Any) -> Any:
        for word in words:
            yield word
            assert screen.shown.endswith(word)

    monkeypatch.setattr(generate, "_patiently", pieces)
    monkeypatch.setattr(sys, "stdout", screen)
    for words[:], shown in ((["a", "b"], "ab\n"), (["a", "b\n"], "ab\n"), ([], "\n")):
        screen.truncate(0)
        screen.seek(0)
        assert rookery(*SHORT, "x").code == 0
        assert screen.shown == shown


class Screen(io.StringIO):
    """A stderr that tells when something was written."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal, self.written = terminal, threading.Event()

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.written.set()
        return super().write(text)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_job_speaks_on_stderr(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    screen = Screen(terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "PATIENCE", 0.001)
    with Job("reading", "tokens") as job:
        job.update(256, 1000)
        assert screen.written.wait(60)
    said = screen.getvalue()
    assert "rookery: reading" in said
    assert said.endswith("\r\x1b[K" if terminal else " s)\n")
    assert Job("reading", "tokens").line(3.2) == "rookery: reading (3 s)"
    assert job.line(3.2) == "rookery: reading 256/1000 tokens (3 s)"


def test_a_short_job_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "PATIENCE", 600.0)
    with Job("reading"):
        pass
    assert screen.getvalue() == ""

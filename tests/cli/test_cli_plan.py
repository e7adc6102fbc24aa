"""`rookery plan` as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from terminal import MODEL, Result, check_mistake

from rookery.cli import plan as command

Run = Callable[..., Result]
TINY = "v7:2x64,vocab=200,head=32,w=8,a=8,v=8,g=8"


def test_all_methods_in_one_table(rookery: Run) -> None:
    pytest.importorskip("torch")
    from rookery.tune import plan

    assert list(plan.METHODS) == list(command.ALL)
    result = rookery("plan", "--shape", TINY, "--context", 16, "--tflops", 1)
    assert result.code == 0
    head, *rows = result.out.splitlines()[2:]
    assert head.split() == [
        "method", "trained", "weights", "gradients", "moments", "activations", "total", "GFLOP/token", "tokens/s",
    ]  # fmt: skip
    assert [row.split()[0] for row in rows] == list(command.ALL)


def test_one_method_as_json(rookery: Run) -> None:
    pytest.importorskip("torch")
    said: dict[str, Any] = json.loads(
        rookery("plan", "-m", MODEL, "--method", "lora", "--rank", 2, "--context", 16, "--json").out
    )
    assert (said["method"], said["ctx_len"], said["tokens_per_second"]) == ("lora", 16, None)
    assert said["total"] > said["weights"] + said["moments"]
    wider = json.loads(
        rookery("plan", "-m", MODEL, "--method", "lora", "--rank", 4, "--context", 16, "--json", "--measure").out
    )
    assert wider["trained"] == 2 * said["trained"]
    assert wider["tokens_per_second"] > 0


def test_one_method_for_people(rookery: Run) -> None:
    pytest.importorskip("torch")
    out = rookery("plan", "--shape", TINY, "--method", "train", "--context", 16, "--grad-cp").out
    for words in ("full: ", "recomputing blocks", "time         not asked for"):
        assert words in out
    out = rookery("plan", "--shape", TINY, "--method", "state", "--context", 16, "--free", "50MB").out
    assert "in 50.0 MB: contexts up to " in out
    out = rookery("plan", "--shape", TINY, "--method", "state", "--context", 16, "--free", "10kB").out
    assert "in 10,000 bytes: not at all" in out


def test_serving(rookery: Run) -> None:
    out = rookery("plan", "--serve", "--shape", "rwkv7-g1-1.5b", "--memory", "16GB", "--bandwidth", 200,
                  "--price", 0.5, "--tokens-per-second", 1000).out  # fmt: skip
    for words in ("77 a GB, stored 154 a GB", "in 16.00 GB: 1,1", "Qwen2.5-1.5B", "16 at a time", "at 200 GB/s",
                  "1,000 tokens/s (given), 0.139 a million tokens"):  # fmt: skip
        assert words in out
    said = json.loads(rookery("plan", "--serve", "-m", MODEL, "--tokenizer", "bytes", "--measure", "--batch", 2,
                              "--json").out)  # fmt: skip
    assert said["type"] == "as stored"
    assert [(s["rows"], s["source"]) for s in said["speeds"][:2]] == [(1, "measured"), (2, "measured")]
    assert "the weights do not fit" in rookery("plan", "--serve", "--shape", "rwkv7-g1-1.5b", "--memory", "1GB").out


def test_serving_needs_no_torch() -> None:
    code = (
        "import sys; from rookery.cli.main import main; main(['plan', '--serve', '--shape', 'rwkv7-g1-7.2b']);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--shape", "rwkv7-1.5b"], "the nearest are rwkv7-g1-1.5b"),
        (["--method", "loar"], "--method loar: lora, rslora"),
        (["--free", "much"], "'much' is no size: 16GB"),
        (["--serve", "--memory", "1e999GB"], "'1e999GB' is no size: 16GB"),
        (["--serve", "--shape", "v7:99999x64"], "99,999 layers; 1,000 at most"),
        (["--serve", "--shape", ""], "the nearest are"),
        (["--shape", "v7:2x64", "-m", "x.gguf"], "both say a size; give one"),
        (["--device", "tpu"], "--device tpu: cpu or cuda"),
        (["--shape", "v4:2x64", "--method", "state"], "a state is tuned in v5, v6 and v7"),
        (["--serve", "--shape", "v7:2x64", "--measure"], "wants a model to run: -m FILE"),
        (["--serve", "--price", "-1"], "'-1' is no number above 0"),
        (["-m", "nothing.pth"], "nothing.pth"),
    ],
)
def test_mistakes(rookery: Run, flags: list[str], said: str) -> None:
    if "--serve" not in flags:
        pytest.importorskip("torch")
    check_mistake(rookery("plan", *flags), said)


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 16_000_000_000), ("24GiB", 24 << 30), ("1.5e9", 1_500_000_000), ("8g", 8_000_000_000)]
)
def test_sizes(text: str, size: int) -> None:
    assert command._size(text) == size

"""What a native model says to damaged weights, a full memory and mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import random_model
from natives import FIXTURES, PROMPT, child, load, outcome

from rookery import _native, weights
from rookery.errors import BackendError, InputError, StateError, TokenError
from rookery.formats import Tensor, write
from rookery.state import State
from rookery.weights.quantise import Plan, quantise

if not _native.available():
    pytest.skip("the native core is not built", allow_module_level=True)

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("dtype", [None, "bf16", "q8_0", "q4_0"])
def test_a_damaged_weight_neither_hangs_nor_crashes(value: float, dtype: str | None, tmp_path: Path) -> None:
    """One number in a matrix, a vector or the embedding of token 7, whose neighbours do not feel it. Quantising refuses
    what is no number, so codes meet it only as their input."""
    source = random_model(tmp_path / "m.safetensors", "7", 4, 256, 512)
    clean = load(str(source))
    wanted, at = outcome(clean), list(PROMPT).index(7) if 7 in PROMPT else len(PROMPT)
    vectors = ("blocks.0.att.w0", "blocks.1.ln1.weight", "blocks.1.ffn.x_k")
    matrices = ("emb.weight", "blocks.0.att.key.weight", "blocks.1.att.w2", "head.weight")
    for name in vectors if dtype in ("q8_0", "q4_0") else vectors + matrices:
        tensors = dict(weights.load(source).tensors)
        damaged = tensors[name].float32().copy()
        damaged.reshape(-1)[256 * 7 % damaged.size] = value
        tensors[name] = Tensor.of(damaged)
        path = tmp_path / f"{name}.safetensors"
        write(path, tensors)
        if dtype:
            with np.errstate(all="ignore"):
                path = quantised(path, dtype)
        model = load(str(path))
        logits, state = model.forward([*PROMPT[:at], 7, 7], every=True)
        assert logits.shape == (at + 2, 256)
        if name == "emb.weight":
            assert np.isfinite(logits[:at]).all()
            assert np.isfinite(value) or np.isnan(logits[at:]).any()
        model.forward_batch([[1], [2, 3]], [state, None])
        assert outcome(clean) == wanted


def quantised(path: Path, dtype: str) -> Path:
    made = path.with_suffix(".gguf")
    quantise(path, made, Plan(dtype))
    return made


def test_a_state_of_no_numbers() -> None:
    model = load()
    state = model.state()
    state.flat[:] = np.nan
    (bad, _), (good, _) = model.forward_batch([PROMPT, PROMPT], [state, None])
    assert np.isnan(bad).all()
    np.testing.assert_array_equal(good, model.forward(PROMPT)[0])


# -- memory ------------------------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
import numpy as np
import rookery, rookery.backends.native, rookery.tokenizer
from rookery.errors import RookeryError
from rookery.formats import safetensors
def leave(megabytes):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(megabytes * 2**20), resource.RLIM_INFINITY))
load = lambda: rookery.load(sys.argv[1], backend="native", threads=int(sys.argv[3]))
load().forward([1])  # libraries are loaded
if sys.argv[2] == "load":
    leave(float(sys.argv[4]))
try:
    model = load()
    if sys.argv[2] == "run":
        leave(float(sys.argv[4]))
    model.runner.step([np.zeros(20_000, np.int64)], [model.state().flat], True)
    print("enough")
except RookeryError as error:
    print("memory" in str(error))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    load().forward([1])
"""


@linux
@pytest.mark.parametrize("megabytes", [2, 8, 12, 16, 20, 24, 32, 48])
@pytest.mark.parametrize("stage", ["load", "run"])
def test_out_of_memory(stage: str, megabytes: int, tmp_path: Path) -> None:
    """The model is of 18 MB, its logits are 328 MB."""
    path = random_model(tmp_path / "m.safetensors", "7", 4, 256, 512, vocabulary=4096)
    assert child(LIMITED, path, stage, 1, megabytes) == "True\n"


@linux
def test_no_memory_for_threads() -> None:
    code = """
import resource
import rookery
model, alone = (rookery.load(backend="native", threads=n) for n in (16, 1))
wanted = alone.forward([1, 2, 3])[0].tobytes()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 12 * 2**20, resource.RLIM_INFINITY))
print(model.forward([1, 2, 3])[0].tobytes() == wanted)
"""
    assert child(code) == "True\n"


def test_a_model_beyond_the_limits_of_the_core(tmp_path: Path) -> None:
    path = random_model(tmp_path / "m.safetensors", "5.2", 1, 1056, 32, vocabulary=8)
    with pytest.raises(BackendError, match=r"no room for heads of more than 1,024 columns; backend='reference'"):
        load(str(path))


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_mistakes_of_states_and_tokens() -> None:
    model, other = load(), load("v7")
    with pytest.raises(StateError, match="another size"):
        model.forward([1], other.state())
    with pytest.raises(StateError, match="a state of 3 numbers"):
        State(model.config, np.zeros(3, np.float32), model.weights)
    for tokens in ([model.config.n_vocab], [-1], [1, 2**40], np.array([0, 2**63 - 1])):
        with pytest.raises(TokenError, match="outside the vocabulary"):
            model.forward(tokens)
    for tokens in ([1.5], ["a"], [], [[1, 2]], [[1], [2, 3]], np.array([1.0]), [None]):
        with pytest.raises(InputError, match=r"tokens must be|an empty prompt"):
            model.forward(tokens)
    with pytest.raises(InputError):
        model.forward_batch([[1], [2]], [None])
    for threads in (0, -1, 1.5, 1025):
        with pytest.raises(InputError, match="threads"):
            load(threads=threads)  # type: ignore[arg-type]


def test_a_state_of_another_type_is_taken_as_float32() -> None:
    model = load()
    _, state = model.forward(PROMPT)
    wide = State(model.config, state.flat.astype(np.float64), model.weights)
    strided = State(model.config, np.repeat(state.flat, 2)[::2], model.weights)
    for given in (wide, strided):
        np.testing.assert_array_equal(model.forward([1], given)[0], model.forward([1], state)[0])
    assert wide.flat.dtype == np.float64


def test_what_the_core_itself_refuses() -> None:
    """A runner trusts its caller; the core does not: nothing is read or written beyond an array."""
    model = load()
    engine, size, vocab = model.runner.engine, model.state_size, model.config.n_vocab
    ids, one = np.zeros(1, np.int64), np.ones(1, np.int64)
    state, logits = np.zeros(size, np.float32), np.zeros((1, vocab), np.float32)
    good = {"ids": ids, "lengths": one, "states": [state], "logits": logits, "every": False}
    engine.run(**good)
    for wrong in (
        {"states": [state[1:]]},
        {"states": []},
        {"states": [state, state]},
        {"ids": ids - 1},
        {"ids": ids + vocab},
        {"ids": np.zeros(2, np.int64)},
        {"lengths": one * 0},
        {"lengths": one * 2},
        {"lengths": one * 257, "ids": np.zeros(257, np.int64)},
        {"logits": logits[:, 1:].copy()},
        {"logits": np.zeros((2, vocab), np.float32)},
        {
            "ids": np.zeros(2, np.int64),
            "lengths": np.ones(2, np.int64),
            "states": [state] * 2,
            "logits": logits.repeat(2, 0),
        },
        {"times": np.zeros(1)},
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            engine.run(**good | wrong)
    for wrong in (
        {"states": [state.astype(np.float64)]},
        {"states": [np.zeros(2 * size, np.float32)[::2]]},
        {"states": [None]},
        {"ids": ids.astype(np.int32)},
        {"logits": logits.astype(np.float64)},
    ):
        with pytest.raises((TypeError, RuntimeError)):
            engine.run(**good | wrong)
    engine.run(**good)


@pytest.mark.parametrize("command", [["generate", "hi"], ["bench"]])
def test_an_unknown_instruction_set_is_one_line(command: list[str]) -> None:
    model = ["-m", str(FIXTURES / "v7.safetensors"), "--tokenizer", "bytes"] if command[0] == "generate" else []
    done = subprocess.run(
        [sys.executable, "-m", "rookery", *command, *model],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "ROOKERY_ISA": "sse9"},
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    assert done.stderr.startswith('rookery: ROOKERY_ISA is "sse9", which is not an instruction set that runs here')

"""What a native model survives: threads, forks, Ctrl-C, exits, damaged weights, a full memory and mistakes.

What could take the test process with it runs in a process of its own.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import random_model

import rookery
from rookery import Model, _native, weights
from rookery.errors import InputError, StateError, TokenError
from rookery.formats import Tensor, write
from rookery.state import State
from rookery.weights.quantise import Plan, quantise

if not _native.available():
    pytest.skip("the native core is not built", allow_module_level=True)

FIXTURES = Path(__file__).parent.parent / "fixtures"
OWN = ("v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7")
PROMPT = np.random.default_rng(9).integers(0, 256, 70)
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits and signals as Linux has them")


def load(name: str = "gosling", threads: int = 3) -> Model:
    path = name if name == "gosling" or os.path.isabs(name) else FIXTURES / f"{name}.safetensors"
    return rookery.load(path, backend="native", threads=threads)


def outcome(model: Model, prompt: Any = PROMPT) -> bytes:
    """Logits and state, to the bit."""
    logits, state = model.forward(prompt, every=True)
    return bytes(logits.tobytes() + state.vector().tobytes())


def child(code: str, *args: object, **more: str) -> str:
    """What a process of its own prints; it must end with code 0 and say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **more},
    )
    assert (done.returncode, done.stderr) == (0, ""), (done.returncode, done.stderr, done.stdout)
    return done.stdout


# -- threads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OWN, "gosling"])
def test_one_to_eight_threads_give_the_same_bits(name: str) -> None:
    wanted = outcome(load(name, 1))
    for threads in range(2, 9):
        model = load(name, threads)
        assert outcome(model) == wanted
        _, state = model.forward(PROMPT[:69])
        logits, end = model.forward(PROMPT[69], state)
        assert wanted.endswith(end.vector().tobytes())
        assert logits.tobytes() in wanted


@linux
def test_more_threads_than_cores_to_run_on() -> None:
    code = (
        "import os, rookery; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import numpy as np; prompt = np.random.default_rng(9).integers(0, 256, 70)\n"
        "for n in (None, 1, 8):\n"
        "    logits, state = rookery.load(backend='native', threads=n).forward(prompt, every=True)\n"
        "    print(logits.tobytes().hex() + state.vector().tobytes().hex())"
    )
    assert set(child(code).split()) == {outcome(load()).hex()}


def test_two_models_in_turn_and_from_two_threads() -> None:
    models = [load("gosling", 2), load("v7", 3)]
    wanted = [outcome(m) for m in models]
    for _ in range(5):
        assert [outcome(m) for m in models] == wanted
    assert in_threads([lambda m=m: outcome(m) for m in models]) == [[w] * 20 for w in wanted]


def test_two_python_threads_take_turns_on_one_model() -> None:
    model = load()
    prompts = [PROMPT, PROMPT[::-1].copy(), PROMPT[:1]]
    wanted = [outcome(model, p) for p in prompts]
    assert in_threads([lambda p=p: outcome(model, p) for p in prompts]) == [[w] * 20 for w in wanted]


def in_threads(calls: list[Any]) -> list[list[Any]]:
    """What each of the calls gave, 20 times in a Python thread of its own."""
    found: list[list[Any]] = [[] for _ in calls]

    def work(call: Any, into: list[Any]) -> None:
        into += [call() for _ in range(20)]

    threads = [threading.Thread(target=work, args=pair) for pair in zip(calls, found, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("rest", [0, 0.05], ids=["spinning", "asleep"])
@pytest.mark.parametrize("ran", [False, True])
def test_a_model_is_collected_with_its_threads(rest: float, ran: bool) -> None:
    before = threads_of_this_process()
    for _ in range(20):
        model = load("v7", 4)
        if ran:
            outcome(model)
            assert threads_of_this_process() >= before + 3
            time.sleep(rest)
        del model
        gc.collect()
    assert threads_of_this_process() <= before


def threads_of_this_process() -> int:
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0


# -- forks -------------------------------------------------------------------------------------------------------------


@forks
@pytest.mark.parametrize("ran", [False, True])
def test_fork(ran: bool) -> None:
    """The child, its child, and the parent afterwards. In a process that has no other threads than ours."""
    code = """
import os, sys
import numpy as np
import rookery
model = rookery.load(backend="native", threads=3)
prompt = np.random.default_rng(9).integers(0, 256, 70)
def outcome():
    logits, state = model.forward(prompt, every=True)
    return logits.tobytes() + state.vector().tobytes()
if sys.argv[1] == "True":
    outcome()
def fork(depth):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    print(outcome().hex(), flush=True)
    status = fork(depth - 1) if depth else 0
    print(outcome().hex(), flush=True)
    os._exit(status)
status = fork(1)
print(outcome().hex())
sys.exit(status)
"""
    lines = child(code, ran).split()
    assert len(lines) == 5
    assert set(lines) == {outcome(load()).hex()}


@forks
@pytest.mark.parametrize("ran", [False, True])
def test_multiprocessing_by_fork(ran: bool) -> None:
    code = """
import multiprocessing, sys
import numpy as np
import rookery
model = rookery.load(backend="native", threads=2)
prompt = np.random.default_rng(9).integers(0, 256, 70)
def outcome(_=None):
    logits, state = model.forward(prompt, every=True)
    return (logits.tobytes() + state.vector().tobytes()).hex()
if sys.argv[1] == "True":
    outcome()
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(*pool.map(outcome, range(4)))
print(outcome())
"""
    lines = child(code, ran).split()
    assert len(lines) == 5
    assert set(lines) == {outcome(load()).hex()}


@forks
@pytest.mark.xfail(reason="the child inherits the engine's mutex as the other thread left it", strict=True)
def test_fork_while_another_thread_runs() -> None:
    code = """
import os, signal, threading
import numpy as np
import rookery
model = rookery.load(backend="native", threads=2)
wanted = model.forward([1, 2, 3])[0].tobytes()
going = threading.Event()
going.set()
def work():
    while going.is_set():
        model.forward([5] * 2000)
other = threading.Thread(target=work)
other.start()
for _ in range(8):
    pid = os.fork()
    if not pid:
        signal.alarm(3)  # ends a child that waits for ever
        os._exit(model.forward([1, 2, 3])[0].tobytes() != wanted)
    status = os.waitpid(pid, 0)[1]
    print(status)
    if status:
        break
going.clear()
other.join()
"""
    assert child(code).split() == ["0"] * 8


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------

INTERRUPT = """
import os, signal, sys, threading, time
import numpy as np
import rookery
signal.signal(signal.SIGINT, signal.default_int_handler)
model = rookery.load(sys.argv[1], backend="native", threads=2)
small = [1, 2, 3]
wanted = model.forward(small)[0].tobytes()
_, state = model.forward(small)
before = state.vector().tobytes()

def prefill():
    model.forward(np.zeros(200_000, np.int64), state)

def all_logits():
    model.forward(np.zeros(50_000, np.int64), state, every=True)

def one_run():
    own = [state.vector() for _ in range(1)]
    while True:
        model.runner.step([np.zeros(256, np.int64)], own)

def decode():
    own = state
    while True:
        _, own = model.forward(1, own)

def beside():
    end = threading.Event()
    other = threading.Thread(target=lambda: [model.forward([1] * 256) for _ in iter(end.is_set, True)])
    other.start()
    try:
        prefill()
    finally:
        end.set()
        other.join()

for work in (prefill, all_logits, one_run, decode, beside):
    def send():
        global sent
        time.sleep(0.2)
        sent = time.perf_counter()
        os.kill(os.getpid(), signal.SIGINT)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        work()
        print(work.__name__, "was not interrupted")
    except KeyboardInterrupt:
        print(f"{work.__name__} {1000 * (time.perf_counter() - sent):.1f} ms")
    sender.join()
    assert model.forward(small)[0].tobytes() == wanted
    assert state.vector().tobytes() == before
"""


@linux
def test_ctrl_c(tmp_path: Path) -> None:
    """Run with -s for the milliseconds from the signal to the exception. Nothing of an abandoned run shows later."""
    path = random_model(tmp_path / "m.safetensors", "7", 8, 512, 2048, vocabulary=4096)
    lines = child(INTERRUPT, path).splitlines()
    print("\n" + "\n".join(lines))
    assert [line.split()[0] for line in lines] == ["prefill", "all_logits", "one_run", "decode", "beside"]
    assert all(line.endswith(" ms") for line in lines)


@linux
def test_ctrl_c_while_another_thread_runs() -> None:
    """Python gives the exception to the main thread; the other's results are whole."""
    code = """
import os, signal, threading, time
import numpy as np
import rookery
signal.signal(signal.SIGINT, signal.default_int_handler)
model = rookery.load(backend="native", threads=2)
prompt = np.zeros(20_000, np.int64)
wanted = model.forward(prompt)[0].tobytes()
found = []
other = threading.Thread(target=lambda: found.append(model.forward(prompt)[0].tobytes()))
other.start()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
other.join()
print(found == [wanted])
"""
    assert child(code).split() == ["interrupted", "True"]


# -- exits -------------------------------------------------------------------------------------------------------------

LEAVE = """
import sys, threading, time
import rookery
model = rookery.load(backend="native", threads=4)
model.forward([1, 2, 3])
time.sleep(float(sys.argv[1]))
if sys.argv[2] == "kept":
    sys.modules["sys"].kept = model.runner.engine
if sys.argv[2] == "daemon":
    threading.Thread(target=model.forward, args=([1] * 500_000,), daemon=True).start()
    time.sleep(0.2)
print("end")
"""


@pytest.mark.parametrize("rest", [0, 0.05], ids=["spinning", "asleep"])
@pytest.mark.parametrize("how", ["", "kept"])
def test_the_interpreter_ends(rest: float, how: str) -> None:
    assert child(LEAVE, rest, how) == "end\n"


@pytest.mark.xfail(reason="the thread is ended within C++ when it asks for the interpreter's lock", strict=True)
def test_the_interpreter_ends_while_a_daemon_thread_runs() -> None:
    assert child(LEAVE, 0, "daemon") == "end\n"


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
@pytest.mark.xfail(
    reason="the engine gives up where a thread cannot start; those it has could do the work", strict=True
)
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


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_mistakes_of_states_and_tokens() -> None:
    model, other = load(), load("v7")
    with pytest.raises(StateError, match="another size"):
        model.forward([1], other.state())
    with pytest.raises(StateError, match="a state of 3 numbers"):
        State(model.config, np.zeros(3, np.float32), model.weights)
    for tokens in ([256], [-1], [1, 2**40], np.array([0, 2**63 - 1])):
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
    engine, size = load().runner.engine, load().state_size
    ids, one = np.zeros(1, np.int64), np.ones(1, np.int64)
    state, logits = np.zeros(size, np.float32), np.zeros((1, 256), np.float32)
    good = {"ids": ids, "lengths": one, "states": [state], "logits": logits, "every": False}
    engine.run(**good)
    for wrong in (
        {"states": [state[1:]]},
        {"states": []},
        {"states": [state, state]},
        {"ids": ids - 1},
        {"ids": ids + 256},
        {"ids": np.zeros(2, np.int64)},
        {"lengths": one * 0},
        {"lengths": one * 2},
        {"lengths": one * 257, "ids": np.zeros(257, np.int64)},
        {"logits": logits[:, 1:].copy()},
        {"logits": np.zeros((2, 256), np.float32)},
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

"""What a native model survives: threads, forks, Ctrl-C and exits, to the bit.

What could take the test process with it runs in a process of its own.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from models import random_model
from natives import PROMPT, child, load, outcome

from rookery import _native

if not _native.available():
    pytest.skip("the native core is not built", allow_module_level=True)

OWN = ("v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
linux = pytest.mark.skipif(sys.platform != "linux", reason="signals and cores as Linux has them")


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


@pytest.mark.parametrize(
    ("ran", "rest"),
    [
        pytest.param(True, 0, id="ran, spinning"),
        pytest.param(True, 0.05, id="ran, asleep", marks=pytest.mark.slow),
        pytest.param(False, 0, id="fresh, spinning", marks=pytest.mark.slow),
        pytest.param(False, 0.05, id="fresh, asleep"),
    ],
)
def test_a_model_is_collected_with_its_threads(ran: bool, rest: float) -> None:
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


def test_the_interpreter_ends_while_a_daemon_thread_runs() -> None:
    assert child(LEAVE, 0, "daemon") == "end\n"


CALLS = [
    "pack('f32', data, 4096, 1024, False, 'f32', 0, 256, data.copy())",
    "populate(data)",
    "encode_blocks('q8_0', data.view('f4'), blocks)",
    "Trie.encode(trie, bytes(2**20))",
]


@pytest.mark.parametrize("call", CALLS)
def test_the_interpreter_ends_while_a_daemon_thread_is_in_the_core(call: str) -> None:
    code = f"""
import threading
import numpy as np
from rookery._native import core
data, blocks = np.zeros(2**24, np.uint8), np.zeros(2**17 * 34, np.uint8)
trie = core.Trie("".join(f"{{i + 1}} {{bytes([i])!r}} 1\\n" for i in range(256)).encode())
started = threading.Event()
def work():
    while True:
        started.set()
        core.{call}
threading.Thread(target=work, daemon=True).start()
started.wait()
print("end")
"""
    assert child(code) == "end\n"

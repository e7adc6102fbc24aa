"""Trained and synthetic models made by others, against references made by others: `../shared/fixtures`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matrix import OP_SETS, Bar, OpSet, Outcome, check, check_same, model, outcome, whole

from rookery import Model
from tolerances import (
    LOGITS_BARELY_TRAINED,
    LOGITS_CHUNKED,
    LOGITS_EXPECTED,
    LOGITS_FLOAT64,
    LOGITS_RANDOM,
    LOGITS_TEXT,
    LOSS,
    ORACLE_V7_CONSTANT,
    STATE_CHUNKED,
    STATE_STORED,
)

FED_DIFFERENTLY = Bar(LOGITS_CHUNKED, STATE_CHUNKED)
REFERENCE, REFERENCE_64, TORCH, _, NATIVE = OP_SETS

# Reference name -> model file. The .bin of the same name must give the same; so must float products of quantised ones.
TRAINED = {
    "4v0-660K": "tiny-rwkv-4v0-660K.pth",
    "5v2-730K": "tiny-rwkv-5v2-730K.pth",
    "6v0-1m": "tiny-rwkv-6v0-1m.pth",
    "7v0-834K": "tiny-rwkv-7v0-834K.pth",
}
BIN = {
    "4v0-660K": "tiny-rwkv-4v0-660K-FP32.bin",
    "5v2-730K": "tiny-rwkv-5v2-730K-FP32.bin",
    "6v0-1m": "tiny-rwkv-6v0-1m-FP32.bin",
    "7v0-834K": "tiny-rwkv-7v0-834K-FP32.bin",
    **{f"5v2-730K-{kind}": f"tiny-rwkv-5v2-730K-{kind}.bin" for kind in ("FP16", "Q5_0", "Q5_1")},
    "7v0-834K-Q5_1": "tiny-rwkv-7v0-834K-Q5_1.bin",
}
SYNTHETIC = ("4v0", "5v1", "5v2", "6v0", "6v0-timestate", "7v0")

op_sets = pytest.mark.parametrize("ops", [REFERENCE, REFERENCE_64, TORCH, NATIVE], ids=str)


def bar(reference: str, prompt: str, ops: OpSet, file: str) -> Bar:
    if ops.dtype == "float64" and file.endswith(".pth"):
        logits = ORACLE_V7_CONSTANT if "7v0" in reference else LOGITS_FLOAT64
    elif reference.startswith("7v0"):
        logits = LOGITS_BARELY_TRAINED
    else:
        logits = LOGITS_RANDOM if prompt == "rand48" else LOGITS_TEXT
    return Bar(logits, STATE_STORED)


def check_prompt(shared: Path, file: str, reference: str, prompt: str, ops: OpSet, eps: float | None = None) -> None:
    suffix = "" if eps is None else f"_eps{eps:.0e}".replace("e-0", "e-")
    m = model(shared / "fixtures" / "models" / file, ops, eps)
    with np.load(shared / "fixtures" / "refs" / f"{reference}.npz") as refs:
        wanted = refs[f"{prompt}/logits_f64{suffix}"]
        logits, state = m.forward(refs[f"{prompt}/tokens"], every=wanted.ndim == 2)
        got = state.to_reference()
        stored = [refs[f"{prompt}/state_{i:02}{suffix}"] for i in range(len(got))]
        assert f"{prompt}/state_{len(got):02}{suffix}" not in refs
    check(Outcome(logits, got), Outcome(wanted, stored), bar(reference, prompt, ops, file))


@pytest.mark.parametrize("prompt", ["p16", "p128", "p400", "rand48"])
@pytest.mark.parametrize("reference", TRAINED)
@op_sets
def test_trained(shared: Path, reference: str, prompt: str, ops: OpSet) -> None:
    check_prompt(shared, TRAINED[reference], reference, prompt, ops)


@pytest.mark.parametrize("prompt", ["r12", "r96", "r400"])
@pytest.mark.parametrize("name", SYNTHETIC)
@op_sets
def test_synthetic(shared: Path, name: str, prompt: str, ops: OpSet) -> None:
    check_prompt(shared, f"synth-{name}.pth", f"synth-{name}", prompt, ops)


@pytest.mark.parametrize("prompt", ["p128", "rand48"])
@pytest.mark.parametrize("reference", BIN)
@op_sets
def test_files_of_rwkv_cpp(shared: Path, reference: str, prompt: str, ops: OpSet) -> None:
    check_prompt(shared, BIN[reference], reference, prompt, ops)


@pytest.mark.parametrize(("reference", "file"), [(r, f) for r, f in [*TRAINED.items(), *BIN.items()] if "5v2" in r])
@op_sets
def test_v5_with_the_epsilon_of_rwkv_cpp(shared: Path, reference: str, file: str, ops: OpSet) -> None:
    check_prompt(shared, file, reference, "p128", ops, eps=1e-5)


@pytest.mark.parametrize("file", [*TRAINED.values(), *(f for r, f in BIN.items() if r in TRAINED)])
@op_sets
def test_logits_that_rwkv_cpp_expects(shared: Path, file: str, ops: OpSet) -> None:
    name = file.removeprefix("tiny-rwkv-").removesuffix(".pth").removesuffix("-FP32.bin")
    expected = np.fromfile(shared / "fixtures" / "expected" / f"expected-logits-{name}.bin", "<f4")
    m = model(shared / "fixtures" / "models" / file, ops, 1e-5 if name.startswith("5v2") else None)
    logits, _ = m.forward(list(b'"in'))
    assert np.abs(logits - expected).max() <= LOGITS_EXPECTED


@pytest.mark.parametrize("reference", TRAINED)
@op_sets
def test_split_at_every_point(shared: Path, reference: str, ops: OpSet) -> None:
    m = model(shared / "fixtures" / "models" / TRAINED[reference], ops)
    with np.load(shared / "fixtures" / "refs" / f"{reference}.npz") as refs:
        prompt = refs["p128/tokens"][:20]
        wanted = refs["p128/logits_f64"][:20]
    at_once = whole(m, prompt)
    assert np.abs(at_once.logits - wanted).max() <= bar(reference, "p128", ops, TRAINED[reference]).logits
    for cut in range(1, len(prompt)):
        first, middle = m.forward(prompt[:cut], every=True)
        rest, end = m.forward(prompt[cut:], middle, every=True)
        check_same(outcome(np.concatenate([first, rest]), end), at_once, ops, FED_DIFFERENTLY)


@pytest.mark.parametrize("reference", TRAINED)
@op_sets
def test_one_token_at_a_time(shared: Path, reference: str, ops: OpSet) -> None:
    m = model(shared / "fixtures" / "models" / TRAINED[reference], ops)
    with np.load(shared / "fixtures" / "refs" / f"{reference}.npz") as refs:
        prompt = refs["p128/tokens"][:64]
    logits, state = [], None
    for token in prompt:
        last, state = m.forward(token, state)
        logits.append(last)
    assert state is not None
    check_same(outcome(np.array(logits), state), whole(m, prompt), ops, FED_DIFFERENTLY)


@pytest.mark.parametrize("reference", TRAINED)
@op_sets
def test_batched_with_others(shared: Path, reference: str, ops: OpSet) -> None:
    m = model(shared / "fixtures" / "models" / TRAINED[reference], ops)
    with np.load(shared / "fixtures" / "refs" / f"{reference}.npz") as refs:
        prompts = [refs["p128/tokens"], refs["p16/tokens"], refs["rand48/tokens"], refs["p128/tokens"][:1]]
    for prompt, (logits, state) in zip(prompts, m.forward_batch(prompts, every=True), strict=True):
        check_same(outcome(logits, state), whole(m, prompt), ops, FED_DIFFERENTLY)


@pytest.mark.parametrize(("reference", "eps"), [*((name, None) for name in TRAINED), ("5v2-730K", 1e-5)])
@op_sets
def test_greedy_tokens(shared: Path, reference: str, eps: float | None, ops: OpSet) -> None:
    m = model(shared / "fixtures" / "models" / TRAINED[reference], ops, eps)
    with np.load(shared / "fixtures" / "refs" / f"{reference}.npz") as refs:
        prompt, wanted = refs["greedy/prompt"], refs["greedy/tokens" + ("_eps1e-5" if eps else "")]
    logits, state = m.forward(prompt)
    written = []
    for _ in wanted:
        written.append(int(logits.argmax()))
        logits, state = m.forward(written[-1], state)
    assert written == wanted.tolist()


@pytest.mark.parametrize("reference", TRAINED)
@pytest.mark.parametrize("ops", [REFERENCE, TORCH, NATIVE], ids=str)
def test_mean_loss_of_shakespeare(shared: Path, reference: str, ops: OpSet) -> None:
    wanted = json.loads((shared / "fixtures" / "refs" / "nll_tinyshakespeare.json").read_text())["models"][reference]
    raw = (shared / "data" / "tinyshakespeare.txt").read_bytes()
    if reference.startswith("6v0"):
        raw = raw[: wanted["tokens"]].decode().encode("utf-16-le")
    tokens = np.frombuffer(raw[: wanted["tokens"]], np.uint8)
    loss = mean_loss(model(shared / "fixtures" / "models" / TRAINED[reference], ops), tokens)
    assert abs(loss - wanted["mean_nll"]) <= LOSS


def mean_loss(m: Model, tokens: np.ndarray) -> float:
    """Nats per token, zero state, the first token not scored."""
    logits = m.forward(tokens, every=True)[0][:-1].astype(np.float64)
    top = logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return float((log_total - logits[np.arange(len(logits)), tokens[1:]]).mean())

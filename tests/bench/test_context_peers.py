"""The models that `rookery bench context` compares: equal in parameters, right in what they compute and hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the peers run in torch, of the extra train")

from rookery import _native
from rookery.backends.torch.wkv import ops
from rookery.bench.context import match, peers
from rookery.bench.context.peers import Spec
from rookery.errors import BackendError, InputError
from tolerances import LOGITS_CHUNKED, LOGITS_HALF, MATCHED, MATTERS, TRAINING_NEED

TINY = Spec(200_000, 2, 96, head_size=32)
GROWING = ("transformer-gqa", "transformer-mha")
ALL = [
    *peers.KINDS,
    *(
        pytest.param(kind, marks=pytest.mark.skipif(not _native.available(), reason="the native core is not built"))
        for kind in peers.NATIVE
    ),
]


@pytest.fixture(autouse=True)
def as_torch_was() -> Any:
    """Building a peer sets what is the process's: threads, and how small a number may be."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


def text(length: int) -> list[int]:
    return np.random.default_rng(7).integers(TINY.vocab, size=length).tolist()


def test_what_the_command_may_name() -> None:
    assert peers.KINDS == (
        "rwkv4", "rwkv5", "rwkv6", "rwkv7", "transformer-gqa", "transformer-mha", "mamba2", "lstm",
    )  # fmt: skip


@pytest.mark.parametrize("kind", peers.KINDS)
@pytest.mark.parametrize(("parameters", "layers"), [(200_000, 2), (2_000_000, 3), (25_000_000, 8), (400_000_000, 12)])
def test_equal_parameters(kind: str, parameters: int, layers: int) -> None:
    plan = peers.plan(kind, Spec(parameters, layers, 8192))
    assert plan.parameters == pytest.approx(parameters, rel=MATCHED)
    assert plan.embedding_parameters == 2 * 8192 * plan.config["width"]


def test_the_default_sizes_share_a_width() -> None:
    """Then embedding and head are equal too; Mamba-2 and the LSTM have nothing but the width to be matched by."""
    plans = {kind: peers.plan(kind, Spec(25_000_000, 8, 8192)).config for kind in peers.KINDS}
    assert {plans[kind]["width"] for kind in peers.KINDS if kind not in ("mamba2", "lstm")} == {512}
    assert plans["transformer-gqa"]["kv_heads"] == 2
    assert plans["transformer-mha"]["kv_heads"] == 8


def test_the_size_that_is_nearest() -> None:
    assert match.nearest(Spec(1000, 1, 8), lambda size: 3 * size) == 336  # a multiple of 16: 64 and 32 miss by too much
    assert match.nearest(Spec(640, 1, 8), lambda size: 10 * size) == 64


@pytest.mark.parametrize("kind", peers.KINDS)
def test_too_few_parameters(kind: str) -> None:
    with pytest.raises(InputError, match=r"10,000 parameters in 12 layers: .* fewer layers or more parameters"):
        peers.plan(kind, Spec(10_000, 12, 96))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": 0}, "layers 0: a whole number of 1 or more"),
        ({"head_size": 33}, "head_size 33: an even number"),
        ({"dtype": "int8"}, "dtype 'int8': float32 or bfloat16"),
    ],
)
def test_a_spec_that_makes_no_sense(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Spec(**{"parameters": 1000, "layers": 1, "vocab": 8} | wrong)


def test_an_unknown_peer() -> None:
    with pytest.raises(InputError, match=r"no peer 'mamba'; did you mean mamba2\?"):
        peers.build("mamba", TINY)
    with pytest.raises(InputError, match="no peer 'gpt'; wanted: rwkv4, "):
        peers.need("gpt", TINY, 1)


@pytest.mark.parametrize("kind", ALL)
def test_what_is_planned_is_what_is_held(kind: str) -> None:
    peer = peers.build(kind, TINY)
    peer.prefill(text(70))
    assert peer.held_bytes() == peer.state_bytes(70)
    peer.step(5)
    assert peer.held_bytes() == peer.state_bytes(71)
    assert peer.constant == (kind not in GROWING)
    assert (peer.state_bytes(1 << 20) == peer.state_bytes(1)) == peer.constant
    if isinstance(peer, peers.TorchPeer):
        assert sum(tensor.nbytes for tensor in peer.weights()) == peer.weight_bytes
    else:
        assert peer.model.weights.parameters * 4 == peer.weight_bytes


@pytest.mark.parametrize("kind", peers.KINDS)
def test_what_a_token_reads(kind: str) -> None:
    """All but the embedding, of which a row is read, and all of the state."""
    plan = peers.plan(kind, TINY)
    width = plan.config["width"]
    assert plan.bytes_per_token(1000) == 4 * (plan.parameters + TINY.vocab * width + width) + plan.state_bytes(1000)


@pytest.mark.parametrize("kind", ALL)
def test_a_step_after_a_prompt_is_a_prompt_of_one_more(kind: str) -> None:
    peer, tokens = peers.build(kind, TINY), text(83)
    peer.prefill(tokens[:80])
    stepped = [peer.step(token).copy() for token in tokens[80:]]
    for count, logits in enumerate(stepped, 81):
        whole = peer.prefill(tokens[:count])
        assert np.abs(logits - whole).max() < LOGITS_CHUNKED
    other = peer.prefill([*tokens[:75], tokens[75] ^ 1, *tokens[76:]])
    assert np.abs(other - stepped[-1]).max() > MATTERS  # the state carries a token's mark through the steps
    assert other.shape == (TINY.vocab,)


@pytest.mark.parametrize("kind", peers.KINDS)
def test_a_long_prompt_is_read_in_slices(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, tokens = peers.build(kind, TINY), text(130)
    whole = peer.prefill(tokens).copy()
    if kind in GROWING:
        monkeypatch.setattr("rookery.bench.context.transformer.ROWS", 50)
    else:
        monkeypatch.setattr(peer, "slice", 50)
    assert np.abs(peer.prefill(tokens) - whole).max() < LOGITS_CHUNKED


@pytest.mark.parametrize("kind", [kind for kind in peers.KINDS if kind.startswith("rwkv")])
def test_no_prompt_runs_in_the_native_core(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other kinds have no such help: what runs in torch is said to."""
    for forms in ops.FORMS.values():
        monkeypatch.setitem(forms, "native", (None, None))
    peer = peers.build(kind, TINY)
    assert np.isfinite(peer.prefill(text(70))).all()
    assert np.isfinite(peer.train(66)())


@pytest.mark.parametrize("kind", ALL)
def test_an_injected_state(kind: str) -> None:
    peer = peers.build(kind, TINY)
    peer.inject(5000, extra=4)
    assert peer.held_bytes() == peer.state_bytes(5000)
    read = peers.build(kind, TINY).prefill(text(64))
    for token in range(4):
        logits = peer.step(token)
        assert np.isfinite(logits).all()
        assert 0.5 < logits.std() / read.std() < 2  # of a scale that the model knows
    peer.inject(5000, extra=4)
    assert peer.held_bytes() == peer.state_bytes(5000)  # begins there again


def test_the_injected_cache_is_full_and_has_an_end() -> None:
    peer: Any = peers.build("transformer-gqa", TINY)
    peer.inject(5000, extra=1)
    assert float(peer.kv[:, :, :, :5000].abs().amax((0, 1, 2, 4)).min()) > 0
    cache = peer.kv
    peer.step(1)
    with pytest.raises(IndexError, match="5002 tokens; the cache has room for 5001"):
        peer.step(1)
    peer.inject(3000, extra=1)
    assert peer.kv is cache  # what is random already need not be drawn again


def test_forms_of_attention_are_tried_once_a_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the first token after every prompt, which is timed."""
    tried: list[Any] = []
    monkeypatch.setattr("rookery.bench.context.transformer._seconds", lambda form, *given: tried.append(form) or 1.0)
    peer = peers.build("transformer-gqa", TINY)
    for length, times in ((40, 6), (41, 6), (70, 12), (40, 12)):
        peer.prefill(text(length))
        peer.step(1)
        assert len(tried) == times


@pytest.mark.parametrize("kind", GROWING)
def test_both_forms_of_attention_agree(kind: str) -> None:
    peer: Any = peers.build(kind, Spec(2_000_000, 2, 96, head_size=32))
    logits = []
    for form in (peer._fused, peer._products):
        peer.inject(300)
        peer.forms = {(301).bit_length(): form}
        logits.append(peer.step(1).copy())
        assert list(peer.forms.values()) == [form]
    assert np.abs(logits[0] - logits[1]).max() < LOGITS_CHUNKED
    assert peer.kv_heads < peer.heads or kind == "transformer-mha"


@pytest.mark.parametrize("kind", peers.KINDS)
def test_training_learns(kind: str) -> None:
    """Every tensor is part of the step, and the loss on the same tokens falls."""
    peer: Any = peers.build(kind, TINY)
    before = [tensor.detach().clone() for tensor in peer.weights()]
    step = peer.train(66)
    losses = [step() for _ in range(4)]
    assert losses[0] == pytest.approx(np.log(TINY.vocab), rel=0.3)
    assert losses[-1] < losses[0]
    assert all(not torch.equal(old, new) for old, new in zip(before, peer.weights(), strict=True))


@pytest.mark.parametrize("kind", peers.KINDS)
def test_training_sees_what_the_steps_see(kind: str) -> None:
    """The rows that training makes are those of decode."""
    peer: Any = peers.build(kind, TINY)
    tokens = text(70)
    with torch.no_grad():
        rows = peer.head(peer.hidden(torch.tensor(tokens))).numpy()
    peer.prefill(tokens[:1])
    stepped = np.stack([peer.step(token).copy() for token in tokens[1:]])
    assert np.abs(rows[1:] - stepped).max() < LOGITS_CHUNKED


@pytest.mark.parametrize("kind", peers.KINDS)
def test_what_training_keeps(kind: str) -> None:
    """The count over fake tensors, carried on to more tokens, against what autograd keeps of real ones."""
    peer: Any = peers.build(kind, TINY)
    for tensor in peer.weights():
        tensor.requires_grad_(True)
    known = {tensor.untyped_storage().data_ptr() for tensor in peer.weights()}
    kept = {}

    def keep(x: Any) -> Any:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        graph = peer.hidden(peer.random_ids(192))
    found = sum(storage.nbytes() for storage in kept.values())
    assert graph.shape == (192, peer.config["width"])
    logits = 192 * TINY.vocab * 4 * peers.COPIES_OF_LOGITS
    counted = peers.need(kind, TINY, 192, train=True) - 4 * peer.weight_bytes - logits
    assert counted == pytest.approx(found, rel=TRAINING_NEED)


@pytest.mark.parametrize("kind", [*peers.KINDS, *peers.NATIVE])
def test_need_is_counted_without_building(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "build", None)
    huge = Spec(3_000_000_000, 8, 65_536)
    plan = peers.plan(kind, huge)
    assert peers.need(kind, huge, 1 << 20) == plan.weight_bytes + plan.state_bytes((1 << 20) + peers.EXTRA)


def test_the_native_core_does_not_train() -> None:
    if not _native.available():
        pytest.skip("the native core is not built")
    with pytest.raises(BackendError, match="rwkv7-native: the native core does not train; rwkv7 does"):
        peers.build("rwkv7-native", TINY).train(8)
    with pytest.raises(BackendError, match="the native core does not train"):
        peers.need("rwkv7-native", TINY, 8, train=True)


@pytest.mark.parametrize("kind", [kind for kind in peers.KINDS if kind.startswith("rwkv")])
def test_the_native_core_has_the_same_weights(kind: str) -> None:
    if not _native.available():
        pytest.skip("the native core is not built")
    ours, native = peers.build(kind, TINY, seed=3), peers.build(f"{kind}-native", TINY, seed=3)
    assert np.abs(ours.prefill(text(40)) - native.prefill(text(40))).max() < LOGITS_CHUNKED


@pytest.mark.parametrize("kind", peers.KINDS)
def test_bfloat16(kind: str) -> None:
    half = Spec(200_000, 2, 96, head_size=32, dtype="bfloat16")
    peer, wide = peers.build(kind, half), peers.build(kind, TINY)
    logits, exact = peer.prefill(text(40)), wide.prefill(text(40))
    assert np.linalg.norm(logits - exact) < 2 * LOGITS_HALF * np.linalg.norm(exact)
    assert peer.held_bytes() == peer.state_bytes(40)
    assert peer.weight_bytes * 2 == wide.weight_bytes
    assert np.isfinite(peer.step(1)).all()


def test_seeds() -> None:
    def logits(seed: int) -> Any:
        return peers.build("lstm", TINY, seed).prefill(text(9))

    assert (logits(1) == logits(1)).all()
    assert np.abs(logits(1) - logits(2)).max() > MATTERS

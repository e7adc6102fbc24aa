"""Preferences: the losses against closed forms and finite differences, over batches, and what they do to a model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rookery import formats, weights
from rookery.backends.torch import Network
from rookery.train import report
from rookery.tune import config, objectives
from rookery.tune.objectives import OfLabels, OfPairs
from rookery.tune.tuner import Tuner
from tolerances import GRADIENT_FINITE_DIFFERENCE, LOSS_SPLIT, PREFERENCE

Tensor = torch.Tensor
FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "v7.safetensors"
KINDS = ["dpo", "orpo", "simpo", "kto"]
POLICY = [[-3.0, -9.0], [-12.5, -4.0], [-0.5, -0.25], [-40.0, -41.0]]  # sums of log-probabilities
REFERENCE = [[-4.0, -8.0], [-11.0, -5.5], [-0.75, -0.5], [-30.0, -50.0]]
MEANS = [[-0.3, -0.9], [-2.5, -0.4], [-1e-4, -3.0], [-0.7, -0.7]]
GOOD, POINT = [True, False, False, True], 0.7


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def of(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


def close(found: Tensor, wanted: list[float]) -> bool:
    return torch.allclose(found.detach(), torch.tensor(wanted, dtype=torch.float64), rtol=PREFERENCE, atol=0)


def test_dpo_is_the_papers() -> None:
    margins = [(p[0] - r[0]) - (p[1] - r[1]) for p, r in zip(POLICY, REFERENCE, strict=True)]
    plain = [-math.log(sigmoid(0.3 * m)) for m in margins]
    assert close(objectives.dpo(of(POLICY), of(REFERENCE), 0.3), plain)
    smooth = [-0.9 * math.log(sigmoid(0.3 * m)) - 0.1 * math.log(sigmoid(-0.3 * m)) for m in margins]
    assert close(objectives.dpo(of(POLICY), of(REFERENCE), 0.3, 0.1), smooth)


def test_orpo_is_the_papers() -> None:
    wanted = []
    for chosen, rejected in MEANS:
        odds = [math.exp(x) / (1 - math.exp(x)) for x in (chosen, rejected)]
        wanted.append(-chosen - 0.25 * math.log(sigmoid(math.log(odds[0] / odds[1]))))
    assert close(objectives.orpo(of(MEANS), 0.25), wanted)


def test_simpo_is_the_papers() -> None:
    wanted = [-math.log(sigmoid(2.5 * chosen - 2.5 * rejected - 1.4)) for chosen, rejected in MEANS]
    assert close(objectives.simpo(of(MEANS), 2.5, 1.4), wanted)


def test_kto_is_the_papers() -> None:
    wanted = []
    for (policy, _), (reference, _), good in zip(POLICY, REFERENCE, GOOD, strict=True):
        gain = policy - reference
        wanted.append(1.5 * (1 - sigmoid(0.2 * (gain - POINT))) if good else 0.5 * (1 - sigmoid(0.2 * (POINT - gain))))
    assert close(kto(of(POLICY), of(REFERENCE)), wanted)


def kto(policy: Tensor, reference: Tensor) -> Tensor:
    point = torch.full((len(policy),), POINT, dtype=torch.float64, requires_grad=True)
    return objectives.kto(policy[:, 0], reference[:, 0], torch.tensor(GOOD), point, 0.2, 1.5, 0.5)


@pytest.mark.parametrize(
    ("loss", "inputs"),
    [
        (lambda p, r: objectives.dpo(p, r, 0.3, 0.1), (POLICY, REFERENCE)),
        (lambda m: objectives.orpo(m, 0.25), (MEANS,)),
        (lambda m: objectives.simpo(m, 2.5, 1.4), (MEANS,)),
        (kto, (POLICY, REFERENCE)),
    ],
    ids=KINDS,
)
def test_gradients_are_finite_differences(loss: Callable[..., Tensor], inputs: tuple[list[list[float]], ...]) -> None:
    assert torch.autograd.gradcheck(loss, tuple(map(of, inputs)))


def test_a_certain_reply_has_a_finite_gradient() -> None:
    means = of([[0.0, -1.0]])
    objectives.orpo(means).sum().backward()
    assert torch.isfinite(means.grad).all()


# over batches of a network


def settings(kind: str, *more: str) -> config.Settings:
    return config.load(None, [f"objective={kind}", "train=x", *more])


@pytest.fixture
def network() -> Network:
    return Network.of(weights.load(FIXTURE), torch.float64)


def batch(kind: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(256, (4, 2, 33), generator=generator)
    trained = torch.rand(4, 2, 32, generator=generator) < 0.4
    made = [ids[..., :-1], ids[..., 1:], trained, torch.full((4,), 0.25)]
    reference = -50 - 5 * torch.rand(4, 2, generator=generator, dtype=torch.float64)
    if kind == "kto":
        return [*made, torch.tensor(GOOD), reference, torch.full((4,), POINT)]
    return [*made, reference] if kind == "dpo" else made


def module(network: Network, kind: str) -> Any:
    more = ("beta=0.03",) if kind in ("dpo", "kto") else ()  # so that no sigmoid is at its end
    return (OfLabels if kind == "kto" else OfPairs)(network, settings(kind, *more))


@torch.no_grad()
def test_log_probabilities_are_those_of_each_sequence_alone(network: Network) -> None:
    tokens, targets, trained, _ = batch("orpo")
    for rows in (0, 7):
        sums, counts = objectives.log_probs(network, tokens, targets, trained, rows)
        for b in range(4):
            for s in range(2):
                logits = network(tokens[b, s][None])[0][0].log_softmax(-1)
                each = [logits[t, targets[b, s, t]] for t in range(32) if trained[b, s, t]]
                assert counts[b, s] == len(each)
                assert torch.allclose(sums[b, s], torch.stack(each).sum(), rtol=PREFERENCE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_a_batch_is_a_finite_difference(network: Network, kind: str) -> None:
    trainee, data = module(network, kind), batch(kind)
    parameters = list(network.parameters())
    found = torch.autograd.grad(trainee(*data), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(3)
    ways = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    slope = sum(float((g * w).sum()) for g, w in zip(found, ways, strict=True) if g is not None)
    ends = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            for p, way in zip(parameters, ways, strict=True):
                p += step * way
            ends.append(float(trainee(*data)))
    assert abs(slope) > 1e-3
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=GRADIENT_FINITE_DIFFERENCE)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_add_up(network: Network, kind: str) -> None:
    trainee, data = module(network, kind), batch(kind)
    pieces = zip(*(torch.split(x, 1) for x in data), strict=True)
    assert torch.allclose(sum(trainee(*piece) for piece in pieces), trainee(*data), rtol=PREFERENCE)


# runs


@pytest.fixture(autouse=True)
def _torch_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The trainer sets these for its whole process; and the plot is another test's affair."""
    monkeypatch.setattr(report, "plot", lambda *_: None)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.set_flush_denormal(False)


PAIRS = [
    ("What do birds eat?", "Seeds and worms.", "A red ball."),
    ("Where is the fox?", "In the wood.", "It rained all day."),
    ("Who is at the door?", "My friend Tom.", "She was sad."),
    ("Why is the dog sad?", "It lost its bone.", "The moon was up."),
    ("What is blue?", "The sky is blue.", "They ran away."),
]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Tuner]:
    """`make("dpo", "beta=1")`: a tuner of the tiny model on PAIRS."""
    path = tmp_path / "pairs.jsonl"
    rows = [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in PAIRS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made(kind: str, *overrides: str, **more: Any) -> Tuner:
        given = (
            f"objective={kind}", f"train={path}", f"load_model={FIXTURE}", f"out={tmp_path / 'run'}", "batch=4",
            "tokenizer=bytes", "template=world", "ctx_len=96", "steps=30", "warmup_steps=2", "rank=4", "lr_init=0.02",
        )  # fmt: skip
        return Tuner(config.load(None, [*given, *overrides]), live=False, **more)

    return made


def margin(tuner: Tuner) -> float:
    """By how much the chosen replies are more likely than the rejected ones, in nats, on the mean."""
    rows = tuner.data.halves["train"]
    with torch.no_grad():
        tokens, targets, trained, *good = rows.tensors(range(len(rows)), "cpu")
        sums = tuner.module.log_probs(tokens, targets, trained)[0]
    if good:
        return float(sums[good[0], 0].mean() - sums[~good[0], 0].mean())
    return float((sums[:, 0] - sums[:, 1]).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_thirty_steps_raise_the_margin(make: Callable[..., Tuner], kind: str) -> None:
    tuner = make(kind)
    before = margin(tuner)
    losses = [tuner.step()[0] for _ in range(30)]
    assert margin(tuner) > before + 2
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", ["lora", "dora", "pissa", "miss", "full", "state"])
def test_every_method_begins_as_its_reference(make: Callable[..., Tuner], method: str) -> None:
    assert make("dpo", f"method={method}").step()[0] == pytest.approx(math.log(2), rel=LOSS_SPLIT)
    assert make("kto", f"method={method}").step()[0] == pytest.approx(0.5, rel=LOSS_SPLIT)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cut_of_a_step_changes_no_loss(make: Callable[..., Tuner], kind: str, tmp_path: Path) -> None:
    whole, parts = make(kind), make(kind, "micro_batch=1", "head_chunk=5", "grad_cp=true", f"out={tmp_path / 'parts'}")
    for _ in range(2):
        assert parts.step() == pytest.approx(whole.step(), rel=LOSS_SPLIT)


def test_ktos_point_follows_the_policy(make: Callable[..., Tuner]) -> None:
    tuner = make("kto")
    assert float(tuner.data.batch(0)[-1].abs().max()) < 1e-3
    with torch.no_grad():  # all that is trained becomes likelier, other prompts' replies too
        tuner.data.reference["train"] -= 3
    points = tuner.data.batch(0)[-1]
    assert torch.allclose(points, torch.full((4,), 3.0), atol=1e-3)
    tuner.data.reference["train"] += 6
    assert not tuner.data.batch(0)[-1].any()


class Counted:
    """How many rows' log-probabilities are computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows, real = 0, objectives.log_probs

        def counting(network: Network, tokens: Tensor, *more: Any) -> Any:
            self.rows += len(tokens)
            return real(network, tokens, *more)

        monkeypatch.setattr(objectives, "log_probs", counting)


def kept(out: Path) -> list[Path]:
    return sorted((out / "data").glob("reference-*"))


def test_the_reference_is_computed_once(make: Callable[..., Tuner], monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    first = make("dpo")
    assert counted.rows == len(PAIRS)
    reference = first.data.reference["train"].clone()
    for _ in range(3):
        first.step()
    first.save()
    counted.rows = 0
    again = make("dpo")
    again.resume()
    assert (counted.rows, again.done) == (0, 3)
    assert torch.equal(again.data.reference["train"], reference)
    assert make("simpo").data.reference == make("orpo").data.reference == {}
    assert counted.rows == 0
    make("dpo", "ctx_len=48")
    make("dpo", "quant=int8")
    assert counted.rows == 2 * len(PAIRS)
    assert len(kept(first.out)) == 3


def test_a_reference_that_is_lost_or_damaged_is_computed_again(make: Callable[..., Tuner]) -> None:
    """From the base, even where the run has gone on since."""
    first = make("dpo")
    reference = first.data.reference["train"].clone()
    first.step()
    first.save()
    (path,) = kept(first.out)
    for damage in (path.unlink, lambda: path.write_bytes(path.read_bytes()[:-3]), lambda: path.write_bytes(b"")):
        damage()
        again = make("dpo")
        again.resume()
        assert torch.equal(again.data.reference["train"], reference)
        assert formats.read(path).tensors["train"].shape == (len(PAIRS), 2)


def test_a_run_that_went_on_is_the_run_that_did_not_stop(make: Callable[..., Tuner], tmp_path: Path) -> None:
    whole, first = make("kto"), make("kto", f"out={tmp_path / 'parts'}")
    for _ in range(4):
        whole.step()
    for _ in range(2):
        first.step()
    first.save()
    second = make("kto", f"out={tmp_path / 'parts'}")
    second.resume()
    for _ in range(2):
        second.step()
    for ours, theirs in zip(second.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_run(make: Callable[..., Tuner], kind: str, tmp_path: Path) -> None:
    """From the held-out loss before the first step to the adapter."""
    tuner = make(kind, "steps=3", f"validation={tmp_path / 'pairs.jsonl'}")
    assert tuner.run() == tuner.out / "adapter.safetensors"
    before, after = tuner.losses()
    assert before is not None
    assert after is not None
    assert after < before


def test_progress_tells_of_the_reference(make: Callable[..., Tuner]) -> None:
    told: list[tuple[int, int]] = []
    make("dpo", "micro_batch=2", progress=lambda done, total: told.append((done, total)))
    data, (first, second, last) = told[:-3], told[-3:]
    assert data
    assert 0 < first[0] < second[0] < last[0] == last[1]

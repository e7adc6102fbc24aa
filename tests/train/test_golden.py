"""A loss curve of every version, made once in float64 token by token: the trainer's own must stay beside it.

Thirty steps of the whole trainer (data order, first values, groups, schedule, L2Wrap, clip, AdamW) on a tiny model,
with weight decay and L2Wrap turned up until a fault in either shows. Each fault planted below leaves the band.
`PYTHONPATH=tests python tests/train/test_golden.py` prints the curves anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tolerances import GOLDEN, GOLDEN_ORACLE

torch = pytest.importorskip("torch")

from rookery.backends.torch import wkv
from rookery.train import config, optimiser

if TYPE_CHECKING:
    from rookery.train.trainer import Trainer

STEPS, EVERY = 30, 3  # of the curve, every third loss is kept
LENGTH, BATCH = 48, 4  # more than a chunk, and not a multiple of 32

FASTER = ("4", "7")  # at their rate the others magnify rounding up to ten-thousandfold in 30 steps, in any form

# Loss in nats per token at steps 1, 4, 7, ...
CURVES: dict[str, list[float]] = {
    "4": [5.085599, 3.420289, 2.691360, 2.011201, 1.697794, 1.399221, 1.246521, 1.248174, 1.071854, 1.067574],
    "5.0": [5.085599, 3.683766, 3.479726, 3.156948, 3.013332, 2.778241, 2.657590, 2.547987, 2.440038, 2.302538],
    "5.1": [5.085599, 3.691806, 3.488071, 3.162732, 3.027191, 2.790869, 2.672022, 2.582384, 2.461840, 2.323131],
    "5.2": [5.080276, 3.685450, 3.486881, 3.164066, 3.039041, 2.809321, 2.740050, 2.632544, 2.536945, 2.391992],
    "6": [5.080276, 3.684637, 3.486008, 3.166210, 3.040818, 2.812698, 2.748860, 2.635727, 2.538136, 2.396233],
    "7": [5.080276, 3.591986, 2.808390, 2.031309, 1.652648, 1.297354, 1.118532, 1.130160, 0.941968, 0.961781],
}

ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def text() -> str:
    """The numbers from 0 to 699, digit by digit in words: something to learn."""
    return "\n".join(" ".join(ONES[int(digit)] for digit in str(number)) for number in range(700))


def trainer(version: str, folder: Path) -> Trainer:
    from rookery.train.trainer import Trainer

    (folder / "text.txt").write_text(text())
    small = ["n_layer=2", "n_embd=32", "head_size=16", "vocab_size=128", "tokenizer=bytes"]
    if version == "7":
        small.append("ranks={ w = 8, a = 8, v = 8, g = 8 }")
    rate = ["lr_init=1e-2", "lr_final=1e-3"] if version in FASTER else ["lr_init=2e-3", "lr_final=5e-4"]
    loud = [*rate, "warmup_steps=4", "weight_decay=1.0", "l2wrap=1e-2"]
    data = [f"train={folder / 'text.txt'}", f"ctx_len={LENGTH}", f"batch={BATCH}", f"tokens={STEPS * BATCH * LENGTH}"]
    run = [f"out={folder / 'run'}", "device=cpu", "matmul=highest", "seed=3"]
    return Trainer(config.load(None, [f"version={version}", *small, *loud, *data, *run]), live=False)


def oracle(version: str, folder: Path) -> Trainer:
    """The same run in float64; the recurrence is to be stepped."""
    made = trainer(version, folder)
    made.network.double()
    made.adam = optimiser.adamw(made.network, made.network.config, made.settings.optimiser)  # its moments float64 too
    return made


def losses(made: Trainer, steps: int = STEPS) -> list[float]:
    return [made.step()[0] for _ in range(steps)][::EVERY]


def farthest(found: list[float], version: str) -> float:
    """The largest distance from the stored curve, nats."""
    return max(abs(a - b) for a, b in zip(found, CURVES[version], strict=False))


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """The trainer sets these for its whole process."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("version", CURVES)
def test_the_trainer_follows_the_curve(version: str, tmp_path: Path) -> None:
    found = losses(trainer(version, tmp_path))
    assert len(found) == len(CURVES[version])
    assert found == pytest.approx(CURVES[version], rel=0, abs=GOLDEN)


@pytest.mark.parametrize("version", CURVES)
def test_the_curve_begins_as_the_oracle_says(version: str, tmp_path: Path) -> None:
    made = oracle(version, tmp_path)
    with wkv.using("step"):
        found = losses(made, 2 * EVERY + 1)
    assert found == pytest.approx(CURVES[version][:3], rel=0, abs=GOLDEN_ORACLE)


# Faults, each planted in a trainer before its first step.

Group = tuple[float, float]  # learning-rate scale, weight decay


def regroup(made: Trainer, change: Callable[[str, Group], Group]) -> None:
    """Sort the optimiser's tensors into other groups."""
    groups = made.adam.param_groups
    rest = {k: v for k, v in groups[0].items() if k not in ("params", "names", "scale", "weight_decay")}
    sorted_out: dict[Group, list[tuple[str, torch.Tensor]]] = {}
    for group in groups:
        for name, p in zip(group["names"], group["params"], strict=True):
            sorted_out.setdefault(change(name, (group["scale"], group["weight_decay"])), []).append((name, p))
    groups[:] = [
        {**rest, "params": [p for _, p in members], "names": [n for n, _ in members], "scale": s, "weight_decay": w}
        for (s, w), members in sorted_out.items()
    ]  # fmt: skip


def without_scales(made: Trainer) -> None:
    regroup(made, lambda _, group: (1.0, group[1]))


def decay_of_all(made: Trainer) -> None:
    regroup(made, lambda _, group: (group[0], 1.0))


def no_decay_of_the_embedding(made: Trainer) -> None:
    regroup(made, lambda name, group: (group[0], 0.0 if name == "emb.weight" else group[1]))


def no_l2wrap(made: Trainer) -> None:
    s = made.module.settings
    made.module.settings = replace(s, optimiser=replace(s.optimiser, l2wrap=0.0))


def no_clip(made: Trainer) -> None:
    made.settings = replace(made.settings, optimiser=replace(made.settings.optimiser, grad_clip=0.0))


def other_beta2(made: Trainer) -> None:
    for group in made.adam.param_groups:
        group["betas"] = (0.9, 0.95)


def other_epsilon(made: Trainer) -> None:
    for group in made.adam.param_groups:
        group["eps"] = 1e-8


def flat(name: str, value: float) -> Callable[[Trainer], None]:
    def plant(made: Trainer) -> None:
        torch.nn.init.constant_(made.network.get_parameter(name), value)

    plant.__name__ = f"{name} = {value}"
    return plant


QUICK = ("4", "7")  # the faults of the other versions are planted by -m slow
FAULTS = [without_scales, decay_of_all, no_decay_of_the_embedding, no_l2wrap, no_clip, other_beta2, other_epsilon]
FIRST_VALUES = {
    "4": [("att.time_decay", 0.0), ("att.time_first", 0.0), ("att.time_mix_k", 0.5), ("ffn.time_mix_r", 0.5)],
    "5.0": [("att.time_decay", -1.0), ("att.time_first", 0.0), ("att.time_mix_v", 0.5), ("att.ln_x.weight", 1.0)],
    "5.1": [("att.time_decay", -1.0), ("att.time_faaaa", 0.5), ("att.time_mix_g", 0.5), ("att.ln_x.weight", 1.0)],
    "5.2": [("att.time_decay", 0.0), ("att.time_faaaa", 0.5), ("att.time_mix_g", 0.5), ("att.ln_x.weight", 1.0)],
    "6": [("att.time_decay", 0.0), ("att.time_faaaa", 0.5), ("att.time_maa_x", 0.5), ("att.ln_x.weight", 1.0)],
    "7": [("att.w0", 0.0), ("att.a0", 0.0), ("att.x_k", 0.5), ("att.k_a", 1.0), ("att.r_k", 0.0), ("ffn.x_k", 0.5)],
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("version", [v if v in QUICK else pytest.param(v, marks=pytest.mark.slow) for v in CURVES])
def test_a_fault_of_the_recipe_leaves_the_band(version: str, fault: Callable[[Trainer], None], tmp_path: Path) -> None:
    made = trainer(version, tmp_path)
    fault(made)
    assert farthest(losses(made), version) > 2 * GOLDEN


@pytest.mark.parametrize(
    ("version", "fault"),
    [
        pytest.param(version, flat(f"blocks.0.{name}", value), marks=[] if version in QUICK else pytest.mark.slow)
        for version in FIRST_VALUES
        for name, value in FIRST_VALUES[version]
    ],
    ids=lambda x: x if isinstance(x, str) else x.__name__,
)
def test_a_tensor_that_begins_otherwise_leaves_the_band(
    version: str, fault: Callable[[Trainer], None], tmp_path: Path
) -> None:
    made = trainer(version, tmp_path)
    fault(made)
    assert farthest(losses(made), version) > 2 * GOLDEN


def main() -> None:
    for version in ("4", "5.0", "5.1", "5.2", "6", "7"):
        with tempfile.TemporaryDirectory() as folder, wkv.using("step"):
            found = losses(oracle(version, Path(folder)))
        print(f'    "{version}": [{", ".join(f"{x:.6f}" for x in found)}],')


if __name__ == "__main__":
    main()

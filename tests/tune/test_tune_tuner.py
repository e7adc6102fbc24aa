"""A tuning run: what it learns, what it writes, and that a step depends on neither its cut nor a stop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import rookery
import tolerances
from rookery import weights
from rookery.cli import tune as command
from rookery.errors import InputError
from rookery.train import report
from rookery.tune import config
from rookery.tune.tuner import Tuner
from rookery.weights import adapters

FIXTURES = Path(__file__).parents[1] / "fixtures"
ROWS = [
    *({"prompt": f"What comes after {n}?", "completion": f"{n + 1} comes."} for n in range(12)),
    {"prompt": "Count.", "completion": "one two three four five six seven eight nine ten eleven twelve"},
]
Make = Callable[..., Tuner]


@pytest.fixture(autouse=True)
def _torch_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The trainer sets these for its whole process; and the plot is another test's affair."""
    monkeypatch.setattr(report, "plot", lambda *_: None)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.set_flush_denormal(False)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make("method=dora", ...)`: a tuner of the tiny run with these settings on top."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def made(*overrides: str) -> Tuner:
        settings = [
            f"train={file}", f"validation={file}", f"out={tmp_path / 'run'}", "tokenizer=bytes", "ctx_len=128",
            f"load_model={FIXTURES / 'v7.safetensors'}", "steps=8", "batch=4", "warmup_steps=1", "rank=4", "threads=1",
            "matmul=highest", "device=cpu", "save_every=3", "lr_init=0.01", "template=raven",
        ]  # fmt: skip
        return Tuner(config.load(None, [*settings, *overrides]), live=False)

    return made


def logits_of(tuner: Tuner, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return tuner.network(torch.tensor([ids]))[0][0].numpy()


IDS = list(b"User: What comes after 3?\n\nAssistant:")


@pytest.mark.parametrize("method", [m for m in config.METHODS if m != "full"])
def test_each_method_learns_and_leaves_a_file_that_runs(make: Make, method: str) -> None:
    tuner = make(f"method={method}", f"lr_init={0.3 if method == 'state' else 0.01}")
    frozen = {n: p.detach().clone() for n, p in tuner.network.named_parameters() if not p.requires_grad}
    path = tuner.run()
    assert path == tuner.out / ("state.safetensors" if method == "state" else "adapter.safetensors")
    before, after = tuner.losses()
    assert before is not None
    assert after is not None
    assert after < before - 0.05
    assert all((p == frozen[n]).all() for n, p in tuner.network.named_parameters() if n in frozen)
    here = logits_of(tuner, IDS)
    base = FIXTURES / "v7.safetensors"
    if method == "state":
        model = rookery.load(base, backend="reference")
        there, _ = model.forward(IDS, rookery.State.load(path, model), every=True)
    else:
        read = adapters.load(path)
        read.check(weights.load(base))
        assert (read.method, read.metadata["rookery.steps"], read.metadata["rookery.tokenizer"]) == (
            method,
            "8",
            "bytes",
        )
        model = rookery.load(base, backend="reference", adapter=path)
        there, _ = model.forward(IDS, every=True)
    assert np.abs(here - there).max() < tolerances.LOGITS_TEXT


def test_a_whole_model(make: Make) -> None:
    tuner = make("method=full", "lr_init=0.001", "dtype=f32")
    path = tuner.run()
    assert path == tuner.out / "model.safetensors"
    model = rookery.load(path, backend="reference")
    assert np.abs(model.forward(IDS, every=True)[0] - logits_of(tuner, IDS)).max() < tolerances.LOGITS_TEXT
    assert model.weights.lineage != weights.load(FIXTURES / "v7.safetensors").lineage


@pytest.mark.parametrize("method", ["lora", "pissa", "dora", "state"])
def test_resumed_is_uninterrupted(make: Make, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = [f"method={method}", *(["dropout=0.1"] if method == "lora" else [])]
    whole = make(*more, f"out={tmp_path / 'whole'}").run()
    first = make(*more)

    def step() -> tuple[float, float]:
        if first.done == 5:
            raise RuntimeError("the power is gone")
        return Tuner.step(first)

    monkeypatch.setattr(first, "step", step)
    with pytest.raises(RuntimeError, match="power"):  # the checkpoint is of step 3
        first.run()
    again = make(*more)
    path = again.run()
    assert whole is not None
    assert path is not None
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("cut", ["micro_batch=1", "micro_batch=2", "slice=16"])
@pytest.mark.parametrize("packing", ["packing=true", "packing=false"])
def test_a_step_does_not_depend_on_its_cut(make: Make, cut: str, packing: str, tmp_path: Path) -> None:
    """Rows have unlike numbers of trained tokens: each token counts alike, not each micro batch."""
    steps = []
    for i, more in enumerate(([], [cut])):
        tuner = make(packing, *more, f"out={tmp_path / str(i)}")
        tuner.resume()
        steps.append([tuner.step() for _ in range(2)])
    assert np.allclose(*steps, rtol=tolerances.LOSS_SPLIT)


def test_the_loss_is_the_mean_over_what_is_trained(make: Make) -> None:
    tuner = make("packing=false")
    tokens, targets, share = tuner.data.batch(0)
    with torch.no_grad():
        logits, _ = tuner.network(tokens)
        each = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")
    loss, _ = tuner.step()
    assert (share > 0).sum() < share.numel()
    assert loss == pytest.approx(float(each[share > 0].mean()), rel=1e-5)


def test_the_last_validation_is_noted_before_the_last_checkpoint(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed as soon as that is written has nothing left to do but the export."""
    tuner, save = make("steps=3"), Tuner.save

    def then_killed(self: Tuner) -> None:
        save(self)
        raise RuntimeError("the power is gone")

    monkeypatch.setattr(Tuner, "save", then_killed)
    with pytest.raises(RuntimeError, match="power"):
        tuner.run()
    before, after = tuner.losses()
    assert (tuner.done, after != before) == (3, True)


def test_what_is_held_out_is_read_without_dropout(make: Make) -> None:
    tuner = make("dropout=0.9", "lr_init=0.1", "warmup_steps=0")
    tuner.step()
    assert tuner.held_out() == tuner.held_out()


def test_another_run_in_the_folder(make: Make) -> None:
    make("steps=3").run()
    with pytest.raises(InputError, match=r"another run: adapter\.rank was 4 and is 5"):
        make("rank=5").run()
    with pytest.raises(InputError, match=r"another run: model\.group_norm_eps was 0\.0 and is 0\.1"):
        make("group_norm_eps=0.1").run()
    with pytest.raises(InputError, match=r"run\.seed was 1 and is 2"):
        make("seed=2").run()
    with pytest.raises(InputError, match=r"another run: data\.rows"):
        make("mask=all").run()
    with pytest.raises(InputError, match=r"another run: model\.base"):
        make(f"load_model={FIXTURES / 'v6.safetensors'}").run()


def test_the_rate_of_every_step(make: Make) -> None:
    tuner = make("steps=12", "warmup_steps=2", "lr_init=0.01", "lr_final=0.001")
    rates = [tuner.rate(step) for step in range(13)]
    assert rates[0] == pytest.approx(0.01 / 3)
    assert rates[2] == pytest.approx(0.01)
    assert rates[7] == pytest.approx(0.0055)
    assert rates[12] == pytest.approx(0.001)
    assert make("lr_init=0", "method=state").settings.optimiser.lr_init == config.RATES["state"]
    assert make("lr_init=0").settings.optimiser.lr_init == pytest.approx(config.RATES["lora"] * config.WIDTH / 12)


def test_epochs_say_how_many_steps(make: Make) -> None:
    tuner = make("steps=0", "epochs=2.5", "packing=false")
    assert tuner.settings.steps == 10  # 13 rows are 4 steps of 4


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method=lara", "lora, rslora"),
        ("rank=0", "1 or more"),
        ("rank=13", r"blocks\.0\.att\.receptance\.weight is \[12, 12\], so 12 is the largest"),
        ("gamma=nan", "0 or more"),
        ("targets=[]", "one or more"),
        ("train=", "a .jsonl file"),
        ("quant=fp4", "none, int8 or nf4"),
        ("targets=atention", "means no tensor"),
        ("hold_out=0.9", "0 to 0.5"),
        ("lora_parts=att,foo", "parts are att, ffn"),
        ("rnk=3", "the nearest name is rank"),
    ],
)
def test_settings_that_cannot_be(make: Make, override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(override)


def test_a_change_that_a_run_may_go_on_with_is_said(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("steps=3").run()
    make("steps=4", "dropout=0.5", "beta2=0.5", "l2wrap=1e-4").resume()
    said = capsys.readouterr().err
    for key in ("adapter.dropout", "optimiser.steps", "optimiser.beta2", "optimiser.l2wrap"):
        assert f"going on with a change: {key} was" in said


def test_a_loop_of_ones_own(make: Make) -> None:
    tuner = make()
    tuner.step()
    assert adapters.load(tuner.export()).metadata["rookery.steps"] == "1"
    assert tuner.losses() == (None, None)


def test_flags_of_others() -> None:
    """RWKV-PEFT's scripts: understood, or said to be something else here."""
    read = config.load(None, [
        "train=x", "optim=adam", "merge=0",
        'lora_config={"lora_load": "", "lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.01}',
    ]).adapter  # fmt: skip
    assert (read.rank, read.alpha, read.dropout) == (8, 32, 0.01)
    for flag, said in (
        ('lora_config={"lora_load": "a.pth", "lora_r": 8}', "lora_load = 'a.pth': a run begins anew"),
        ("lora_load=a.pth", "a run begins anew"),
        ('peft_config={"r": 8, "use_dora": true}', "'use_dora' is not understood"),
        ("merge=1", "rookery merge"),
        ("optim=muon", "AdamW is the optimiser"),
        ("lora_parts=5", "parts are att"),
        ("quant=[1]", "none, int8 or nf4"),
    ):
        with pytest.raises(InputError, match=said):
            config.load(None, ["train=x", flag])
    words = ["--sft_field", "query", "response", "--train_parts", "time", "ln", "--rank", "4", "run.toml"]
    assert command.parser().parse_args(words).settings == [
        "sft_field=query response",
        "train_parts=time ln",
        "rank=4",
        "run.toml",
    ]


def test_a_run_that_left_no_checkpoint_begins_its_metrics_anew(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make("steps=2")

    def killed(self: Tuner, report: object) -> None:
        raise RuntimeError("the power is gone")

    with monkeypatch.context() as m:
        m.setattr(Tuner, "_one", killed)
        with pytest.raises(RuntimeError, match="power"):
            first.run()
    again = make("steps=2", "mask=all")
    again.run()
    assert [row["step"] for row in report.read(again.out / report.METRICS)] == [0, 1, 2, 2]


def test_tensors_beside_a_state_are_refused(make: Make) -> None:
    with pytest.raises(InputError, match="none with state, which trains no tensor"):
        make("method=state", "full=*.ln*")

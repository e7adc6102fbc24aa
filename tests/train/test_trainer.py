"""A run and what it leaves; steps that do not depend on how the batch is cut; failures that keep what was good."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tolerances import LOGITS_CHUNKED, LOSS_BF16, LOSS_SPLIT
from training_runs import config_file, losses, metrics, outcome

torch = pytest.importorskip("torch")

import rookery
from rookery.errors import CannotWrite, InputError, TrainingError
from rookery.train import checkpoint, config, report
from rookery.train.trainer import Trainer

Make = Callable[..., Trainer]


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
    """`make("version=4", ...)`: a trainer of the tiny run with these settings on top."""
    path = config_file(tmp_path)

    def made(*overrides: str) -> Trainer:
        return Trainer(config.load(str(path), [f"out={tmp_path / 'run'}", *overrides]), live=False)

    return made


def test_what_a_run_leaves(make: Make, tmp_path: Path) -> None:
    trainer = make(f"validation={tmp_path / 'text.txt'}", "validate_every=4", "sample_every=8", "validate_tokens=64")
    assert trainer.run() == trainer.out / "model.safetensors"
    kinds = [next(k for k in ("loss", "validation_loss", "sample") if k in line) for line in metrics(trainer.out)]
    assert kinds == [*["loss"] * 4, "validation_loss", *["loss"] * 4, "validation_loss", "sample"]
    assert losses(trainer.out)[-1] < losses(trainer.out)[0] - 0.3
    assert [p.name for p in checkpoint.found(trainer.out)] == ["step-00000006.safetensors", "step-00000008.safetensors"]


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_the_model_is_the_network(make: Make, version: str) -> None:
    trainer = make(f"version={version}", "tokens=128")
    model = rookery.load(trainer.run(), backend="reference")
    ids = list(b"one two three four five six")
    found, _ = model.forward(ids, every=True)
    with torch.no_grad():
        wanted = trainer.network(torch.tensor([ids]))[0][0].numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=LOGITS_CHUNKED)
    assert model.tokenizer.name == "bytes"


@pytest.mark.parametrize("version", ["4", "7"])
@pytest.mark.parametrize("cut", ["micro_batch=1", "micro_batch=2", "head_chunk=5", "grad_cp=true"])
def test_the_cut_of_a_step_changes_no_loss(make: Make, tmp_path: Path, version: str, cut: str) -> None:
    whole = make(f"version={version}", "tokens=256")
    parts = make(f"version={version}", "tokens=256", cut)
    a, b = ([t.step() for _ in range(4)] for t in (whole, parts))
    np.testing.assert_allclose(a, b, rtol=LOSS_SPLIT, atol=0)


def test_the_order_of_the_data_matters_to_these_tests(make: Make) -> None:
    """The tolerance above would notice one other sequence."""
    a, b = make(), make()
    b.data.prime -= 1
    assert abs(a.step()[0] / b.step()[0] - 1) > 10 * LOSS_SPLIT


def test_steps_of_ones_own(make: Make) -> None:
    a = make()
    a.run()
    b = make("out=" + str(a.out.parent / "own"))
    own = [b.step()[0] for _ in range(8)]
    assert own == losses(a.out)


def test_a_model_to_begin_with(make: Make, tmp_path: Path) -> None:
    first = make("tokens=512")
    path = first.run()
    second = make(f"load_model={path}", f"out={tmp_path / 'second'}")
    for (name, a), b in zip(first.network.named_parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(InputError, match=r"knows 256 tokens, but the data may go up to 299"):
        make(f"load_model={path}", f"out={tmp_path / 'third'}", "vocab_size=300")


# interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_and_saves(make: Make, tmp_path: Path, number: int) -> None:
    whole = make(f"out={tmp_path / 'whole'}")
    whole.run()
    trainer = make()
    step = trainer.step

    def interrupted() -> tuple[float, float]:
        if trainer.done == 4:
            os.kill(os.getpid(), number)
        return step()

    trainer.step = interrupted  # type: ignore[method-assign]
    before = signal.getsignal(number)
    assert trainer.run() is None
    assert signal.getsignal(number) is before
    assert checkpoint.found(trainer.out)[-1].name == "step-00000005.safetensors"
    make().run()
    assert outcome(trainer.out) == outcome(whole.out)


def test_before_the_first_step_there_is_nothing_to_save(make: Make) -> None:
    trainer = make()
    trainer.stopping = True
    assert trainer.run() is None
    assert checkpoint.found(trainer.out) == []


def test_a_finished_run_is_exported_again(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    path = make().run()
    assert path
    was = path.read_bytes()
    path.unlink()
    assert make().run() == path
    assert path.read_bytes() == was
    assert capsys.readouterr().err == ""


# failure


def test_a_rate_that_is_absurd(make: Make) -> None:
    trainer = make("lr_init=1e30", "lr_final=1e29", "grad_clip=0", "save_every=1", "keep=5", "tokens=4096")
    with pytest.raises(TrainingError) as caught:
        trainer.run()
    said = str(caught.value)
    kept = checkpoint.found(trainer.out)
    assert "\n" not in said
    assert f"step {trainer.done}" in said or f"step {trainer.done + 1}" in said
    for path in kept:  # whatever was kept can be gone on from
        assert all(np.isfinite(t.array()).all() for t in rookery.formats.read(path).tensors.values())
    assert "group of lr x" in said or "largest weight is" in said


def test_a_poisoned_weight(make: Make) -> None:
    trainer = make()
    trainer.step()
    trainer.save()
    for _ in range(2):
        trainer.step()
    with torch.no_grad():
        trainer.network.get_parameter("blocks.1.att.w0")[3] = float("nan")
    before = {name: t.clone() for name, t in trainer.state().items()}
    with pytest.raises(TrainingError, match=r"step 4: loss nan.*blocks\.1\.att\.w0 in the group of lr x2 without decay"
                       r".*good checkpoint is .*step-00000001"):  # fmt: skip
        trainer.step()
    for name, t in trainer.state().items():
        assert torch.equal(t.nan_to_num(7), before[name].nan_to_num(7)), name
    with pytest.raises(TrainingError, match=r"left weights that are not finite: blocks\.1\.att\.w0"):
        trainer.save()
    assert [p.name for p in checkpoint.found(trainer.out)] == ["step-00000001.safetensors"]


def test_a_gradient_that_is_not_finite(make: Make) -> None:
    trainer = make("grad_clip=1")
    trainer.network.get_parameter("blocks.0.ffn.key.weight").register_hook(lambda g: g * float("inf"))
    with pytest.raises(TrainingError, match=r"not finite: the gradient of blocks\.0\.ffn\.key\.weight in the group of "
                       r"lr x1 with decay; .*there is no good checkpoint"):  # fmt: skip
        trainer.step()


def test_weights_that_failed_are_not_good(make: Make) -> None:
    trainer = make()
    for _ in range(2):
        trainer.step()
        trainer.save()
    trainer.network.get_parameter("head.weight").register_hook(lambda g: g * float("nan"))
    with pytest.raises(TrainingError, match=r"good checkpoint is .*step-00000001.* \(remove the newer step-00000002"):
        trainer.step()


def test_a_full_disk(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(f"out={tmp_path / 'whole'}")
    whole.run()
    trainer = make()
    sync = os.fsync

    def full(descriptor: int) -> None:
        if trainer.done == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"step-00000006.*No space left.*good checkpoint is .*step-00000003"):
        trainer.run()
    assert [p.name for p in (trainer.out / "checkpoints").iterdir()] == ["step-00000003.safetensors"]
    monkeypatch.setattr(os, "fsync", sync)
    make().run()
    assert outcome(trainer.out) == outcome(whole.out)


# what does not fit


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("version=6", "model.version was '7' and is '6'"),
        ("n_layer=3", "model.n_layer was 2 and is 3"),
        ("n_embd=48", "model.n_embd was 32 and is 48"),
        ("n_ffn=64", r"of another model: .*\[128, 32\] there and \[64, 32\] here"),
        ("ctx_len=8", "data.ctx_len was 16 and is 8"),
        ("batch=8", "optimiser.batch was 4 and is 8"),
        ("vocab_size=200", r"of another model: .*emb.weight is \[256, 32\] there and \[200, 32\] here"),
    ],
)
def test_a_checkpoint_of_another_run(make: Make, change: str, said: str) -> None:
    trainer = make()
    trainer.step()
    trainer.save()
    with pytest.raises(InputError, match=rf"step-00000001.*{said}.*out="):
        make(change).run()


def test_other_data(make: Make, tmp_path: Path) -> None:
    trainer = make()
    trainer.step()
    trainer.save()
    (tmp_path / "other.txt").write_text((tmp_path / "text.txt").read_text().replace("seven", "siete"))
    with pytest.raises(InputError, match=r"data\.stream was '.* tokens, crc32"):
        make(f"train={tmp_path / 'other.txt'}").run()
    (tmp_path / "moved.txt").write_text((tmp_path / "text.txt").read_text())
    assert make(f"train={tmp_path / 'moved.txt'}").run()


def test_a_change_is_said(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make()
    trainer.step()
    trainer.save()
    again = make("lr_init=1e-3")
    again.resume()
    assert again.done == 1
    err = capsys.readouterr().err
    assert "going on with a change: optimiser.lr_init was 0.003 and is 0.001" in err
    assert "going on after step 1 of 8" in err


def test_a_batch_that_does_not_divide(make: Make) -> None:
    with pytest.raises(InputError, match=r"micro_batch = 3: it must divide the 4"):
        make("micro_batch=3")


def test_a_folder_that_is_a_file(make: Make, tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match=r"text\.txt: is a file; name a folder for the run with out="):
        make(f"out={tmp_path / 'text.txt'}")


def test_a_device_that_is_not_here(make: Make) -> None:
    with pytest.raises(InputError, match=r"run\.device = 'tpv': cpu, cuda or auto"):
        make("device=tpv")


def test_two_runs_in_one_folder(make: Make) -> None:
    with checkpoint.folder_of_one(make().out), pytest.raises(InputError, match="another `rookery train` works there"):
        make().run()


@pytest.mark.parametrize("version", ["4", "6", "7"])
def test_bf16_trains_beside_fp32(make: Make, version: str) -> None:
    wide, narrow = make(f"version={version}"), make(f"version={version}", "precision=bf16")
    for _ in range(8):
        a, b = wide.step()[0], narrow.step()[0]
    assert a != b
    assert abs(a - b) < LOSS_BF16
    assert {t.dtype for t in narrow.state().values()} == {torch.float32}

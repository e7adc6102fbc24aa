"""What a run says of itself: the metrics file over interruptions, the live line, TensorBoard and W&B, the plot."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from rookery.errors import CannotWrite, MissingExtra
from rookery.train import report
from rookery.train.config import DataSettings, OptimiserSettings, RunSettings, Settings
from rookery.train.plot import _smoothed, plot
from rookery.train.report import Live, Report, Speed, duration

TOTAL = 9


def settings(**run: Any) -> Settings:
    return Settings(
        data=DataSettings(train=("x",), ctx_len=8), optimiser=OptimiserSettings(batch=4), run=RunSettings(**run)
    )


def play(out: Path, first: int, last: int, s: Settings | None = None) -> None:
    """Steps first+1 .. last as the trainer reports them: a validation at 3, 6, 9 and a sample at 6."""
    with Report(out, s or settings(), first_step=first, total_steps=TOTAL, live=False) as r:
        for step in range(first + 1, last + 1):
            r.step(step, 5 / step, 1e-3 * step, 0.5 + step, 32 * step)
            if step % 3 == 0:
                r.validation(step, 6 / step, 2 / step if step > 3 else None)
            if step == 6:
                r.sample(step, "Es war\neinmal ein Kätzchen")


def without_times(out: Path) -> list[dict[str, Any]]:
    rows = report.read(out / "metrics.jsonl")
    assert all("time" in row for row in rows)
    return [{k: v for k, v in row.items() if k not in report.TIMES} for row in rows]


def test_metrics_say_all(tmp_path: Path) -> None:
    play(tmp_path, 0, TOTAL)
    rows = without_times(tmp_path)
    assert rows[0] == {"step": 1, "tokens": 32, "loss": 5.0, "lr": 1e-3, "grad_norm": 1.5}
    assert rows[3] == {"step": 3, "tokens": 96, "validation_loss": 2.0, "bits_per_byte": None}
    assert {"step": 6, "sample": "Es war\neinmal ein Kätzchen"} in rows
    assert [r["step"] for r in rows] == [1, 2, 3, 3, 4, 5, 6, 6, 6, 7, 8, 9, 9]


@pytest.mark.parametrize(("died", "checkpoint"), [(8, 5), (6, 6), (3, 0), (9, 6)])
@pytest.mark.parametrize("torn", [b"", b'{"step": 2, "tok'])
def test_an_interrupted_run_writes_the_same(
    tmp_path: Path, died: int, checkpoint: int, torn: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "plot", lambda *_: None)
    play(tmp_path / "whole", 0, TOTAL)
    play(tmp_path / "cut", 0, died)
    with (tmp_path / "cut" / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    play(tmp_path / "cut", checkpoint, TOTAL)
    assert without_times(tmp_path / "cut") == without_times(tmp_path / "whole")


def test_a_sample_may_hold_any_character(tmp_path: Path) -> None:
    """Those at which Python divides a text into lines too; the plot at the end reads the file."""
    text = "a\u2028b\u2029c\x85d\x0be\x1cf\rg"
    with Report(tmp_path, settings(), first_step=0, total_steps=2, live=False) as r:
        r.sample(1, text)
    assert [row["sample"] for row in report.read(tmp_path / "metrics.jsonl")] == [text]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a metric's line: what comes after, the plot among it, neither hides it nor stumbles."""
    resource = pytest.importorskip("resource")  # a limit on the size of files fails as a full disk does
    limits, metrics = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "metrics.jsonl"
    drawn: list[int] = []
    monkeypatch.setattr(report, "plot", lambda rows, _: drawn.append(len(rows)))

    def fill() -> None:
        with Report(tmp_path, settings(), first_step=0, total_steps=2, live=False) as r:
            r.step(1, 2.0, 1e-3, 1.0, 32)
            resource.setrlimit(resource.RLIMIT_FSIZE, (metrics.stat().st_size + 5, limits[1]))
            r.step(2, 2.0, 1e-3, 1.0, 64)

    try:
        with pytest.raises(CannotWrite, match=r"metrics\.jsonl: cannot be written \(File too large\)"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert drawn == [1]


def test_lines_are_on_the_disk_at_once(tmp_path: Path) -> None:
    r = Report(tmp_path, settings(), first_step=0, total_steps=2, live=False)
    r.step(1, 2.0, 1e-3, 1.0, 32)
    assert len(report.read(tmp_path / "metrics.jsonl")) == 1
    r.close()
    r.close()


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    with Report(tmp_path, settings(), first_step=0, total_steps=2, live=False) as r:
        r.step(1, float("nan"), 1e-3, float("inf"), 32)
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line["loss"] is None
    assert line["grad_norm"] is None


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CannotWrite, match=r"metrics\.jsonl: cannot be written"):
        Report(tmp_path / "file", settings(), first_step=0, total_steps=1, live=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_live_line_in_a_log() -> None:
    clock, stream = Clock(), io.StringIO()
    live = Live(1000, stream, clock)
    for step in range(1, 27):
        clock.now = step - 1.0
        live.step(step, 3.0, 5e-4, None if step == 1 else 64.0, 64)
    live.close()
    lines = stream.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == ["1/1,000", "11/1,000", "21/1,000", "26/1,000"]
    assert lines[1] == "rookery: step 11/1,000 (1.1%)  loss 3.0000  lr 5.00e-04  64 tokens/s  ETA 16 min 29 s"
    assert "tokens/s" not in lines[0]


def test_the_live_line_on_a_terminal_is_rewritten_within_its_width() -> None:
    clock, stream = Clock(), Terminal()
    live = Live(100_000, stream, clock)
    live.bits_per_byte = 1.5
    for step in range(1, 4):
        clock.now += 1
        live.step(step, 3.0, 5e-4, 123_456.0, 64)
    live.say("a line that stays")
    live.close()
    shown = stream.getvalue()
    assert shown.count("\n") == 2
    assert "1.5000 bits/byte" in shown
    assert all(len(piece.split("\x1b[K")[-1].rstrip("\n")) < 80 for piece in shown.split("\r"))


def test_the_smoothed_loss_is_a_mean_from_the_first_step_on() -> None:
    stream, clock = io.StringIO(), Clock()
    live = Live(4, stream, clock)
    for step, loss in enumerate([4.0, 2.0], 1):
        clock.now += 100
        live.step(step, loss, 1e-3, None, 64)
    assert "loss 4.0000" in stream.getvalue()
    assert "loss 2.9899" in stream.getvalue()  # (0.98 * 4 + 2) / 1.98


def test_speed() -> None:
    clock = Clock()
    speed = Speed(clock)
    assert speed.add(100) is None
    clock.now = 2.0
    assert speed.add(300) == 100.0
    for _ in range(200):
        clock.now += 1.0
        last = speed.add(300 + 10 * int(clock.now - 2))
    assert last == 10.0  # what is long past no longer counts


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.7, "1 min 00 s"), (250, "4 min 10 s"), (7500, "2 h 05 min"), (273_600, "3 d 04 h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_live_report_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Report(tmp_path, settings(), first_step=0, total_steps=2) as r:
        r.step(1, 2.0, 1e-3, 1.0, 32)
        r.validation(1, 1.75, 1.25)
        r.sample(1, "Once")
    out, err = capsys.readouterr()
    assert out == ""
    assert "rookery: step 1: validation loss 1.7500 nats per token, 1.2500 bits per byte\n" in err
    assert "sample:\nOnce\n" in err


# TensorBoard and Weights & Biases, of which tests need no real one


def test_missing_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    for s, what in ((settings(tensorboard=True), "run.tensorboard"), (settings(wandb="gosling"), "run.wandb")):
        with pytest.raises(MissingExtra, match=rf"{what} needs an optional part: pip install"):
            Report(tmp_path, s, first_step=0, total_steps=1, live=False)


def test_tensorboard_hides_what_comes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            said.append((Path(folder), purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            said.append((name, value, step))

        def add_text(self, name: str, text: str, step: int) -> None:
            said.append((name, text, step))

        def close(self) -> None:
            said.append("closed")

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)  # type: ignore[arg-type]
    play(tmp_path, 5, 6, settings(tensorboard=True))
    assert said[0] == (tmp_path / "tensorboard", 6)
    assert ("loss", 5 / 6, 6) in said
    assert ("bits_per_byte", 2 / 6, 6) in said
    assert ("sample", "Es war\neinmal ein Kätzchen", 6) in said
    assert said[-1] == "closed"


def test_wandb_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    logged: list[tuple[dict[str, Any], int]] = []

    def init(**arguments: Any) -> Any:
        begun.append(arguments)
        return types.SimpleNamespace(
            id=arguments["id"] or f"run{len(begun)}", log=lambda v, step: logged.append((v, step)), finish=lambda: None
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Html=str))  # type: ignore[arg-type]
    s = settings(wandb="gosling")
    for first, last in ((0, 4), (3, 9), (0, 1)):
        play(tmp_path, first, last, s)
    assert [b["id"] for b in begun] == [None, "run1", None]  # the third begins anew
    assert begun[0]["project"] == "gosling"
    assert begun[0]["config"]["data"]["ctx_len"] == 8
    assert ({"loss": 5 / 9, "lr": pytest.approx(9e-3), "grad_norm": 9.5}, 9) in [
        ({k: v for k, v in values.items() if k != "tokens_per_second"}, step) for values, step in logged
    ]


# the plot


@pytest.mark.parametrize("steps", [1, 12, 500])
def test_the_plot(tmp_path: Path, steps: int) -> None:
    pytest.importorskip("matplotlib")
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            file.write(json.dumps({"step": step, "tokens": 64 * step, "loss": 2 + 4 / step}) + "\n")
        row = {"step": steps, "tokens": 64 * steps, "validation_loss": 2.5, "bits_per_byte": 1.7}
        file.write(json.dumps(row) + "\n")
    plot(report.read(tmp_path / "metrics.jsonl"), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_no_steps_no_plot(tmp_path: Path) -> None:
    with Report(tmp_path, settings(), first_step=0, total_steps=1, live=False):
        pass
    assert not (tmp_path / "loss.png").exists()


def test_without_matplotlib_a_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with Report(tmp_path, settings(), first_step=0, total_steps=1) as r:
        r.step(1, 2.0, 1e-3, 1.0, 32)
    assert "no loss.png, for matplotlib is not installed: pip install 'rookery[train]'" in capsys.readouterr().err
    assert not (tmp_path / "loss.png").exists()


def test_the_smoothed_curve_keeps_a_constant_and_does_not_lag() -> None:
    assert _smoothed([2.0] * 50) == [2.0] * 50
    line = [float(i) for i in range(1000)]
    assert _smoothed(line)[500] == pytest.approx(500)


def test_terminal_codes_in_a_sample_are_shown_and_not_obeyed() -> None:
    stream = io.StringIO()
    report.Live(1, stream).say("sample:\nred \x1b[31m\u2028 \r ünd")
    assert stream.getvalue() == "rookery: sample:\nred \\x1b[31m\\u2028 \\r ünd\n"

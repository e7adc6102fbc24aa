"""What a run says of itself: OUT/metrics.jsonl, a live line, TensorBoard, Weights & Biases, and a plot of the loss.

A loss is in nats per token everywhere. metrics.jsonl has one object a line, of three kinds told apart by a key:
    {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "time"}     after every step
    {"step", "tokens", "validation_loss", "bits_per_byte", "time"}                 bits_per_byte null if unknown
    {"step", "sample", "time"}
`step` counts the steps done, `time` is seconds since 1970. All but TIMES is the same whether a run was interrupted.
"""

from __future__ import annotations

import html
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from rookery.errors import CannotWrite, MissingExtra
from rookery.formats.atomic import atomic_write
from rookery.train.config import Settings
from rookery.train.plot import plot

TIMES = ("time", "tokens_per_second")
METRICS, PLOT, WANDB_ID = "metrics.jsonl", "loss.png", "wandb.id"
TERMINAL_EVERY, LOG_EVERY = 0.2, 10.0  # seconds between live lines
SMOOTH = 0.98  # what a step keeps of the smoothed loss
WINDOW = 50  # steps over which the speed is taken


class Sink(Protocol):
    """Somewhere else that figures and samples go to."""

    def figures(self, step: int, values: dict[str, float]) -> None: ...

    def text(self, step: int, text: str) -> None: ...

    def close(self) -> None: ...


class Report:
    """The reports of one run; `first_step` is the number of steps done before it. A context manager.

    Lines of metrics.jsonl about steps after `first_step` are dropped first, for those steps come again.
    Raises CannotWrite, and MissingExtra where TensorBoard or Weights & Biases is asked for and absent.
    """

    def __init__(self, out: Path, settings: Settings, *, first_step: int, total_steps: int, live: bool = True) -> None:
        self.out, self.settings, self.metrics = out, settings, out / METRICS
        self.live = Live(total_steps) if live else None
        self.sinks = _sinks(out, settings, first_step)
        self._file: TextIO | None = None
        self._speed = Speed()
        try:
            out.mkdir(parents=True, exist_ok=True)
            rewind(self.metrics, first_step)
            self._file = self.metrics.open("a", encoding="utf-8")
        except OSError as error:
            raise CannotWrite(self.metrics, f"cannot be written ({error.strerror or error})") from None

    def step(self, step: int, loss: float, lr: float, grad_norm: float, tokens: int) -> None:
        """After step number `step`: its mean loss, the rate and the gradient's norm before the clip, tokens so far."""
        speed = self._speed.add(tokens)
        figures = {"loss": loss, "lr": lr, "grad_norm": grad_norm}
        self._write({"step": step, "tokens": tokens, **figures, "tokens_per_second": speed})
        for sink in self.sinks:
            sink.figures(step, figures | ({} if speed is None else {"tokens_per_second": speed}))
        if self.live:
            self.live.step(step, loss, lr, speed, self.settings.tokens_a_step)

    def validation(self, step: int, loss: float, bits_per_byte: float | None) -> None:
        figures = {"validation_loss": loss, "bits_per_byte": bits_per_byte}
        self._write({"step": step, "tokens": step * self.settings.tokens_a_step, **figures})
        for sink in self.sinks:
            sink.figures(step, {name: value for name, value in figures.items() if value is not None})
        if self.live:
            self.live.bits_per_byte = bits_per_byte
            bits = "" if bits_per_byte is None else f", {bits_per_byte:.4f} bits per byte"
            self.live.say(f"step {step:,}: validation loss {loss:.4f} nats per token{bits}")

    def sample(self, step: int, text: str) -> None:
        self._write({"step": step, "sample": text})
        for sink in self.sinks:
            sink.text(step, text)
        if self.live:
            self.live.say(f"step {step:,}: sample:\n{text}\n")

    def close(self) -> None:
        """End the live line and the files, and draw the plot. A second call does nothing."""
        if self._file is None:
            return
        with suppress(OSError):  # every line was flushed; what is left failed before, and said so
            self._file.close()
        self._file = None
        if self.live:
            self.live.close()
        for sink in self.sinks:
            sink.close()
        try:
            plot(read(self.metrics), self.out / PLOT)
        except ImportError:
            self._say(f"no {PLOT}, for matplotlib is not installed: pip install 'rookery[train]'")
        except CannotWrite as error:
            self._say(f"no plot: {error}")

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _say(self, line: str) -> None:
        if self.live:
            self.live.say(line)

    def _write(self, values: dict[str, Any]) -> None:
        known = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        line = json.dumps(known | {"time": round(time.time(), 3)}, ensure_ascii=False, allow_nan=False)
        assert self._file is not None, "the report is closed"
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise CannotWrite(self.metrics, f"cannot be written ({error.strerror or error})") from None


def rewind(path: Path, step: int) -> None:
    """Drop the lines about steps after `step` (0: all, a run begins anew), and a last line that was cut short; the file
    is replaced atomically.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if step and _step_of(line) <= step]
    if len(kept) != len(lines):
        with atomic_write(path) as file:
            file.writelines(kept)


def _step_of(line: bytes) -> float:
    if not line.endswith(b"\n"):
        return math.inf
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def read(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics.jsonl, but for a last line that was cut short."""
    lines = path.read_bytes().splitlines(keepends=True)  # of str it would cut at U+2028 in a sample
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


class Speed:
    """Tokens per second over the last WINDOW steps, pauses between them included."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque(maxlen=WINDOW + 1)

    def add(self, tokens: int) -> float | None:
        """`tokens` are done now; None while there is nothing to compare with."""
        self._seen.append((self._clock(), tokens))
        (begin, before), (now, _) = self._seen[0], self._seen[-1]
        return round((tokens - before) / (now - begin), 1) if now > begin else None


class Live:
    """The line on stderr: rewritten on a terminal, elsewhere a new one every LOG_EVERY seconds and at the end."""

    def __init__(self, total: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._stream, self._clock = total, stream or sys.stderr, clock
        self.terminal = self._stream.isatty()
        self.bits_per_byte: float | None = None
        self._sum = self._weight = 0.0  # of the smoothed loss
        self._step, self._lr, self._left = 0, 0.0, 0
        self._speed: float | None = None
        self._shown, self._fresh = -math.inf, False

    def step(self, step: int, loss: float, lr: float, speed: float | None, tokens_a_step: int) -> None:
        self._sum, self._weight = SMOOTH * self._sum + loss, SMOOTH * self._weight + 1
        self._step, self._lr, self._speed, self._fresh = step, lr, speed, True
        self._left = (self._total - step) * tokens_a_step
        if self._clock() - self._shown >= (TERMINAL_EVERY if self.terminal else LOG_EVERY):
            self._show()

    def say(self, text: str) -> None:
        """A line that stays. What a model wrote may hold terminal codes: they are shown, not obeyed."""
        text = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
        clear = "\r\x1b[K" if self.terminal else ""
        print(f"{clear}rookery: {text}", file=self._stream, flush=True)

    def close(self) -> None:
        if self._fresh or (self.terminal and self._step):
            self._show()
            if self.terminal:
                print(file=self._stream, flush=True)

    def _show(self) -> None:
        self._shown, self._fresh = self._clock(), False
        if self.terminal:
            line = self._line()[: _columns(self._stream) - 1]  # a line that wraps cannot be rewritten
            print(f"\r\x1b[K{line}", end="", file=self._stream, flush=True)
        else:
            self.say(self._line())

    def _line(self) -> str:
        parts = [
            f"step {self._step:,}/{self._total:,} ({self._step / self._total:.1%})",
            f"loss {self._sum / self._weight:.4f}",
            *([] if self.bits_per_byte is None else [f"{self.bits_per_byte:.4f} bits/byte"]),
            f"lr {self._lr:.2e}",
        ]
        if self._speed:
            parts += [f"{self._speed:,.0f} tokens/s", f"ETA {duration(self._left / self._speed)}"]
        return "  ".join(parts)


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def duration(seconds: float) -> str:
    """For people: "35 s", "4 min 10 s", "2 h 05 min", "3 d 04 h"."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02} s"
    if s < 86_400:
        return f"{s // 3600} h {s % 3600 // 60:02} min"
    return f"{s // 86_400} d {s % 86_400 // 3600:02} h"


def _sinks(out: Path, settings: Settings, first_step: int) -> list[Sink]:
    sinks: list[Sink] = []
    if settings.run.tensorboard:
        sinks.append(TensorBoard(out / "tensorboard", first_step))
    if settings.run.wandb:
        sinks.append(Wandb(out, settings, first_step))
    return sinks


class TensorBoard:
    """Events for TensorBoard; those of steps that come again are hidden."""

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtra("run.tensorboard", "track") from None
        make: Any = SummaryWriter
        self._writer = make(str(folder), purge_step=first_step + 1)

    def figures(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, text: str) -> None:
        self._writer.add_text("sample", text, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run at Weights & Biases, which a resumed run goes on with: its id is kept in OUT/wandb.id."""

    def __init__(self, out: Path, settings: Settings, first_step: int) -> None:
        try:
            import wandb  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise MissingExtra("run.wandb", "track") from None
        kept = out / WANDB_ID
        known = kept.read_text("utf-8").strip() if first_step and kept.exists() else None
        out.mkdir(parents=True, exist_ok=True)
        self._wandb: Any = wandb
        self._run = self._wandb.init(
            project=settings.run.wandb, name=out.resolve().name, dir=str(out), config=asdict(settings),
            id=known, resume="allow",
        )  # fmt: skip
        with atomic_write(kept) as file:
            file.write(str(self._run.id).encode())

    def figures(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def text(self, step: int, text: str) -> None:
        self._run.log({"sample": self._wandb.Html(f"<pre>{html.escape(text)}</pre>")}, step=step)

    def close(self) -> None:
        self._run.finish()

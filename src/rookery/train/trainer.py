"""The loop: the batch of a step, its gradient, the step of AdamW; checkpoints, validation and samples in between.

`Trainer(settings).run()` is `rookery train`. `step()` alone is for loops of one's own.
B sequences, T tokens.
"""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from rookery import weights
from rookery.backends.torch import Network
from rookery.errors import InputError, TrainingError
from rookery.train import checkpoint, config, export, optimiser, shape, validate
from rookery.train.config import Settings
from rookery.train.data import Data
from rookery.train.loss import loss_of
from rookery.train.parallel import Parallel
from rookery.train.report import Report

# What a checkpoint's run must have had alike for the next step to be the same; a changed rate is only said.
SAME = ("model.version", "data.ctx_len", "data.train", "optimiser.batch", "data.reset")
SAID = ("optimiser.tokens", "optimiser.lr_init", "optimiser.lr_final", "optimiser.weight_decay")


class Trainee(nn.Module):
    """The network with its loss, as one module: what DDP and FSDP see."""

    def __init__(self, network: Network, settings: Settings) -> None:
        super().__init__()
        self.network, self.settings = network, settings

    def forward(self, tokens: Tensor, targets: Tensor, resets: Tensor | None = None) -> Tensor:
        """[B,T], [B,T] -> the mean loss in nats per token."""
        x, _ = self.network.hidden(tokens, None, resets)
        s = self.settings
        return loss_of(self.network.head, x.flatten(0, 1), targets.flatten(), s.optimiser.l2wrap, s.run.head_chunk)


class Trainer:
    """One run. Made from settings, it goes on from the newest checkpoint in `run.out`, if there is one."""

    def __init__(self, settings: Settings, live: bool = True) -> None:
        self.settings, self.out, self.live = settings, Path(settings.run.out), live
        run = settings.run
        if run.threads:
            torch.set_num_threads(run.threads)
        torch.set_float32_matmul_precision(run.matmul)
        torch.set_flush_denormal(True)  # the first gradients are tiny, and tiny numbers are slow
        torch.manual_seed(run.seed)
        self.parallel = Parallel(run.device, run.strategy)
        self.share, self.micro = _split(settings, self.parallel.world)
        self.data = Data(settings, self.parallel)
        self.network = self._network().to(self.parallel.device)
        self.network.checkpointing = run.grad_cp
        if run.compile:
            self.network.compile_blocks()
        self.config = self.network.config
        self.trainee = Trainee(self.network, settings)
        self.module = self.parallel.spread(self.trainee)
        self.adam = optimiser.adamw(self.network, self.config, settings.optimiser)
        self.done = 0  # steps
        self.stopping = False

    def _network(self) -> Network:
        m = self.settings.model
        if m.load_model:
            network = Network.of(weights.load(m.load_model))
            if network.config.n_vocab < self.data.vocab_size:
                raise InputError(
                    f"{m.load_model} knows {network.config.n_vocab} tokens, but the data go up to "
                    f"{self.data.vocab_size - 1}: data.tokenizer must be the model's"
                )
            return network
        return Network.fresh(shape.config(self.settings, self.data.vocab_size), self.settings.run.seed)

    # one step

    def step(self) -> tuple[float, float]:
        """Train on the batch of step `done`: (mean loss in nats per token, gradient norm before the clip).

        Raises TrainingError where either is not finite; the weights are then those before the step.
        """
        s = self.settings
        self.module.train()
        self.adam.zero_grad(set_to_none=True)
        batches = self.data.batch(self.done, self.parallel.rank, self.parallel.world)
        micro = [x.split(self.micro) for x in batches]
        pieces = len(micro[0])
        total = torch.zeros((), device=self.parallel.device)
        for i, (tokens, targets, *resets) in enumerate(zip(*micro, strict=True)):
            with self.parallel.accumulating(self.module, last=i == pieces - 1), self.autocast():
                loss = self.module(tokens, targets, *resets) / pieces
            loss.backward()
            total += loss.detach()
        mean = self.parallel.mean(total)
        norm = self._clip(s.optimiser.grad_clip)
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise TrainingError(self._failure(mean))
        optimiser.set_rate(self.adam, optimiser.rate(s, self.done))
        self.adam.step()
        self.done += 1
        return mean, norm

    def autocast(self) -> torch.autocast:
        return torch.autocast(
            self.parallel.device.type, torch.bfloat16, enabled=self.settings.run.precision == "bf16"
        )  # fmt: skip

    def _clip(self, most: float) -> float:
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), most or math.inf)
        return float(getattr(norm, "full_tensor", lambda: norm)())

    def _failure(self, loss: float) -> str:
        """Which step, which tensor, what is left, what to do."""
        where = "the loss itself"
        for group in self.adam.param_groups:
            bad = [n for n, p in zip(group["names"], group["params"], strict=True) if not _finite(p.grad)]
            if bad:
                decays = "with" if group["weight_decay"] else "without"
                where = f"the gradient of {bad[0]} (group lr x{group['scale']:g} {decays} decay, {len(bad)} tensors)"
                break
        kept = checkpoint.found(self.out)
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        return (
            f"step {self.done}: loss {loss}, first seen in {where}; the weights were not changed and {last}. "
            "Lower lr_init, lengthen warmup_steps, or look at the data of this step"
        )

    # the run

    def run(self) -> Path | None:
        """Train to the last step; the exported model's path, or None where a signal stopped it (the state is saved)."""
        s, total = self.settings, self.settings.steps
        self.resume()
        with self._signals(), Report(
            self.out, s, first_step=self.done, total_steps=total, live=self.live and self.parallel.main
        ) if self.parallel.main else _silent() as report:
            while self.done < total and not self.parallel.agree(self.stopping):
                rate = optimiser.rate(s, self.done)
                loss, norm = self.step()
                report.step(self.done, loss, rate, norm, self.done * s.tokens_a_step)
                last = self.done == total
                if s.run.validate_every and (self.done % s.run.validate_every == 0 or last):
                    self.validate(report)
                if s.run.sample_every and (self.done % s.run.sample_every == 0 or last):
                    self.sample(report)
                if self.done % s.run.save_every == 0 or last:
                    self.save()
        if self.done < total:
            self.save()
            return None
        return self.export()

    def validate(self, report: Any) -> None:
        if self.data.held_out is not None:
            nats, bits = validate.evaluate(
                self.network, self.data.held_out, self.settings.data.ctx_len, self.settings.run.validate_tokens,
                self.data.tokenizer, self.parallel.device,
            )  # fmt: skip
            report.validation(self.done, nats, bits)

    def sample(self, report: Any) -> None:
        if self.data.tokenizer is not None:
            prompt = self.settings.run.sample_prompt
            report.sample(self.done, validate.sample(self.network, self.data.tokenizer, prompt, 200, self.done))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM lets the step end and saves; a second one ends at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.stopping = True
            for s in before:
                signal.signal(s, before[s])

        try:
            before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: the caller's affair
            yield
            return
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    # what is kept

    def state(self) -> dict[str, Tensor]:
        """Every tensor the next step depends on, under the checkpoint's names; the live ones, sharded where they are."""
        out: dict[str, Tensor] = {}
        for name, p in self.network.named_parameters():
            out[f"model.{name}"] = p
            out |= {f"adam.{name}.{what}": v for what, v in self.adam.state[p].items()}
        return out

    def save(self) -> None:
        s = self.settings
        if self.parallel.sharded:
            checkpoint.write_folder(self.out, self.done, config.as_dict(s), self.state(), s.run.keep, self.parallel)
        elif self.parallel.main:
            checkpoint.write(self.out, self.done, config.as_dict(s), self.state(), s.run.keep)
        self.parallel.barrier()

    def resume(self) -> None:
        """Go on from the newest checkpoint of `run.out`. Raises InputError for one of another model or other data."""
        found = checkpoint.newest(self.out, self._say)
        if found is None:
            return
        mine = config.as_dict(self.settings)
        wrong = checkpoint.differences(found, mine, SAME)
        if wrong:
            raise InputError(f"{found.path} is of another run: {'; '.join(wrong)}; name another folder with out=")
        for line in checkpoint.differences(found, mine, SAID):
            self._say(f"going on with a change: {line}")
        self._begin_moments()
        found.fill(self.state())
        self.done = found.step

    def _begin_moments(self) -> None:
        """Let AdamW make its moments, without a change: they are filled from the checkpoint."""
        for group in self.adam.param_groups:
            group["lr"] = 0.0
            decay, group["weight_decay"] = group["weight_decay"], 0.0
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
            group["decay"] = decay
        self.adam.step()
        for group in self.adam.param_groups:
            group["weight_decay"] = group.pop("decay")
        self.adam.zero_grad(set_to_none=True)

    def export(self) -> Path:
        return export.write(self.network, self.settings, self.data.tokenizer, self.done, self.parallel)

    def _say(self, line: str) -> None:
        if self.parallel.main:
            print(f"rookery: {line}", file=sys.stderr, flush=True)


def _split(s: Settings, world: int) -> tuple[int, int]:
    """Sequences of one process's step and of one forward pass. Raises InputError where they do not divide."""
    batch, micro = s.optimiser.batch, s.optimiser.micro_batch
    if batch % world:
        raise InputError(f"optimiser.batch = {batch}: a multiple of the {world} processes is wanted")
    share = batch // world
    if micro and share % micro:
        raise InputError(f"optimiser.micro_batch = {micro}: it must divide the {share} sequences of a process's step")
    return share, micro or share


def _finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(torch.isfinite(gradient).all())


class _Silent:
    """The report of a process that is not the first."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@contextmanager
def _silent() -> Iterator[_Silent]:
    yield _Silent()

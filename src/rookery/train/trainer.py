"""The loop: the batch of a step, its gradient, the step of AdamW; checkpoints, validation and samples in between.

`Trainer(settings).run()` is `rookery train`. For a loop of one's own: `resume()`, `step()` as often as wanted, `save()`
now and then, `export()`. What another kind of run does otherwise, tuning above all, is a method of its own here.
B sequences, T tokens.
"""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from rookery import weights
from rookery.backends.torch import Network
from rookery.errors import CannotWrite, InputError, TrainingError
from rookery.train import checkpoint, config, export, optimiser, shape, validate
from rookery.train.config import Settings
from rookery.train.corpus import Progress
from rookery.train.data import Data
from rookery.train.loss import loss_of
from rookery.train.parallel import Parallel, part
from rookery.train.report import Report

SAMPLE = 200  # tokens


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
    """One run, before its first step; `done` counts the steps. `progress` hears of bytes tokenised, and of all.

    Raises FileError, InputError, TokenizerError for settings or data that cannot be.
    """

    # What a checkpoint's run must have had alike for the next step to be the same; a changed rate is only said.
    SAME: tuple[str, ...] = (
        "model.version", "model.n_layer", "model.n_embd", "data.ctx_len", "data.stream", "data.reset",
        "optimiser.batch",
    )  # fmt: skip
    SAID: tuple[str, ...] = (
        "optimiser.tokens", "optimiser.lr_init", "optimiser.lr_final", "optimiser.weight_decay", "optimiser.grad_clip",
    )  # fmt: skip

    data: Any  # gives batches: see train/data.py
    network: Network

    def __init__(self, settings: Any, live: bool = True, progress: Progress | None = None) -> None:
        self.settings, self.out, self.live = settings, Path(settings.run.out), live
        run = settings.run
        if run.threads:
            torch.set_num_threads(run.threads)
        torch.set_float32_matmul_precision(run.matmul)
        torch.set_flush_denormal(True)  # the first gradients are tiny, and tiny numbers are slow
        torch.manual_seed(run.seed)
        self.parallel = Parallel(run.device, run.strategy)
        self.micro = _micro(settings, self.parallel.world)
        checkpoint.make_folder(self.out)
        self._prepare(progress)
        self.network.checkpointing = run.grad_cp
        if run.compile:
            self.network.compile_blocks()
        self.module = self.parallel.spread(self._trainee())
        self.adam = self._optimiser()
        _begin_moments(self.adam)
        if run.sample_every:  # a prompt that cannot be is said now
            validate.sample(self.network, self.data.tokenizer, run.sample_prompt, 0, 0)
        self.said = self._said()
        self.done = self.kept = 0  # steps; those of the newest checkpoint
        self.stopping = False

    # what kind of run it is

    def _prepare(self, progress: Progress | None) -> None:
        """Make `data`, and `network` on its device."""
        self.data = Data(self.settings, self.parallel, progress)
        self.network = self._network().to(self.parallel.device)

    def _trainee(self) -> nn.Module:
        return Trainee(self.network, self.settings)

    def _optimiser(self) -> torch.optim.Optimizer:
        return optimiser.adamw(self.network, self.network.config, self.settings.optimiser)

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0), before the scales of the groups."""
        return optimiser.rate(self.settings, step)

    def _said(self) -> Mapping[str, Any]:
        """What a checkpoint says of its run: the settings, and which stream it reads wherever that lies."""
        said = config.as_dict(self.settings)
        return said | {"data": said["data"] | {"stream": self.data.fingerprint()}}

    def _network(self) -> Network:
        m = self.settings.model
        if m.load_model:
            network = Network.of(weights.load(m.load_model))
            if network.config.n_vocab < self.data.vocab_size:
                raise InputError(
                    f"{m.load_model} knows {network.config.n_vocab} tokens, but the data may go up to "
                    f"{self.data.vocab_size - 1}: data.tokenizer must be the model's"
                )
            return network
        return Network.fresh(shape.config(self.settings, self.data.vocab_size), self.settings.run.seed)

    # one step

    def step(self) -> tuple[float, float]:
        """Train on the batch of step `done`: (mean loss in nats per token, gradient norm before the clip).

        Raises TrainingError where either is not finite; the weights are then those before the step.
        """
        o = self.settings.optimiser
        self.module.train()
        self.adam.zero_grad(set_to_none=True)
        loss = self._backward()
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        size = float(getattr(norm, "full_tensor", lambda: norm)())
        if not (math.isfinite(loss) and math.isfinite(size)):
            raise TrainingError(self._failure(f"loss {loss:g}, gradient norm {size:g}"))
        if o.grad_clip:
            nn.utils.clip_grads_with_norm_(parameters, o.grad_clip, norm)
        optimiser.set_rate(self.adam, self.rate(self.done))
        self.adam.step()
        self.done += 1
        return loss, size

    def _backward(self) -> float:
        """The gradient of the step's mean loss over all its sequences, and that loss."""
        batch = self.data.batch(self.done, self.parallel.rank, self.parallel.world)
        pieces = list(zip(*(torch.split(x, self.micro) for x in batch), strict=True))
        total = torch.zeros((), device=self.parallel.device)
        for i, piece in enumerate(pieces):
            with self.parallel.accumulating(self.module, last=i == len(pieces) - 1):
                total += self._backward_of(piece, len(pieces))
        return self.parallel.mean(total)

    def _backward_of(self, piece: Sequence[Tensor], pieces: int) -> Tensor:
        """The gradient of one micro batch's share in the loss, and that share."""
        with self.autocast():
            loss: Tensor = self.module(*piece) / pieces
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def autocast(self) -> torch.autocast:
        narrow = self.settings.run.precision == "bf16"
        return torch.autocast(self.parallel.device.type, torch.bfloat16, enabled=narrow)

    def _failure(self, what: str) -> str:
        """Which step, which tensor, what is left, what to do. Every process asks."""
        bad = self._not_finite(lambda p: p) or self._not_finite(lambda p: p.grad)
        held = ((part(p).detach(), n) for n, p in self.network.named_parameters())
        largest, name = max((float(t.abs().nan_to_num().max()), n) for t, n in held if t.numel())
        where = f"not finite: {bad}; " if bad else ""
        return (
            f"step {self.done + 1}: {what}; {where}the largest weight is {name} ({largest:.3g}); nothing was changed "
            f"by this step; {self._last_good()}. Lower lr_init, lengthen warmup_steps, or look at the data of this step"
        )

    def _not_finite(self, of: Callable[[nn.Parameter], Tensor | None]) -> str:
        """The first tensor of `of(parameter)` that is not finite, its group, and how many more; else ""."""
        names, first = [], ""
        for group in self.adam.param_groups:
            for name, p in zip(group["names"], group["params"], strict=True):
                tensor = of(p)
                if tensor is not None and self.parallel.agree(not bool(torch.isfinite(part(tensor)).all())):
                    names.append(name)
                    decays = "with" if group["weight_decay"] else "without"
                    kind = "" if tensor is p else "the gradient of "
                    first = first or f"{kind}{name} in the group of lr x{group['scale']:g} {decays} decay"
        return first + (f" and {len(names) - 1} more" if len(names) > 1 else "")

    def _last_good(self) -> str:
        """Weights that failed are not good even if they were kept."""
        kept = [path for path in checkpoint.found(self.out) if checkpoint.step_of(path) <= self.done]
        good = [path for path in kept if checkpoint.step_of(path) < self.done]
        if not good:
            return "there is no good checkpoint" + (f" (remove {kept[-1].name})" if kept else "")
        also = f" (remove the newer {kept[-1].name} to go on from it)" if kept[-1] != good[-1] else ""
        return f"the last good checkpoint is {good[-1]}{also}"

    # the run

    def run(self) -> Path | None:
        """Train to the last step; the exported model's path, or None where a signal stopped it (the state is saved).

        It goes on from the newest checkpoint of `run.out`, if there is one. Raises what `resume`, `step` and `save` do.
        """
        total = self.settings.steps
        with checkpoint.folder_of_one(self.out) if self.parallel.main else nullcontext():
            self.resume()
            if self.settings.run.sample_every and self.parallel.sharded:
                self._say("no samples: the weights are spread over processes; strategy=ddp has them")
            with self._signals():
                with self._report() as report:
                    self._begin(report)
                    while self.done < total and not self.parallel.agree(self.stopping):
                        self._one(report)
                if self.done > self.kept:
                    self.save()
            return self.export() if self.done >= total else None

    def _begin(self, report: Report | None) -> None:
        """Before the first step that this process takes."""

    def _one(self, report: Report | None) -> None:
        """A step and what follows from its number."""
        run = self.settings.run
        rate = self.rate(self.done)
        loss, norm = self.step()
        if report:
            report.step(self.done, loss, rate, norm, self.done * self.settings.tokens_a_step)
        if self._validates():
            self._validate(report)
        if self._due(run.sample_every) and report and not self.parallel.sharded:
            self._sample(report)
        if self._due(run.save_every):
            self.save()

    def _validates(self) -> bool:
        """Whether the step just taken is followed by a validation."""
        return self._due(self.settings.run.validate_every)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.done % every == 0 or self.done == self.settings.steps)

    def _report(self) -> Any:
        if not self.parallel.main:
            return nullcontext()
        return Report(
            self.out, self.settings, first_step=self.done, total_steps=self.settings.steps, live=self.live
        )  # fmt: skip

    def _validate(self, report: Report | None) -> None:
        """Sharded, all processes are needed to have the weights; else the first does it alone."""
        held_out, s = self.data.held_out, self.settings
        if not len(held_out) or not (report or self.parallel.sharded):
            return
        module = self.module if self.parallel.sharded else self.network
        nats, bits = validate.evaluate(
            module, held_out, s.data.ctx_len, s.run.validate_tokens, self.data.tokenizer, self.parallel.device,
            self.data.end,
        )  # fmt: skip
        if report:
            report.validation(self.done, nats, bits)

    def _sample(self, report: Report) -> None:
        prompt = self.settings.run.sample_prompt
        report.sample(self.done, validate.sample(self.network, self.data.tokenizer, prompt, SAMPLE, self.done))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM lets the step end and saves. A second one ends at once, but for one of many
        processes: their launcher passes on what the terminal has sent them already.
        """

        def stop(number: int, frame: FrameType | None) -> None:
            self.stopping = True
            if self.parallel.world == 1:
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
        """Every tensor the next step depends on, by the checkpoint's names: the live ones, sharded where they are."""
        out: dict[str, Tensor] = {}
        for name, p in self.network.named_parameters():
            if not p.requires_grad:
                continue
            out[f"model.{name}"] = p
            out |= {f"adam.{name}.{what}": v for what, v in self.adam.state[p].items()}
        return out

    def save(self) -> None:
        """Write the checkpoint of `done` steps; every process calls it.

        Raises TrainingError where it cannot be written, or holds what is not finite; the older ones stay as they were.
        """
        bad = self._not_finite(lambda p: p)
        if bad:
            raise TrainingError(f"step {self.done} left weights that are not finite: {bad}; {self._last_good()}")
        keep = self.settings.run.keep
        try:
            if self.parallel.sharded:
                checkpoint.write_folder(self.out, self.done, self.said, self.state(), keep, self.parallel)
            elif self.parallel.main:
                checkpoint.write(self.out, self.done, self.said, self.state(), keep)
        except CannotWrite as error:
            raise TrainingError(f"{error}; {self._last_good()}; with room there, the same command goes on") from error
        self.parallel.barrier()
        self.kept = self.done

    def resume(self) -> None:
        """Go on from the newest checkpoint of `run.out`. Raises InputError for one of another model or other data."""
        found = checkpoint.newest(self.out, self._say)
        step = torch.tensor(float(found.step if found else 0), device=self.parallel.device)
        if self.parallel.mean(step) != float(step):
            raise InputError(f"{self.out}: processes see different checkpoints; out= must be on a disk that all share")
        if found is None:
            return
        wrong = checkpoint.differences(found, self.said, self.SAME)
        if wrong:
            raise InputError(f"{found.path} is of another run: {'; '.join(wrong)}; name another folder with out=")
        for line in checkpoint.differences(found, self.said, self.SAID):
            self._say(f"going on with a change: {line}")
        found.fill(self.state(), self.parallel)
        self.done = self.kept = found.step
        if self.done < self.settings.steps:
            self._say(f"going on after step {self.done:,} of {self.settings.steps:,}, from {found.path}")

    def export(self) -> Path:
        """Write OUT/model.safetensors; every process calls it."""
        return export.write(self.network, self.settings, self.data.tokenizer, self.done, self.parallel)

    def _say(self, line: str) -> None:
        if self.parallel.main:
            print(f"rookery: {line}", file=sys.stderr, flush=True)


def _micro(s: Settings, world: int) -> int:
    """Sequences of one forward pass of one process. Raises InputError where they do not divide."""
    batch, micro = s.optimiser.batch, s.optimiser.micro_batch
    if batch % world:
        raise InputError(f"optimiser.batch = {batch}: a multiple of the {world} processes is wanted")
    share = batch // world
    if micro and share % micro:
        raise InputError(f"optimiser.micro_batch = {micro}: it must divide the {share} sequences of a process's step")
    return micro or share


def _begin_moments(adam: torch.optim.Optimizer) -> None:
    """What AdamW would make at its first step: then a checkpoint is one set of tensors at any time."""
    for group in adam.param_groups:
        for p in group["params"]:
            moments = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
            adam.state[p] = {"step": torch.zeros((), device=part(p).device), **moments}

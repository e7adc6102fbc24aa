"""`rookery tune`: an adapter, a state or a whole model, trained from examples by the loop of `rookery train`.

B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rookery import tokenizer as tokenizers
from rookery import weights
from rookery.backends.torch import Network
from rookery.chat import find
from rookery.errors import InputError
from rookery.state import State, pieces
from rookery.train import optimiser
from rookery.train import report as reports
from rookery.train.loss import loss_of
from rookery.train.report import Report
from rookery.train.trainer import Trainer
from rookery.tune import attach, config, slices
from rookery.tune.config import ObjectiveSettings, OptimiserSettings, Settings
from rookery.tune.data import TuneData
from rookery.tune.documents import Progress
from rookery.weights.adapters import Adapter
from rookery.weights.adapters import file as adapter_files
from rookery.weights.convert import texts


class Trainee(nn.Module):
    """The network with its loss over a micro batch, as one module: what DDP sees."""

    def __init__(self, network: Network, settings: Settings) -> None:
        super().__init__()
        self.network, self.settings = network, settings

    def forward(self, tokens: Tensor, targets: Tensor, share: Tensor, resets: Tensor | None = None) -> Tensor:
        """[B,T] each -> the sum of the losses, in nats, times their weights `share`."""
        x, _ = self.network.hidden(tokens, None, resets)
        s = self.settings
        return loss_of(
            self.network.head, x.flatten(0, 1), targets.flatten(), s.optimiser.l2wrap, s.run.head_chunk, share.flatten()
        )


class Tuner(Trainer):
    """One run, before its first step. Raises as Trainer does, and for targets that the model does not have."""

    SAME = (
        "model.base", "model.group_norm_eps", "adapter.method", "adapter.rank", "adapter.alpha", "adapter.targets",
        "adapter.ranks", "adapter.full", "adapter.shifts", "adapter.quant", "data.rows",
        "objective.objective", "optimiser.batch", "run.seed",
    )  # fmt: skip
    SAID = (
        "adapter.dropout", "run.precision",
        *(f"objective.{f.name}" for f in fields(ObjectiveSettings)),
        *(f"optimiser.{f.name}" for f in fields(OptimiserSettings) if f.name not in ("epochs", "micro_batch")),
    )  # fmt: skip

    settings: Settings

    def _prepare(self, progress: Progress | None) -> None:
        s, m = self.settings, self.settings.model
        if s.run.slice and self.parallel.world > 1:
            raise InputError(f"run.slice = {s.run.slice}: one process is wanted; slices do not meet others yet")
        self.weights = weights.load(m.load_model, m.group_norm_eps or None)
        w = self.weights
        given = tokenizers.load(s.data.tokenizer) if s.data.tokenizer else None
        self.tokenizer = tokenizers.fitting(w.path, w.format, w.metadata, w.config.n_vocab, given)
        self.template = find.load(s.data.template or None, w.metadata, w.path if w.format == "hf" else None)
        self._network_with_adapter()
        self._data(progress)
        o, epoch = s.optimiser, self.data.steps_per_epoch(s.optimiser.batch)
        steps = o.steps or max(1, math.ceil(o.epochs * epoch))
        lr = o.lr_init or config.peak_rate(s.adapter.method, w.config.n_embd)
        final = o.lr_final or lr / 10
        self.settings = replace(s, optimiser=replace(o, steps=steps, lr_init=lr, lr_final=final))

    def _network_with_adapter(self) -> None:
        self.network = Network.of(self.weights)
        start = [layer[p.name][0].reshape(-1) for layer in self.network.start(1) for p in pieces(self.network.config)]
        attach.attach(self.network, self.settings, torch.cat(start).detach().numpy())
        self.network = self.network.to(self.parallel.device)

    def _data(self, progress: Progress | None) -> None:
        """Rows; documents from an empty state only where that is how every sequence begins."""
        s = self.settings
        kind: Any = TuneData
        resets = s.adapter.method != "state" and not self.weights.config.tuned_state
        more: dict[str, Any] = {"resets_possible": resets}
        if s.objective.objective != "sft":
            from rookery.tune.pairs import PairData

            kind, more = PairData, {"objective": s.objective.objective}
        made = (s.data, self.tokenizer, self.template, self.parallel.device, s.optimiser.batch, s.run.seed)
        if self.parallel.main:
            self.data = kind(*made, self.out / "data", progress, **more)
        self.parallel.barrier()
        if not self.parallel.main:
            self.data = kind(*made, self.out / "data", None, **more)

    def _trainee(self) -> nn.Module:
        if self.settings.objective.objective == "sft":
            return Trainee(self.network, self.settings)
        from rookery.tune import objectives

        return objectives.trainee(self.network, self.settings, self.data, self.parallel, self.weights.fingerprint)

    def _optimiser(self) -> torch.optim.Optimizer:
        o = self.settings.optimiser
        return optimiser.over(attach.groups(self.network, o.weight_decay), o)

    def rate(self, step: int) -> float:
        o = self.settings.optimiser
        warm = min(o.warmup_steps, o.steps // 2)
        p = min(1.0, max(0.0, (step - warm) / max(1, o.steps - warm)))
        shape = {"cosine": (1 + math.cos(math.pi * p)) / 2, "linear": 1 - p, "constant": 1.0}[o.lr_schedule]
        full = o.lr_final + (o.lr_init - o.lr_final) * shape
        return full * min(1.0, (step + 1) / (warm + 1))

    def _said(self) -> Mapping[str, Any]:
        said = config.as_dict(self.settings)
        rows = {"rows": self.data.fingerprint()}
        return said | {"model": said["model"] | {"base": self.weights.fingerprint}, "data": said["data"] | rows}

    def _backward_of(self, piece: Sequence[Tensor], pieces: int) -> Tensor:
        """The weights of a step's rows sum to 1 over all processes, whose gradients are averaged."""
        s = self.settings
        with self.autocast():
            if s.run.slice:
                return slices.backward(
                    self.network, *piece, size=s.run.slice, l2wrap=s.optimiser.l2wrap, rows=s.run.head_chunk
                )
            loss: Tensor = self.module(*piece) * self.parallel.world
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def summary(self) -> str:
        """What is trained on what, in one line."""
        trained = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        a, s = self.settings.adapter, self.settings
        what = f"{a.method}, {trained:,} numbers to train over {self.weights.config.name} ({s.model.load_model})"
        return f"{what}; {self.data.summary()}; {s.steps:,} steps"

    # what is looked at

    def _begin(self, report: Report | None) -> None:
        if self.done == 0:
            self._validate(report)

    def _validates(self) -> bool:
        return super()._validates() or self.done == self.settings.steps

    def _validate(self, report: Report | None) -> None:
        loss = self.held_out() if report else None
        if report and loss is not None:
            report.validation(self.done, loss, None)

    def held_out(self) -> float | None:
        """The mean loss over the held-out rows as things are; None without any."""
        module = getattr(self.module, "module", self.module)  # DDP's own wants all processes
        found = []
        module.eval()
        with torch.no_grad(), self.autocast():
            for batch in self.data.held_out(self.settings.run.validate_tokens):
                pieces_of = zip(*(torch.split(x, self.micro) for x in batch), strict=True)
                found += [float(module(*piece)) for piece in pieces_of]
        module.train()
        return sum(found) if found else None

    def losses(self) -> tuple[float | None, float | None]:
        """The held-out loss before the first step and after the last one, as the run has noted them."""
        path = self.out / reports.METRICS  # a loop of one's own makes none
        found = [row for row in reports.read(path) if "validation_loss" in row] if path.exists() else []
        return (found[0]["validation_loss"], found[-1]["validation_loss"]) if found else (None, None)

    # what is kept

    def export(self) -> Path:
        """Write what was trained: OUT/adapter.safetensors, OUT/state.safetensors or OUT/model.safetensors."""
        method = self.settings.adapter.method
        path = self.out / {"state": "state.safetensors", "full": "model.safetensors"}.get(method, "adapter.safetensors")
        if self.parallel.main:
            getattr(self, f"_write_{method}", self._write_adapter)(path)
        self.parallel.barrier()
        return path

    def _story(self) -> dict[str, str]:
        """What is said of its making, beside what every such file says."""
        a, s = self.settings.adapter, self.settings
        before, after = self.losses()
        said = {
            "rank": a.rank, "alpha": s.alpha, "dropout": a.dropout, "targets": ",".join(a.targets),
            "tokenizer": self.tokenizer.name, "steps": self.done, "objective": s.objective.objective,
            "quant": a.quant, "base.name": Path(self.weights.path).name,
            "held_out_before": before, "held_out_after": after,
        }  # fmt: skip
        return {f"rookery.{name}": str(value) for name, value in said.items() if value is not None}

    def adapter(self) -> Adapter:
        """What was trained, as an adapter of the base."""
        w, a = self.weights, self.settings.adapter
        return Adapter(
            attach.parts(self.network), a.method, str(self.out), self._story(), w.fingerprint, w.lineage, a.quant
        )  # fmt: skip

    def _write_adapter(self, path: Path) -> None:
        adapter_files.write(path, self.adapter())

    def _write_state(self, path: Path) -> None:
        state = State(self.weights.config, self.network.initial.vector(), self.weights)
        state.save(path, self._story() | {"rookery.method": "state"})

    def _write_full(self, path: Path) -> None:
        """The whole model; what the base says of vocabulary and template goes along, its lineage does not."""
        metadata = {k: v for k, v in texts(self.weights).items() if k != "rookery.lineage"}
        self.network.save(str(path), metadata | self._story() | {"format": "pt"}, self.settings.run.dtype)

"""One process or many: who this process is, how the model is spread, and how checkpoints are put together.

Processes come from torchrun (`python -m torch.distributed.run`). Two strategies, both torch's own: DDP, where every
process holds all, and FSDP2 (`fully_shard`), where parameters, gradients and moments are split on their first axis.
A split run keeps its checkpoints as folders of torch.distributed.checkpoint, which any number of processes can read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rookery.errors import InputError


class Parallel:
    """This process among `world`; `device` is where it computes."""

    def __init__(self, device: str = "auto", strategy: str = "auto") -> None:
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if kind.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"run.device = {device!r}: this torch sees no CUDA device; choose cpu")
        self.device = torch.device(kind)
        if self.world > 1:
            if self.device.type == "cuda":
                self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.strategy = ("ddp" if strategy == "auto" else strategy) if self.world > 1 else "one"

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        return self.strategy.startswith("fsdp")

    def spread(self, trainee: nn.Module) -> nn.Module:
        """The module to call: `trainee` itself, wrapped, or sharded in place. `trainee.network.blocks` are the units."""
        if self.sharded:
            from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

            policy = CPUOffloadPolicy() if self.strategy == "fsdp_offload" else OffloadPolicy()
            for block in trainee.network.blocks:  # type: ignore[union-attr]
                fully_shard(block, offload_policy=policy)  # type: ignore[arg-type]
            return fully_shard(trainee, offload_policy=policy)  # type: ignore[return-value]
        if self.strategy == "ddp":
            from torch.nn.parallel import DistributedDataParallel

            return DistributedDataParallel(trainee, gradient_as_bucket_view=True)
        return trainee

    @contextmanager
    def accumulating(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Around one micro batch: gradients meet those of other processes only after the last one."""
        if self.sharded:
            module.set_requires_gradient_sync(last)  # type: ignore[operator]
        wait = nullcontext() if last or self.strategy != "ddp" else module.no_sync()  # type: ignore[operator]
        with wait:
            yield

    def mean(self, value: Tensor) -> float:
        """The mean over all processes."""
        if self.world > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
            value /= self.world
        return float(value)

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def agree(self, flag: bool) -> bool:
        """True where any process says so."""
        if self.world == 1:
            return flag
        said = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said)

    def close(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()

    def write_folder(self, path: Path, tensors: Mapping[str, Tensor], describe: Callable[[Path], None]) -> None:
        """Write a sharded checkpoint folder: complete under its name, or not there. `describe` adds files to it."""
        import torch.distributed.checkpoint as dcp

        temporary = path.with_name(f".{path.name}.tmp")
        if self.main:
            shutil.rmtree(temporary, ignore_errors=True)
        self.barrier()
        dcp.save(dict(tensors), checkpoint_id=temporary)
        if self.main:
            describe(temporary)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
        self.barrier()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together (all processes must ask), a plain one as it is."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def fill(target: Tensor, values: Tensor) -> None:
    """Copy `values`, whole, into a plain or sharded tensor."""
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        values = distribute_tensor(values.to(target.device), target.device_mesh, target.placements)  # type: ignore[attr-defined]
    with torch.no_grad():
        target.copy_(values)


def read_folder(path: Path, into: Mapping[str, Any]) -> None:
    """Fill the tensors of `into`, sharded or not, from a checkpoint folder of any number of processes."""
    import torch.distributed.checkpoint as dcp

    dcp.load(dict(into), checkpoint_id=path)

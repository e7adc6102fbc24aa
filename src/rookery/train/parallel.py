"""One process or many: who this process is, how the model is spread, and how its parts come together again.

Processes come from torchrun (`python -m torch.distributed.run`). Two strategies, both torch's own: DDP, where every
process holds all, and FSDP2 (`fully_shard`), where parameters, gradients and moments are split on their first axis.
A split run keeps its checkpoints as folders of torch.distributed.checkpoint, which any number of processes can read.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from rookery.errors import CannotWrite, InputError

_store: Any = None  # what all processes of this run can read and write


class Parallel:
    """This process among `world`; `device` is where it computes. Raises InputError for a device that is not here."""

    def __init__(self, device: str = "auto", strategy: str = "auto") -> None:
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        self.device = _device(device)
        if self.world > 1:
            _join(self.device)
        self.strategy = ("ddp" if strategy == "auto" else strategy) if self.world > 1 else "one"

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        return self.strategy.startswith("fsdp")

    def spread(self, trainee: nn.Module) -> nn.Module:
        """The module to call: `trainee`, wrapped or sharded in place, by the units `trainee.network.blocks`."""
        if self.sharded:
            from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

            offload = CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
            policy = offload if self.strategy == "fsdp_offload" else OffloadPolicy()
            for block in trainee.network.blocks:  # type: ignore[union-attr]
                fully_shard(block, offload_policy=policy)
            fully_shard(trainee, offload_policy=policy)
            # The states that a block gives out are views of what it computed; training changes neither.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
            return trainee
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

    def agree(self, flag: bool) -> bool:
        """True where any process says so."""
        if self.world == 1:
            return flag
        said = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said)

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def write_folder(self, path: Path, tensors: Mapping[str, Tensor], describe: Callable[[Path], None]) -> None:
        """Write a sharded checkpoint folder: complete under its name, or not there. `describe` adds files to it.

        Raises CannotWrite, on every process.
        """
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_saver import save

        temporary = path.with_name(f".{path.name}.tmp")
        if self.main:
            shutil.rmtree(temporary, ignore_errors=True)
        self.barrier()
        try:
            with _unwarned():
                save(dict(tensors), checkpoint_id=temporary)
        except CheckpointException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CannotWrite(path, f"cannot be written ({_first(error)})") from None
        if self.main:
            describe(temporary)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
        self.barrier()

    def read_folder(self, path: Path, into: Mapping[str, Tensor]) -> None:
        """Fill the tensors of `into`, sharded or not, from a checkpoint folder of any number of processes.

        Raises ValueError for one that has not the same names and shapes.
        """
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_loader import load

        try:
            with _unwarned():
                load(dict(into), checkpoint_id=path)
        except CheckpointException as error:
            raise ValueError(_first(error)) from None


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """What a checkpoint folder holds, by name."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    held = FileSystemReader(path).read_metadata().state_dict_metadata
    return {name: tuple(getattr(one, "size", ())) for name, one in held.items()}


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together (all processes must ask), a plain one as it is."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    local = getattr(tensor, "to_local", None)
    return local() if local is not None else tensor


def fill(target: Tensor, values: Tensor) -> None:
    """Copy `values`, whole, into a plain or sharded tensor."""
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        values = distribute_tensor(values.to(target.device), target.device_mesh, target.placements)  # type: ignore[attr-defined]
    with torch.no_grad():
        target.copy_(values)


def first_to_fail() -> bool:
    """Whether this process is the one that speaks of an error: the first in which one was seen.

    Before the processes have met, errors are the same in all of them.
    """
    if _store is None:
        return os.environ.get("RANK", "0") == "0"
    try:
        return bool(_store.add("rookery.failed", 1) == 1)
    except RuntimeError:  # the process that kept it is gone, and may not have said why
        return True


def close() -> None:
    """Leave the other processes; for one alone nothing."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def lost(error: BaseException) -> bool:
    """Whether an error only says that another process is gone."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "NCCL" in str(error)
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"run.device = {name!r}: cpu, cuda or auto is wanted") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"run.device = {name!r}: this torch sees no CUDA device; choose cpu")
    return device


def _join(device: torch.device) -> None:
    """Meet the other processes."""
    global _store
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if dist.is_initialized():
        return
    if "MASTER_ADDR" not in os.environ:
        raise InputError("WORLD_SIZE is set but not MASTER_ADDR: begin with python -m torch.distributed.run")
    _store, rank, world = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_store, rank=rank, world_size=world)


@contextmanager
def _unwarned() -> Iterator[None]:
    """A process alone may write and read folders too; torch warns of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _first(error: BaseException) -> str:
    """One line of what went wrong on the first process where something did."""
    failures = getattr(error, "failures", {})
    found = next(iter(failures.values()))[0] if failures else error
    return (str(found).splitlines() or [type(found).__name__])[0][:200]

"""The `rwkv` package in fp32 as a worker of peers_cpu.py: python rwkv_package.py FILE.pth THREADS."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch
from worker import serve

PROMPT = 512


class Package:
    def __init__(self, path: str, threads: int) -> None:
        torch.set_num_threads(threads)
        names = torch.load(path, map_location="cpu", mmap=True, weights_only=True).keys()
        os.environ["RWKV_V7_ON"] = "1" if "blocks.0.att.r_k" in names else "0"
        os.environ["RWKV_JIT_ON"], os.environ["RWKV_CUDA_ON"] = "1", "0"
        from rwkv.model import RWKV  # it reads those names when imported

        self.name = f"rwkv {metadata.version('rwkv')} cpu fp32"
        self.model = RWKV(model=path.removesuffix(".pth"), strategy="cpu fp32")
        self.state: Any = None
        self.start(1)
        self.prompt([0])
        self.vocabulary = len(self.out)

    def start(self, sequences: int) -> None:
        if sequences > 1:
            raise NotImplementedError("the rwkv package runs one sequence at a time")
        self.state = None

    def prompt(self, ids: Sequence[int]) -> None:
        for at in range(0, len(ids), PROMPT):
            self.out, self.state = self.model.forward(list(ids[at : at + PROMPT]), self.state)

    def step(self, ids: Sequence[int]) -> None:
        self.prompt(ids)

    def logits(self) -> Any:
        return self.out


if __name__ == "__main__":
    if not sys.argv[1].endswith(".pth"):
        sys.exit("the rwkv package reads .pth files only")
    serve(Package)

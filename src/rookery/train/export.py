"""The finished model as a file that every other command opens."""

from __future__ import annotations

from pathlib import Path

from rookery.backends.torch import Network
from rookery.tokenizer import NAMES, Tokenizer
from rookery.train.config import Settings
from rookery.train.parallel import Parallel, whole


def write(network: Network, settings: Settings, tok: Tokenizer, step: int, parallel: Parallel) -> Path:
    """Write OUT/model.safetensors with what is known of its making; every process calls it."""
    path = Path(settings.run.out) / "model.safetensors"
    state = {name: whole(t) for name, t in network.state_dict().items()}
    if parallel.main:
        metadata = {"format": "pt", "rookery.steps": str(step), "rookery.tokens": str(step * settings.tokens_a_step)}
        if settings.data.tokenizer in NAMES:
            metadata["rookery.tokenizer"] = settings.data.tokenizer
        else:
            metadata["rookery.vocabulary"] = Path(settings.data.tokenizer).read_text("utf-8")
        network.save(str(path), metadata, settings.run.dtype, state)
    parallel.barrier()
    return path

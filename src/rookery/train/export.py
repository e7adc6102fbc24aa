"""The finished model as a file that every other command opens."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from rookery.backends.torch import Network
from rookery.tokenizer import CARRIED, NAMES, Tokenizer, World
from rookery.train.config import Settings
from rookery.train.parallel import Parallel, whole


def write(network: Network, settings: Settings, tok: Tokenizer, step: int, parallel: Parallel) -> Path:
    """Write OUT/model.safetensors with what is known of its making; every process calls it. Raises CannotWrite."""
    path = Path(settings.run.out) / "model.safetensors"
    state: dict[str, Tensor] = {}
    for name, t in network.state_dict().items():
        full = whole(t)
        if parallel.main:
            state[name] = full.cpu()
    if parallel.main:
        metadata = {"format": "pt", "rookery.steps": str(step), "rookery.tokens": str(step * settings.tokens_a_step)}
        name = settings.data.tokenizer
        if name in NAMES:
            metadata["rookery.tokenizer"] = name
        elif isinstance(tok, World):  # other vocabularies have no place in such a file
            metadata[CARRIED] = tok.text()
        network.save(str(path), metadata, settings.run.dtype, state)
    parallel.barrier()
    return path

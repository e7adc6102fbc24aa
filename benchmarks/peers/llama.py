"""llama.cpp, through the C functions of llama-cpp-python, as a worker of peers_cpu.py: python llama.py FILE THREADS.

As llama-bench drives it: batches of 512, weights mapped, repacking on, all threads for prompts and steps alike, logits
of the last token only, no counters. Several sequences have a context of their own, so that one alone pays for one.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import types
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from worker import serve

BATCH = 512


def library() -> Any:
    """The C functions alone: what the package imports for its Python side would count as llama.cpp's start."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None:
        sys.exit("no package llama_cpp here")
    bare = types.ModuleType("llama_cpp")
    bare.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["llama_cpp"] = bare
    return importlib.import_module("llama_cpp.llama_cpp")


c = library()
IDS = ctypes.c_int32 * BATCH


@c.llama_log_callback
def quiet(level: int, text: bytes, data: Any) -> None:
    pass


class Llama:
    def __init__(self, path: str, threads: int) -> None:
        c.llama_log_set(quiet, ctypes.c_void_p(0))
        c.llama_backend_init()
        self.name = f"llama-cpp-python {metadata.version('llama_cpp_python')}"
        self.model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
        if not self.model:
            sys.exit(f"llama.cpp does not load {path}")
        self.vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        self.threads = threads
        self.contexts: dict[int, Any] = {}

    def start(self, sequences: int) -> None:
        if sequences not in self.contexts:
            self.contexts[sequences] = self.context(sequences)
        self.now, self.batch = self.contexts[sequences]
        c.llama_memory_clear(c.llama_get_memory(self.now), True)
        self.position = 0
        for i in range(BATCH):
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = i % sequences

    def context(self, sequences: int) -> tuple[Any, Any]:
        settings = c.llama_context_default_params()
        settings.n_ctx = BATCH * sequences  # of no meaning to a recurrent model
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = self.threads
        settings.no_perf = True
        made = c.llama_init_from_model(self.model, settings)
        if not made:
            sys.exit("llama.cpp makes no context")
        return made, c.llama_batch_init(BATCH, 0, 1)

    def prompt(self, ids: Sequence[int]) -> None:
        for at in range(0, len(ids), BATCH):
            piece = ids[at : at + BATCH]
            self.decode(piece, range(self.position, self.position + len(piece)), at + BATCH >= len(ids))
            self.position += len(piece)

    def step(self, ids: Sequence[int]) -> None:
        self.decode(ids, [self.position] * len(ids), True, every=True)
        self.position += 1

    def decode(self, ids: Sequence[int], positions: Sequence[int], logits: bool, every: bool = False) -> None:
        batch, count = self.batch, len(ids)
        batch.n_tokens = count
        ctypes.memmove(batch.token, IDS(*ids), 4 * count)
        ctypes.memmove(batch.pos, IDS(*positions), 4 * count)
        ctypes.memset(batch.logits, int(every), count)
        batch.logits[count - 1] = int(logits)
        if code := c.llama_decode(self.now, batch):
            sys.exit(f"llama_decode returned {code}")
        c.llama_synchronize(self.now)

    def logits(self) -> Sequence[float]:
        row: Sequence[float] = c.llama_get_logits_ith(self.now, 0 if self.batch.n_tokens == 1 else -1)[
            : self.vocabulary
        ]
        return row


if __name__ == "__main__":
    serve(Llama)

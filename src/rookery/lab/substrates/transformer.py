"""A Transformer as a substrate: the residual stream at the last position, layer by layer.

A Transformer carries no state of fixed size. Two things could be looked at: the KV cache, which grows by one row a
token while its old rows never change, and the residual stream at the position read last, which has one size for ever
but is computed anew at each token. This substrate shows the second; the first is kept inside and goes into snapshots.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from rookery.errors import (
    DamagedFile,
    InputError,
    MissingExtra,
    MissingFile,
    MissingTensor,
    ModelError,
    StateError,
    TokenError,
    UnknownFormat,
)
from rookery.lab.substrates.common import Array, displacement
from rookery.sampling import Sampler, Sampling

PACKAGED = "gander"
GREEDY = Sampling(temperature=0)
WhenFull: TypeAlias = Literal["stop", "restart"]


@dataclass(frozen=True)
class Snapshot:
    """Everything a run depends on from here. Holds copies."""

    path: Path
    cache: Any
    read: Sequence[int]
    resid: Mapping[str, Array]
    pending: Mapping[str, Array]
    logits: Array | None
    tick: int
    restarts: int
    sampler: Mapping[str, Any]


class Transformer:
    """One sequence of a Hugging Face causal language model, on the CPU in float32. A tick is one token.

    model: a local folder with config.json and *.safetensors; "gander" is the packaged one, which reads gosling's
    vocabulary (`rookery.load("gosling").tokenizer`). Code that a folder brings along is never run.
    sampling: chooses the tokens that it draws itself. prefix: tokens read at each reset, before tick 0; None: the
    config's bos token where it has one. Without a prefix the first step must be given its token.
    when_full: a context of `context` tokens (the config's max_position_embeddings, prefix included; None: unbounded) is
    all that such a model can read. "stop": the step that would pass it raises InputError. "restart": the newer half of
    the context is read anew into an empty cache, with a UserWarning, counted in `restarts`: what it read before is
    lost, and the components jump for a reason that has nothing to do with the token.
    threads: torch's while it reads. One token of a small model is too little work to share: with two threads on a busy
    machine of two cores a step of gander took ten times as long.

    Components: "layers.0.resid", .. [C], what leaves layer i at the position read last; zeros before the first token.

    Raises FileError, ModelError for a folder of no causal language model with a KV cache, InputError, MissingExtra.
    """

    name = "transformer"

    def __init__(
        self,
        model: str | os.PathLike[str] = PACKAGED,
        sampling: Sampling = GREEDY,
        prefix: Sequence[int] | None = None,
        when_full: WhenFull = "stop",
        threads: int = 1,
    ) -> None:
        if when_full not in get_args(WhenFull):
            raise InputError(f"when_full={when_full!r}: wanted one of {', '.join(get_args(WhenFull))}")
        count: Any = threads
        if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
            raise InputError(f"threads={threads!r}: wanted a whole number of 1 or more")
        self.path = folder(model)
        self.sampling, self.when_full, self.threads = sampling, when_full, threads
        self._net = open_folder(self.path)
        config = self._net.config.get_text_config()
        self.vocab, self.width = int(config.vocab_size), int(config.hidden_size)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        bos = getattr(config, "bos_token_id", None)
        self.prefix = tuple(([] if bos is None else [bos]) if prefix is None else prefix)
        self._names = [f"layers.{i}.resid" for i in range(config.num_hidden_layers)]
        self._hook(config.num_hidden_layers)
        self._cache: Any  # of keys and values
        self._read: list[int]  # the tokens in it
        self.reset()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over config.json and the weights, hexadecimal."""
        digest = hashlib.sha256()
        for path in [self.path / "config.json", *sorted(self.path.glob("*.safetensors"))]:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def reset(self, seed: int = 0) -> None:
        """Begin anew. The seed is the sampler's; a run that is given its tokens, or greedy, is the same for all."""
        self.tick = self.restarts = 0
        self._sampler = Sampler(self.sampling, self.vocab, seed)
        self._clear()
        self._resid: dict[str, Array] = {name: np.zeros(self.width, np.float32) for name in self._names}
        self._pending: dict[str, Array] = {}
        self._logits: Array | None = None
        if self.prefix:
            self._check(self.prefix)
            self._forward(self.prefix)

    def step(self, token: int | None = None) -> None:
        """Read `token`; without one, draw it from the logits of the step before.

        Raises InputError where nothing was read that it could be drawn from and where the context is full, TokenError.
        """
        full = self.context is not None and len(self._read) >= self.context
        if full and self.when_full == "stop":
            raise InputError(
                f"{self.path.name}: its context of {self.context} tokens is full at tick {self.tick} (the prefix "
                f"counts); reset(), or make it with when_full='restart'"
            )
        drawn = token is None
        if token is None:
            if self._logits is None:
                raise InputError("nothing was read yet to draw a token from: give the first one, or a prefix")
            token = self._sampler.sample(self._logits)
        self._check([token])
        if full:
            self._restart()
        pending, self._pending = self._pending, {}
        self._forward([token], pending)
        if drawn:
            self._sampler.accept(token)
        self.tick += 1

    @property
    def last(self) -> int | None:
        """The token read last."""
        return self._read[-1] if self._read else None

    def snapshot(self) -> Snapshot:
        return Snapshot(
            self.path, copy.deepcopy(self._cache), tuple(self._read), self.components(), dict(self._pending),
            self.logits(), self.tick, self.restarts, self._sampler.state(),
        )  # fmt: skip

    def restore(self, snapshot: Any) -> None:
        """Raises StateError for another substrate's snapshot, or another model's."""
        if not isinstance(snapshot, Snapshot) or snapshot.path != self.path:
            what = snapshot.path if isinstance(snapshot, Snapshot) else f"a {type(snapshot).__name__}"
            raise StateError(f"not a snapshot of the Transformer {self.path} but of {what}")
        self._sampler.restore(snapshot.sampler)
        self._cache = copy.deepcopy(snapshot.cache)
        self._read = list(snapshot.read)
        self._resid = {name: rows.copy() for name, rows in snapshot.resid.items()}
        self._pending = dict(snapshot.pending)
        self._logits = None if snapshot.logits is None else snapshot.logits.copy()
        self.tick, self.restarts = snapshot.tick, snapshot.restarts

    def components(self) -> dict[str, Array]:
        return {name: row.copy() for name, row in self._resid.items()}

    def perturb(self, component: str, direction: Array, size: float) -> None:
        """Adds to what leaves the layer at the next position: `components` and `logits` show it after the next step.

        `size` is relative to the present component. A residual stream is not carried on, so one step later the
        perturbation is gone from this layer and those below, to the bit. The layers above have written keys and values
        from it into the cache, and read those for as long as the context lasts; after the last layer nothing remains.
        """
        if not self._read:
            raise InputError(f"{component}: nothing was read yet, and the size is relative to it: feed a token first")
        push = displacement(self._resid, component, direction, size).astype(np.float32)
        self._pending[component] = self._pending.get(component, np.zeros_like(push)) + push

    def logits(self) -> Array | None:
        return None if self._logits is None else self._logits.copy()

    def _clear(self) -> None:
        from transformers import DynamicCache  # type: ignore[import-not-found, unused-ignore]

        self._cache = DynamicCache(config=self._net.config)
        self._read = []

    def _hook(self, count: int) -> None:
        """Listen, and add, where the residual stream leaves each layer."""
        for name, block in zip(self._names, _blocks(self._net, count, self.path), strict=True):
            block.register_forward_hook(self._listener(name))

    def _listener(self, name: str) -> Any:
        import torch

        def listen(block: Any, given: Any, output: Any) -> Any:
            rows = output[0] if isinstance(output, tuple) else output
            push = self._pushes.get(name)
            if push is not None:
                rows = rows.clone()
                rows[0, -1] += torch.from_numpy(push)
            self._resid[name] = rows[0, -1].numpy().copy()
            if push is None:
                return None
            return (rows, *output[1:]) if isinstance(output, tuple) else rows

        return listen

    def _forward(self, tokens: Sequence[int], pushes: Mapping[str, Array] | None = None) -> None:
        import torch

        self._pushes = pushes or {}
        with torch.no_grad(), _threads(self.threads):
            ids = torch.tensor([[int(token) for token in tokens]])
            out = self._net(input_ids=ids, past_key_values=self._cache, use_cache=True)
        self._read += [int(token) for token in tokens]
        self._logits = out.logits[0, -1].numpy().copy()

    def _restart(self) -> None:
        kept = self._read[-(len(self._read) // 2) :]
        warnings.warn(
            f"{self.path.name}: the context of {self.context} tokens is full at tick {self.tick}; restarted from the "
            f"last {len(kept)}: all before is lost, and a jump of the components here is the restart's",
            UserWarning,
            stacklevel=3,
        )
        self._clear()
        self._forward(kept)
        self.restarts += 1

    def _check(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not isinstance(token, Integral) or isinstance(token, bool) or not 0 <= int(token) < self.vocab:
                raise TokenError(f"{self.path.name}: token {token!r} is outside the vocabulary, 0 to {self.vocab - 1}")
        if self.context is not None and len(tokens) > self.context:
            raise InputError(f"a prefix of {len(tokens)} tokens does not fit a context of {self.context}")


def folder(model: str | os.PathLike[str]) -> Path:
    """The folder of a packaged or local model, seen to hold a config and safetensors. Raises FileError."""
    if model == PACKAGED:
        from importlib.resources import files

        path = Path(str(files("rookery.models") / PACKAGED))
    else:
        path = Path(model)
    if not path.is_dir():
        raise MissingFile(path, f"no such folder; wanted {PACKAGED!r} or a Hugging Face folder on this machine")
    if not (path / "config.json").is_file():
        raise MissingFile(path / "config.json", "no such file; wanted a Hugging Face folder, which has one")
    if not any(path.glob("*.safetensors")):
        raise UnknownFormat(path, "no *.safetensors; weights in pickles are not read: have them saved as safetensors")
    return path.resolve()


def open_folder(path: Path) -> Any:
    """The folder's model, every weight of it from the file. Raises ModelError, DamagedFile, MissingExtra."""
    try:
        json.loads((path / "config.json").read_text("utf-8"))
    except ValueError as error:
        raise DamagedFile(path / "config.json", f"is no JSON: {error}") from None
    try:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise MissingExtra("a Transformer substrate", "transformers") from None
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        with _quiet():
            net, found = load(
                str(path), dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
    except SafetensorError as error:
        raise DamagedFile(path, f"its safetensors cannot be read: {error}") from None
    except Exception as error:  # transformers raises what its parts raise
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{path}: transformers reads no causal language model there: {why}") from error
    if absent := sorted(found["missing_keys"]):
        raise MissingTensor(f"{path}: has no tensor {absent[0]} (of {len(absent)} that are missing)")
    if "past_key_values" not in inspect.signature(net.forward).parameters:
        raise ModelError(f"{path}: {type(net).__name__} keeps no KV cache; wanted a Transformer")
    return net


def _blocks(net: Any, count: int, path: Path) -> Any:
    """The `count` layers, whatever the architecture calls the list of them."""
    import torch

    for part in net.base_model.modules():
        if isinstance(part, torch.nn.ModuleList) and len(part) == count:
            return part
    raise ModelError(f"{path}: {type(net).__name__} has no list of its {count} layers")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads of torch within, as many as before after it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar, and no report of missing weights, which is an error here."""
    from transformers import utils  # type: ignore[import-not-found, unused-ignore]

    logging: Any = utils.logging
    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()

"""What a network knows of text it was not trained on: its loss there, and a sample of its own.

Neither changes anything of a training run: no gradient, no mode, no random state. B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from rookery.backends.torch import Network
from rookery.errors import InputError, TokenError
from rookery.sampling import Sampler, Sampling, free_tokens
from rookery.tokenizer import Tokenizer
from rookery.train.loss import LOGITS

ROWS = 4096  # tokens of one forward pass


def evaluate(
    network: nn.Module,
    tokens: npt.NDArray[Any],
    ctx_len: int,
    limit: int,
    tokenizer: Tokenizer | None,
    device: torch.device | str,
    end: int | None = None,
) -> tuple[float, float | None]:
    """(nats per token, bits per byte) over `tokens` [n], in windows of `ctx_len` that each begin with an empty state.

    Where more than `limit` (0: no limit) tokens are held out, as many windows as that allows are spread evenly over
    all of them, always the same ones. Bits per byte divide by the bytes of the predicted tokens; None without a
    tokenizer that knows them. What follows a token `end`, if one is given, begins with an empty state too.
    `network` is a Network, or any module that gives the mean loss in nats of (tokens [B,T], targets [B,T]) and, with
    `end`, resets [B,T], as one does whose parts only come together when it is called. Raises InputError for fewer
    than 2 tokens.
    """
    if len(tokens) < 2:
        raise InputError(f"data.validation has {len(tokens)} tokens: 2 or more are wanted")
    nats, predicted = 0.0, []
    with _aside(network, device):
        for window in _windows(tokens, ctx_len, limit):
            ids = torch.from_numpy(window).to(device)
            nats += _nats(network, ids[:, :-1], ids[:, 1:], None if end is None else begins(ids[:, :-1], end))
            predicted.append(window[:, 1:].ravel())
    all_targets = np.concatenate(predicted)
    size = _bytes(all_targets, tokenizer)
    return nats / len(all_targets), nats / math.log(2) / size if size else None


def sample(network: Network, tokenizer: Tokenizer, prompt: str, n: int, seed: int) -> str:
    """`prompt` and what the network goes on with: at most `n` tokens, drawn by the default Sampling.

    An empty prompt begins after the end of a text. Raises InputError where the tokenizer has none.
    """
    ids = tokenizer.encode(prompt) or ([] if tokenizer.end is None else [tokenizer.end])
    if not ids:
        raise InputError("run.sample_prompt is empty, and the tokenizer has no end of text to begin after; give one")
    vocab = network.config.n_vocab
    known = np.arange(vocab) < tokenizer.vocab_size  # rows of the head that have a token
    sampler = Sampler(Sampling(), vocab, seed, free=free_tokens(tokenizer.encode))
    device, states, fed = next(network.parameters()).device, None, ids
    out: list[int] = []
    with _aside(network, device):
        while len(out) < n:
            logits, states = network(torch.tensor([fed], device=device), states)
            token = _draw(sampler, np.where(known, logits[0, -1].float().cpu().numpy(), -np.inf), tokenizer, known)
            if token == tokenizer.end:
                break
            sampler.accept(token)
            out.append(token)
            fed = [token]
    return prompt + tokenizer.decode(out)


def _draw(sampler: Sampler, logits: npt.NDArray[Any], tokenizer: Tokenizer, known: npt.NDArray[np.bool_]) -> int:
    """A token that the vocabulary has; gaps that are drawn are no longer `known`."""
    while True:
        token = sampler.sample(logits)
        try:
            tokenizer.token_bytes(token)
        except TokenError:
            known[token], logits[token] = False, -np.inf
        else:
            return token


def _windows(tokens: npt.NDArray[Any], ctx_len: int, limit: int) -> Iterator[npt.NDArray[np.int64]]:
    """int64 [B, T+1]: inputs and, one further, targets."""
    last = len(tokens) - 1  # tokens to predict
    most = min(limit or last, last)
    size = min(ctx_len, most)
    count = most // size
    starts = np.arange(count) * size if most == last else np.arange(count) * (last - size) // max(1, count - 1)
    batch = max(1, ROWS // size)
    for first in range(0, count, batch):
        yield np.stack([tokens[s : s + size + 1] for s in starts[first : first + batch]]).astype(np.int64)
    if most == last and last % size:
        yield np.asarray(tokens[last - last % size :], np.int64)[None]


def begins(inputs: Tensor, end: int) -> Tensor:
    """[B,T] -> bool [B,T]: which tokens begin a document, for the token before them ended one."""
    before = torch.cat([torch.full_like(inputs[:, :1], -1), inputs[:, :-1]], 1)
    return before == end


def _nats(network: nn.Module, inputs: Tensor, targets: Tensor, resets: Tensor | None) -> float:
    """The sum of the losses of a batch."""
    if not isinstance(network, Network):
        return float(network(inputs, targets, *([] if resets is None else [resets]))) * targets.numel()
    x, _ = network.hidden(inputs, None, resets)
    rows = max(1, LOGITS // network.config.n_vocab)
    parts = zip(torch.split(x.flatten(0, 1), rows), torch.split(targets.flatten(), rows), strict=True)
    return sum(float(functional.cross_entropy(network.head(h).float(), y, reduction="sum")) for h, y in parts)


def _bytes(tokens: npt.NDArray[Any], tokenizer: Tokenizer | None) -> int:
    """Bytes of text in `tokens`; 0 where that is not known."""
    if tokenizer is None:
        return 0
    ids, counts = np.unique(tokens, return_counts=True)
    try:
        return sum(len(tokenizer.token_bytes(int(i))) * int(n) for i, n in zip(ids, counts, strict=True))
    except TokenError:
        return 0


@contextmanager
def _aside(network: nn.Module, device: torch.device | str) -> Iterator[None]:
    """No gradients, evaluation mode; afterwards mode and random state are as before."""
    training = network.training
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(cuda))
        # Modules whose parts are spread make tensors as they run, and need them in the next step's gradient.
        stack.enter_context(torch.inference_mode() if isinstance(network, Network) else torch.no_grad())
        if "torch._dynamo" in sys.modules:  # compiled blocks: other lengths than training's are not worth a compilation
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        network.eval()
        try:
            yield
        finally:
            network.train(training)

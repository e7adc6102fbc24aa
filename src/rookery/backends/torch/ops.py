"""What the words of the vocabulary mean, in torch: differentiable, on any device.

R rows, C width, H heads, N head size, B sequences. Rows come in two shapes: [B,T,..] where all sequences of a step are
equally long (training, prefill, decode), which is what torch can compile and the chunked recurrences take; else packed
[R,..] with a Layout, whose recurrences run token by token.
Under autocast the matrix products alone are narrow: the residual stream, norms, decay and WKV state stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rookery.architecture.vocabulary import Params, Vocabulary
from rookery.backends.layout import Layout
from rookery.backends.torch import wkv
from rookery.backends.torch.wkv import step


class Ops(Vocabulary):
    """The vocabulary over torch tensors, for one block of one step.

    `layout`: None where rows are [B,T,..]. `resets`: None or bool [B,T], true where a token begins a document, which
    sees nothing of what came before (even rows only). `listener` hears every tap by its name within the layer.
    """

    layer = 0

    def __init__(
        self,
        n_head: int,
        layout: Layout | None = None,
        resets: Tensor | None = None,
        listener: Callable[[str, Tensor], Tensor] | None = None,
    ) -> None:
        self.n_head, self.layout, self.resets, self.listener = n_head, layout, resets, listener

    def embed(self, weight: Tensor, ids: Tensor) -> Tensor:
        return functional.embedding(ids, weight)

    def linear(self, w: Params, x: Tensor) -> Tensor:
        return w(x)  # type: ignore[no-any-return]  # a module: nn.Linear, or an adapter in its place

    dense = linear

    def matmul(self, x: Tensor, a: Tensor) -> Tensor:
        return x @ a

    def layer_norm(self, x: Tensor, p: Params) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], p.weight, p.bias, p.eps)

    def group_norm(self, y: Tensor, p: Params) -> Tensor:
        y = y.to(p.weight.dtype)
        normal = functional.layer_norm(y, y.shape[-1:], eps=p.eps)
        return torch.addcmul(p.bias, self.flat(normal), p.weight)

    def normalize(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=-1, eps=1e-12)

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(-1, keepdim=True)

    def heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.n_head, -1)

    def flat(self, x: Tensor) -> Tensor:
        return x.flatten(-2)

    def split(self, x: Tensor, n: int) -> Sequence[Tensor]:
        return x.chunk(n, dim=-1)

    def exp(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def tanh(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def sigmoid(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def relu(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    def tap(self, name: str, x: Tensor) -> Tensor:
        return x if self.listener is None else self.listener(name, x)

    def token_shift(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        if self.layout is not None:
            previous = x.roll(1, 0).index_put((self._index(self.layout.starts, x),), shift.to(x.dtype))
            return previous, x[self._index(self.layout.ends, x)]
        previous = torch.cat([shift.to(x.dtype)[:, None], x[:, :-1]], 1)
        if self.resets is not None:
            previous = previous.masked_fill(self.resets[..., None], 0)
        return previous, x[:, -1].clone()  # a view would keep all of x as long as the state

    def wkv4(self, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if self.layout is None:
            return wkv.wkv4(k, v, log_decay, bonus, state, self.resets)
        return self._scan(lambda s, k, v: step.token4(s, k, v, log_decay, bonus), state, k, v)

    def wkv5(
        self, r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.layout is None:
            return wkv.wkv5(r, k, v, log_decay, bonus, state, self.resets)
        return self._scan(lambda s, r, k, v: step.token6(s, r, k, v, log_decay, bonus), state, r, k, v)

    def wkv6(
        self, r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.layout is None:
            return wkv.wkv6(r, k, v, log_decay, bonus, state, self.resets)
        return self._scan(lambda s, r, k, v, g: step.token6(s, r, k, v, g, bonus), state, r, k, v, log_decay)

    def wkv7(
        self, r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.layout is None:
            return wkv.wkv7(r, log_decay, k, v, a, b, state, self.resets)
        return self._scan(step.token7, state, r, log_decay, k, v, a, b)

    def _scan(self, token: Callable[..., tuple[Tensor, Tensor]], state: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        """Run `token(state, *rows of token t) -> (y, state)` over each packed sequence's tokens."""
        assert self.layout is not None
        out, order = [], []
        for b, row in self.layout.steps:
            at = self._index(row, state)
            everyone = len(b) == len(state)
            seq = self._index(b, state)
            y, new = token(state if everyone else state[seq], *(x[at] for x in rows))
            state = new if everyone else state.index_put((seq,), new)
            out.append(y)
            order.append(at)
        return torch.cat(out)[torch.argsort(torch.cat(order))], state

    def _index(self, index: object, like: Tensor) -> Tensor:
        return torch.as_tensor(index, device=like.device)

"""A model as nn.Modules: real Linear children for optimisers, adapters and sharding; the version files do the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rookery import formats
from rookery.architecture import Config, Param, forward, version
from rookery.architecture.spec import Curve, Fill, Orthogonal, Uniform
from rookery.backends.layout import Layout
from rookery.backends.torch.ops import Ops
from rookery.formats.tensor import Tensor as Stored
from rookery.state import pieces
from rookery.weights import tree

States = list[dict[str, Tensor]]  # per layer, piece -> [B, ...]
Listener = Callable[[str, Tensor], Tensor]  # of a tap: its name and value; gives the value to go on with


class Leaf(nn.Module):
    """Parameters by BlinkDL's names; version files read them as attributes, `ln_x.eps` too."""

    eps: float


class _State:
    """One layer's pieces as attributes, for the version files to replace."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        for name, piece in state.items():
            setattr(self, name, piece)


class Block(nn.Module):
    """One block: its parameters and the version's functions, from plain tensors to plain tensors."""

    def __init__(self, config: Config, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.config = config
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(
        self,
        x: Tensor,
        v_first: Tensor | None,
        state: dict[str, Tensor],
        resets: Tensor | None = None,
        layout: Layout | None = None,
        listener: Listener | None = None,
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """[B,T,C] (with a layout: packed [R,C]), v7's value of layer 0, the layer's state -> the same three, after.

        ln0 is applied here, not with the embedding: a sharded block is whole only while it runs.
        """
        o, after = Ops(self.config.n_head, layout, resets, listener), _State(state)
        if hasattr(self, "ln0"):
            x = o.layer_norm(x, self.ln0)
        x, v_first = forward.block(o, version(self.config), self, x, after, v_first)
        return x, v_first, {name: getattr(after, name) for name in state}


class Network(nn.Module):
    """A whole model, differentiable: network(tokens [B,T]) -> (logits [B,T,V], states)."""

    def __init__(self, config: Config, root: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.initial: Any = (
            None  # a trained state before the first token: a module with start(batch), of tune/modules.py
        )
        self.checkpointing = False  # recompute each block going back: memory of one block's inside, a third more time
        self.emb, self.ln_out, self.head = (_module(getattr(root, n)) for n in ("emb", "ln_out", "head"))
        self.blocks = nn.ModuleList(
            Block(config, {name: _module(part) for name, part in vars(block).items()}) for block in root.blocks
        )

    @classmethod
    def of(cls, weights: Any, dtype: torch.dtype = torch.float32) -> Network:
        """The trained model in `weights` (a rookery.weights.Weights); adapters beside it are merged."""

        def make(p: Param, t: Stored) -> Tensor:
            values = weights.sides[p.name].changed(t.float32()) if p.name in weights.sides else t.array()
            return torch.from_numpy(np.array(values)).to(dtype).reshape(p.shape)

        return cls(weights.config, tree(weights, make))

    @classmethod
    def fresh(cls, config: Config, seed: int = 0, dtype: torch.dtype = torch.float32) -> Network:
        """An untrained model, begun as the version's parameter table says."""
        generator = torch.Generator().manual_seed(seed)
        blank = {p.name: Stored("u8", (0,), np.empty(0, np.uint8)) for p in version(config).params(config)}
        table = SimpleNamespace(
            config=config, tensors=blank, params=[p for p in version(config).params(config) if not p.optional]
        )
        return cls(config, tree(table, lambda p, _: initial(p, generator).to(dtype).reshape(p.shape)))  # type: ignore[arg-type]

    def start(self, batch: int) -> States:
        """The states of `batch` sequences before their first token."""
        if self.initial is not None:
            return self.initial.start(batch)  # type: ignore[no-any-return]
        c, like = self.config, next(self.parameters())
        one = {
            p.name: like.new_tensor(p.start).reshape(-1, *[1] * (len(p.shape) - 1)).expand(batch, *p.shape)
            for p in pieces(c)
        }
        if not c.tuned_state:
            return [dict(one) for _ in range(c.n_layer)]
        tuned = [self.get_parameter(f"blocks.{i}.att.time_state") for i in range(c.n_layer)]  # [H, value, key]
        return [one | {"wkv": t.mT.expand(batch, -1, -1, -1)} for t in tuned]

    def forward(
        self, tokens: Tensor, states: States | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, States]:
        """[B,T] -> logits [B,T,V] and the states after the last token.

        `resets`: bool [B,T], true where a token begins a document: nothing before it, `states` included, reaches it.
        """
        x, states = self.hidden(tokens, states, resets)
        return self.head(x), states

    def hidden(
        self, tokens: Tensor, states: States | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, States]:
        """As `forward`, up to the head: [B,T,C], normalised by ln_out. A loss in parts applies `head` itself."""
        return self._run(tokens, states, resets)

    def rows(
        self,
        layout: Layout,
        ids: Tensor,
        states: States | None = None,
        select: Tensor | None = None,
        listener: Listener | None = None,
    ) -> tuple[Tensor, States]:
        """Packed rows [R] of any layout -> logits [R,V] (of the rows `select` alone, if given) and the states.

        `listener` hears `layers.{i}.{tap}` with packed rows.
        """
        even = len(set(layout.lengths)) == 1
        tokens = ids.reshape(len(layout.lengths), -1) if even else ids
        x, states = self._run(tokens, states, None, None if even else layout, listener)
        x = x.flatten(0, 1) if even else x
        return self.head(x if select is None else x[select]), states

    def _run(
        self,
        tokens: Tensor,
        states: States | None,
        resets: Tensor | None,
        layout: Layout | None = None,
        listener: Listener | None = None,
    ) -> tuple[Tensor, States]:
        o = Ops(self.config.n_head)
        begin = self.start(len(tokens) if layout is None else len(layout.lengths)) if states is None else states
        v_first, after = None, []
        rows: Any = getattr(self.emb, "rows", None)  # of an adapter in its place
        x = rows(tokens) if rows else o.embed(self.get_parameter("emb.weight"), tokens)
        for i, (block, state) in enumerate(zip(self.blocks, begin, strict=True)):
            heard = None if listener is None else _packed(listener, i, layout is None)
            arguments = (x, v_first, state, resets, layout, heard)
            if self.checkpointing and torch.is_grad_enabled():
                x, v_first, state = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x, v_first, state = block(*arguments)
            after.append(state)
        return o.layer_norm(x, self.ln_out), after

    def compile_blocks(self) -> None:
        """torch.compile every block, for the shapes that come; all but the first share one compiled graph."""
        for block in self.blocks:
            block.compile(dynamic=False, fullgraph=True)

    def save(
        self,
        path: str,
        metadata: dict[str, str] | None = None,
        dtype: str = "f32",
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write a model file under BlinkDL's names and shapes (the format by the suffix).

        `state` holds the tensors where the network's own are spread over processes.
        """
        mine = self.state_dict() if state is None else state
        table = [p for p in version(self.config).params(self.config) if p.name in mine]
        tensors = {
            p.name: Stored.of(mine[p.name].detach().float().cpu().numpy().reshape(p.file_shape), dtype) for p in table
        }
        formats.write(path, tensors, {"rookery.group_norm_eps": repr(self.config.group_norm_eps)} | (metadata or {}))


def initial(p: Param, generator: torch.Generator) -> Tensor:
    """A tensor's first values in its file shape, float32."""
    match p.init:
        case Fill(value):
            return torch.full(p.file_shape, value)
        case Uniform(bound):
            return torch.empty(p.file_shape).uniform_(-bound, bound, generator=generator)
        case Orthogonal(gain):
            return nn.init.orthogonal_(torch.empty(p.file_shape), gain, generator=generator)
        case Curve(value):
            count = int(np.prod(p.file_shape))
            return torch.tensor([value(i) for i in range(count)]).reshape(p.file_shape)


def _packed(listener: Listener, layer: int, even: bool) -> Listener:
    """A listener of layer `layer` that is given packed rows even where the block runs on [B,T,..]."""

    def heard(name: str, x: Tensor) -> Tensor:
        if not even or x.ndim < 3:  # v4 and v5 have one decay for all rows
            return listener(f"layers.{layer}.{name}", x)
        return listener(f"layers.{layer}.{name}", x.flatten(0, 1)).reshape(x.shape)

    return heard


def _module(node: SimpleNamespace) -> nn.Module:
    """The namespaces of `weights.tree` as modules; a lone matrix [out, in] becomes an nn.Linear."""
    parts = vars(node)
    if set(parts) == {"weight"} and parts["weight"].ndim == 2:
        rows, columns = parts["weight"].shape
        linear = nn.Linear(columns, rows, bias=False, device="meta")
        linear.weight = nn.Parameter(parts["weight"])
        return linear
    leaf = Leaf()
    for name, part in parts.items():
        if isinstance(part, SimpleNamespace):
            leaf.add_module(name, _module(part))
        elif isinstance(part, Tensor):
            leaf.register_parameter(name, nn.Parameter(part))
        else:
            setattr(leaf, name, part)
    return leaf

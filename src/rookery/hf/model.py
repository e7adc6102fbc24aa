"""RWKV as a transformers model: every version, around the same blocks that Rookery trains.

The modules bear BlinkDL's names (`blocks.3.att.receptance`), which adapters go by. B sequences, T positions, C width,
V vocabulary.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from rookery.architecture import version
from rookery.backends.torch.module import Network, States
from rookery.backends.torch.ops import Ops
from rookery.errors import InputError
from rookery.hf import padding, tensors
from rookery.hf.cache import RwkvCache, begin, given
from rookery.hf.config import CONFIGS, Rwkv4Config, Rwkv5Config, Rwkv6Config, Rwkv7Config, RwkvConfig, describe
from rookery.weights import tree

CHUNK = 4096  # positions that run at once where no gradient is asked for: bounds the memory of a long prompt


@dataclass
class RwkvOutput(ModelOutput):  # type: ignore[misc]
    """`logits` [B,T,V] or of the last positions, `hidden_states` [B,T,C] before each block and after the last norm."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: RwkvCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    @property
    def state(self) -> RwkvCache | None:
        """The states after the last token, under the name that transformers' own RWKV gives them."""
        return self.past_key_values


class RwkvForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """An RWKV of any version. `from_pretrained` gives an instance of the version's class, which is this with a config.

    A new one (`from_config`) begins as the version's parameter table says.
    """

    config_class = RwkvConfig
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["Block"]
    _is_stateful = True
    gradient_checkpointing = False

    def __init__(self, config: RwkvConfig) -> None:
        describe(config, config.architecture)
        super().__init__(config)
        network = _network(config)
        table = network.get_parameter("emb.weight")
        self.emb: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size, _weight=table)
        self.blocks, self.ln_out, self.head = network.blocks, network.ln_out, network.head
        self.register_load_state_dict_pre_hook(_renamed)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: parameters begin right, each by its line of the table, which a module alone does not know."""

    def get_input_embeddings(self) -> nn.Module:
        return self.emb

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.emb = value

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        state: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> RwkvOutput | tuple[Any, ...]:
        """Token ids [B,T], or vectors [B,T,C] in their place, to logits.

        `attention_mask` [B,T] (or longer to the left, the past's): a masked token leaves no trace, wherever it stands.
        `past_key_values`, else `state`: what an earlier call gave, or a rookery.State. `labels` [B,T]: the ids
        themselves, -100 where there is nothing to learn; they are shifted here. `position_ids` [B,T]: a 0 after the
        first position begins a document that sees nothing of those before it. `logits_to_keep`: of the last positions
        only (0: of all), or of those with these indices. Other arguments are taken and mean nothing.
        Raises InputError and StateError.
        """
        if input_ids is not None and inputs_embeds is None:
            mask = padding.columns(attention_mask, input_ids)
            x = self.emb(input_ids if mask is None else input_ids * mask)  # a masked id may be none of the vocabulary
        elif inputs_embeds is not None and input_ids is None:
            mask, x = padding.columns(attention_mask, inputs_embeds), inputs_embeds
        else:
            raise InputError("forward wants either input_ids or inputs_embeds")
        if not x.shape[1]:
            raise InputError("no tokens; forward wants at least one")
        resets = _documents(kwargs.pop("position_ids", None), len(x))
        cache = given(self.config.architecture, state if past_key_values is None else past_key_values, len(x), x.device)
        every = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden, states = self._hidden(x, cache.states, mask, resets, bool(every))
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(hidden[-1][:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        kept = self.config.use_cache and not self.training if use_cache is None else use_cache
        seen = 0 if past_key_values is None else cache.seen  # a `state` is of no text that the caller goes on passing
        after = RwkvCache(states, seen + x.shape[1]) if kept else None
        out = RwkvOutput(loss, logits, after, tuple(hidden) if every else None)
        return out if (self.config.return_dict and return_dict is None) or return_dict else out.to_tuple()

    def _hidden(
        self, x: Tensor, states: States | None, mask: Tensor | None, resets: Tensor | None, every: bool
    ) -> tuple[list[Tensor], States]:
        """[B,T,C] through all blocks: what goes into each (if `every`) and what comes out at last, normalised."""
        config = self.config.architecture
        tuned = [block.get_parameter("att.time_state") for block in self.blocks] if config.tuned_state else []

        def start(batch: int) -> States:
            return begin(config, batch, tuned, x.device)

        def run(x: Tensor, states: States | None, resets: Tensor | None) -> tuple[list[Tensor], States]:
            states = start(len(x)) if states is None else states
            if every or torch.is_grad_enabled() or x.shape[1] <= CHUNK:
                return self._blocks(x, states, resets, every)
            parts = []
            for at in range(0, x.shape[1], CHUNK):
                few = slice(at, at + CHUNK)
                made, states = self._blocks(x[:, few], states, None if resets is None else resets[:, few], every)
                parts += made
            return [torch.cat(parts, 1)], states

        if mask is None:
            return run(x, states, resets)
        return padding.masked(run, start, x, start(len(x)) if tuned and states is None else states, mask, resets)

    def _blocks(self, x: Tensor, states: States, resets: Tensor | None, every: bool) -> tuple[list[Tensor], States]:
        hidden, after, v_first, device = [], [], None, x.device  # the blocks may be spread over several
        for block, state in zip(self.blocks, states, strict=True):
            hidden += [x] if every else []
            if self.gradient_checkpointing and self.training:
                x, v_first, state = self._gradient_checkpointing_func(block.__call__, x, v_first, state, resets)
            else:
                x, v_first, state = block(x, v_first, state, resets)
            after.append(state)
        x = Ops(0).layer_norm(x.to(self.ln_out.get_parameter("weight").device), self.ln_out)
        return [h.to(device) for h in (*hidden, x)], after

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """A model of any version from a Hugging Face folder, a file of any format, "gosling" or `org/name` of the hub.

        Takes what transformers takes. Code that lies in a folder is never run, `trust_remote_code` or not. The weights'
        own type is kept unless `dtype` says otherwise. Raises FileError, ModelError, InputError.
        """
        from rookery.hf.opening import opened

        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)
        return opened(cls, MODELS, pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a folder that `rookery.load` opens too, under the names of the version's usual loader."""
        if not getattr(self, "_hf_peft_config_loaded", False):
            mine = self.state_dict() if state_dict is None else state_dict
            state_dict = tensors.named_by_loaders(self.config.architecture, mine)
        super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)


class Rwkv4ForCausalLM(RwkvForCausalLM):
    config_class = Rwkv4Config


class Rwkv5ForCausalLM(RwkvForCausalLM):
    config_class = Rwkv5Config


class Rwkv6ForCausalLM(RwkvForCausalLM):
    config_class = Rwkv6Config


class RWKV7ForCausalLM(RwkvForCausalLM):  # as fla spells it
    config_class = Rwkv7Config


MODELS = dict(zip(CONFIGS, (Rwkv4ForCausalLM, Rwkv5ForCausalLM, Rwkv6ForCausalLM, RWKV7ForCausalLM), strict=True))


def _network(config: RwkvConfig) -> Network:
    """Freshly begun parameters in torch's default type; on the meta device, where shapes are all, empty ones."""
    c, dtype = config.architecture, torch.get_default_dtype()
    if torch.get_default_device().type != "meta":
        torch.set_default_dtype(torch.float32)  # first values are drawn in it, whatever they become
        try:
            return Network.fresh(c, int(torch.randint(2**31, ())), dtype)
        finally:
            torch.set_default_dtype(dtype)
    table = [p for p in version(c).params(c) if not p.optional]
    blank = SimpleNamespace(config=c, params=table, tensors=dict.fromkeys(p.name for p in table))
    return Network(c, tree(blank, lambda p, _: torch.empty(p.shape, dtype=dtype)))  # type: ignore[arg-type]


def _documents(position_ids: Tensor | None, batch: int) -> Tensor | None:
    """Where documents begin in packed rows [B,T] (or [1,T] for all); None if nowhere but at the first position."""
    if position_ids is None:
        return None
    begins = (position_ids == 0).expand(batch, -1).clone()
    begins[:, 0] = False
    return begins if bool(begins.any()) else None


def _renamed(model: RwkvForCausalLM, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """A state dict in a file's names, such as Trainer loads when it goes on, in those of the modules."""
    mine = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    own = model.state_dict()
    if all(name in own and own[name].shape == t.shape for name, t in mine.items()):
        return
    for name in mine:
        del state[prefix + name]
    found = tensors.named_by_blinkdl(model.config.architecture, mine)
    state.update({prefix + name: t for name, t in found.items()})

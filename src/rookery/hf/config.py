"""A model's sizes as transformers keeps them: config.json of the usual loaders, and under `rookery` what it lacks."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from rookery.architecture import VERSIONS, Config
from rookery.errors import InputError
from rookery.weights.folders import sizes

HEAD_SIZE = 64
RANKS = {"6": {"maa": 32, "decay": 64}, "7": {"w": 64, "a": 64, "v": 32, "g": 128}}  # those of published small models
FLA_RANKS = {"w": "decay_low_rank_dim", "a": "a_low_rank_dim", "v": "v_low_rank_dim", "g": "gate_low_rank_dim"}


class RwkvConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of an RWKV, under transformers' names; each version has a class of its own, for its `model_type`.

    `rookery`: {"version", "ranks", "group_norm_eps", "tuned_state"}, those that differ from what the rest says. Other
    keys of a config.json are kept, and mean nothing here.
    """

    version: ClassVar[str] = "7"

    vocab_size: int = 65536
    hidden_size: int = 768
    num_hidden_layers: int = 12
    intermediate_size: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = True
    rookery: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # names code in a folder, which a copy of the model would not have
        super().__post_init__(**kwargs)

    @property
    def architecture(self) -> Config:
        """The sizes as the rest of Rookery names them. Raises InputError for sizes that make no model."""
        said = self.rookery or {}
        version = str(said.get("version", {"5": "5.2"}.get(self.version, self.version)))
        if version not in VERSIONS:
            raise InputError(f"a config for RWKV-{version[:20]}; known: {', '.join(VERSIONS)}")
        size = self._given("head_dim", "head_size") or HEAD_SIZE
        if self.version != "4" and self.hidden_size % size:
            raise InputError(f"a config of width {self.hidden_size} with heads of {size}, which do not divide it")
        return Config(
            version=version,
            n_layer=self.num_hidden_layers,
            n_embd=self.hidden_size,
            n_vocab=self.vocab_size,
            n_ffn=self.intermediate_size or self._ffn(version),
            n_head=0 if self.version == "4" else self.hidden_size // size,
            ranks=said.get("ranks") or self._ranks(),
            tuned_state=bool(said.get("tuned_state", False)),
        ).with_eps(said.get("group_norm_eps"))

    def _given(self, *names: str) -> Any:
        return next((value for name in names if (value := getattr(self, name, None))), None)

    def _ffn(self, version: str) -> int:
        ratio = self._given("hidden_ratio") or (4 if version[0] in "47" else 3.5)
        return int(self.hidden_size * ratio) // 32 * 32 or int(self.hidden_size * ratio)

    def _ranks(self) -> dict[str, int]:
        ranks = dict(RANKS.get(self.version, {}))
        if self.version == "7":
            ranks |= {letter: said for letter, name in FLA_RANKS.items() if (said := self._given(name))}
        return ranks


class Rwkv4Config(RwkvConfig):
    model_type = "rookery_rwkv4"  # "rwkv" is transformers' own
    version = "4"


class Rwkv5Config(RwkvConfig):
    model_type = "rwkv5"
    version = "5"


class Rwkv6Config(RwkvConfig):
    model_type = "rwkv6"
    version = "6"


class Rwkv7Config(RwkvConfig):
    model_type = "rwkv7"
    version = "7"


CONFIGS = {made.version: made for made in (Rwkv4Config, Rwkv5Config, Rwkv6Config, Rwkv7Config)}


def describe(config: RwkvConfig, c: Config) -> None:
    """Write into `config` what `c` says, under the usual loader's names and under `rookery`."""
    ours = {"version": c.version, "ranks": dict(c.ranks), "group_norm_eps": c.group_norm_eps}
    ours |= {"tuned_state": True} if c.tuned_state else {}
    for key, value in (sizes(c) | {"rookery": ours}).items():
        setattr(config, key, value)

"""What a training run is: one dataclass a topic (see train/keys.py for how they are read).

The flags of RWKV-LM's and RWKV-PEFT's scripts are understood under their own names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rookery.errors import InputError
from rookery.train.keys import Keys, Value, key


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The shape of the model, or a model to go on from."""

    version: str = key("7", "4, 5.0, 5.1, 5.2, 6 or 7")
    n_layer: int = key(12, "layers, 2 or more")
    n_embd: int = key(768, "width, a multiple of head_size")
    n_ffn: int = key(0, "width of channel mixing; 0: as the version's recipe has it")
    head_size: int = key(64, "N")
    vocab_size: int = key(0, "0: the tokenizer's")
    ranks: dict[str, int] = key({}, "low-rank widths: v7 w a v g, v6 maa decay; missing ones as the recipe has them")
    load_model: str = key("", "begin with these weights (any file that `rookery info` reads) instead of fresh ones")


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where the tokens come from."""

    train: tuple[str, ...] = key((), "binidx prefixes, or text, jsonl, folders, tokenised once into OUT/data")
    validation: tuple[str, ...] = key((), "the same, held out")
    tokenizer: str = key("world", "world, bytes, utf16le, a vocabulary file or tokenizer.json")
    ctx_len: int = key(512, "tokens of one sequence")
    reset: bool = key(False, "begin with an empty state at every document; the recipe reads the data as one stream")


@dataclass(frozen=True, slots=True)
class OptimiserSettings:
    """AdamW and its schedule; learning-rate scales and decay per tensor come from the version's parameter table."""

    tokens: int = key(0, "tokens to train on in all")
    batch: int = key(16, "sequences of a step over all processes")
    micro_batch: int = key(0, "sequences of one forward pass of one process; 0: all of its share")
    lr_init: float = key(6e-4, "peak learning rate")
    lr_final: float = key(6e-5, "learning rate at the last token")
    lr_schedule: str = key("recipe", "cosine, exponential, constant, or recipe: exponential for v4, else cosine")
    warmup_steps: int = key(10, "steps from 1 % (v4: 20 %) of the rate to all of it")
    beta1: float = key(0.9, "of AdamW")
    beta2: float = key(0.99, "of AdamW")
    adam_eps: float = key(1e-18, "of AdamW")
    weight_decay: float = key(0.001, "of the tensors that decay")
    grad_clip: float = key(1.0, "global norm; 0: none")
    l2wrap: float = key(1e-4, "pull on the largest logit of each row; 0: none")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How, where, and what is kept."""

    out: str = key("out", "folder of the run: checkpoints, metrics, plot, model")
    seed: int = key(1, "of the first weights and of samples")
    device: str = key("auto", "cpu, cuda, or auto")
    precision: str = key("fp32", "fp32, or bf16 (autocast; weights and moments stay float32)")
    matmul: str = key("high", "float32 products: highest, high or medium, as torch.set_float32_matmul_precision")
    strategy: str = key("auto", "with several processes: ddp, fsdp, fsdp_offload, or auto (ddp)")
    grad_cp: bool = key(False, "recompute each block in the backward pass: less memory, a third more time")
    compile: bool = key(False, "torch.compile each block; needs a compiler at run time")
    head_chunk: int = key(0, "rows of logits at a time; 0: as many as fit in 64 MB")
    threads: int = key(0, "of one process on a CPU; 0: all")
    save_every: int = key(200, "steps between checkpoints")
    keep: int = key(2, "checkpoints kept")
    validate_every: int = key(200, "steps between validations; 0: never")
    validate_tokens: int = key(65_536, "of the held-out data, at most")
    sample_every: int = key(0, "steps between samples; 0: never")
    sample_prompt: str = key("Once upon a time", "what a sample goes on from")
    dtype: str = key("bf16", "of the exported model: f32, f16, bf16")
    tensorboard: bool = key(False, "also write TensorBoard events into OUT/tensorboard")
    wandb: str = key("", "also log to this Weights & Biases project")


@dataclass(frozen=True, slots=True)
class Settings:
    """One training run."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    run: RunSettings = RunSettings()

    @property
    def tokens_a_step(self) -> int:
        return self.optimiser.batch * self.data.ctx_len

    @property
    def steps(self) -> int:
        """Steps until `tokens` are read, the last one whole."""
        return -(-self.optimiser.tokens // self.tokens_a_step)


NOT_NEGATIVE = (
    "n_ffn", "vocab_size", "micro_batch", "warmup_steps", "adam_eps", "weight_decay", "grad_clip", "l2wrap",
    "head_chunk", "threads", "validate_every", "validate_tokens", "sample_every", "seed",
)  # fmt: skip
# RWKV-LM and RWKV-PEFT names -> ours, or what to do with the value.
OLD_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "my_exit_tokens": "tokens",
        "proj_dir": "out",
        "data_file": "train",
        "random_seed": "seed",
        "dim_ffn": "n_ffn",
        "gradient_clip_val": "grad_clip",
        "micro_bsz": "micro_batch",
        "real_bsz": "batch",
        "head_size_a": "head_size",
        "accelerator": "device",
        "my_testing": "version",
    }
)
# They say what the data, the files or the launcher say already.
OLD_AND_NEEDLESS = frozenset({
    "magic_prime", "data_type", "kernel", "train_stage", "train_type", "epoch_begin", "epoch_count", "epoch_steps",
    "my_pile_stage", "my_pile_edecay", "enable_progress_bar", "my_qa_mask", "head_size_divisor", "ds_bucket_mb",
    "accumulate_grad_batches", "layerwise_lr", "fused_kernel", "op",
})  # fmt: skip
# Options of old experiments: only their being off is understood.
OLD_AND_OFF = frozenset({"pre_ffn", "head_qk", "dim_att", "tiny_att_dim", "dropout"})
# They count in other units: processes, and mini-epochs of 40,320 sequences.
OLD_COUNTS, MINI_EPOCH = ("devices", "num_nodes", "epoch_save"), 40_320
_OLD_VERSIONS = {"x070": "7", "x060": "6", "x052": "5.2", "x051": "5.1", "x050": "5.0", "x040": "4"}


def foreign(name: str, value: Value) -> dict[str, Value] | None:
    """What a key of RWKV-LM or RWKV-PEFT means that is more than another name; None for all others."""
    off = name in OLD_AND_OFF and not value
    if name in OLD_AND_NEEDLESS or off or (name == "strategy" and str(value).startswith("deepspeed")):
        return {}
    if name == "my_testing":
        return {"version": _OLD_VERSIONS.get(str(value).lower(), value)}
    if name == "accelerator" and value == "gpu":
        return {"device": "cuda"}
    if name == "load_model" and str(value) == "0":  # RWKV-LM's scripts: none
        return {"load_model": ""}
    return None


def _fold_old_counts(given: dict[str, Value]) -> None:
    """RWKV-LM gives the batch of one device, and saves every so many mini-epochs."""
    counts = {name: given.pop(name) for name in OLD_COUNTS if name in given}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(f"{name} = {value!r}: a whole number is wanted")
    if "micro_batch" in given and "batch" not in given:
        one = KEYS.converted("micro_batch", given["micro_batch"])
        given["batch"] = one * counts.get("devices", 1) * counts.get("num_nodes", 1)
    if counts.get("epoch_save"):
        batch = max(1, KEYS.converted("batch", given.get("batch", OptimiserSettings().batch)))
        given.setdefault("save_every", max(1, counts["epoch_save"] * MINI_EPOCH // batch))


KEYS = Keys(Settings, OLD_NAMES, foreign, OLD_COUNTS, _fold_old_counts)
TOPICS, describe, as_dict = KEYS.topics, KEYS.describe, KEYS.as_dict


def load(path: str | None, overrides: Iterable[str] = ()) -> Settings:
    """Settings from a TOML file (none: the defaults) with `key=value` on top, checked. Raises InputError."""
    settings = KEYS.load(path, overrides)
    check(settings)
    return settings


def check(s: Settings) -> None:
    """Raises InputError for a setting that cannot be."""
    m, o, r = s.model, s.optimiser, s.run
    wrong = [
        (m.version not in ("4", "5.0", "5.1", "5.2", "6", "7"), "version", m.version, "4, 5.0, 5.1, 5.2, 6 or 7"),
        (m.n_layer < 2, "n_layer", m.n_layer, "2 or more (the recipe divides by n_layer - 1)"),
        (m.n_embd < 2, "n_embd", m.n_embd, "2 or more"),
        (m.head_size < 1, "head_size", m.head_size, "1 or more"),
        (m.version != "4" and m.n_embd % max(1, m.head_size), "n_embd", m.n_embd, f"a multiple of {m.head_size}"),
        (s.data.ctx_len < 1, "ctx_len", s.data.ctx_len, "1 or more"),
        (o.tokens < 1, "tokens", o.tokens, "how many tokens to train on in all, for example tokens=20_000_000"),
        (o.batch < 1, "batch", o.batch, "1 or more"),
        (o.lr_schedule not in ("recipe", "cosine", "exponential", "constant"), "lr_schedule", o.lr_schedule,
         "recipe, cosine, exponential or constant"),
        (not 0 < o.lr_init < math.inf, "lr_init", o.lr_init, "more than 0"),
        (not 0 < o.lr_final < math.inf, "lr_final", o.lr_final, "more than 0"),
        (not 0 <= o.beta1 < 1, "beta1", o.beta1, "from 0 to less than 1"),
        (not 0 <= o.beta2 < 1, "beta2", o.beta2, "from 0 to less than 1"),
        (r.precision not in ("fp32", "bf16"), "precision", r.precision, "fp32 or bf16"),
        (r.matmul not in ("highest", "high", "medium"), "matmul", r.matmul, "highest, high or medium"),
        (r.strategy not in ("auto", "ddp", "fsdp", "fsdp_offload"), "strategy", r.strategy,
         "auto, ddp, fsdp or fsdp_offload"),
        (r.dtype not in ("f32", "f16", "bf16"), "dtype", r.dtype, "f32, f16 or bf16"),
        (r.save_every < 1, "save_every", r.save_every, "1 or more"),
        (r.keep < 1, "keep", r.keep, "1 or more"),
    ]  # fmt: skip
    wrong += [
        (not 0 <= getattr(part, name) < math.inf, name, getattr(part, name), "0 or more")
        for part in (m, o, r)
        for name in NOT_NEGATIVE
        if hasattr(part, name)
    ]
    KEYS.complain(wrong)
    if not s.data.train:
        raise InputError("data.train is empty: name a text file, a .jsonl, a folder or a binidx prefix")

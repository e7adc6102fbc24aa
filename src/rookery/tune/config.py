"""What a tuning run is: one dataclass a topic (see train/keys.py for how they are read).

The keys of RWKV-LM-LoRA's and RWKV-PEFT's scripts are understood: as other names where they say the same, and
translated where they count in their own units (`lora_parts`, `epoch_steps`, `accumulate_grad_batches`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType

from rookery.errors import InputError
from rookery.train import config as training
from rookery.train.keys import Keys, Value, key

METHODS = ("lora", "rslora", "dora", "pissa", "miss", "full", "state")
OBJECTIVES = ("sft", "dpo", "orpo", "simpo", "kto")
# Peak learning rates that did best on gosling (docs/evidence/08-tune.md). A matrix or what is beside it takes less the
# wider the model is, as 1 / width; a state, which is added to at every token, does not.
WIDTH = 192
RATES = MappingProxyType(
    {"lora": 3e-3, "rslora": 3e-3, "dora": 3e-3, "pissa": 3e-3, "miss": 3e-3, "full": 1e-3, "state": 0.3}
)  # fmt: skip


def peak_rate(method: str, width: int) -> float:
    """The learning rate that a method begins from where none is asked for."""
    return RATES[method] * (1.0 if method == "state" else WIDTH / width)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The base."""

    load_model: str = key("gosling", "the model to tune: any file that `rookery info` reads, or a folder")
    group_norm_eps: float = key(0.0, "of ln_x; 0: as the file says, else 64e-5")


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What is trained."""

    method: str = key("lora", "lora, rslora, dora, pissa, miss (also: bone), full, or state")
    rank: int = key(16, "rank of each pair; of miss, its block")
    alpha: float = key(0.0, "scale is alpha / rank (rslora: alpha / sqrt(rank)); 0: twice the rank")
    dropout: float = key(0.0, "of the adapter's input; full and state have none")
    targets: tuple[str, ...] = key(("att", "ffn"), "what to adapt: att, ffn, emb, head, or globs of names (*.x_*)")
    ranks: dict[str, int] = key({}, "other ranks by glob, the last that fits counts: { 'blocks.0.*' = 8 }")
    full: tuple[str, ...] = key((), "globs of tensors that are trained whole beside it (*.ln*, emb.weight)")
    shifts: bool = key(True, "of a tuned state, train the token shifts too; the files of others hold WKV alone")
    quant: str = key("none", "hold the frozen matrices in int8 or nf4")


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where the examples come from."""

    train: tuple[str, ...] = key((), "jsonl (text, messages, or prompt and completion), texts, or a binidx prefix")
    validation: tuple[str, ...] = key((), "the same, held out")
    hold_out: float = key(0.0, "share of the training rows to hold out, 0 to 0.5")
    ctx_len: int = key(512, "tokens of one sequence")
    template: str = key("", "how a talk is written: raven, world, g1, coder, plain or a .jinja file; the model's own")
    mask: str = key("reply", "what is learnt: reply (all replies), last (the last one), all")
    packing: bool = key(True, "several documents in a row, each from an empty state; false: one a row")
    fields: tuple[str, ...] = key((), "the names of the prompt and the completion, where they are unusual")
    tokenizer: str = key("", "world, bytes, utf16le, a vocabulary file or tokenizer.json; the model's own")


@dataclass(frozen=True, slots=True)
class ObjectiveSettings:
    """What is wanted of the model."""

    objective: str = key("sft", "sft; or by preference: dpo, orpo, simpo, kto")
    beta: float = key(0.0, "dpo, kto: strength of the reference (0: 0.1); simpo: scale of the margin (0: 2)")
    gamma: float = key(1.0, "simpo: the margin that is wanted")
    odds: float = key(0.1, "orpo: weight of the odds ratio beside the loss of the chosen reply")
    label_smoothing: float = key(0.0, "dpo: share of the pairs that are taken for wrong")
    desirable: float = key(1.0, "kto: weight of good replies")
    undesirable: float = key(1.0, "kto: weight of bad ones")


@dataclass(frozen=True, slots=True)
class OptimiserSettings:
    """AdamW and its schedule."""

    epochs: float = key(3.0, "times that the data are read, where steps does not say")
    steps: int = key(0, "steps in all; 0: as many as the epochs make")
    batch: int = key(8, "sequences of a step over all processes")
    micro_batch: int = key(0, "sequences of one forward pass of one process; 0: all of its share")
    lr_init: float = key(0.0, "peak learning rate; 0: the method's own")
    lr_final: float = key(0.0, "learning rate at the last step; 0: a tenth of lr_init")
    lr_schedule: str = key("cosine", "cosine, linear or constant")
    warmup_steps: int = key(10, "steps from 0 to the whole rate")
    beta1: float = key(0.9, "of AdamW")
    beta2: float = key(0.99, "of AdamW")
    adam_eps: float = key(1e-18, "of AdamW")
    weight_decay: float = key(0.0, "of adapters and of the tensors that decay")
    grad_clip: float = key(1.0, "global norm; 0: none")
    l2wrap: float = key(0.0, "pull on the largest logit of each row; 0: none")


@dataclass(frozen=True, slots=True)
class RunSettings(training.RunSettings):
    """How, where, and what is kept."""

    out: str = key("out", "folder of the run: checkpoints, metrics, plot, adapter")
    seed: int = key(1, "of the first adapter, of the order and of samples")
    precision: str = key("fp32", "fp32, or bf16 (autocast; what is trained stays float32)")
    strategy: str = key("auto", "with several processes: ddp, or auto (ddp)")
    slice: int = key(0, "tokens that are in memory at a time, the gradient exact through all; 0: all of ctx_len")
    save_every: int = key(100, "steps between checkpoints")
    validate_every: int = key(0, "steps between validations besides those before and after; 0: none")
    dtype: str = key("bf16", "of the model that method = full writes: f32, f16, bf16")


@dataclass(frozen=True, slots=True)
class Settings:
    """One tuning run."""

    model: ModelSettings = ModelSettings()
    adapter: AdapterSettings = AdapterSettings()
    data: DataSettings = DataSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    run: RunSettings = RunSettings()

    @property
    def tokens_a_step(self) -> int:
        """Rows times their greatest length; padding counts."""
        return self.optimiser.batch * self.data.ctx_len

    @property
    def steps(self) -> int:
        return self.optimiser.steps

    @property
    def alpha(self) -> float:
        return self.adapter.alpha or 2.0 * self.adapter.rank


NOT_NEGATIVE = (
    "group_norm_eps", "alpha", "epochs", "steps", "micro_batch", "lr_init", "lr_final", "warmup_steps", "adam_eps",
    "weight_decay", "grad_clip", "l2wrap", "slice", "head_chunk", "threads", "validate_every", "validate_tokens",
    "sample_every", "seed", "beta", "gamma", "odds", "desirable", "undesirable",
)  # fmt: skip

# Names of RWKV-LM-LoRA and RWKV-PEFT, and ours.
OLD_NAMES = MappingProxyType(
    {
        **{theirs: ours for theirs, ours in training.OLD_NAMES.items() if ours not in ("tokens", "n_ffn", "head_size")},
        "base": "load_model",
        "lora_r": "rank",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "peft": "method",
        "chunk_ctx": "slice",
        "loss_mask": "mask",
        "sft_field": "fields",
    }
)
NEEDLESS = training.OLD_AND_NEEDLESS - {"train_type", "epoch_steps", "epoch_count", "accumulate_grad_batches"} | {
    "version", "my_testing", "n_layer", "n_embd", "n_vocab", "vocab_size", "head_size", "head_size_a", "dim_ffn",
    "lora", "data_shuffle", "sft_split", "dataload", "my_exit_tokens",
}  # fmt: skip
# What their scripts may ask for beside the training, and where it is here; "" or 0 ask for nothing.
ELSEWHERE = MappingProxyType(
    dict.fromkeys(
        ("lora_load", "pissa_load", "pissa_init", "load"),
        "a run begins anew; `rookery merge` that adapter into the base first",
    )
    | {"merge": "`rookery merge BASE ADAPTER OUT` does it afterwards"}
    | dict.fromkeys(("optim", "optimizer"), "AdamW is the optimiser; leave it out")
)
QUANTS = MappingProxyType({"4bit": "nf4", "nf4": "nf4", "int8": "int8", "none": "none", "": "none"})
MASKS = MappingProxyType({"none": "all", "pad": "all", "qa": "reply", "se": "reply"})
METHOD_NAMES = MappingProxyType({"bone": "miss", "disha": "miss"})
# What RWKV-LM-LoRA's lora_parts and RWKV-PEFT's train_parts name: adapted, or trained whole.
# v7 has nothing of "time" in its names, and the scripts ask for it all the same.
ADAPTED, WHOLE = ("att", "ffn"), MappingProxyType({"time": "*time*", "ln": "*ln*", "emb": "emb", "head": "head"})
COUNTS = ("epoch_steps", "epoch_count", "accumulate_grad_batches", *training.OLD_COUNTS)


def _foreign(name: str, value: Value) -> dict[str, Value] | None:
    """What a key of the scripts means that is more than another name; None for all others."""
    if name in NEEDLESS or (name in ELSEWHERE and value in ("", 0, "0", "adam", "adamw")):
        return {}
    if name in ELSEWHERE:
        raise InputError(f"{name} = {value!r}: {ELSEWHERE[name]}")
    match name:
        case "lora_parts" | "train_parts":
            words = value.replace(",", " ").split() if isinstance(value, str) else value
            if not isinstance(words, list) or any(word not in (*ADAPTED, *WHOLE) for word in words):
                raise InputError(f"{name} = {value!r}: parts are {', '.join((*ADAPTED, *WHOLE))}")
            adapted = [word for word in words if word in ADAPTED]
            whole = [WHOLE[word] for word in words if word in WHOLE]
            return ({"targets": adapted} if name == "lora_parts" else {}) | {"full": whole}
        case "train_type":
            return {"state": {"method": "state"}}.get(str(value), {})  # infctx is what `slice` says
        case "lora_config" | "pissa_config" | "disha_config" | "peft_config":
            return _config(name, value)
        case "quant" if str(value) in QUANTS:
            return {"quant": QUANTS[str(value)]}
        case "loss_mask" if str(value) in MASKS:
            return {"mask": MASKS[str(value)]}
        case "peft" | "method" if str(value) in METHOD_NAMES:
            return {"method": METHOD_NAMES[str(value)]}
        case "peft" if value == "none":
            return {}
        case "lr_schedule" if value == "cos":
            return {"lr_schedule": "cosine"}
        case "sft_field" if isinstance(value, str):
            return {"fields": value.split()}
    if name in training.OLD_AND_OFF and name != "dropout":
        return training.foreign(name, value)
    return training.foreign(name, value) if name in ("accelerator", "strategy", "load_model") else None


def _config(name: str, value: Value) -> dict[str, Value]:
    """RWKV-PEFT's JSON in a flag: {"lora_r": 8, "lora_alpha": 32, ...}, {"mode": "bone", "r": 64}."""
    try:
        said = json.loads(value) if isinstance(value, str) else value
        names = {"r": "rank", "lora_r": "rank", "pissa_r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
        if said.get("mode", "bone") != "bone":
            raise InputError(f"{name}: mode {said['mode']!r} is not trained here; bone (miss) is")
        found: dict[str, Value] = {}
        for word, one in said.items():
            if word in names:
                found[names[word]] = one
            elif word not in ("mode", "svd_niter") and _foreign(word, one) != {}:
                raise InputError(f"{name}: {word!r} is not understood; `rookery tune --keys` lists what is")
        return found
    except (ValueError, AttributeError):
        raise InputError(f"{name} = {value!r}: a JSON object is wanted") from None


def _fold(given: dict[str, Value]) -> None:
    """The scripts count steps of one micro batch, and give the batch of one device."""
    counts = {name: given.pop(name) for name in COUNTS if name in given}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(f"{name} = {value!r}: a whole number is wanted")
    pieces = max(1, counts.get("accumulate_grad_batches", 1))
    if "micro_batch" in given and "batch" not in given:
        one = KEYS.converted("micro_batch", given["micro_batch"])
        given["batch"] = one * pieces * max(1, counts.get("devices", 1)) * max(1, counts.get("num_nodes", 1))
    if counts.get("epoch_steps"):
        given.setdefault("steps", max(1, counts["epoch_steps"] * max(1, counts.get("epoch_count", 1)) // pieces))
        if counts.get("epoch_save"):
            given.setdefault("save_every", max(1, counts["epoch_steps"] * counts["epoch_save"] // pieces))


KEYS = Keys(Settings, OLD_NAMES, _foreign, COUNTS, _fold)
describe, as_dict = KEYS.describe, KEYS.as_dict


def load(path: str | None, overrides: Iterable[str] = ()) -> Settings:
    """Settings from a TOML file (none: the defaults) with `key=value` on top, checked. Raises InputError."""
    settings = KEYS.load(path, overrides)
    check(settings)
    return settings


def check(s: Settings) -> None:
    """Raises InputError for a setting that cannot be."""
    a, d, o, r = s.adapter, s.data, s.optimiser, s.run
    KEYS.complain([
        (a.method not in METHODS, "method", a.method, ", ".join(METHODS)),
        (a.rank < 1, "rank", a.rank, "1 or more"),
        (any(n < 1 for n in a.ranks.values()), "ranks", a.ranks, "1 or more for each"),
        (not 0 <= a.dropout < 1, "dropout", a.dropout, "from 0 to less than 1"),
        (a.quant not in ("none", "int8", "nf4"), "quant", a.quant, "none, int8 or nf4"),
        (a.quant != "none" and a.method in ("pissa", "full"), "quant", a.quant,
         f"none with {a.method}, which changes the base itself; lora, dora, miss and state can"),
        (a.method not in ("full", "state") and not (a.targets or a.full), "targets", a.targets, "one or more"),
        (a.method == "state" and a.full, "full", a.full, "none with state, which trains no tensor of the model"),
        (a.dropout and s.run.slice, "dropout", a.dropout, "0 with slice, which runs every slice twice"),
        (not 0 <= d.hold_out <= 0.5, "hold_out", d.hold_out, "0 to 0.5"),
        (d.ctx_len < 1, "ctx_len", d.ctx_len, "1 or more"),
        (d.mask not in ("reply", "last", "all"), "mask", d.mask, "reply, last or all"),
        (s.objective.objective not in OBJECTIVES, "objective", s.objective.objective, ", ".join(OBJECTIVES)),
        (s.objective.objective != "sft" and r.slice, "slice", r.slice, "0 with preferences"),
        (not 0 <= s.objective.label_smoothing < 0.5, "label_smoothing", s.objective.label_smoothing, "0 to 0.5"),
        (o.batch < 1, "batch", o.batch, "1 or more"),
        (o.lr_schedule not in ("cosine", "linear", "constant"), "lr_schedule", o.lr_schedule,
         "cosine, linear or constant"),
        (not o.steps and not o.epochs, "epochs", o.epochs, "more than 0, or steps"),
        (not 0 <= o.beta1 < 1, "beta1", o.beta1, "from 0 to less than 1"),
        (not 0 <= o.beta2 < 1, "beta2", o.beta2, "from 0 to less than 1"),
        (r.precision not in ("fp32", "bf16"), "precision", r.precision, "fp32 or bf16"),
        (r.matmul not in ("highest", "high", "medium"), "matmul", r.matmul, "highest, high or medium"),
        (r.strategy not in ("auto", "ddp"), "strategy", r.strategy, "auto or ddp"),
        (r.dtype not in ("f32", "f16", "bf16"), "dtype", r.dtype, "f32, f16 or bf16"),
        (r.save_every < 1, "save_every", r.save_every, "1 or more"),
        (r.keep < 1, "keep", r.keep, "1 or more"),
        *((not 0 <= getattr(part, name) < math.inf, name, getattr(part, name), "0 or more")
          for part in (s.model, a, s.objective, o, r) for name in NOT_NEGATIVE if hasattr(part, name)),
        (not d.train, "train", d.train, "a .jsonl file, a text, a folder or a binidx prefix"),
    ])  # fmt: skip

"""What a training run is: one dataclass a topic, read from TOML, with `key=value` on top.

Every field's name is unique, so that a key stands alone (`lr_init=3e-4`) or after its topic (`optimiser.lr_init=3e-4`),
in the file as on the command line. The flags of RWKV-LM's and RWKV-PEFT's scripts are understood under their own names.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, get_type_hints

from rookery.errors import InputError

Value: TypeAlias = Any  # what TOML can say: str, int, float, bool, list, table


def _field(default: Value, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The shape of the model, or a model to go on from."""

    version: str = _field("7", "4, 5.0, 5.1, 5.2, 6 or 7")
    n_layer: int = _field(12, "layers, 2 or more")
    n_embd: int = _field(768, "width, a multiple of head_size")
    n_ffn: int = _field(0, "width of channel mixing; 0: as the version's recipe has it")
    head_size: int = _field(64, "N")
    vocab_size: int = _field(0, "0: the tokenizer's")
    ranks: dict[str, int] = field(
        default_factory=dict,
        metadata={"help": "low-rank widths: v7 w a v g, v6 maa decay; missing ones as the recipe has them"},
    )
    load_model: str = _field("", "begin with these weights (any file that `rookery info` reads) instead of fresh ones")


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where the tokens come from."""

    train: tuple[str, ...] = _field((), "binidx prefixes, or text, jsonl, folders, tokenised once into OUT/data")
    validation: tuple[str, ...] = _field((), "the same, held out")
    tokenizer: str = _field("world", "world, bytes, utf16le, a vocabulary file or tokenizer.json")
    ctx_len: int = _field(512, "tokens of one sequence")
    reset: bool = _field(False, "begin with an empty state at every document; the recipe reads the data as one stream")


@dataclass(frozen=True, slots=True)
class OptimiserSettings:
    """AdamW and its schedule; learning-rate scales and decay per tensor come from the version's parameter table."""

    tokens: int = _field(0, "tokens to train on in all")
    batch: int = _field(16, "sequences of a step over all processes")
    micro_batch: int = _field(0, "sequences of one forward pass of one process; 0: all of its share")
    lr_init: float = _field(6e-4, "peak learning rate")
    lr_final: float = _field(6e-5, "learning rate at the last token")
    lr_schedule: str = _field("recipe", "cosine, exponential, constant, or recipe: exponential for v4, else cosine")
    warmup_steps: int = _field(10, "steps from 1 % (v4: 20 %) of the rate to all of it")
    beta1: float = _field(0.9, "of AdamW")
    beta2: float = _field(0.99, "of AdamW")
    adam_eps: float = _field(1e-18, "of AdamW")
    weight_decay: float = _field(0.001, "of the tensors that decay")
    grad_clip: float = _field(1.0, "global norm; 0: none")
    l2wrap: float = _field(1e-4, "pull on the largest logit of each row; 0: none")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How, where, and what is kept."""

    out: str = _field("out", "folder of the run: checkpoints, metrics, plot, model")
    seed: int = _field(1, "of the first weights and of samples")
    device: str = _field("auto", "cpu, cuda, or auto")
    precision: str = _field("fp32", "fp32, or bf16 (autocast; weights and moments stay float32)")
    matmul: str = _field("high", "float32 products: highest, high or medium, as torch.set_float32_matmul_precision")
    strategy: str = _field("auto", "with several processes: ddp, fsdp, fsdp_offload, or auto (ddp)")
    grad_cp: bool = _field(False, "recompute each block in the backward pass: less memory, a third more time")
    compile: bool = _field(False, "torch.compile each block; needs a compiler at run time")
    head_chunk: int = _field(0, "rows of logits at a time; 0: as many as fit in 64 MB")
    threads: int = _field(0, "of one process on a CPU; 0: all")
    save_every: int = _field(200, "steps between checkpoints")
    keep: int = _field(2, "checkpoints kept")
    validate_every: int = _field(200, "steps between validations; 0: never")
    validate_tokens: int = _field(65_536, "of the held-out data, at most")
    sample_every: int = _field(0, "steps between samples; 0: never")
    sample_prompt: str = _field("Once upon a time", "what a sample goes on from")
    dtype: str = _field("bf16", "of the exported model: f32, f16, bf16")
    tensorboard: bool = _field(False, "also write TensorBoard events into OUT/tensorboard")
    wandb: str = _field("", "also log to this Weights & Biases project")


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
TOPICS: Mapping[str, type[Any]] = {f.name: type(f.default) for f in fields(Settings)}
_HOME = {f.name: topic for topic, cls in TOPICS.items() for f in fields(cls)}
_TYPES = {name: hint for cls in TOPICS.values() for name, hint in get_type_hints(cls).items()}

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
LARGEST = 2**63
_OLD_VERSIONS = {"x070": "7", "x060": "6", "x052": "5.2", "x051": "5.1", "x050": "5.0", "x040": "4"}


def load(path: str | None, overrides: Iterable[str] = ()) -> Settings:
    """Settings from a TOML file (none: the defaults) with `key=value` on top.

    Raises InputError naming the key, what it wants and the nearest known name.
    """
    settings = Settings()
    given: dict[str, Value] = {}
    if path is not None:
        given |= _flat(_toml(path), path)
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise InputError(f"{item!r}: an override is key=value, for example lr_init=3e-4")
        given |= _flat({key.strip(): _parse(key.strip(), text)}, "the command line")
    _fold_old_counts(given)
    for name, value in given.items():
        topic = _HOME[name]
        part = replace(getattr(settings, topic), **{name: _converted(name, value)})
        settings = replace(settings, **{topic: part})
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
    for bad, name, value, wanted in wrong:
        if bad:
            raise InputError(f"{_HOME[name]}.{name} = {value!r}: {wanted} is wanted")
    if not s.data.train:
        raise InputError("data.train is empty: name a text file, a .jsonl, a folder or a binidx prefix")


def describe() -> str:
    """All keys with defaults and meaning, as a TOML file."""
    lines = []
    for topic, cls in TOPICS.items():
        lines.append(f"[{topic}]  # {cls.__doc__.splitlines()[0] if cls.__doc__ else ''}")
        default = cls()
        for f in fields(cls):
            lines.append(f"{f.name} = {_toml_value(getattr(default, f.name))}  # {f.metadata['help']}")
        lines.append("")
    return "\n".join(lines)


def as_dict(settings: Settings) -> dict[str, dict[str, Value]]:
    """For JSON and for comparing a checkpoint with its run."""
    return {
        t: {f.name: getattr(getattr(settings, t), f.name) for f in fields(cls)} for t, cls in TOPICS.items()
    }  # fmt: skip


def _toml(path: str) -> dict[str, Value]:
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a TOML file with the run's settings is wanted") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits and deep nesting too
        raise InputError(f"{path}: not TOML: {error}") from None


def _flat(table: Mapping[str, Value], where: str) -> dict[str, Value]:
    """{topic: {key: value}}, {"topic.key": value} or {key: value} -> {key: value}, all known."""
    out: dict[str, Value] = {}
    for key, value in table.items():
        topic, dot, name = key.partition(".")
        if key in TOPICS and isinstance(value, Mapping):
            for inner in value:
                out |= _one(inner, value[inner], f"{where}, [{key}]", key)
        elif isinstance(value, Mapping) and not dot and key not in _HOME:
            near = get_close_matches(key, TOPICS, 1, 0.0)[0]
            raise InputError(f"{where}: unknown table [{key}]; the nearest name is [{near}]")
        elif dot and topic in TOPICS:
            out |= _one(name, value, where, topic)
        else:
            out |= _one(key, value, where, None)
    return out


def _one(key: str, value: Value, where: str, topic: str | None) -> dict[str, Value]:
    name = OLD_NAMES.get(key, key)
    if key in OLD_COUNTS:
        return {key: value}
    off = key in OLD_AND_OFF and not value
    if key in OLD_AND_NEEDLESS or off or (key == "strategy" and str(value).startswith("deepspeed")):
        return {}
    if key == "my_testing":
        value = _OLD_VERSIONS.get(str(value).lower(), value)
    if key == "accelerator" and value == "gpu":
        value = "cuda"
    if key == "load_model" and str(value) == "0":  # RWKV-LM's scripts: none
        value = ""
    if name not in _HOME or (topic is not None and _HOME[name] != topic and key not in OLD_NAMES):
        near = get_close_matches(name, [*_HOME, *OLD_NAMES], 1, 0.0)
        home = f"; {name} belongs under [{_HOME[name]}]" if name in _HOME else f"; the nearest name is {near[0]}"
        raise InputError(f"{where}: unknown key {key!r}{home}")
    return {name: value}


def _fold_old_counts(given: dict[str, Value]) -> None:
    """RWKV-LM gives the batch of one device, and saves every so many mini-epochs."""
    counts = {name: given.pop(name) for name in OLD_COUNTS if name in given}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(f"{name} = {value!r}: a whole number is wanted")
    if "micro_batch" in given and "batch" not in given:
        one = _converted("micro_batch", given["micro_batch"])
        given["batch"] = one * counts.get("devices", 1) * counts.get("num_nodes", 1)
    if counts.get("epoch_save"):
        batch = max(1, _converted("batch", given.get("batch", OptimiserSettings().batch)))
        given.setdefault("save_every", max(1, counts["epoch_save"] * MINI_EPOCH // batch))


def _parse(key: str, text: str) -> Value:
    """The right side of key=value: TOML where it is TOML, else a string; text for a key of text, quoted or not."""
    text = text.strip()
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except (ValueError, RecursionError):
        return text
    name = key.rpartition(".")[2]
    return text if _TYPES.get(OLD_NAMES.get(name, name)) is str and not isinstance(value, str) else value


def _converted(name: str, value: Value) -> Value:
    """`value` as the field's type, or an InputError."""
    hint = _TYPES[name]
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, "a list of names")
    if hint is bool and value in (0, 1):
        return bool(value)
    if hint in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        if hint is float and (isinstance(value, float) or abs(value) < LARGEST):
            return float(value)
        if hint is int and abs(value) < LARGEST and value == int(value):
            return int(value)
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if hint == tuple[str, ...]:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return tuple(value)
    if hint == dict[str, int]:
        wanted = "a table of whole numbers, for example { w = 32, a = 32 }"
        if isinstance(value, Mapping) and all(type(v) is int and v > 0 for v in value.values()):
            return dict(value)
    if hint is bool and isinstance(value, bool):
        return value
    raise InputError(f"{_HOME[name]}.{name} = {value!r}: {wanted} is wanted")


def _toml_value(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {v}" for k, v in value.items()) + " }" if value else "{}"
    return repr(value)

"""The substrates of an experiment, made ready: what each reads for every text, and what must be on record about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from rookery.errors import InputError
from rookery.lab.design import LANGUAGE, NULLS, Design
from rookery.lab.drive import Components, Path_, begin, forced
from rookery.lab.substrates import Substrate, make
from rookery.model import Model
from rookery.tokenizer import Tokenizer


@dataclass
class Host:
    """`at(prompt)` is the substrate for that prompt.

    `heads`, `streams`: each prompt's tokens before the first tick, and those of the ticks. `data` [prompts]: the bytes
    that the latter stand for; None for what is no language model. `model`: an RWKV's. `elsewhere`: the same on another
    back end, for the noise floor. `steady`: a run that is given its tokens is the same for every seed. `kept`: the last
    such run and its prompt.
    """

    name: str
    about: dict[str, Any]
    at: Callable[[int], Substrate]
    heads: list[list[int]]
    streams: list[list[int]]
    data: list[int] | None = None
    model: Model | None = None
    elsewhere: Callable[[], Substrate] | None = None
    steady: bool = False
    kept: tuple[int, Path_] | None = None

    @property
    def null(self) -> bool:
        return self.name in NULLS


@dataclass
class Models:
    """What the language substrates are made of: a Model or what `rookery.load` opens, and a Transformer's folder."""

    rwkv: Model | str | os.PathLike[str] = "gosling"
    transformer: str | os.PathLike[str] = "gander"
    physics: dict[str, Any] = field(default_factory=dict)  # settings of `lab.substrates.physics.Physics`


def hosts(design: Design, models: Models) -> list[Host]:
    """One for each substrate of `design`, language models first. Raises InputError where a text is too short."""
    made: list[Host] = []
    for name in design.substrates:
        if name == "rwkv":
            made.append(_rwkv(design, models))
        elif name == "transformer":
            made.append(_transformer(design, models))
        else:
            tokens = _tokens_of(made, design)
            if name == "physics":
                made.append(_physics(design, models, *tokens))
            else:
                of = made[0] if made and not made[0].null else None
                made.append(_null(name, design, of, *tokens))
    return made


def _rwkv(design: Design, models: Models) -> Host:
    from rookery.lab.substrates.rwkv import RWKV
    from rookery.model import load

    model = models.rwkv if isinstance(models.rwkv, Model) else load(models.rwkv)
    end = model.tokenizer.end
    prefix = () if end is None else (end,)
    substrate = RWKV(model, design.sampling, prefix)

    @cache
    def elsewhere() -> Substrate:
        other = load(model.weights.path, backend="torch" if model.backend == "reference" else "reference")
        return RWKV(other, design.sampling, prefix)

    c = model.config
    about = {
        "model": c.name,
        "layers": c.n_layer,
        "width": c.n_embd,
        "vocabulary": c.n_vocab,
        "parameters": model.weights.parameters,
        "format": model.weights.format,
        "types": _types(model),
        "fingerprint": model.weights.fingerprint,
        "lineage": model.weights.lineage,
        "arithmetic": model.arithmetic,
        "tokenizer": model.tokenizer.name,
        "begins_with": list(prefix),
        "state": "token shifts and WKV state, carried from token to token",
    }
    made = _language("rwkv", design, substrate, model.tokenizer, about, len(prefix))
    made.model, made.elsewhere, made.steady = model, elsewhere, True
    return made


def _types(model: Model) -> dict[str, int]:
    """Tensors of each stored type: the quantisation, as it is."""
    found: dict[str, int] = {}
    for tensor in model.weights.tensors.values():
        found[str(tensor.dtype)] = found.get(str(tensor.dtype), 0) + 1
    return found


def _transformer(design: Design, models: Models) -> Host:
    from rookery.lab.substrates.transformer import PACKAGED, Transformer
    from rookery.model import load
    from rookery.tokenizer import load as load_tokenizer

    substrate = Transformer(models.transformer, design.sampling)
    if models.transformer == PACKAGED:
        tokenizer = load("gosling").tokenizer
    else:
        vocabulary = substrate.path / "tokenizer.json"
        if not vocabulary.is_file():
            raise InputError(f"{substrate.path}: has no tokenizer.json, so that no text can be read")
        tokenizer = load_tokenizer(vocabulary)
    length = design.prefix + design.ticks * design.tokens_per_tick
    if substrate.context is not None and length > substrate.context:
        raise InputError(
            f"{design.ticks} ticks are {length} tokens with their beginning, and {substrate.path.name} has a context "
            f"of {substrate.context}; ask for fewer"
        )
    about = {
        "model": substrate.path.name,
        "layers": len(substrate.components()),
        "width": substrate.width,
        "vocabulary": substrate.vocab,
        "context": substrate.context,
        "fingerprint": substrate.fingerprint,
        "arithmetic": "torch float32",
        "types": "float32, whatever was stored",
        "tokenizer": tokenizer.name,
        "begins_with": list(substrate.prefix),
        "state": "residual stream at the last position, made anew at each token; the KV cache behind it is not shown",
    }
    made = _language("transformer", design, substrate, tokenizer, about, len(substrate.prefix))
    made.steady = True
    return made


def _language(
    name: str, design: Design, substrate: Substrate, tokenizer: Tokenizer, about: dict[str, Any], begun: int
) -> Host:
    """A language model: its own tokens of the texts. `begun`: tokens that a reset reads."""
    read = max(design.prefix - begun, 0)
    heads, streams = _cut([list(tokenizer.encode(text)) for text in design.texts], read, design, name)
    data = [len(tokenizer.decode_bytes(tokens)) for tokens in streams]
    return Host(name, about, lambda prompt: substrate, heads, streams, data)


def _cut(rows: Sequence[list[int]], read: int, design: Design, name: str) -> tuple[list[list[int]], list[list[int]]]:
    """Each text's tokens before the first tick, and those of the ticks. Raises InputError where they are too few."""
    wanted = read + design.ticks * design.tokens_per_tick
    shortest = min(range(len(rows)), key=lambda i: len(rows[i]))
    have = len(rows[shortest])
    if have < wanted:
        most = max((have - read) // design.tokens_per_tick, 0)
        raise InputError(
            f"{design.ticks} ticks of {design.tokens_per_tick} tokens after {read}: text {shortest + 1} has only "
            f"{have} tokens for {name}; ask for at most {most} ticks, or give longer texts with -f FILE"
        )
    return [row[:read] for row in rows], [row[read:wanted] for row in rows]


def _tokens_of(made: Sequence[Host], design: Design) -> tuple[list[list[int]], list[list[int]]]:
    """What substrates that are no language models are given: the first one's tokens, else bytes."""
    for host in made:
        if host.name in LANGUAGE:
            return host.heads, host.streams
    return _cut([list(text.encode()) for text in design.texts], design.prefix, design, "bytes")


def _physics(design: Design, models: Models, heads: list[list[int]], streams: list[list[int]]) -> Host:
    settings = {"coupling": design.coupling, **models.physics}
    substrate = make("physics", **settings)
    kept = {key: value for key, value in vars(substrate).items() if isinstance(value, int | float | str | None)}
    about = {
        "settings": {key: value for key, value in kept.items() if not key.startswith("_") and key != "tick"},
        "state": "position and velocity of a driven particle, and the attractors that drive it; units are its own",
    }
    return Host("physics", about, lambda prompt: substrate, heads, streams)


def _null(name: str, design: Design, of: Host | None, heads: list[list[int]], streams: list[list[int]]) -> Host:
    """Matched, prompt by prompt, to what the first substrate does with that prompt."""
    held: dict[int, Substrate] = {}  # the last one made: its arrays are as large as the state

    def at(prompt: int) -> Substrate:
        if prompt not in held:
            held.clear()
            held[prompt] = make(name, reference=None if of is None else _reference(of, prompt, design))
        return held[prompt]

    like = f"like the teacher-forced {of.name}, channel by channel" if of else "of unit variance, 512 numbers"
    about = {"matched_to": of.name if of else None, "state": f"Gaussian noise {like}"}
    return Host(name, about, at, heads, streams)


def _reference(of: Host, prompt: int, design: Design) -> Components:
    substrate = of.at(prompt)
    begin(substrate, of.heads[prompt], 0)
    states = forced(substrate, of.streams[prompt], design.tokens_per_tick, design.struck).states
    return {name: rows[1:] for name, rows in states.items()}

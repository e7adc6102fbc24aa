"""One substrate, one prompt, one seed: everything that is measured of them, as one record."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from rookery.lab import metrics, strike
from rookery.lab.design import Design
from rookery.lab.drive import Components, Path_, begin, forced, free
from rookery.lab.forgetting import forgetting
from rookery.lab.hosts import Host
from rookery.lab.motion import WHOLE, features, motion, ranks, short, sketch
from rookery.lab.substrates import Substrate

Record: TypeAlias = dict[str, Any]

LOOKS = 8  # parts that the ticks are divided into, where not every tick can be kept


def measure(host: Host, prompt: int, seed: int, design: Design) -> Record:
    """What depends on the prompt alone is measured with seed 0 only: of a run that is given its tokens all but pushes,
    whose direction is the seed's, unless the substrate has a chance of its own."""
    substrate = host.at(prompt)
    begin(substrate, host.heads[prompt], _run(prompt, seed, design))
    start = substrate.snapshot()
    tokens, per_tick = host.streams[prompt], design.tokens_per_tick
    path = _path(host, substrate, prompt, design)
    record: Record = {}
    if seed == 0 or not host.steady:
        record["teacher"] = motion(path.states)
    if seed == 0:
        record |= _once(host, prompt, path, design)
    rest = tokens[design.struck * per_tick :]
    record["push"] = strike.recovery(
        substrate, path, design.struck, rest, per_tick, design.size, seed, prompt, together=host.null
    )
    if path.losses:
        record["response"] = strike.response(substrate, path, rest[0], seed, prompt)
    if host.name == "physics":
        record["exponent"] = {WHOLE: strike.growth(substrate, path, design.struck, rest, per_tick, seed)}
    if not host.null:
        substrate.restore(start)
        record["free"] = motion(free(substrate, design.ticks, per_tick).states)
    return record


def _run(prompt: int, seed: int, design: Design) -> int:
    """The seed of a substrate's own chance: another for every prompt, which are the units of resampling."""
    return prompt * design.seeds + seed


def _path(host: Host, substrate: Substrate, prompt: int, design: Design) -> Path_:
    """The teacher-forced run from here; one that is the same for every seed is made once."""
    if host.steady and host.kept is not None and host.kept[0] == prompt:
        return host.kept[1]
    path = forced(substrate, host.streams[prompt], design.tokens_per_tick, design.struck)
    host.kept = (prompt, path)
    return path


def _once(host: Host, prompt: int, path: Path_, design: Design) -> Record:
    every = max(design.ticks // LOOKS, 1)
    half = list(range(design.ticks // 2, design.ticks + 1, every))
    record: Record = {"ranks": ranks(path.states, every)} | sketch(path.states)
    if not host.null:
        record["features"] = {"ticks": half, "rows": features(path.states, half)}
        record["floor"] = _floor(host, prompt, path, _run(prompt, 0, design))
    if host.model is not None:
        begun = host.about["begins_with"]
        tokens = [*begun, *host.heads[prompt], *host.streams[prompt]]
        record["forgetting"] = forgetting(host.model, tokens, len(tokens) - len(host.streams[prompt]))
    if path.losses:
        record["loss"] = {
            "nats": short(np.sum(path.losses)), "tokens": len(path.losses),
            "bytes": host.data[prompt] if host.data else None,
        }  # fmt: skip
    return record


def _floor(host: Host, prompt: int, path: Path_, seed: int) -> Record:
    """By component, how far the last state is from itself when the same tokens are read another way; relative.

    chunked: all tokens in one piece. elsewhere: on another back end. repeated: once more, for what has no pieces.
    """
    last = {name: rows[-1] for name, rows in path.states.items()}
    tokens = [*host.heads[prompt], *host.streams[prompt]]
    found: Record = {}
    if host.data is None:
        substrate = host.at(prompt)
        begin(substrate, tokens, seed)
        return {"repeated": _apart(substrate.components(), last)}
    found["chunked"] = _apart(_in_one_piece(host.at(prompt), tokens), last)
    if host.elsewhere is not None:
        found["elsewhere"] = _apart(_in_one_piece(host.elsewhere(), tokens), last)
    return found


def _in_one_piece(substrate: Any, tokens: list[int]) -> Components:
    """A language model's components after its beginning and `tokens`, read by one call."""
    prefix = substrate.prefix
    substrate.prefix = (*prefix, *tokens)
    substrate.reset()
    substrate.prefix = prefix
    components: Components = substrate.components()
    return components


def _apart(found: Components, wanted: Components) -> Record:
    return {name: short(metrics.rel_delta(wanted[name], part)) for name, part in found.items()}

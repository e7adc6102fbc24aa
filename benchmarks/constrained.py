"""Output held to JSON schemas: are finished replies valid, and what does a token cost?

    python benchmarks/constrained.py [--replies 1000] [--model gosling] [--steps 2000] [--json]

Replies are drawn at temperature 1.5 with top_p 1, at most 200 tokens, seeds 0, 1, ..., over the schemas in turn. Each
that finished is judged by the validator below, which knows nothing of llguidance; those cut off by the 200 are counted
apart. Costs are of one token, in microseconds: `plain` is the sampler on logits without a mask, `mask` what
a constraint adds (the mask, its use on the logits, taking the token). Of World only the mask is real: the logits are
random, as no model of that size is at hand, and tokens are drawn evenly from those allowed.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from fractions import Fraction
from typing import Any

import numpy as np

import rookery
from rookery import tokenizer as tokenizers
from rookery.chat.grammar import Grammar
from rookery.sampling import Sampler, Sampling

HOT = Sampling(temperature=1.5, top_p=1.0)
MAX_TOKENS = 200
PROMPT = "User: Tell me of it as JSON.\n\nAssistant:"


def closed(properties: dict[str, Any], *optional: str, **more: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
        **more,
    }


POINT = closed({"x": {"type": "integer", "minimum": -99, "maximum": 99}, "y": {"enum": [0, 1, -1]}})
SCHEMAS: dict[str, dict[str, Any]] = {
    "person": closed({
        "name": {"type": "string", "minLength": 1, "maxLength": 16},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"type": "boolean"},
    }),
    "enum": closed({"animal": {"const": "hen"}, "mood": {"enum": ["glad", "sad", "é\"\\", None, 7, [1]]}}),
    "array": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 2, "maxItems": 6},
    "nested": closed({
        "where": closed({"name": {"type": "string", "maxLength": 8}, "at": {"$ref": "#/$defs/point"}}),
        "tags": {"type": "array", "items": {"enum": ["a", "bb", "ccc"]}, "maxItems": 3},
    }, **{"$defs": {"point": POINT}}),
    "choice": {"anyOf": [
        {"type": "string", "maxLength": 12}, {"type": "null"},
        closed({"n": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 42}}),
    ]},
    "optional": closed({
        "a": {"type": "string", "maxLength": 5}, "b": {"type": "boolean"},
        "c": {"type": "array", "items": {"type": ["boolean", "null"]}, "maxItems": 2},
    }, "a", "c"),
    "pattern": closed({
        "code": {"type": "string", "pattern": "^[A-Z][a-z]{2,8}-[0-9]{2}$"},
        "part": {"type": "string", "pattern": "ab|c", "maxLength": 12},
    }),
    "number": closed({
        "price": {"type": "number", "minimum": 0, "maximum": 100, "multipleOf": 0.25},
        "share": {"oneOf": [{"type": "integer", "minimum": 1, "maximum": 6, "multipleOf": 2}, {"const": "none"}]},
    }),
}  # fmt: skip


def parsed(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, for a name given twice and for NaN too."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name is given twice")
        return dict(pairs)

    def no(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, object_pairs_hook=once, parse_constant=no)


TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "number": (int, float), "integer": (int,),
    "boolean": (bool,), "null": (type(None),),
}  # fmt: skip


def same(a: Any, b: Any) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def is_type(value: Any, names: str | list[str]) -> bool:
    names = [names] if isinstance(names, str) else names
    return any(isinstance(value, TYPES[n]) and (n == "boolean" or not isinstance(value, bool)) for n in names)


def valid(value: Any, schema: Any, root: Any = None) -> bool:
    """Whether the value is what the schema allows. Raises KeyError for a keyword that is not judged here."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    number, text = is_type(value, "number"), isinstance(value, str)
    items, members = isinstance(value, list), isinstance(value, dict)
    known = schema.get("properties", {})

    def inside(each: Any, of: Any) -> bool:
        return valid(each, of, root)

    def referred(path: str) -> bool:
        found = root
        for step in path.removeprefix("#/").split("/"):
            found = found[step]
        return inside(value, found)

    rules: dict[str, Any] = {
        "$defs": lambda _: True,
        "$ref": referred,
        "type": lambda names: is_type(value, names),
        "enum": lambda among: any(same(value, each) for each in among),
        "const": lambda one: same(value, one),
        "anyOf": lambda of: any(inside(value, each) for each in of),
        "oneOf": lambda of: sum(inside(value, each) for each in of) == 1,
        "minimum": lambda n: not number or value >= n,
        "maximum": lambda n: not number or value <= n,
        "exclusiveMinimum": lambda n: not number or value > n,
        "exclusiveMaximum": lambda n: not number or value < n,
        "multipleOf": lambda n: not number or Fraction(str(value)) % Fraction(str(n)) == 0,
        "minLength": lambda n: not text or len(value) >= n,
        "maxLength": lambda n: not text or len(value) <= n,
        "pattern": lambda p: not text or re.search(p, value) is not None,
        "items": lambda of: not items or all(inside(each, of) for each in value),
        "minItems": lambda n: not items or len(value) >= n,
        "maxItems": lambda n: not items or len(value) <= n,
        "required": lambda names: not members or all(name in value for name in names),
        "properties": lambda of: not members or all(inside(value[n], of[n]) for n in of if n in value),
        "additionalProperties": lambda of: not members or all(inside(value[n], of) for n in value if n not in known),
    }
    return all(rules[keyword](what) for keyword, what in schema.items())


def judged(text: str, schema: Any) -> bool:
    try:
        return valid(parsed(text), schema)
    except ValueError:
        return False


def replies(model: rookery.Model, count: int) -> dict[str, dict[str, int]]:
    """Of each schema: how many replies finished, how many of these are valid, how many were cut off, and tokens."""
    made = {
        name: Grammar.from_schema(schema, model.tokenizer, model.config.n_vocab) for name, schema in SCHEMAS.items()
    }
    found = {name: {"finished": 0, "valid": 0, "cut": 0, "tokens": 0} for name in SCHEMAS}
    names = list(SCHEMAS)
    for seed in range(count):
        name = names[seed % len(names)]
        stream = model.stream(PROMPT, MAX_TOKENS, HOT, seed, constraint=made[name].copy())
        text, row = "".join(stream), found[name]
        row["tokens"] += len(stream.tokens)
        if stream.stop_reason == "length":
            row["cut"] += 1
        else:
            row["finished"] += 1
            row["valid"] += judged(text, SCHEMAS[name])
    return found


def walk(grammar: Grammar, end: int | None, rows: Any, steps: int, even: bool) -> dict[str, list[float]]:
    """Microseconds of `steps` tokens; `rows` gives the logits after a token (None: at a beginning)."""
    plain, hot = Sampler(HOT, len(rows(None)), 0), Sampler(HOT, len(rows(None)), 1)
    random = np.random.default_rng(2)
    taken: dict[str, list[float]] = {"plain": [], "mask": [], "only the mask": []}
    now, token = grammar.copy(), None
    while len(taken["mask"]) < steps:
        logits = rows(token)
        begin = time.perf_counter()
        plain.sample(logits)
        at_plain = time.perf_counter()
        allowed = now.allowed()
        at_mask = time.perf_counter()
        logits = np.where(allowed, logits, -np.inf)
        at_used = time.perf_counter()
        token = int(random.choice(np.flatnonzero(allowed))) if even else hot.sample(logits)
        at_drawn = time.perf_counter()
        over = token == end or now.accept(token) or now.complete
        at_end = time.perf_counter()
        taken["plain"].append(1e6 * (at_plain - begin))
        taken["only the mask"].append(1e6 * (at_mask - at_plain))
        taken["mask"].append(1e6 * (at_used - at_plain + at_end - at_drawn))
        if over:
            now, token = grammar.copy(), None
    return taken


def costs(model: rookery.Model, steps: int) -> dict[str, dict[str, list[float]]]:
    schema = SCHEMAS["person"]
    start, state = model.forward(model.tokenizer.encode(PROMPT))
    now = [state]

    def real(token: int | None) -> Any:
        if token is None:
            now[0] = state
            return start
        logits, now[0] = model.forward(token, now[0])
        return logits

    world = tokenizers.load("world")
    random = np.random.default_rng(0).normal(0, 3, (16, world.vocab_size)).astype(np.float32)
    size = model.config.n_vocab
    return {
        f"{size:,} tokens": walk(
            Grammar.from_schema(schema, model.tokenizer, size), model.tokenizer.end, real, steps, even=False
        ),
        f"{world.vocab_size:,} tokens (World)": walk(
            Grammar.from_schema(schema, world, world.vocab_size),
            world.end,
            lambda token: random[(token or 0) % 16],
            steps,
            even=True,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--model", default="gosling")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = rookery.load(arguments.model)
    found = replies(model, arguments.replies)
    cost = {
        where: {name: [float(np.percentile(each, q)) for q in (50, 99)] for name, each in taken.items()}
        for where, taken in costs(model, arguments.steps).items()
    }
    if arguments.json:
        print(json.dumps({"replies": found, "microseconds": cost}))
        return
    total = {key: sum(row[key] for row in found.values()) for key in ("finished", "valid", "cut", "tokens")}
    print(f"{'schema':10} {'finished':>8} {'valid':>8} {'cut off':>8} {'tokens':>8}")
    for name, row in {**found, "all": total}.items():
        print(f"{name:10} {row['finished']:8} {row['valid']:8} {row['cut']:8} {row['tokens']:8}")
    print(f"\n{'microseconds a token':38} {'median':>8} {'p99':>8}")
    for where, taken in cost.items():
        for name, (median, p99) in taken.items():
            print(f"{where + ', ' + name:38} {median:8.0f} {p99:8.0f}")


if __name__ == "__main__":
    main()

"""A talk as one file: a safetensors file with the talk's turns as JSON and the state it stands at.

Tensors, all of bytes: `talk` (JSON), `snapshot` (the state and the logits), `initial` where the talk began with a state
of the user's own. Each part carries a digest of itself.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from rookery import errors, formats
from rookery import store as stores
from rookery import tokenizer as tokenizers
from rookery.formats import Tensor
from rookery.model import Model
from rookery.session.tree import INITIAL, Place, Point, Tree
from rookery.state import State
from rookery.store import Node, Snapshot, Store, Talk
from rookery.store.node import check_name

KIND = "talk"
SETTINGS = {"template", "system", "think", "tools", "seed"}
RECORD = {"after", "asked", "limits", "think"}  # of how a reply was drawn, what going on with it needs


def write(path: str | os.PathLike[str], tree: Tree, heads: dict[str, str | None], head: str, point: Point) -> None:
    """Write the talk, whole or not at all. Raises CannotWrite."""
    text: dict[str, Any] = {
        "talk": tree.talk.to_json(),
        "nodes": [[node.id, node.to_json()] for node in _parents_first(tree.nodes)],
        "heads": heads,
        "head": head,
    }
    parts: dict[str, bytes] = {}
    if point.logits is not None:
        prefix = tree.prefix(Place(heads[head]))
        text["key"] = prefix.key
        parts["snapshot"] = tree.snapshot(point, prefix.count).encode()
    if INITIAL in json.loads(tree.talk.settings):
        parts["initial"] = tree.snapshot(Point(None, tree.initial), 0).encode()
    parts["talk"] = json.dumps(text).encode()
    tensors = {name: Tensor.of(np.frombuffer(data, np.uint8)) for name, data in parts.items()}
    metadata = {"rookery.kind": KIND, "rookery.schema": str(stores.SCHEMA)}
    formats.write(path, tensors, metadata, format="safetensors")


def read(
    path: str | os.PathLike[str], model: Model, store: Store, allow_lineage: bool
) -> tuple[Tree, dict[str, str | None], str]:
    """The talk in a file, now in `store` too; its heads, and the one it was saved at.

    Raises subclasses of FileError, and StateError for a talk of another model.
    """
    opened = formats.read(path)
    meta = opened.metadata
    if meta.get("rookery.kind") != KIND:
        raise errors.UnknownFormat(path, "is not a talk saved by Rookery; wanted a file that Session.save wrote")
    schema = meta.get("rookery.schema", "")
    if schema.isdecimal() and int(schema) > stores.SCHEMA:
        raise errors.NewerFile(path, f"was written by a later Rookery (talks of schema {schema}); update this one")
    talk, nodes, heads, head, key = _checked(path, opened)
    check(talk, model, os.fspath(path), allow_lineage)
    initial = _initial(path, opened, talk, model)
    tree = Tree(model, store, _made(talk, store), initial)
    tree.keep_initial()
    tree.nodes = {node.id: node for node in nodes}
    with store.together():
        for node in nodes:
            store.add(tree.talk.name, node, stores.MAIN, node.parent)
        at_main = store.heads(tree.talk.name)[stores.MAIN]
        for name, at in heads.items():
            store.move(tree.talk.name, name, at_main if name == stores.MAIN else None, at)
    _remember(opened, tree, heads[head], key)
    return tree, heads, head


def check(talk: Talk, model: Model, where: str, allow_lineage: bool) -> None:
    """StateError unless the talk was held with this model (or, if allowed, with another quantisation of it)."""
    of = model.weights
    if talk.lineage != of.lineage:
        raise errors.StateError(f"{where}: was held with another model than {of.path}; open it with that one")
    if talk.tokenizer != tokenizers.digest(model.tokenizer):
        raise errors.StateError(f"{where}: was held with another tokenizer; name that one when loading {of.path}")
    if talk.fingerprint != of.fingerprint and not allow_lineage:
        raise errors.StateError(
            f"{where}: was held with another quantisation of {of.path}; allow_lineage=True reads it anew with this one"
        )


def _checked(path: Any, opened: formats.File) -> tuple[Talk, list[Node], dict[str, str | None], str, str | None]:
    """What the JSON says, if all of it holds together."""
    try:
        text = json.loads(opened.tensors["talk"].data.tobytes())
        talk = Talk.from_json(text["talk"])
        check_name(talk.name)
        nodes = [Node.from_json(line, id) for id, line in text["nodes"]]
        heads = {check_name(name, "branch"): at for name, at in text["heads"].items()}
        head = text["head"]
        known: set[str | None] = {None}
        if missing := SETTINGS - json.loads(talk.settings).keys():
            raise ValueError(f"its settings lack {', '.join(sorted(missing))}")
        for node in nodes:
            *_, (asked, _), (answered, _) = node.messages
            turn = asked != "assistant" == answered
            if not turn or not json.loads(node.sampling).keys() >= RECORD:
                raise ValueError(f"turn {node.id[:8]} is not what was said and answered")
            if node.parent not in known or node.base not in known:
                raise ValueError(f"turn {node.id[:8]} follows one that is not there")
            known.add(node.id)
        if head not in heads or not set(heads.values()) <= known:
            raise ValueError("a branch stands on a turn that is not there")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, errors.InputError) as error:
        raise errors.DamagedFile(path, f"is a damaged talk ({error}); take an older copy") from None
    return talk, nodes, heads, head, text.get("key")


def _initial(path: Any, opened: formats.File, talk: Talk, model: Model) -> State:
    """The state before the first token."""
    start, wanted = model.state(), json.loads(talk.settings).get(INITIAL)
    if wanted is None:
        return start
    if (found := _snapshot(opened, "initial")) is None or found.flat.shape != start.flat.shape:
        raise errors.DamagedFile(path, "lacks the state that the talk began with; take an older copy")
    return State(model.config, found.flat.astype(start.flat.dtype), model.weights)


def _remember(opened: formats.File, tree: Tree, at: str | None, key: str | None) -> None:
    """Take over the saved state, if it is whole and the one that this model would come to; else it is read anew."""
    found = _snapshot(opened, "snapshot")
    if at is None or found is None:
        return
    place, point = Place(at), tree.accept(found)
    if point is not None and key == tree.prefix(place).key:
        tree.hold(place, point)
        tree.put(tree.prefix(place), point)


def _snapshot(opened: formats.File, name: str) -> Snapshot | None:
    try:
        return Snapshot.decode(opened.tensors[name].data.tobytes())
    except (KeyError, errors.DamagedFile):
        return None


def _parents_first(nodes: dict[str, Node]) -> list[Node]:
    """In an order in which no turn stands before the one it follows."""
    done: dict[str, Node] = {}
    for node in nodes.values():
        waiting = [node]
        while waiting:
            at = waiting[-1]
            missing = [id for id in (at.parent, at.base) if id is not None and id not in done]
            if missing:
                waiting += [nodes[id] for id in missing]
            else:
                done[waiting.pop().id] = at
    return [*done.values()]


def _made(talk: Talk, store: Store) -> Talk:
    """The talk, now in the store, under a name that was free there."""
    stem = talk.name[:90]
    for n in count(2):
        with suppress(errors.InputError):  # the name is taken
            store.create(talk)
            break
        talk = replace(talk, name=f"{stem}-{n}")
    return talk

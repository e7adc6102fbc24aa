"""A Hugging Face folder: config.json beside model.safetensors or pytorch_model.bin, whole or in shards with an index.

What a folder says of itself is not believed: an index names files by bare names only, and every file must lie in the
folder, links followed (huggingface_hub's cache, where a snapshot links to the blobs beside it, is let through).
Read `hf.config` in the metadata for config.json; what the tensors are is left to `weights`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from itertools import count
from typing import Any

from rookery import errors, formats
from rookery.formats import safetensors
from rookery.formats.raw import brief, json_object, map_file
from rookery.formats.tensor import Tensor

CONFIG, TOKENIZER, JINJA = "config.json", "tokenizer_config.json", "chat_template.jinja"
SINGLE = "model.safetensors"
# in the order in which transformers looks for them
WEIGHTS = (SINGLE, SINGLE + ".index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
MAX_JSON = 2**20
MAX_INDEX = 2**24
MAX_DEPTH = 32
MAX_SHARDS = 4096

_serial = count()


def check(path: str) -> None:
    """Raises NotAFile for a folder that is none of a model's, UnknownFormat for an adapter's."""
    here = _list(path)
    if "adapter_config.json" in here and not any(name in here for name in WEIGHTS):
        raise errors.UnknownFormat(
            path, "holds an adapter (adapter_config.json), no model: give it as --adapter beside its base, or merge it"
        )
    if CONFIG not in here:
        models = [name for name in here if os.path.splitext(name)[1] in formats.READABLE]
        remedy = f"give the file in it: {', '.join(map(brief, models[:3]))}" if models else "wanted a model"
        raise errors.NotAFile(path, f"is a folder without {CONFIG}; {remedy}")


def read(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors in file order, and the metadata: the weights file's own, and config.json as the dict `hf.config`.

    `rookery.tokenizer` is what tokenizer_config.json says under "rookery_tokenizer". Raises NotAFile, MissingShard and
    other subclasses of DamagedFile.
    """
    check(path)
    metadata: dict[str, Any] = {"hf.config": json_file(path, CONFIG, MAX_JSON)}
    ours = metadata["hf.config"].get("rookery")
    if isinstance(ours, dict) and "group_norm_eps" in ours:  # transformers writes config.json, no metadata of ours
        metadata["rookery.group_norm_eps"] = str(ours["group_norm_eps"])
    here = _list(path)
    if TOKENIZER in here:
        name = json_file(path, TOKENIZER, MAX_JSON).get("rookery_tokenizer")
        metadata |= {"rookery.tokenizer": name} if isinstance(name, str) else {}
    file = next((name for name in WEIGHTS if name in here), None)
    if file is None:
        raise errors.MissingShard(path, f"has {CONFIG} but no weights; wanted one of {', '.join(WEIGHTS)}")
    if not file.endswith(".json"):
        tensors, own = _weights(path, file)
        return tensors, own | metadata
    return _sharded(path, file), metadata


def json_file(folder: str, name: str, limit: int) -> dict[str, Any]:
    """A JSON object of at most `limit` bytes and of bounded depth. Raises subclasses of FileError."""
    path = inside(folder, name)
    raw = map_file(path)
    if len(raw) > limit:
        raise errors.TooLarge(path, f"has {len(raw)} bytes; at most {limit} are allowed")
    value = json_object(path, raw.tobytes())
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]  # fmt: skip
        if not level:
            return value
    raise errors.BadHeader(path, f"is nested more than {MAX_DEPTH} levels deep")


def inside(folder: str, name: str) -> str:
    """The path of the file `name` in `folder`. Raises BadOffset if it leads out of the folder, MissingShard."""
    if name in ("", ".", "..") or any(c in name for c in "/\\\0:"):
        raise errors.BadOffset(folder, f"names the file {brief(name)}; wanted a bare name in this folder")
    path = os.path.join(folder, name)
    if not os.path.lexists(path):
        raise errors.MissingShard(folder, f"lacks its file {brief(name)}; download it again")
    root = os.path.realpath(folder)
    home = [root]
    if os.path.basename(os.path.dirname(root)) == "snapshots":
        home.append(os.path.join(os.path.dirname(os.path.dirname(root)), "blobs"))
    if os.path.dirname(os.path.realpath(path)) not in home:
        raise errors.BadOffset(folder, f"{brief(name)} is a link that leads out of the folder; copy the file here")
    return path


def chat_template(folder: str) -> str | None:
    """The folder's chat template, Jinja or a name: of chat_template.jinja, which goes first in transformers too, else
    of tokenizer_config.json. Raises TooLarge and BadHeader.
    """
    if os.path.lexists(os.path.join(folder, JINJA)):
        raw = map_file(inside(folder, JINJA))
        if len(raw) > MAX_JSON:
            raise errors.TooLarge(
                os.path.join(folder, JINJA), f"has {len(raw)} bytes; a template has at most {MAX_JSON}"
            )
        try:
            return raw.tobytes().decode()
        except UnicodeDecodeError:
            raise errors.BadHeader(os.path.join(folder, JINJA), "is no UTF-8 text; wanted a chat template") from None
    if not os.path.lexists(os.path.join(folder, TOKENIZER)):
        return None
    said = json_file(folder, TOKENIZER, MAX_JSON).get("chat_template")
    if isinstance(said, list):  # several, by name
        said = {one.get("name"): one.get("template") for one in said if isinstance(one, dict)}.get("default")
    return said if isinstance(said, str) else None


def size(path: str) -> int:
    """Bytes of the files in the folder."""
    return sum(os.path.getsize(os.path.join(path, name)) for name in _list(path))


def _list(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except PermissionError:
        raise errors.NoPermission(path, "the system does not let you read it; check its permissions") from None
    except OSError as error:
        raise errors.MissingFile(path, f"cannot be opened ({error.strerror or error}); check the path") from None


def _weights(folder: str, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = inside(folder, name)
    file = formats.parse(path, map_file(path))
    if file.format not in ("safetensors", "pth"):
        raise errors.UnknownFormat(path, f"is a {file.format} file; wanted safetensors or a torch checkpoint")
    return file.tensors, file.metadata


def _sharded(folder: str, index: str) -> dict[str, Tensor]:
    """The tensors of all shards: those that the index names, each once, each in the shard it is said to lie in."""
    path = os.path.join(folder, index)
    where = json_file(folder, index, MAX_INDEX).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
        raise errors.BadHeader(path, "has no weight_map from tensor names to file names")
    shards = list(dict.fromkeys(where.values()))
    if len(shards) > MAX_SHARDS:
        raise errors.TooLarge(path, f"names {len(shards)} shards; at most {MAX_SHARDS} are allowed")
    found: dict[str, Tensor] = {}
    for shard in shards:
        if shard.endswith(".json"):
            raise errors.BadHeader(path, f"names {brief(shard)} as a shard; wanted files of tensors")
        for name, tensor in _weights(folder, shard)[0].items():
            if name in found:
                raise errors.OverlappingTensors(path, f"tensor {brief(name)} lies in two shards")
            if where.get(name) != shard:
                said = f"lies in {brief(shard)}, not in {brief(where[name])}" if name in where else "is not listed"
                raise errors.BadHeader(path, f"tensor {brief(name)} of {brief(shard)} {said}")
            found[name] = tensor
    for name, shard in where.items():
        if name not in found:
            raise errors.BadHeader(path, f"tensor {brief(name)} is not in its shard {brief(shard)}")
    return found


def check_target(path: str) -> None:
    """Raises CannotWrite unless `path` is free or an empty folder."""
    try:
        if os.path.lexists(path) and (not os.path.isdir(path) or os.listdir(path)):
            what = "is a folder that is not empty" if os.path.isdir(path) else "is a file"
            raise errors.CannotWrite(path, f"{what}; name a new or an empty folder")
    except OSError as error:
        raise errors.CannotWrite(path, f"cannot be written ({error.strerror or error})") from None


def write(
    path: str,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str],
    documents: Mapping[str, dict[str, Any] | bytes],
    single: str = SINGLE,
) -> None:
    """A safetensors file and `documents` (JSON objects, or bytes) by name, into a new or empty folder: all or nothing.

    Raises CannotWrite, or UnsupportedType for a tensor type that safetensors cannot hold.
    """
    check_target(path)
    target = os.path.realpath(path)
    parent, name = os.path.split(target)
    temporary = os.path.join(parent, f".{name[:48]}.{os.getpid()}-{next(_serial)}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # what a dead process of the same id left
        os.mkdir(temporary)
        if os.path.isdir(target):
            shutil.copymode(target, temporary)
        for document, content in documents.items():
            text = content if isinstance(content, bytes) else (json.dumps(content, indent=2) + "\n").encode()
            with open(os.path.join(temporary, document), "xb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        # transformers opens no file that does not say who wrote it for whom
        safetensors.write(os.path.join(temporary, single), tensors, {"format": "pt"} | metadata)
        if os.name == "nt" and os.path.isdir(target):
            os.rmdir(target)
        os.rename(temporary, target)
    except OSError as error:
        raise errors.CannotWrite(path, f"cannot be written ({error.strerror or error})") from error
    except errors.CannotWrite as error:
        raise errors.CannotWrite(path, str(error).removeprefix(f"{error.path}: ")) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""Which template: a builtin by name, a file, a text, or what a model says of itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from rookery.chat.jinja import MAX_SOURCE, Jinja
from rookery.chat.roles import BUILTIN
from rookery.chat.template import Template
from rookery.errors import MissingFile, TemplateError, TooLarge
from rookery.formats import folder as folders
from rookery.formats.raw import brief, map_file

MAX_STOP = 100
NONE: Mapping[str, Any] = MappingProxyType({})


def load(
    template: str | os.PathLike[str] | Template | None = None,
    metadata: Mapping[str, Any] = NONE,
    folder: str | None = None,
) -> Template:
    """A builtin ("raven", "world", "g1", "coder", "plain"), the path of a .jinja file, Jinja text, an object as it is.

    None: what the model says, first of
    `rookery.template` in its `metadata`, a builtin's name; `rookery.stop` is then a text that ends a reply too,
    `tokenizer.chat_template`, Jinja or llama.cpp's name "rwkv-world",
    chat_template.jinja or tokenizer_config.json in its Hugging Face `folder`;
    else plain. A model never names a file. Raises FileError, TemplateError, MissingExtra.
    """
    if template is None:
        return _of_metadata(metadata) or _of_folder(folder) or BUILTIN["plain"]
    if isinstance(template, os.PathLike):
        return Jinja(_read(os.fspath(template)), os.fspath(template))
    if not isinstance(template, str):
        return template
    if template in BUILTIN:
        return BUILTIN[template]
    if _is_jinja(template):
        return Jinja(template)
    try:
        return Jinja(_read(template), template)
    except MissingFile:
        wanted = f"{', '.join(BUILTIN)}, the path of a .jinja file, or Jinja itself"
        raise MissingFile(brief(template), f"is neither a template nor a file; wanted {wanted}") from None


def _of_metadata(metadata: Mapping[str, Any]) -> Template | None:
    name, text = metadata.get("rookery.template"), metadata.get("tokenizer.chat_template")
    if isinstance(name, str) and name in BUILTIN:
        made, stop = BUILTIN[name], metadata.get("rookery.stop")
        if stop is None:
            return made
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP:
            raise TemplateError(f"rookery.stop of the model: wanted a text of 1 to {MAX_STOP} characters")
        return replace(made, stops=(stop, *made.stops))
    return _named(text) if isinstance(text, str) else None


def _of_folder(folder: str | None) -> Template | None:
    said = folders.chat_template(folder) if folder is not None and os.path.isdir(folder) else None
    return None if said is None else _named(said)


def _named(text: str) -> Template | None:
    if text == "rwkv-world":
        return BUILTIN["world"]
    return Jinja(text, "the model's chat template") if _is_jinja(text) else None


def _is_jinja(text: str) -> bool:
    return "{{" in text or "{%" in text


def _read(path: str) -> str:
    raw = map_file(path)
    if len(raw) > MAX_SOURCE:
        raise TooLarge(path, f"has {len(raw)} bytes; a chat template has at most {MAX_SOURCE}")
    try:
        return raw.tobytes().decode()
    except UnicodeDecodeError:
        raise TemplateError(f"{path}: is no UTF-8 text; wanted a chat template") from None

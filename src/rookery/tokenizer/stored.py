"""Vocabularies that come with the weights: in a file's metadata, or as a file in a Hugging Face folder.

A model never says which file to open: only files of fixed names are looked for, and only in the model's own folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rookery import errors
from rookery.formats import folder
from rookery.tokenizer import CARRIED
from rookery.tokenizer.huggingface import HuggingFace
from rookery.tokenizer.trie import LARGEST_ID
from rookery.tokenizer.world import World

VOCABULARY, TOKENIZER = "rwkv_vocab_v20230424.txt", "tokenizer.json"
TOKENS = "tokenizer.ggml.tokens"
MAX_CONFIG = 1 << 20

# gguf's token types: the text of these is a name, which never stands in a text
CONTROL, UNUSED = 3, 5
ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([^x]))", re.DOTALL)
LETTERS = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}


def find(path: str, format: str, metadata: Mapping[str, Any]) -> World | HuggingFace | None:
    """The vocabulary that came with a model of this path, format and metadata. Raises TokenizerError and FileError."""
    if format == "hf":
        return of_folder(path)
    return of_gguf(metadata, path) if format == "gguf" else of_text(metadata, path)


def where(path: str, format: str, metadata: Mapping[str, Any]) -> str | None:
    """What `find` would read, told without reading it."""
    if format == "hf":
        return next((name for name in (VOCABULARY, TOKENIZER) if name in os.listdir(path)), None)
    if format != "gguf" and CARRIED in metadata:
        return f"rwkv, {len(str(metadata[CARRIED]).splitlines()) + 1} tokens"
    tokens = metadata.get(TOKENS)
    listed = metadata.get("tokenizer.ggml.model") == "rwkv" and isinstance(tokens, Sequence)
    return f"rwkv, {len(tokens)} tokens" if listed and tokens is not None else None


def of_text(metadata: Mapping[str, Any], path: str) -> World | None:
    """The vocabulary that a file of text metadata carries. Raises TokenizerError."""
    text = metadata.get(CARRIED)
    return World.from_text(text.encode(), "rwkv", path) if isinstance(text, str) else None


def of_gguf(metadata: Mapping[str, Any], path: str) -> World | None:
    """The vocabulary in a GGUF's metadata, if it is there and of llama.cpp's kind "rwkv". Raises TokenizerError.

    `tokenizer.ggml.tokens` holds repr() of each token's bytes without its quotes; the ids of control and unused tokens
    have no bytes, and of the control tokens the one of `tokenizer.ggml.eos_token_id`, else id 0, ends a text.
    """
    tokens = metadata.get(TOKENS)
    if metadata.get("tokenizer.ggml.model") != "rwkv" or tokens is None:
        return None
    if not isinstance(tokens, Sequence) or isinstance(tokens, str | bytes) or len(tokens) > LARGEST_ID:
        raise errors.TokenizerError(f"{path}: its vocabulary is no list of at most {LARGEST_ID} tokens")
    types = metadata.get("tokenizer.ggml.token_type")
    kinds = [1] * len(tokens) if types is None else [*types]
    if len(kinds) != len(tokens):
        raise errors.TokenizerError(f"{path}: its vocabulary has {len(tokens)} tokens but {len(kinds)} token types")
    raw = getattr(tokens, "bytes", tokens.__getitem__)  # gguf.Strings has the bytes, which need not be UTF-8
    found = [b"" if kinds[id] in (CONTROL, UNUSED) else _unescaped(raw(id), id, path) for id in range(len(tokens))]
    end = metadata.get("tokenizer.ggml.eos_token_id", 0 if kinds and kinds[0] == CONTROL else None)
    if end is not None and not (isinstance(end, int) and 0 <= end < len(found)):
        raise errors.TokenizerError(f"{path}: the token that ends a text, {str(end)[:40]}, is none of its vocabulary")
    return World.from_tokens(found, "rwkv", end, path)


def _unescaped(token: Any, id: int, path: str) -> bytes:
    text = token.encode("utf-8", "surrogateescape") if isinstance(token, str) else bytes(token)
    if b"\\" not in text:
        return text
    if b"\\" in ESCAPE.sub(b"", text):
        raise errors.TokenizerError(f"{path}: token {id} of its vocabulary is not escaped as llama.cpp does it")
    return ESCAPE.sub(lambda m: bytes.fromhex(m[1].decode()) if m[1] else LETTERS.get(m[2], m[2]), text)


def of_folder(path: str) -> World | HuggingFace | None:
    """The tokenizer in a folder: rwkv_vocab_v20230424.txt, else tokenizer.json. Raises TokenizerError and FileError."""
    here = os.listdir(path)
    if VOCABULARY in here:
        return World(folder.inside(path, VOCABULARY))
    if TOKENIZER in here:
        return of_json(folder.inside(path, TOKENIZER))
    return None


def of_json(path: str | os.PathLike[str]) -> HuggingFace:
    """The tokenizer of a tokenizer.json, with the end that a tokenizer_config.json beside it names."""
    home = os.path.dirname(os.path.abspath(path))
    end = None
    if os.path.lexists(os.path.join(home, folder.TOKENIZER)):
        end = folder.json_file(home, folder.TOKENIZER, MAX_CONFIG).get("eos_token")
        end = end.get("content") if isinstance(end, dict) else end
    return HuggingFace(path, end if isinstance(end, str) else None)

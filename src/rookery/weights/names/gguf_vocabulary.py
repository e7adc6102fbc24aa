"""The vocabulary that a GGUF carries, as llama.cpp's converter writes it; `tokenizer.stored` reads it back.

A token is its bytes as repr() writes them, so that one which is not UTF-8 is text too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rookery.errors import TokenError

MODEL, TOKENS, KINDS = "tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
NORMAL, CONTROL, UNUSED = 1, 3, 5
DOUBLE_NEWLINE = 261  # in World's vocabulary; ends a turn, says llama.cpp's converter


def entries(metadata: Mapping[str, Any], n_vocab: int) -> dict[str, Any]:
    """The keys that describe a model's tokens, unless `metadata` has them already.

    A tokenizer that is not known is "no_vocab": llama.cpp opens such a file and takes token ids.
    """
    if MODEL in metadata:
        return {}
    from rookery.tokenizer import CARRIED, World

    if carried := metadata.get(CARRIED):
        vocabulary = World.from_text(carried.encode(), "rwkv", "the model")
        tokens = _known(vocabulary.token_bytes, min(n_vocab, vocabulary.vocab_size))
        turn = {"eot": tokens.index(b"\n\n")} if b"\n\n" in tokens else {}
        return _entries(tokens, n_vocab, {"bos": 0, "eos": 0} | turn)
    name = metadata.get("rookery.tokenizer") or ("world" if n_vocab == 65536 else None)
    if name == "world":
        world = World()
        tokens = _known(world.token_bytes, n_vocab)
        special = {"bos": 0, "eos": 0, "eot": DOUBLE_NEWLINE}
    elif name in ("bytes", "utf16le") and n_vocab >= 256:
        tokens = [bytes((i,)) for i in range(256)]
        special = {}
    else:
        return {MODEL: "no_vocab"}
    return _entries(tokens, n_vocab, special)


def _entries(tokens: list[bytes], n_vocab: int, special: Mapping[str, int]) -> dict[str, Any]:
    """The keys for these tokens, `n_vocab` rows in all; `special` says which id begins, ends and so on."""
    padded = tokens + [b""] * (n_vocab - len(tokens))
    texts = [_escaped(token) if token else b"[PAD%d]" % id for id, token in enumerate(padded)]
    kinds = np.array([NORMAL if token else UNUSED for token in padded], "<i4")
    if special:
        texts[0], kinds[0] = b"<s>", CONTROL
    ids = {f"tokenizer.ggml.{what}_token_id": id for what, id in special.items()}
    return {MODEL: "rwkv", TOKENS: texts[:n_vocab], KINDS: kinds, **ids}


def _known(token_bytes: Callable[[int], bytes], n_vocab: int) -> list[bytes]:
    """The bytes of ids 0 .. n_vocab - 1, none for an id that is no token."""
    tokens: list[bytes] = []
    for id in range(n_vocab):
        try:
            tokens.append(token_bytes(id))
        except TokenError:
            tokens.append(b"")
    return tokens


def _escaped(token: bytes) -> bytes:
    return repr(token)[2:-1].encode("ascii")

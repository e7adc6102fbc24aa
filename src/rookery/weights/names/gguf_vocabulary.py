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
    name = metadata.get("rookery.tokenizer") or ("world" if n_vocab == 65536 else None)
    if name == "world":
        from rookery.tokenizer import World

        world = World()
        tokens = _known(world.token_bytes, n_vocab)
        special = {"bos": 0, "eos": 0, "eot": DOUBLE_NEWLINE}
    elif name in ("bytes", "utf16le") and n_vocab >= 256:
        tokens = [bytes((i,)) for i in range(256)]
        special = {}
    else:
        return {MODEL: "no_vocab"}
    texts = [_escaped(token) for token in tokens]
    kinds = np.full(n_vocab, UNUSED, "<i4")
    kinds[: len(tokens)] = NORMAL
    if special:
        texts[0], kinds[0] = b"<s>", CONTROL
    texts += [b"[PAD%d]" % i for i in range(len(texts), n_vocab)]
    ids = {f"tokenizer.ggml.{what}_token_id": id for what, id in special.items()}
    return {MODEL: "rwkv", TOKENS: texts[:n_vocab], KINDS: kinds, **ids}


def _known(token_bytes: Callable[[int], bytes], n_vocab: int) -> list[bytes]:
    tokens: list[bytes] = []
    try:
        while len(tokens) < n_vocab:
            tokens.append(token_bytes(len(tokens)))
    except TokenError:
        pass
    return tokens


def _escaped(token: bytes) -> bytes:
    return repr(token)[2:-1].encode("ascii")

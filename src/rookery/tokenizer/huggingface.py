"""Hugging Face's `tokenizer.json`, of the byte-level BPE kind: the 20B tokenizer of v4 Pile models and its relatives.

The merging is done by the `tokenizers` library (extra `hf`); the bytes of a token are read here, from the alphabet in
which byte-level BPE writes them. Unlike the other tokenizers this one reads text only, and a normaliser in the file
may change it first: the 20B tokenizer brings text into Unicode's NFC, so `decode(encode(x))` is NFC(x), not x. Its
special tokens are found in text too: "<|endoftext|>" becomes id 0.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from operator import index
from pathlib import Path
from typing import Any

from rookery import errors
from rookery.formats.raw import map_file
from rookery.tokenizer.simple import encode_text, unknown_token
from rookery.tokenizer.stream import StreamDecoder
from rookery.tokenizer.trie import LARGEST_ID

MAX_FILE = 1 << 25
MAX_DEPTH = 8  # of steps in steps
END = "<|endoftext|>"  # what the end is called where no tokenizer_config.json says it

# Steps that a byte-level tokenizer may have. Others are not BPE's, and one of them (Precompiled) aborts on bad data.
STEPS = {
    "normalizer": {"NFC", "NFD", "NFKC", "NFKD", "Sequence", "Lowercase", "Strip", "StripAccents", "Replace"},
    "pre_tokenizer": {"ByteLevel", "Sequence", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"},
}  # fmt: skip


def _alphabet() -> Iterator[tuple[str, int]]:
    """The letter that stands for each byte: itself if it is printable and no space, else the next from U+0100 on."""
    free = 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or (byte >= 0xA1 and byte != 0xAD):
            yield chr(byte), byte
        else:
            yield chr(free), byte
            free += 1


BYTE = dict(_alphabet())
NEVER_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


class HuggingFace:
    """The tokenizer of one `tokenizer.json`; safe to share among threads.

    `end` is the text of the token that ends a text, the `eos_token` of a `tokenizer_config.json`; without one, or if
    the file does not have it, "<|endoftext|>" if the file has that, else none.
    Raises TokenizerError for a file that is none or is damaged, FileError for a path that cannot be read, MissingExtra.
    """

    def __init__(self, path: str | os.PathLike[str], end: str | None = None) -> None:
        self.name = Path(path).stem
        document = _document(path)
        self._tokenizer = _built(path, document)
        vocabulary: dict[str, int] = document["model"]["vocab"]
        self._tokens = {id: _bytes(token) for token, id in vocabulary.items()}
        # Asked of the library, which gives added tokens ids of its own where the file's are not the next ones.
        for id, token in self._tokenizer.get_added_tokens_decoder().items():
            if len(self._tokens.get(id, b"??")) == 1:
                raise damaged(path, f"the added token {token.content[:40]!r} has the id {id} of a single byte")
            # Special tokens have no bytes: they are signs to the model, as in the library's own decode().
            self._tokens[id] = b"" if token.special else token.content.encode()
        self.vocab_size = max(self._tokens) + 1
        named: int | None = None if end is None else self._tokenizer.token_to_id(end)
        self.end: int | None = self._tokenizer.token_to_id(END) if named is None else named

    def encode(self, text: str | bytes) -> list[int]:
        """Token ids. Raises InputError for bytes that are no UTF-8, and for half a surrogate pair."""
        if isinstance(text, str):
            encode_text(text, "utf-8")
        else:
            text = _text(bytes(text))
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # a panic of the Rust library is no Exception
            raise damaged(self.name, f"the tokenizer broke down on this text ({_line(error)})") from None
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, id: int) -> bytes:
        try:
            return self._tokens[index(id)]
        except (KeyError, TypeError):
            raise unknown_token(id, self.vocab_size) from None

    def stream(self, stop: Sequence[str] = ()) -> StreamDecoder:
        return StreamDecoder(self.token_bytes, "utf-8", stop)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise errors.InputError(
            f"byte {error.start} (0x{data[error.start]:02x}) is not valid UTF-8, and this tokenizer reads text only"
        ) from None


def _bytes(token: str) -> bytes:
    """The bytes that a vocabulary entry stands for; one with letters beyond the alphabet is plain text."""
    try:
        return bytes([BYTE[letter] for letter in token])
    except KeyError:
        return token.encode("utf-8", "replace")


def damaged(path: str | os.PathLike[str], why: str) -> errors.TokenizerError:
    return errors.TokenizerError(f"{os.fspath(path)}: {why}")


def read_json(path: str | os.PathLike[str], wanted: str) -> dict[str, Any]:
    """The object in a JSON file of at most MAX_FILE bytes. Raises TokenizerError, TooLarge and other FileErrors."""
    raw = map_file(path)
    if raw.size > MAX_FILE:
        raise errors.TooLarge(path, f"has {raw.size} bytes; a {wanted} has at most {MAX_FILE}")
    try:
        found = json.loads(raw.tobytes())
    except RecursionError:
        raise damaged(path, f"is nested too deeply for a {wanted}") from None
    except ValueError as error:
        raise damaged(path, f"is not valid JSON ({error}); wanted a {wanted}") from None
    if not isinstance(found, dict):
        raise damaged(path, f"is not a {wanted}: its JSON is no object")
    return found


def _document(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The parsed file, with all that this module and the library rely on looked at."""
    document = read_json(path, "tokenizer.json")
    model = document.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise damaged(path, "is not a tokenizer.json: it has no model with a vocabulary")
    steps = {part: list(_steps(document.get(part))) for part in ("normalizer", "pre_tokenizer", "decoder")}
    kind = model.get("type", "BPE")  # the oldest files leave it out
    if kind != "BPE" or "ByteLevel" not in steps["decoder"] + steps["pre_tokenizer"]:
        raise damaged(path, f"is a tokenizer of the kind {str(kind)[:40]!r}; only byte-level BPE is read")
    for part, allowed in STEPS.items():
        for step in steps[part]:
            if step not in allowed | {"ByteLevel"}:
                raise damaged(path, f"its {part} has the step {step[:40]!r}, which no byte-level BPE needs")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise damaged(path, "marks parts of words with a prefix or suffix, which byte-level BPE does not")
    vocabulary = model["vocab"]
    if not isinstance(vocabulary, dict) or not all(_is_id(id) for id in vocabulary.values()):
        raise damaged(path, f"its vocabulary must give each token an id from 0 to {LARGEST_ID}")
    missing = [byte for letter, byte in BYTE.items() if letter not in vocabulary and byte not in NEVER_UTF8]
    if missing:  # the library would leave the letter out without a word
        raise damaged(path, f"no token for the single byte {missing[0]}: wanted one for each of UTF-8's 243")
    if not isinstance(document.setdefault("added_tokens", []), list):
        raise damaged(path, "its added_tokens are no list")
    # What would make one text give several results, or cut it off; and what is not needed here.
    model["dropout"] = document["truncation"] = document["padding"] = None
    document["decoder"] = document["post_processor"] = None
    return document


def _steps(part: Any, depth: int = 0) -> Iterator[str]:
    """The types of a part and of the steps inside it."""
    if depth > MAX_DEPTH or not isinstance(part, dict | None):
        yield "too deep" if depth > MAX_DEPTH else "no object"
    elif part is not None:
        yield str(part.get("type"))
        for inner in part.values():
            if isinstance(inner, list):
                for step in inner:
                    yield from _steps(step, depth + 1)


def _is_id(id: Any) -> bool:
    return type(id) is int and 0 <= id <= LARGEST_ID


def _built(path: str | os.PathLike[str], document: dict[str, Any]) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise errors.MissingExtra(f"{os.fspath(path)}: a Hugging Face tokenizer.json", "hf") from None
    try:
        return Tokenizer.from_str(json.dumps(document))
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        raise damaged(path, f"is a damaged tokenizer.json ({_line(error)})") from None


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]

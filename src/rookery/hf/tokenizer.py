"""Rookery's tokenizers as transformers has them: the World vocabulary, bytes and UTF-16LE."""

from __future__ import annotations

import os
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer

from rookery import tokenizer as tokenizers
from rookery.errors import InputError, TokenError
from rookery.tokenizer import World
from rookery.weights.folders import VOCABULARY

END = "<|endoftext|>"
PADS = {"bytes": "\0"}  # a byte that text does not have; half of every UTF-16 letter has it


class RwkvTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """A tokenizer over bytes: `decode(encode(text)) == text` for any text, and padding goes to the left.

    `vocab_file`: of the World kind; without one `rookery_tokenizer` is "world", "bytes" or "utf16le". A token is shown
    as its bytes in Latin-1. Token 0 of World ends a text; `eos_token` is what it is called, in text too.
    """

    vocab_files_names = {"vocab_file": VOCABULARY}  # noqa: RUF012 # read by transformers as it is
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str | None = None,
        rookery_tokenizer: str | None = None,
        bos_token: Any = None,
        eos_token: Any = None,
        pad_token: Any = None,
        **kwargs: Any,
    ) -> None:
        name = rookery_tokenizer or "world"
        if not vocab_file and name not in tokenizers.NAMES:
            raise InputError(f"rookery_tokenizer {name[:40]!r}: choose from {', '.join(tokenizers.NAMES)}")
        self.vocabulary = World(vocab_file) if vocab_file else tokenizers.load(name)
        added = {int(id): _added(token) for id, token in (kwargs.pop("added_tokens_decoder", None) or {}).items()}
        end = self.vocabulary.end
        if end is not None:
            called = added.setdefault(end, _added(eos_token if self._is_new(eos_token) else END)).content
            bos_token, eos_token, pad_token = bos_token or called, eos_token or called, pad_token or called
        elif pad_token := pad_token or PADS.get(name):
            added.setdefault(self.vocabulary.encode(str(pad_token))[0], _added(pad_token))
        self._added_tokens_decoder = added
        if not vocab_file:
            kwargs["rookery_tokenizer"] = name
        kwargs.pop("auto_map", None)  # names code in a folder
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        super().__init__(bos_token=bos_token, eos_token=eos_token, pad_token=pad_token, **kwargs)

    def _is_new(self, token: Any) -> bool:
        """Whether a special token is no text of the vocabulary's, as "\n\n" is, which ends a turn in some folders."""
        return token is not None and len(self.vocabulary.encode(str(token))) > 1

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.vocab_size

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copies, as workers and data sets make them: the vocabulary as text, which the core is not."""
        state = dict(self.__dict__)
        if isinstance(self.vocabulary, World):
            state["vocabulary"] = (self.vocabulary.text(), self.vocabulary.name)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.vocabulary, tuple):
            text, name = self.vocabulary
            self.vocabulary = World.from_text(text.encode(), name, name)

    def get_vocab(self) -> dict[str, int]:
        """Every token's bytes in Latin-1 -> its id."""
        vocabulary: dict[str, int] = {}
        for id in range(self.vocab_size):
            try:
                vocabulary[self._convert_id_to_token(id)] = id
            except TokenError:  # a gap
                continue
        vocabulary.pop("", None)
        vocabulary.update(self._added_tokens_encoder)
        return vocabulary

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self._convert_id_to_token(id) for id in self.vocabulary.encode(text)]

    def _convert_token_to_id(self, token: str) -> int | None:
        try:
            found = self.vocabulary.encode(token.encode("latin-1"))
        except UnicodeEncodeError:
            return None
        return found[0] if len(found) == 1 else None

    def _convert_id_to_token(self, index: int) -> str:
        return self.vocabulary.token_bytes(int(index)).decode("latin-1")

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; bytes that are no text become U+FFFD."""
        return self._decode(self.convert_tokens_to_ids(tokens))

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(id) for id in token_ids]
        written = b"".join(self._bytes_of(id, not skip_special_tokens) for id in ids)
        return written.decode(self._encoding, "replace")

    @property
    def _encoding(self) -> str:
        return getattr(self.vocabulary, "encoding", "utf-8")

    def _bytes_of(self, id: int, special: bool) -> bytes:
        """A token's bytes; none for a special one unless those are wanted."""
        added = self._added_tokens_decoder.get(id)
        if added is None:
            return self.vocabulary.token_bytes(id)
        return str(added).encode(self._encoding) if special or not added.special else b""

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary, if it is one of tokens, under the name that RWKV folders use."""
        if not isinstance(self.vocabulary, World):
            return ()
        path = os.path.join(save_directory, f"{filename_prefix}-{VOCABULARY}" if filename_prefix else VOCABULARY)
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(self.vocabulary.text())
        return (path,)


def _added(token: Any) -> AddedToken:
    return token if isinstance(token, AddedToken) else AddedToken(str(token), special=True, normalized=False)

"""Output held to a grammar: JSON schema, regular expression, Lark or GBNF, through the `llguidance` library.

JSON is written compactly, with at most one space after a comma or a colon, and nothing else between its parts. A schema
bounds what may be written, not how much: without `maxLength`, `maxItems` or a range, or with the default
`additionalProperties`, a reply can reach its last token unfinished.

A grammar may be hostile: its text is capped, it is first compiled in a process with a limit of time and memory
(`trial`), and every later step has the limits of `LIMITS`. Whatever is too much is an InputError, never a silent end.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import weakref
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rookery.chat.schema import schema_text
from rookery.errors import InputError, MissingExtra, TokenError
from rookery.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

Bools = npt.NDArray[np.bool_]

MAX_TEXT = 256 << 10  # bytes of a grammar
SECONDS = 3.0  # of processor, to compile it
MEMORY = 512 << 20  # bytes, to compile it
WAIT = 60.0  # seconds for all that on a busy machine, or where the system limits no processor time
# Of one step; the library's own are 250,000 states (of 1 to 2 kB) and 500,000 symbols.
LIMITS = {"max_lexer_states": 50_000, "max_grammar_size": 200_000, "verbose_errors": False}
NAMES = {"schema": "JSON schema", "regex": "regular expression", "lark": "Lark grammar", "gbnf": "GBNF grammar"}

_GBNF = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_ECHO = re.compile(r"\s*(?:\d+ \||<non-verbose/>)")  # lines of the grammar, as the library shows them
_TOO_MUCH = re.compile(r"too many (?:expressions|items|states)|items; max is|too complex", re.IGNORECASE)


class Grammar:
    """A `rookery.stream.Constraint`: which of `n_vocab` tokens may come next, so that the text follows a grammar.

    Tokens without bytes (specials, gaps, rows of the head beyond the vocabulary) are never allowed, but for the end of
    text where the text may end. Where the tokenizer has no end, a text ends when nothing more can come.
    All ways to make one raise InputError for a grammar that is wrong, allows no text or is too much work; for a
    tokenizer whose text is not UTF-8; and MissingExtra.
    """

    def __init__(self, what: str, grammar: str, words: _Words, n_vocab: int) -> None:
        from llguidance import LLMatcher, LLParserLimits

        self._what, self._grammar, self._words, self._n_vocab = what, grammar, words, n_vocab
        self._matcher = LLMatcher(words.library, grammar, log_level=0, limits=LLParserLimits(**LIMITS))  # type: ignore[arg-type]
        self._count = 0  # tokens taken
        self._mask: Bools | None = None  # of this step, when it is known
        self.allowed()

    @classmethod
    def from_schema(cls, schema: str | Mapping[str, Any], tokenizer: Tokenizer, n_vocab: int) -> Grammar:
        """All keywords must be known: what would be passed over is an error."""
        return cls._made("schema", schema_text(schema), tokenizer, n_vocab)

    @classmethod
    def from_regex(cls, regex: str, tokenizer: Tokenizer, n_vocab: int) -> Grammar:
        r"""The whole text matches. Rust's syntax: no look-around, no back references, `\d` and `\w` of all scripts."""
        return cls._made("regex", regex, tokenizer, n_vocab)

    @classmethod
    def from_lark(cls, text: str, tokenizer: Tokenizer, n_vocab: int) -> Grammar:
        """Lark as llguidance reads it: the text is what `start` derives."""
        return cls._made("lark", text, tokenizer, n_vocab)

    @classmethod
    def from_gbnf(cls, text: str, tokenizer: Tokenizer, n_vocab: int) -> Grammar:
        """llama.cpp's form: the text is what `root` derives."""
        return cls._made("gbnf", text, tokenizer, n_vocab)

    @classmethod
    def _made(cls, kind: str, text: str, tokenizer: Tokenizer, n_vocab: int) -> Grammar:
        what = f"the {NAMES[kind]}"
        if find_spec("llguidance") is None:
            raise MissingExtra("constrained output", "chat")
        if getattr(tokenizer, "encoding", "utf-8") != "utf-8":
            raise InputError(f"{what}: constrained output is UTF-8, and the tokenizer {tokenizer.name} writes another")
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise InputError(f"{what} has half a surrogate pair, which is no character") from None
        if size > MAX_TEXT:
            raise InputError(f"{what} has {size} bytes; at most {MAX_TEXT} are allowed")
        return cls(what, _tried(kind, text), _words(tokenizer), n_vocab)

    def allowed(self) -> Bools:
        """[V], not to be written to: the tokens that may come next. Raises InputError where a limit is reached."""
        if self._mask is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            if self._matcher.is_error():
                raise _refusal(self._what, self._matcher.get_error(), self._count)
            words = self._words
            known = min(self._n_vocab, len(words.usable))
            mask = np.zeros(self._n_vocab, np.bool_)
            np.logical_and(np.unpackbits(bits, count=known, bitorder="little"), words.usable[:known], out=mask[:known])
            self._mask = mask
            if not (mask.any() or self.complete):
                raise _refusal(self._what, "NoExtension", self._count)
        return self._mask

    def accept(self, token: int) -> None:
        """Raises InputError for a token that is not allowed."""
        if not (0 <= token < self._n_vocab and self.allowed()[token]):
            raise InputError(f"{self._what} does not allow the token {token} here")
        if not self._matcher.consume_token(token):
            raise _refusal(self._what, self._matcher.get_error(), self._count)
        self._count, self._mask = self._count + 1, None

    @property
    def finished(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def complete(self) -> bool:
        """Whether the text is finished and nothing more can come."""
        return self.finished and (self._matcher.is_stopped() or not self._goes_on())

    def copy(self) -> Grammar:
        """Compiled anew: the library's own copies share what a limit counts, and would use it up together."""
        return Grammar(self._what, self._grammar, self._words, self._n_vocab)

    def _goes_on(self) -> bool:
        mask, end = self.allowed(), self._words.end
        return int(np.count_nonzero(mask)) > (end is not None and end < len(mask) and bool(mask[end]))


def constraint(
    tokenizer: Tokenizer,
    n_vocab: int,
    *,
    schema: str | Mapping[str, Any] | None = None,
    regex: str | None = None,
    grammar: str | None = None,
) -> Grammar:
    """The Grammar of the one that is given; `grammar` is GBNF where it has rules of the form `name ::=`, else Lark."""
    if (schema is not None) + (regex is not None) + (grammar is not None) != 1:
        raise InputError("constrained output follows exactly one of a schema, a regex and a grammar")
    if schema is not None:
        return Grammar.from_schema(schema, tokenizer, n_vocab)
    if regex is not None:
        return Grammar.from_regex(regex, tokenizer, n_vocab)
    assert grammar is not None
    read = Grammar.from_gbnf if _GBNF.search(grammar) else Grammar.from_lark
    return read(grammar, tokenizer, n_vocab)


class _Words:
    """A vocabulary as llguidance holds it. `usable` [vocabulary]: tokens with bytes, and the end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        tokens = []
        for id in range(tokenizer.vocab_size):
            try:
                tokens.append(tokenizer.token_bytes(id))
            except TokenError:  # a gap
                tokens.append(b"")
        self.end = tokenizer.end
        if self.end is not None:
            tokens[self.end] = b""
        self.usable = np.array([token != b"" for token in tokens])
        if self.end is not None:
            self.usable[self.end] = True
        wrapped = _Wrapped(tokenizer, tokens)
        self.library: LLTokenizer = LLTokenizer(TokenizerWrapper(wrapped))


class _Wrapped:
    """What llguidance wants of a tokenizer; one without an end gets one beyond its vocabulary."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes]) -> None:
        self.special_token_ids = [id for id, token in enumerate(tokens) if not token]
        self.eos_token_id, self.tokens = tokenizer.end, tokens
        if tokenizer.end is None:
            self.eos_token_id, self.tokens = len(tokens), [*tokens, b""]
            self.special_token_ids.append(len(tokens))
        self._tokenizer = weakref.ref(tokenizer)  # the cache must not keep its own key alive

    def __call__(self, text: bytes) -> list[int]:
        tokenizer = self._tokenizer()
        return tokenizer.encode(text) if tokenizer else []


_made_words: weakref.WeakKeyDictionary[Tokenizer, _Words] = weakref.WeakKeyDictionary()


def _words(tokenizer: Tokenizer) -> _Words:
    """Made once a tokenizer: 0.15 s for World."""
    words = _made_words.get(tokenizer)
    if words is None:
        words = _made_words[tokenizer] = _Words(tokenizer)
    return words


@lru_cache(64)
def _tried(kind: str, text: str) -> str:
    """The grammar as llguidance compiles it, after it did so once within bounds. Raises InputError."""
    what = f"the {NAMES[kind]}"
    request = {"path": sys.path, "memory": MEMORY, "seconds": SECONDS, "kind": kind, "text": text, "limits": LIMITS}
    program = str(Path(__file__).with_name("trial.py"))
    command = [sys.executable, "-I", program]  # -I: nothing of the environment or of this folder is imported
    too_much = f"{what} takes more than {SECONDS:g} s or {MEMORY >> 20} MB to compile; make it smaller or simpler"
    try:
        done = subprocess.run(command, input=json.dumps(request).encode(), capture_output=True, timeout=WAIT)
    except subprocess.TimeoutExpired:
        raise InputError(too_much) from None
    if done.returncode:  # negative: ended by the system, at its limit
        words = done.stderr.decode("utf-8", "replace").split("\n")[-2:][0][:200]
        ended = done.returncode < 0 or "MemoryError" in words
        raise InputError(too_much if ended else f"{what}: the process that compiles it failed: {words}")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise _refusal(what, answer["error"])
    grammar: str = answer["grammar"]
    return grammar


def _refusal(what: str, said: str, count: int = 0) -> InputError:
    """The library's words, which may fill a page and show the grammar again, in a line."""
    lines = [line.strip() for line in said.splitlines() if line.strip(" ^") and not _ECHO.match(line)] or ["refused"]
    line = "; ".join([lines[0][:160], *(line[:160] for line in lines[1:] if line.startswith("error: "))])
    where = f" after {count} tokens" if count else ""
    if "NoExtension" in line:
        return InputError(f"{what} allows no text{where}: nothing can come next that leads to an end")
    if _TOO_MUCH.search(line):
        return InputError(f"{what} asks for too much work at one token{where} ({line}); make it simpler")
    if line.startswith("panic"):
        return InputError(f"{what} is more than llguidance can compile; make it simpler")
    if line.startswith("oneOf"):
        return InputError(f"{what}: the choices of a oneOf could be true of one value; say anyOf")
    return InputError(f"{what}{where}: {line}")

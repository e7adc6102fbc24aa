"""The process in which a grammar is compiled for the first time: a program of its own, run by `grammar`.

llguidance bounds the work at each token, but not all work of compiling: `multipleOf` of large numbers and terminals
with complements can take minutes and gigabytes. Here that ends with this process. In: one JSON object of "path",
"memory" (bytes), "seconds" (of processor), "kind", "text" and "limits". Out: {"grammar"}, what llguidance compiles, or
{"error"}.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

# Compact, at most one space after a comma or a colon: a hot model cannot write blanks for ever.
JSON = {
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "coerce_one_of": False,
    "lenient": False,
    "json_allow_general_unicode_escapes": False,
}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)


def written(kind: str, text: str) -> str:
    """The grammar as llguidance wants it. Raises ValueError."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if kind == "schema":
        return LLMatcher.grammar_from_json_schema(text, overrides=JSON)  # type: ignore[arg-type]
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "gbnf":
        try:
            text = gbnf_to_lark(_ESCAPE.sub(_plain, text))
        except RecursionError:
            raise ValueError("nested too deeply") from None
        except IndexError:
            raise ValueError("ends in the middle of a rule") from None
        except Exception as error:  # the converter raises bare Exceptions
            raise ValueError(str(error)) from None
    return LLMatcher.grammar_from_lark(text)


def _plain(escape: re.Match[str]) -> str:
    r"""\u and \U as \x, or as the character itself: the converter drops zeros and Lark then knows them no more."""
    code = escape[1] or escape[2]
    if code is None:
        return escape[0]
    number = int(code, 16)
    return f"\\x{number:02x}" if number < 0x80 else chr(number)


class _Bytes:
    """A vocabulary of the 256 bytes."""

    eos_token_id, bos_token_id = 256, None
    tokens = (*(bytes((b,)) for b in range(256)), b"")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def first_error(grammar: str, limits: dict[str, Any]) -> str:
    """What is wrong with the grammar, "" if its compilation and its first step succeed."""
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

    bytes_only = LLTokenizer(TokenizerWrapper(_Bytes()))
    matcher = LLMatcher(bytes_only, grammar, log_level=0, limits=LLParserLimits(**limits))
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error()


def main() -> None:
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    import llguidance  # noqa: F401 - before memory is limited

    from rookery.chat.sandbox import allow, limit

    limit(request["memory"])
    allow(request["seconds"])
    try:
        grammar = written(request["kind"], request["text"])
        error = first_error(grammar, request["limits"])
    except ValueError as wrong:
        grammar, error = "", str(wrong)
    json.dump({"error": error} if error else {"grammar": grammar}, sys.stdout)


if __name__ == "__main__":
    main()

"""JSON schemas before they are compiled: nothing that a schema asks for may be passed over in silence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from rookery.errors import InputError

_ONE = {"items", "additionalProperties", "additionalItems"}  # a schema, a boolean or (items) a list of schemas
_LISTED = {"prefixItems", "allOf", "anyOf", "oneOf"}
_NAMED = {"properties", "patternProperties", "$defs", "definitions"}
_PLAIN = {
    "type", "enum", "const", "required", "minProperties", "maxProperties", "minItems", "maxItems", "minLength",
    "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "$ref",
}  # fmt: skip
_REMARKS = {  # these forbid nothing
    "$schema", "$id", "id", "$anchor", "$comment", "$vocabulary", "title", "description", "default", "examples",
    "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType",
}  # fmt: skip
KEYWORDS = frozenset(_ONE | _LISTED | _NAMED | _PLAIN | _REMARKS)
UNSUPPORTED = frozenset({
    "not", "if", "then", "else", "dependencies", "dependentRequired", "dependentSchemas", "propertyNames", "contains",
    "minContains", "maxContains", "uniqueItems", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef",
    "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor",
})  # fmt: skip


def schema_text(schema: str | Mapping[str, Any]) -> str:
    """The schema as JSON. Raises InputError for what is no JSON object, and for keywords that are not known."""
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(parsed, allow_nan=False)
    except RecursionError:
        raise InputError("the JSON schema is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"the JSON schema is not valid JSON: {error}") from None
    if not isinstance(parsed, Mapping):
        raise InputError(f"the JSON schema is {text[:40]}; wanted an object, such as {{}} for any value")
    for where, keyword in _keywords(parsed):
        if keyword not in KEYWORDS:
            raise InputError(f"the JSON schema at {where}: {_complaint(keyword)}")
    return text


def _keywords(schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every keyword of the schema and of the schemas in it, with the place it stands at."""
    stack: list[tuple[str, Any]] = [("#", schema)]
    while stack:
        where, part = stack.pop()
        if not isinstance(part, Mapping):
            continue
        for keyword, value in part.items():
            yield where, keyword
            inner = f"{where}/{keyword}"
            if keyword in _NAMED and isinstance(value, Mapping):
                stack += [(f"{inner}/{name}", each) for name, each in value.items()]
            elif keyword in _ONE | _LISTED and isinstance(value, list):
                stack += [(f"{inner}/{n}", each) for n, each in enumerate(value)]
            elif keyword in _ONE:
                stack.append((inner, value))


def _complaint(keyword: str) -> str:
    if keyword in UNSUPPORTED:
        return f"the keyword {keyword!r} is not supported; say it in other words or leave it out"
    near = get_close_matches(keyword, KEYWORDS, 1)
    return f"unknown keyword {keyword[:40]!r}" + (f"; {near[0]!r} was meant?" if near else "; leave it out")

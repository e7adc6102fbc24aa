"""What is wrong in a body ten thousand times is found once: a complaint takes far more memory than what it is about."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from rookery.server.shapes import Shape

MODULES = ("chat", "completions", "embeddings", "llama", "responses_shapes", "shapes", "states", "texts", "tokens")
MANY = 10_000
WRONG: dict[str, Any] = {
    "lists": [[]] * MANY,
    "lists of lists": [[[]] * MANY] * 3,
    "mixed": [65, None] * MANY,
    "objects": [{}] * MANY,
    "deep": [{"type": "text", "content": [None] * MANY, "input": [None] * MANY}],
    "names": {str(n): None for n in range(MANY)},
    "said": [{"role": "user", "content": [None] * MANY}],
}


def shapes() -> list[type[BaseModel]]:
    found = [each for name in MODULES for each in vars(import_module(f"rookery.server.{name}")).values()]
    asked = {each for each in found if inspect.isclass(each) and issubclass(each, Shape) and each is not Shape}
    return sorted(asked, key=lambda each: each.__name__)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("shape", shapes(), ids=lambda shape: shape.__name__)
def test_complaints_are_few(shape: type[BaseModel], wrong: str) -> None:
    for name, field in shape.model_fields.items():
        try:
            shape.model_validate({field.alias or name: WRONG[wrong]})
        except ValidationError as error:
            assert error.error_count() < 200, name  # noqa: PT017

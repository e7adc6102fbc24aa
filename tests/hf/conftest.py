"""Small models of every version as Hugging Face folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rookery import formats, weights

FIXTURES = Path(__file__).parents[1] / "fixtures"
Folder = Callable[[str], Path]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """`folder("v7")`: that fixture as `rookery convert --to hf` writes it, of bytes; `folder("gosling")`."""
    home = tmp_path_factory.mktemp("folders")

    def made(name: str) -> Path:
        if not (home / name).exists():
            source = name
            if name != "gosling":
                found = formats.read(FIXTURES / f"{name}.safetensors")
                source = str(home / f"{name}.safetensors")
                formats.write(source, found.tensors, {**found.metadata, "rookery.tokenizer": "bytes"})
            weights.convert(source, home / name, to="hf")
        return home / name

    return made

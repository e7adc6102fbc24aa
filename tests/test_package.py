"""What pyproject.toml, constraints.txt, the stub and the code say of the same things agrees."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import rookery
from rookery import _native

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def names(requirements: list[str]) -> set[str]:
    found = {re.split(r"[\[<>=!~ ]", line)[0].lower().replace("_", "-") for line in requirements}
    return found - {"rookery"}


def test_version_is_stated_alike() -> None:
    assert rookery.__version__ == PROJECT["project"]["version"]


def test_constraints_pin_all_that_ci_installs() -> None:
    pins = [row for row in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not row.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", row) for row in pins)
    project, extras = PROJECT["project"], PROJECT["project"]["optional-dependencies"]
    used = [*project["dependencies"], *extras["dev"], *extras["train"], *PROJECT["build-system"]["requires"]]
    assert names(used) <= names(pins)


def test_all_is_all_extras() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["all"] == [f"rookery[{','.join(name for name in extras if name not in ('all', 'dev'))}]"]


def test_console_script_exists() -> None:
    module, _, function = PROJECT["project"]["scripts"]["rookery"].partition(":")
    assert callable(getattr(import_module(module), function))


@pytest.mark.skipif(not _native.available(), reason="the native core is not built")
def test_stub_names_what_the_core_has() -> None:
    stub = ast.parse((ROOT / "src/rookery/_core.pyi").read_text("utf-8"))
    for node in (node for node in stub.body if isinstance(node, ast.ClassDef)):
        found = vars(getattr(_native.core, node.name))
        stated = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
        assert stated - {"__init__"} == {name for name in found if not name.startswith("__")}
    public = {name for name in vars(_native.core) if not name.startswith("__")}
    stated = {node.name for node in stub.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    constants = {ast.unparse(node.target) for node in stub.body if isinstance(node, ast.AnnAssign)}
    assert public == stated | constants

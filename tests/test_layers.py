"""The house's arrows, read from the source: who may import whom, where torch is named, how light an import is."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
ROOKERY = SRC / "rookery"

# room -> rooms it may import besides itself; `errors` is open to all. DESIGN 2.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "architecture": set(),
    "_native": {"_core"},
    "formats": {"_core", "_native"},
    "hub": {"formats"},
    "weights": {"formats", "architecture", "models", "hub", "tokenizer", "_native"},  # a vocabulary goes along
    "tokenizer": {"architecture", "formats", "_core", "_native"},
    "sampling": {"architecture", "formats", "_core", "_native"},
    "state": {"architecture", "formats", "tuned_state", "_core", "_native"},
    "tuned_state": {"formats", "state"},
    "backends": {"architecture", "formats", "weights", "state", "_core", "_native"},
    "stream": {"tokenizer", "sampling", "state"},
    # lab: inside Model.trace, never on import
    "model": {"architecture", "backends", "weights", "tokenizer", "sampling", "state", "stream", "lab"},
    "chat": {"formats", "tokenizer", "sampling"},
    "store": {"formats", "state"},
    "session": {"architecture", "formats", "tokenizer", "sampling", "state", "stream", "model", "chat", "store"},
    "engine": {"tokenizer", "sampling", "state", "stream", "model", "store"},
    # train (the recipe's sizes and its loss) and lab (how pictures look): inside bench/context, never on import
    "bench": {"architecture", "formats", "weights", "state", "model", "backends", "train", "lab"},
    "evaluate": {"formats", "tokenizer", "sampling", "state", "stream", "model", "chat", "__version__"},
    "lab": {
        "architecture",
        "formats",
        "weights",
        "tokenizer",
        "sampling",
        "state",
        "stream",
        "model",
        "session",
        "backends",
    },
    "server": {
        "engine",
        "session",
        "store",
        "chat",
        "model",
        "sampling",
        "state",
        "stream",
        "tokenizer",
        "lab",
        "formats",
        "__version__",
    },
    "models": set(),
    "train": {"architecture", "formats", "weights", "tokenizer", "sampling", "backends"},
    "tune": {"architecture", "formats", "weights", "tokenizer", "chat", "state", "train", "backends"},
    "hf": {"model", "backends", "weights", "tokenizer", "state", "architecture", "formats"},
    "cli": {"*"},
    "__main__": {"cli"},
    "__init__": {
        "chat",
        "errors",
        "evaluate",
        "lab",
        "store",
        "tokenizer",
        "weights",
        "model",
        "sampling",
        "session",
        "state",
        "stream",
    },
}
TORCH = ("backends/torch/", "train/", "tune/", "hf/")
THIRD_PARTY = {
    "architecture": set(),
    "errors": set(),
    "tokenizer/huggingface.py": {"tokenizers"},
    "hub.py": {"huggingface_hub"},
    "evaluate/lm.py": {"numpy", "lm_eval", "tqdm"},
    "train": {"numpy", "matplotlib", "wandb"},
    "chat": {"numpy", "jinja2", "llguidance"},
    "tune": {"numpy"},
    "hf": {"numpy", "transformers"},
    "store": {"numpy", "redis"},
    "server": {"numpy", "fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client", "h11", "anyio"},
    "*": {"numpy"},
}
INSIDE = {  # only inside functions
    "lab": {"torch", "transformers", "safetensors", "matplotlib", "rich"},
    "bench": {"torch", "matplotlib"},
    "evaluate": {"ray"},
}


def rooms() -> list[Path]:
    return sorted(ROOKERY.rglob("*.py"))


def imports(path: Path, inside: bool = True) -> set[str]:
    """Every dotted module a file names in an import, TYPE_CHECKING blocks included, and functions if `inside`."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if inside or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", rooms(), ids=lambda p: str(p.relative_to(ROOKERY)))
def test_arrows(path: Path) -> None:
    relative = path.relative_to(ROOKERY)
    room = relative.parts[0].removesuffix(".py")
    assert room in ALLOWED, f"a new room {room}: give it its arrows here and in the README's map"
    mine = ALLOWED[room] | {room, "errors"}
    at_once = imports(path, inside=False)
    for name in imports(path):
        top, *rest = name.split(".")
        if top in INSIDE.get(room, set()):
            assert name not in at_once, f"{relative} imports {name} outside of functions"
        elif top == "rookery":
            target = rest[0] if rest else "__init__"
            assert "*" in mine or target in mine, f"{relative} imports {name}"
        elif top == "torch":
            inside_doctor = room == "cli"
            assert str(relative).startswith(TORCH) or inside_doctor, f"{relative} names torch"
        elif top not in sys.stdlib_module_names:
            allowed = THIRD_PARTY.get(str(relative), set()) | THIRD_PARTY.get(room, THIRD_PARTY["*"])
            assert top in allowed or room == "cli", f"{relative} imports {name}"


def test_the_reader_sees_a_forbidden_arrow(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def f():\n    from rookery.model import load\n    import torch.nn\n")
    assert imports(tmp_path / "bad.py") == {"rookery.model.load", "torch.nn"}
    assert imports(tmp_path / "bad.py", inside=False) == set()
    (tmp_path / "bad.py").write_text("class A:\n    if True:\n        import torch.nn\n")
    assert imports(tmp_path / "bad.py", inside=False) == {"torch.nn"}


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(out.stdout.splitlines()[-1]))


HEAVY = {
    "torch", "fastapi", "starlette", "uvicorn", "pydantic", "matplotlib", "jinja2", "rich", "prompt_toolkit",
    "transformers", "safetensors", "redis", "ray", "llguidance", "pyrwkv_tokenizer", "tokenizers",
    "huggingface_hub", "lm_eval",
}  # fmt: skip


@pytest.mark.skipif(
    not os.environ.get("ROOKERY_ALL_EXTRAS"), reason="wants every extra installed; .ci/run sets ROOKERY_ALL_EXTRAS"
)
def test_every_extra_is_here_and_could_have_been_imported() -> None:
    assert {name for name in HEAVY if importlib.util.find_spec(name) is None} == set()


@pytest.mark.parametrize(
    "statement",
    ["import rookery", "import rookery; rookery.load; rookery.State; rookery.Sampling; rookery.tokenizer.World"],
)
def test_a_light_import(statement: str) -> None:
    assert not HEAVY & {name.split(".")[0] for name in loaded_after(statement)}


def test_import_needs_little_more_than_numpy() -> None:
    """Counted in modules, since no test asserts a time; benchmarks/import_time.py has the seconds."""
    base = loaded_after("import numpy")
    extra = loaded_after("import numpy, rookery") - base
    assert len(extra) < 10, sorted(extra)


def test_public_names() -> None:
    import rookery

    assert rookery.__all__ == sorted(rookery.__all__)
    for name in rookery.__all__:
        assert getattr(rookery, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        rookery.nonsense  # noqa: B018

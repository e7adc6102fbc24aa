"""`rookery doctor`: what this installation has, what it lacks, and what is broken."""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from rookery import __version__
from rookery.cli import options
from rookery.errors import RookeryError

BROKEN = 1
# What the kernels of this and later releases look for.
CPU_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "bf16",
)  # fmt: skip


def parser() -> options.Parser:
    made = options.Parser(
        "rookery doctor",
        "[options]",
        "Check this installation. Exit code 1 if something that should work does not.",
    )
    options.add_general(made, json="print one object")
    return made


def run(args: argparse.Namespace) -> int:
    checks = [_checked(name, check) for name, check in CHECKS.items()]
    if args.json:
        print(json.dumps({check["name"]: check for check in checks}, indent=2))
    else:
        for check in checks:
            print(f"{check['name']:<17} {'' if check['ok'] else 'BROKEN: '}{check['detail']}")
    return 0 if all(check["ok"] for check in checks) else BROKEN


def _checked(name: str, check: Callable[[], tuple[bool, str]]) -> dict[str, Any]:
    try:
        ok, detail = check()
    except Exception as error:  # a doctor does not faint: whatever a broken part raises is the finding
        ok, detail = False, str(error) if isinstance(error, RookeryError | ValueError) else repr(error)
    return {"name": name, "ok": ok, "detail": detail}


def _python() -> tuple[bool, str]:
    return True, f"{platform.python_version()} ({platform.python_implementation()}, {platform.platform()})"


def _numpy() -> tuple[bool, str]:
    import numpy

    return True, numpy.__version__


def _native_core() -> tuple[bool, str]:
    from rookery import _native

    if _native.available():
        return True, "built"
    return not _native.required(), f"missing, pure Python runs instead ({_native.reason}); {_native.REMEDY}"


def _kernels() -> tuple[bool, str]:
    """Raises ValueError for a ROOKERY_ISA that this machine or this build has not."""
    from rookery import _native
    from rookery.backends.native.runner import cores

    if not _native.available():
        return True, "none without the native core"
    used, there = _native.core.isa(), _native.core.isas()
    return True, f"{used}, chosen from {', '.join(there)} (ROOKERY_ISA names another); {cores()} threads unless told"


def _torch() -> tuple[bool, str]:
    try:
        metadata.version("torch")
    except metadata.PackageNotFoundError:
        return True, "absent; --backend torch needs it: pip install 'rookery[train]'"
    import torch

    device = f"CUDA {torch.version.cuda}: {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else "no CUDA"
    return True, f"{torch.__version__}, {device}"


def _extras() -> tuple[bool, str]:
    """Read from this distribution's own metadata, in which pyproject.toml lists them."""
    try:
        wanted = metadata.requires("rookery") or []
    except metadata.PackageNotFoundError:
        return True, "unknown: run from a source tree, not installed"
    by_extra: dict[str, set[str]] = {}
    for line in wanted:
        if found := re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", line):
            by_extra.setdefault(found[2], set()).add(found[1])
    states = []
    for extra, names in by_extra.items():
        missing = sorted(name for name in names - {"rookery"} if not _installed(name))
        if names == {"rookery"}:
            continue
        states.append(f"{extra} lacks {', '.join(missing)}" if missing else f"{extra} complete")
    return True, "; ".join(states)


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def _cpu() -> tuple[bool, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    fields = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
    flags = fields.get("flags", fields.get("Features", "")).split()
    model = fields.get("model name") or platform.processor() or platform.machine()
    return True, f"{model}; {' '.join(flag for flag in CPU_FLAGS if flag in flags) or 'flags unknown'}"


def _packaged_model() -> tuple[bool, str]:
    from rookery import weights

    model = weights.load("gosling")
    return True, f"{model.config.name}, {Path(model.path).stat().st_size / 1e6:.1f} MB"


def _world() -> tuple[bool, str]:
    from rookery.tokenizer import World

    world = World()
    return world.decode(world.encode("Rookery: Krähenkolonie 白嘴鸦")).endswith(
        "白嘴鸦"
    ), f"{world.vocab_size:,} tokens"


CHECKS: dict[str, Callable[[], tuple[bool, str]]] = {
    "rookery": lambda: (True, __version__),
    "python": _python,
    "numpy": _numpy,
    "native core": _native_core,
    "kernels": _kernels,
    "torch": _torch,
    "extras": _extras,
    "cpu": _cpu,
    "packaged model": _packaged_model,
    "World vocabulary": _world,
}

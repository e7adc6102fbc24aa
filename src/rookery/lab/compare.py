"""An experiment from its design to its report: `compare(design, folder)`; a run that was killed goes on."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rookery.errors import MissingExtra
from rookery.formats.atomic import atomic_write
from rookery.lab.design import Design
from rookery.lab.hosts import Models, hosts
from rookery.lab.ledger import Ledger
from rookery.lab.rows import Row, table
from rookery.lab.summary import rows
from rookery.lab.unit import measure

Progress = Callable[[int, int], None]  # (substrate, prompt, seed) done, and in all

PACKAGES = ("rookery", "numpy", "matplotlib", "torch", "transformers", "tokenizers")
DEFINITIONS = {
    "tick, token": "one token is read (teacher-forced) or drawn (free-running) between two looks at the state",
    "tick, generation": "so many tokens are read or drawn between two looks, tokens_per_tick",
    "teacher": "every substrate reads the same texts, whatever it would have written",
    "free": "it reads the beginning of each text (prefix tokens), then its own tokens, or none",
    "push": "half way, each component is moved along a random direction by `size` times its L2 norm",
    "limits": "prompts, ticks, seeds and watched ticks as in the design; all components, all heads",
    "interval": "95 %, percentile bootstrap over prompts; everything of one prompt is averaged first",
}


def compare(
    design: Design, folder: str | os.PathLike[str], models: Models | None = None, progress: Progress | None = None
) -> list[Row]:
    """Run what of `design` is not in `folder` yet, then write report.html, metrics.csv and manifest.json there.

    Raises InputError, FileError subclasses (CannotWrite for a folder with another experiment) and MissingExtra, all
    before work begins.
    """
    check_extras(design)
    made = hosts(design, models or Models())
    header = {"design": design.record(), "substrates": {host.name: host.about for host in made}, "versions": versions()}
    ledger = Ledger(folder, header)
    units = [(h, p, s) for h in made for p in range(design.prompts) for s in range(design.seeds)]
    for done, (host, prompt, seed) in enumerate(units):
        if progress:
            progress(done, len(units))
        if (host.name, prompt, seed) not in ledger.records:
            begin = time.perf_counter()
            record = measure(host, prompt, seed, design)
            ledger.add((host.name, prompt, seed), {**record, "seconds": time.perf_counter() - begin, "at": time.time()})
    if progress:
        progress(len(units), len(units))
    return write(folder, header, ledger.records)


def write(folder: str | os.PathLike[str], header: Mapping[str, Any], records: Mapping[Any, Any]) -> list[Row]:
    """The three files, from an experiment's results."""
    from rookery.lab.report import html

    found = rows(header, records)
    texts = {
        "metrics.csv": table(found),
        "manifest.json": json.dumps(manifest(header, records), indent=1) + "\n",
        "report.html": html(header, records, found),
    }
    for name, text in texts.items():
        with atomic_write(Path(folder) / name) as file:
            file.write(text.encode())
    return found


def manifest(header: Mapping[str, Any], records: Mapping[Any, Any]) -> dict[str, Any]:
    """What must be known to repeat the experiment, as JSON."""
    seconds: dict[str, float] = {}
    for (name, _, _), record in records.items():
        seconds[name] = round(seconds.get(name, 0.0) + record["seconds"], 3)
    times = [record["at"] for record in records.values()]
    return {
        **header,
        "definitions": DEFINITIONS,
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "times": {
            "first_result": _clock(min(times)) if times else None,
            "last_result": _clock(max(times)) if times else None,
            "seconds_of_measuring": seconds,
        },
        "results": len(records),
    }


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def versions() -> dict[str, str]:
    """Of Python and of each package that a number may depend on, where it is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_extras(design: Design) -> None:
    """Raises MissingExtra for what a comparison needs and is not installed, before any work."""
    if find_spec("matplotlib") is None:
        raise MissingExtra("the lab's report", "lab")
    if "transformer" in design.substrates and (find_spec("torch") is None or find_spec("transformers") is None):
        raise MissingExtra("a Transformer substrate", "transformers")

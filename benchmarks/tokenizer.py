"""World tokenizers side by side on the same text: speed, load time, memory; the ids must be equal.

    pip install pyrwkv-tokenizer && pip install --no-deps rwkv
    python benchmarks/tokenizer.py [--repeats 7] [--json] [--data ../shared/data] [FILE ...]

Each repeat runs every tokenizer in turn, so that a slow spell of the machine hits all of them; medians are given.
Load time and peak memory are of a fresh process each, imports included.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

RWKV_PACKAGE = (
    "from importlib.util import find_spec; from pathlib import Path; "
    "from rwkv.rwkv_tokenizer import TRIE_TOKENIZER; "
    "tokenizer = TRIE_TOKENIZER(str(Path(find_spec('rwkv').origin).with_name('rwkv_vocab_v20230424.txt')))"
)
# How each is made; all have encode(str) -> list of ids and decode(ids) -> str.
MAKERS = {
    "rookery": "from rookery.tokenizer import World; tokenizer = World(native=True)",
    "rookery, pure Python": "from rookery.tokenizer import World; tokenizer = World(native=False)",
    "pyrwkv-tokenizer": "import pyrwkv_tokenizer; tokenizer = pyrwkv_tokenizer.RWKVTokenizer()",
    "rwkv package": RWKV_PACKAGE,
}
FRESH = """
import time; start = time.perf_counter()
{maker}
took = time.perf_counter() - start
peak = [int(row.split()[1]) for row in open('/proc/self/status') if row.startswith('VmHWM')][0]
print(took, peak / 1024)
"""


def corpora(data: Path, files: list[Path]) -> dict[str, str]:
    if files:
        return {file.name: file.read_text("utf-8") for file in files}
    found = {"tinyshakespeare": (data / "tinyshakespeare.txt").read_text("utf-8")}
    for language in ("de", "fr"):
        with gzip.open(data / f"wikipedia_{language}_2024-08.jsonl.gz", "rt", encoding="utf-8") as rows:
            found[f"wikipedia {language}"] = "\n".join(json.loads(row)["text"] for row in rows)
    found["JSON lines"] = (data / "instruct/rwkv_demo.jsonl").read_text("utf-8")
    found["Markdown"] = "\n".join(page.read_text("utf-8") for page in sorted(data.parent.rglob("*.md")))
    return found


def make(maker: str) -> tuple[Callable[[str], list[int]], Callable[[list[int]], str]]:
    place: dict[str, object] = {}
    exec(maker, place)
    tokenizer: object = place["tokenizer"]
    return tokenizer.encode, tokenizer.decode  # type: ignore[attr-defined]


def seconds(task: Callable[[], object]) -> float:
    start = perf_counter()
    task()
    return perf_counter() - start


def speeds(text: str, repeats: int) -> dict[str, dict[str, float]]:
    """Megabytes of UTF-8 a second, by tokenizer. Raises AssertionError where ids differ."""
    pairs = {name: make(maker) for name, maker in MAKERS.items()}
    ids = {name: encode(text) for name, (encode, _) in pairs.items()}
    for name, found in ids.items():
        assert list(found) == ids["rookery"], f"{name} gives other ids"
    times: dict[str, dict[str, list[float]]] = {name: {"encode": [], "decode": []} for name in pairs}
    for _ in range(repeats):
        for name, (encode, decode) in pairs.items():
            times[name]["encode"].append(seconds(lambda encode=encode: encode(text)))
            times[name]["decode"].append(seconds(lambda decode=decode, name=name: decode(ids[name])))
    size = len(text.encode()) / 1e6
    return {name: {way: size / statistics.median(took) for way, took in ways.items()} for name, ways in times.items()}


def fresh_processes(repeats: int) -> dict[str, dict[str, float]]:
    """Seconds to import and load, and peak MiB, by tokenizer."""
    runs: dict[str, list[list[float]]] = {name: [] for name in MAKERS}
    for _ in range(repeats):
        for name, maker in MAKERS.items():
            done = subprocess.run(
                [sys.executable, "-c", FRESH.format(maker=maker)], check=True, capture_output=True, text=True
            )
            runs[name].append([float(number) for number in done.stdout.split()])
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in runs.items()}
    return {name: {"load_s": took, "peak_mib": peak} for name, (took, peak) in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared/data")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    result = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "repeats": arguments.repeats,
        "fresh": fresh_processes(arguments.repeats),
        "mb_per_s": {
            name: {"mb": len(text.encode()) / 1e6, **speeds(text, arguments.repeats)}
            for name, text in corpora(arguments.data, arguments.files).items()
        },
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['machine']}, medians of {arguments.repeats}")
    print(f"\n| | {' | '.join(MAKERS)} |\n|---|{'---|' * len(MAKERS)}")
    for key, unit in (("load_s", "load, s"), ("peak_mib", "peak memory, MiB")):
        print(f"| {unit} | {' | '.join(f'{row[key]:.2f}' for row in result['fresh'].values())} |")
    for name, found in result["mb_per_s"].items():
        for way in ("encode", "decode"):
            row = " | ".join(f"{found[tokenizer][way]:.1f}" for tokenizer in MAKERS)
            print(f"| {way} {name} ({found['mb']:.2f} MB), MB/s | {row} |")


if __name__ == "__main__":
    main()

"""Seconds to import: NumPy, Rookery, and Rookery with all it needs to run a model. Interleaved, medians.

python benchmarks/import_time.py [--repeats 15] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

STATEMENTS = {
    "nothing": "pass",
    "numpy": "import numpy",
    "rookery": "import rookery",
    "rookery, in use": "import rookery; rookery.load, rookery.State, rookery.tokenizer",
    "rookery --help": "from rookery.cli.main import main; raise SystemExit(main(['--help']))",
}


def seconds(statement: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    runs = [{name: seconds(code) for name, code in STATEMENTS.items()} for _ in range(args.repeats + 1)][1:]
    median = {name: statistics.median(run[name] for run in runs) for name in STATEMENTS}
    if args.json:
        print(json.dumps(median))
        return
    for name, value in median.items():
        print(f"{name:18} {value * 1000:6.0f} ms   {value / median['numpy']:.2f} x numpy")


if __name__ == "__main__":
    main()

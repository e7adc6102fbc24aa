"""Speed and memory on the CPU beside llama.cpp and the `rwkv` package: same files, same threads, turn and turn about.

    python benchmarks/peers_cpu.py --llama-python .llama/bin/python --rwkv-python .rwkv/bin/python --busy \\
        --json out.json model-Q8_0.gguf model-Q4_0.gguf=model-Q4_0.packed.safetensors model.pth

A .gguf is run by Rookery and llama.cpp, a .pth by Rookery (as it lies in the file) and the rwkv package (in fp32).
FILE=OURS gives Rookery a packed copy of FILE in its stead. Each engine is a process that holds the model and sleeps
while another works. Every test runs once in each repeat, the engines in alternating order; values are medians
[min-max], ratios are of ours to theirs, their range taken within repeats: above 1 is faster for tokens/s, below 1 is
less for s and MB.
"first token" is from load() to the logits after one token, "process" from the start of Python; both with the file in
the page cache. Peak memory is of a process that loaded, decoded and did nothing else. --busy decodes beside an endless
loop at nice 19. "others" is the work that any further process did meanwhile, in cores: near 0, or measure again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rookery.bench.report import spread

PEERS = Path(__file__).resolve().parent / "peers"
OURS, LLAMA, PACKAGE = "rookery", "llama.cpp", "rwkv package"
SCRIPTS = {OURS: "ours.py", LLAMA: "llama.py", PACKAGE: "rwkv_package.py"}
NEEDS = {LLAMA: "llama_cpp", PACKAGE: "rwkv"}
READS = {".gguf": LLAMA, ".pth": PACKAGE}
SETTLE = 0.05  # seconds that an engine's threads are left to fall asleep
FRESH = 3  # processes started for first token and memory
LOOP = "import os\nos.nice(19)\nwhile True: pass"
DIFFERENCE = 0.5  # of the logits' standard deviation: rounding explains less, another model would be far above


class Worker:
    """One engine with one model in a process of its own. RuntimeError with its last words if it dies."""

    def __init__(self, python: str, script: str, *arguments: str) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in close()
        begin = time.perf_counter()
        self.process = subprocess.Popen(
            [python, str(PEERS / script), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
        )  # fmt: skip
        self.ready = self._read()
        self.process_seconds = time.perf_counter() - begin

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.communicate()
        self.errors.close()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or ["no word"]
            raise RuntimeError(f"{Path(str(self.process.args[1])).name} ended: {said[-1]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Comparison:
    """All tests of one file. `samples[test][engine]`: a value a repeat."""

    def __init__(self, file: str, args: argparse.Namespace, engines: list[str]) -> None:
        self.file, _, ours = file.partition("=")
        self.ours, self.args = ours or self.file, args
        self.engines = [e for e in engines if e in (OURS, READS.get(Path(self.file).suffix))]
        self.samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.names: dict[str, str] = {}
        self.others = self.waited = 0.0
        self.difference: dict[str, float] = {}

    def worker(self, engine: str) -> Worker:
        extra = [self.args.backend, self.args.dtype] if engine == OURS else []
        path = self.ours if engine == OURS else self.file
        return Worker(self.args.pythons[engine], SCRIPTS[engine], path, str(self.args.threads), *extra)

    def run(self) -> None:
        for repeat in range(-1, min(FRESH, self.args.repeats)):  # the first round fills the page cache
            for engine in self.order(repeat):
                say(f"{self.file}: {engine} from the start")
                try:
                    self.fresh(engine, keep=repeat >= 0)
                except RuntimeError as error:
                    if engine == OURS:
                        raise
                    say(f"{self.file}: {engine} is left out: {error}")
                    self.engines.remove(engine)
        workers = {engine: self.worker(engine) for engine in self.engines}
        try:
            self.names = {engine: worker.ready["engine"] for engine, worker in workers.items()}
            self.check(workers)
            for repeat in range(self.args.repeats):
                for test, request in tests(self.args):
                    say(f"{self.file}: {test}, repeat {repeat + 1} of {self.args.repeats}")
                    for engine in self.order(repeat):
                        self.one(test, engine, workers[engine], request | {"seed": repeat})
        finally:
            for worker in workers.values():
                worker.close()

    def order(self, repeat: int) -> list[str]:
        return self.engines[:: -1 if repeat % 2 else 1]

    def fresh(self, engine: str, keep: bool) -> None:
        worker = self.worker(engine)
        try:
            worker.ask(do="decode", tokens=self.args.decode)
            used = worker.ask(do="memory")
        finally:
            worker.close()
        if keep:
            self.samples["first token, s"][engine].append(worker.ready["seconds"])
            self.samples["process, s"][engine].append(worker.process_seconds)
            self.samples["peak memory, MB"][engine].append(used["peak"] / 1e6)
            self.samples["anonymous, MB"][engine].append(used["anonymous"] / 1e6)

    def check(self, workers: dict[str, Worker]) -> None:
        """How far each engine's logits lie from ours, in standard deviations: did all run the same model?"""
        rows = {engine: np.array(worker.ask(do="check")["logits"]) for engine, worker in workers.items()}
        for engine in self.engines[1:]:
            far = float(np.abs(rows[engine] - rows[OURS]).max() / rows[OURS].std())
            self.difference[engine] = far
            if not far < DIFFERENCE:
                say(f"{self.file}: logits of {engine} differ from ours by {far:.2g} standard deviations")

    def one(self, test: str, engine: str, worker: Worker, request: dict[str, Any]) -> None:
        time.sleep(SETTLE)
        with neighbour() if request.pop("busy") else contextlib.nullcontext():
            before, began = busy_seconds(), time.perf_counter()
            answer = worker.ask(**request)
            if "error" in answer:
                return
            if "busy" not in test:
                self.others += busy_seconds() - before - answer["cpu"]
                self.waited += time.perf_counter() - began
        tokens = request["tokens"] * request.get("sequences", 1)
        self.samples[test][engine].append(tokens / answer["seconds"])

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = {"file": self.file, "ours": self.ours, "bytes": os.path.getsize(self.file)}
        found |= {"engines": self.names, "others_cores": self.others / max(self.waited, 1e-9)}
        found["logits_difference"] = self.difference
        found["tests"] = {
            test: {engine: spread(values) for engine, values in by.items()} for test, by in self.samples.items()
        }
        found["ratios"] = {
            test: {engine: ratio(by[OURS], values) for engine, values in by.items() if engine != OURS}
            for test, by in self.samples.items()
        }
        for test, by in self.samples.items():
            if test.endswith(", busy"):
                idle = self.samples[test.removesuffix(", busy")]
                found.setdefault("busy_to_idle", {})[test] = {
                    engine: ratio(values, idle[engine]) for engine, values in by.items()
                }
        return found


def ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Of the medians; its range is that within one repeat."""
    pairs = spread(a / b for a, b in zip(ours, theirs, strict=True))
    return pairs | {"median": statistics.median(ours) / statistics.median(theirs)}


def tests(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name in the table, and what to ask."""
    for depth in args.depth:
        name = f"decode {args.decode}" + (f" after {depth}" if depth else "")
        yield name, {"do": "decode", "tokens": args.decode, "depth": depth, "busy": False}
    if args.busy:
        yield f"decode {args.decode}, busy", {"do": "decode", "tokens": args.decode, "depth": 0, "busy": True}
    yield f"prefill {args.prefill}", {"do": "prefill", "tokens": args.prefill, "busy": False}
    request = {"do": "parallel", "tokens": args.parallel, "sequences": args.sequences, "busy": False}
    yield f"parallel {args.sequences} x {args.parallel}", request


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """One endless loop at nice 19."""
    loop = subprocess.Popen([sys.executable, "-c", LOOP])
    try:
        time.sleep(0.2)
        yield
    finally:
        loop.kill()
        loop.wait()


def busy_seconds() -> float:
    """CPU seconds that all processes together have used since the machine began, time stolen by its host included."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, hard, soft, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + hard + soft + steal) / os.sysconf("SC_CLK_TCK")


def table(found: dict[str, Any], args: argparse.Namespace) -> str:
    engines = list(found["engines"])
    lines = [
        f"{found['file']}, {found['bytes'] / 1e6:.1f} MB"
        + (f" (ours: {found['ours']})" if found["ours"] != found["file"] else "")
        + f"; {args.threads} threads; others {found['others_cores']:.2f} cores",
        *(
            f"  {engine}: {name}"
            + (f", logits within {found['logits_difference'][engine]:.2g} of our deviation" if engine != OURS else "")
            for engine, name in found["engines"].items()
        ),
        f"{'tokens/s, or as named':24}"
        + "".join(f"{e:>26}" for e in engines)
        + "".join(f"{'ratio':>22}" for _ in engines[1:]),
    ]
    for test, by in found["tests"].items():
        cells = [f"{cell(by[e]) if e in by else '-':>26}" for e in engines]
        ratios = [f"{cell(found['ratios'][test][e]) if e in by else '-':>22}" for e in engines[1:]]
        lines.append(f"{test:24}" + "".join(cells + ratios))
    for test, by in found.get("busy_to_idle", {}).items():
        lost = [f"{1 - by[e]['median']:>25.0%} " if e in by else f"{'-':>26}" for e in engines]
        lines.append(f"{'lost in ' + test:24}" + "".join(lost))
    return "\n".join(lines) + "\n"


def cell(values: dict[str, Any]) -> str:
    median, least, most = (f"{values[name]:.{places(values['median'])}f}" for name in ("median", "min", "max"))
    return f"{median} [{least}-{most}]"


def places(value: float) -> int:
    return 0 if value >= 1000 else 1 if value >= 10 else 3 if value < 0.1 else 2


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def present(pythons: dict[str, str]) -> list[str]:
    """The engines whose Python has what they need; of the others it is said what is missing."""
    found = [OURS]
    for engine, module in NEEDS.items():
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        if subprocess.run([pythons[engine], "-c", code]).returncode:
            say(f"{engine} is left out: {pythons[engine]} has no {module}")
        else:
            found.append(engine)
    return found


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE[=OURS]")
    parser.add_argument("--llama-python", default=sys.executable, metavar="PYTHON", help="one that has llama_cpp")
    parser.add_argument("--rwkv-python", default=sys.executable, metavar="PYTHON", help="one that has rwkv and torch")
    parser.add_argument("--backend", default="auto", help="Rookery's (default: auto)")
    parser.add_argument("--dtype", default="own", help="what Rookery computes in, own or float32 (default: own)")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--decode", type=int, default=64, metavar="TOKENS")
    parser.add_argument("--prefill", type=int, default=512, metavar="TOKENS")
    parser.add_argument("--depth", type=numbers, default=[0], metavar="N,..", help="tokens read before decode")
    parser.add_argument("--sequences", type=int, default=8, help="decoded together")
    parser.add_argument("--parallel", type=int, default=32, metavar="TOKENS", help="of each of these")
    parser.add_argument("--busy", action="store_true", help="decode beside a busy process too")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every sample there")
    args = parser.parse_args()
    if args.busy and 0 not in args.depth:
        parser.error("--busy is held against decode at depth 0: --depth 0,..")
    args.pythons = {OURS: sys.executable, LLAMA: args.llama_python, PACKAGE: args.rwkv_python}
    engines = present(args.pythons)
    reports: list[dict[str, Any]] = []
    for file in args.files:
        comparison = Comparison(file, args, engines)
        try:
            comparison.run()
        except RuntimeError as error:
            say(f"{file} is left out: {error}")
            continue
        reports.append(comparison.report())
        print(table(reports[-1], args), flush=True)
        if args.json:
            settings = {k: v for k, v in vars(args).items() if k not in ("json", "files", "pythons")}
            args.json.write_text(json.dumps({"machine": machine(), "settings": settings, "files": reports}) + "\n")
    sys.exit(not reports)


if __name__ == "__main__":
    main()

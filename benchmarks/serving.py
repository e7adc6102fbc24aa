"""Load on a server that speaks OpenAI's protocol: so many streams at once, prompts and replies of mixed lengths.

    python benchmarks/serving.py --url http://127.0.0.1:8000 --pid PID --streams 64 --seconds 600
    python benchmarks/serving.py --peer .llama/llama-server --model model-Q8_0.gguf --requests 48 --repeats 3

Each stream sends its next request when its last one is answered (closed loop), all from one list that a seed makes:
greedy /v1/completions over SSE, prompts cut from `--text` (16 to 1,024 tokens) and replies of at most 16 to 256, both
drawn evenly on a log scale. Tokens are counted by the servers (`usage`). TTFT is from sending to the first text, ITL
from one piece of text to the next, TPOT a reply's mean of that by token: pieces may come in bursts. The memory is the
resident set of `--pid`, once a second. "others, cores" is the work that processes other than the server and this one
did meanwhile: near 0, or measure again.

`--peer` starts `rookery serve` and llama-server in turn, alternating, `--repeats` times, with the same file, threads
and parallel sequences, and sends both the same list; the first request of each server is not counted. Both keep their
defaults otherwise, their caches of prompts too: no two prompts begin alike. Ratios are of ours to theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
PROMPT, REPLY = (16, 1024), (16, 256)  # tokens
PATIENCE = 600.0  # seconds for a server to be ready, and for one piece of a stream
Request = tuple[str, int]  # prompt, most tokens


@dataclass
class Answer:
    """One request: when what came, in seconds since the load began, or what went wrong."""

    sent: float
    texts: list[float] = field(default_factory=list)
    ended: float = 0.0
    read: int = 0
    written: int = 0
    error: str | None = None


def requests(text: str, words_a_token: float, seed: int) -> Iterator[Request]:
    """Without end; the same for the same seed."""
    draw, words = random.Random(seed), text.split()
    for number in itertools.count():
        count = max(1, round(_log_uniform(draw, PROMPT) * words_a_token))
        begin = draw.randrange(max(1, len(words) - count))
        yield f"{number}. " + " ".join(words[begin : begin + count]), round(_log_uniform(draw, REPLY))


def _log_uniform(draw: random.Random, ends: tuple[int, int]) -> float:
    return math.exp(draw.uniform(*map(math.log, ends)))


class Load:
    """`streams` at once on the server at `url`."""

    def __init__(self, url: str, streams: int, key: str | None = None, pid: int | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=streams + 1, max_keepalive_connections=streams + 1)
        self.client = httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=PATIENCE)
        self.streams, self.pid = streams, pid
        self.answers: list[Answer] = []
        self.memory: list[tuple[float, float]] = []  # seconds, MB
        self.others = 0.0  # cores
        self.begun = 0.0
        self.model = ""

    async def prepare(self, text: str) -> float:
        """The model's name, and how many words of `text` make a token."""
        self.model = (await self.client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        answer = (await self.client.post("/tokenize", json={"content": text})).raise_for_status()
        return len(text.split()) / len(answer.json()["tokens"])

    async def run(self, todo: Iterator[Request], seconds: float) -> None:
        self.begun, before = time.perf_counter(), self._others()
        watch = asyncio.create_task(self._watch())
        await asyncio.gather(*(self._stream(todo, seconds) for _ in range(self.streams)))
        watch.cancel()
        self.others = (self._others() - before) / self.now()

    def _others(self) -> float:
        """CPU seconds of all other processes since the machine began."""
        return busy(Path("/proc/stat"), (1, 2, 3, 6, 7, 8)) - own(self.pid) if self.pid else 0.0

    def now(self) -> float:
        return time.perf_counter() - self.begun

    async def _stream(self, todo: Iterator[Request], seconds: float) -> None:
        while self.now() < seconds and (request := next(todo, None)):
            self.answers.append(await self.ask(*request))

    async def ask(self, prompt: str, most: int) -> Answer:
        answer = Answer(self.now())
        body = {"model": self.model, "prompt": prompt, "max_tokens": most, "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        usage: dict[str, int] | None = None
        try:
            async with self.client.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise RuntimeError(f"{response.status_code} {response.text[:200]}")
                async for chunk in events(response):
                    if "error" in chunk:
                        raise RuntimeError(str(chunk["error"]))
                    if any(choice.get("text") for choice in chunk.get("choices", ())):
                        answer.texts.append(self.now())
                    usage = chunk.get("usage") or usage
            if usage is None:
                raise RuntimeError("the stream ended without its usage")
            answer.read, answer.written = usage["prompt_tokens"], usage["completion_tokens"]
        except (httpx.HTTPError, RuntimeError, ValueError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        answer.ended = self.now()
        return answer

    async def _watch(self) -> None:
        while self.pid:
            self.memory.append((self.now(), resident(self.pid)))
            await asyncio.sleep(1)


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream of server-sent events."""
    async for line in response.aiter_lines():
        if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
            yield json.loads(data)


def busy(stat: Path, columns: tuple[int, ...]) -> float:
    """Seconds: so many ticks stand in these columns of the file's first line."""
    fields = stat.read_text().splitlines()[0].rpartition(")")[2].split()
    return sum(int(fields[column]) for column in columns) / os.sysconf("SC_CLK_TCK")


def own(pid: int) -> float:
    """CPU seconds of the server and of this process."""
    return time.process_time() + busy(Path(f"/proc/{pid}/stat"), (11, 12))


def resident(pid: int) -> float:
    """MB, 0 for a process that is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


def summary(load: Load) -> dict[str, Any]:
    good = [answer for answer in load.answers if answer.error is None]
    errors = [answer.error for answer in load.answers if answer.error is not None]
    seconds = max((answer.ended for answer in load.answers), default=0.0)
    first = [answer.texts[0] - answer.sent for answer in good if answer.texts]
    gaps = [b - a for answer in good for a, b in itertools.pairwise(answer.texts)]
    found: dict[str, Any] = {"requests": len(load.answers), "errors": len(errors), "seconds": seconds}
    found |= {"tokens read": sum(a.read for a in good), "tokens written": sum(a.written for a in good)}
    found["tokens/s"] = found["tokens written"] / seconds if seconds else 0.0
    found["requests/s"] = len(good) / seconds if seconds else 0.0
    paces = [(a.texts[-1] - a.texts[0]) / (a.written - 1) for a in good if a.texts and a.written > 1]
    for name, values, parts in (("TTFT", first, (50, 90, 99)), ("ITL", gaps, (50, 99)), ("TPOT", paces, (50, 99))):
        found |= {f"{name} p{part}, ms": 1e3 * percentile(values, part) for part in parts}
    if load.memory:
        values = [megabytes for _, megabytes in load.memory]
        quarter = max(1, len(values) // 4)  # the second and the last: the first is that of growing caches
        found["memory, MB"] = max(values)
        settled, last = values[quarter : 2 * quarter] or values, values[-quarter:]
        found["memory grown, MB"] = statistics.median(last) - statistics.median(settled)
        found["others, cores"] = load.others
    if errors:
        found["first errors"] = errors[:3]
    return found


def percentile(values: list[float], part: int) -> float:
    """The smallest of `values` that at least `part` per cent of them do not exceed; nan of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * part / 100) - 1)] if ordered else math.nan


# both servers


@contextlib.contextmanager
def serving(command: list[str], url: str, log: Path) -> Iterator[int]:
    """The server that `command` starts, when it is ready; its process id."""
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        end = time.monotonic() + PATIENCE
        while not _ready(url):
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"{command[0]} did not become ready:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def commands(o: argparse.Namespace, port: int, folder: str) -> dict[str, list[str]]:
    ours = [sys.executable, "-m", "rookery", "serve", "-m", o.model, "--port", str(port), "-t", str(o.threads)]
    ours += ["--max-batch", str(o.parallel), "--store", folder]
    room = o.parallel * (PROMPT[1] + REPLY[1] + 256)  # llama.cpp shares its context out among its slots
    theirs = [o.peer, "-m", o.model, "--port", str(port), "-t", str(o.threads), "--parallel", str(o.parallel)]
    theirs += ["--cont-batching", "-c", str(room)]
    return {"rookery": ours, "llama-server": theirs}


def compare(o: argparse.Namespace, text: str) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {"rookery": [], "llama-server": []}
    used: dict[str, list[str]] = {}
    for repeat in range(o.repeats):
        for name in list(runs)[:: -1 if repeat % 2 else 1]:
            with tempfile.TemporaryDirectory() as folder:
                port = free_port()
                used[name] = commands(o, port, folder)[name]
                url = f"http://127.0.0.1:{port}"
                with serving(used[name], url, Path(folder) / "log") as pid:
                    found, _ = asyncio.run(measure(o, url, text, pid))
            runs[name].append(found)
            say(f"repeat {repeat + 1}, {name}: {json.dumps(found)}")
    numbers = [name for name, value in runs["rookery"][0].items() if isinstance(value, int | float)]
    medians = {name: {n: statistics.median(run[n] for run in rows) for n in numbers} for name, rows in runs.items()}
    ours, theirs = medians["rookery"], medians["llama-server"]
    counts = ("requests", "errors", "memory grown, MB", "others, cores")
    ratios = {n: ours[n] / theirs[n] for n in numbers if theirs[n] and n not in counts}
    pairs = list(zip(runs["rookery"], runs["llama-server"], strict=True))
    ranges = {n: [f(a[n] / b[n] for a, b in pairs) for f in (min, max)] for n in ratios if all(b[n] for _, b in pairs)}
    return {"commands": used, "medians": medians, "ratios": ratios, "ranges": ranges, "runs": runs}


async def measure(o: argparse.Namespace, url: str, text: str, pid: int | None) -> tuple[dict[str, Any], Load]:
    load = Load(url, o.streams, o.key, pid)
    async with load.client:
        words = await load.prepare(text)
        todo = requests(text, words, o.seed)
        warm = await load.ask(*next(todo))
        if warm.error:
            sys.exit(f"{url}: the first request failed: {warm.error}")
        if o.requests:
            todo = itertools.islice(todo, o.requests)
        await load.run(todo, o.seconds or math.inf)
    return summary(load), load


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(columns: dict[str, dict[str, Any]]) -> str:
    names = [name for name, value in next(iter(columns.values())).items() if isinstance(value, int | float)]
    lines = [f"{'':20}" + "".join(f"{column:>16}" for column in columns)]
    for name in names:
        cells = [f"{column[name]:>16,.2f}" if name in column else f"{'-':>16}" for column in columns.values()]
        lines.append(f"{name:20}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of a running server")
    parser.add_argument("--key", help="API key")
    parser.add_argument("--pid", type=int, help="the server's process, to watch its memory")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--requests", type=int, help="how many in all")
    parser.add_argument("--seconds", type=float, help="begin none after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--text", type=Path, nargs="+", default=[ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))])
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--peer", help="a llama-server to compare with")
    parser.add_argument("--model", help="with --peer: the GGUF that both read")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parallel", type=int, default=16, help="sequences that either server computes at once")
    parser.add_argument("--repeats", type=int, default=3)
    o = parser.parse_args()
    if not (o.requests or o.seconds):
        parser.error("say how long: --requests N or --seconds S")
    if o.peer and not o.model:
        parser.error("say what both serve: --model FILE.gguf")
    text = "\n".join(path.read_text("utf-8") for path in o.text)
    found: dict[str, Any] = {"arguments": sys.argv[1:], "cores": os.cpu_count(), "machine": platform.platform()}
    if o.peer:
        found |= compare(o, text)
        print(table(found["medians"] | {"ratio": found["ratios"]}))
    else:
        figures, load = asyncio.run(measure(o, o.url, text, o.pid))
        found |= {"figures": figures, "memory": load.memory}
        print(table({o.url.removeprefix("http://"): figures}))
        for error in figures.get("first errors", ()):
            say(error)
    if o.json:
        o.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

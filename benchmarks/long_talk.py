"""The second turn of a talk, after a first of so many tokens: when its first token comes, and what that rests on.

    python benchmarks/long_talk.py --model gosling --tokens 1000 10000 100000

A server of its own, a talk for each length. Turn 1 reads the text; turn 2 is asked `--repeats` times from the end of
turn 1 (each time a branch of its own): "warm", then "restarted" after the server was stopped and started on the same
store, of which the first is shown apart, as it reads the talk from disk. TTFT: from sending to the first event with
text, over HTTP. "tokens read" are those that the model computed for turn 2.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from serving import free_port, resident, serving

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "And then?"
TITLES = ("turn 1", "turn 2, warm", "restarted, first", "then", "tokens read")


@contextlib.contextmanager
def server(o: argparse.Namespace, folder: str) -> Iterator[tuple[httpx.Client, int]]:
    port = free_port()
    command = [sys.executable, "-m", "rookery", "serve", "-m", o.model, "--port", str(port), "--store", folder]
    url = f"http://127.0.0.1:{port}"
    with serving(command, url, Path(folder + ".log")) as pid, httpx.Client(base_url=url, timeout=3600) as client:
        yield client, pid


def ask(client: httpx.Client, text: str, before: str | None = None) -> dict[str, Any]:
    """Seconds to the first text, the response's id, and tokens of its input: all, and those not computed again."""
    body = {"input": text, "stream": True, "max_output_tokens": 8, "temperature": 0}
    begin, found = time.perf_counter(), {}
    with client.stream(
        "POST", "/v1/responses", json=body | ({"previous_response_id": before} if before else {})
    ) as answer:
        if answer.status_code != 200:
            sys.exit(f"{answer.status_code} {answer.read()[:300]!r}")
        for line in answer.iter_lines():
            event = json.loads(line[5:]) if line.startswith("data:") and line[5:].strip() != "[DONE]" else {}
            if event.get("type") == "response.output_text.delta":
                found.setdefault("ttft", time.perf_counter() - begin)
            if event.get("type") in ("response.completed", "response.incomplete"):
                usage = event["response"]["usage"]
                found |= {"id": event["response"]["id"], "input": usage["input_tokens"]}
                found["cached"] = usage["input_tokens_details"]["cached_tokens"]
    return found


def text_of(client: httpx.Client, source: str, tokens: int) -> str:
    """The beginning of `source`, repeated where it is too short, that has about so many tokens."""
    sample = source[:20_000]
    count = len(client.post("/tokenize", json={"content": sample}).raise_for_status().json()["tokens"])
    letters = round(tokens * len(sample) / count)
    return (source * (1 + letters // len(source)))[:letters]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gosling")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write all figures there")
    o = parser.parse_args()
    source = "\n".join(path.read_text("utf-8") for path in sorted(ROOT.glob("docs/*.md")))
    rows: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        with server(o, folder) as (client, pid):
            ask(client, QUESTION)
            for tokens in o.tokens:
                first = ask(client, text_of(client, source, tokens))
                turns = [ask(client, QUESTION, first["id"]) for _ in range(o.repeats)]
                rows[tokens] = {"first": first, "warm": turns, "memory": resident(pid)}
        for tokens in o.tokens:
            with server(o, folder) as (client, _):
                ask(client, QUESTION)
                turns = [ask(client, QUESTION, rows[tokens]["first"]["id"]) for _ in range(o.repeats)]
                rows[tokens] |= {"cold": turns[0], "restarted": turns[1:]}
    print("TTFT, ms; tokens" + "".join(f"{title:>18}" for title in TITLES))
    for row in rows.values():
        times = [row["first"]["ttft"], median(row["warm"]), row["cold"]["ttft"], median(row["restarted"])]
        last = row["warm"][-1]
        cells = [*(f"{1e3 * seconds:.1f}" for seconds in times), f"{last['input'] - last['cached']:,}"]
        print(f"{row['first']['input']:>16,}" + "".join(f"{cell:>18}" for cell in cells))
    if o.json:
        o.json.write_text(json.dumps({"arguments": sys.argv[1:], "rows": rows}, indent=1) + "\n")


def median(turns: list[dict[str, Any]]) -> float:
    return statistics.median(turn["ttft"] for turn in turns)


if __name__ == "__main__":
    main()

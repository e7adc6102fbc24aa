"""The same questions by five ways, and how far the figures lie apart: gosling on LAMBADA, HellaSwag and PIQA.

run      rookery.evaluate.run, what `rookery eval` runs
here     lm-eval with rookery.evaluate.LM in this process
server   lm-eval with rookery.evaluate.LM and the address of a `rookery serve` process
hf       lm-eval's own `hf` class (torch) on the model as a Hugging Face folder
api      lm-eval's own `local-completions` class and that server

lm-eval's own classes encode a context and its continuation as one text, and put nothing before it. `hf` and `api` are
these classes with the ids of evaluate.requests.pair instead; `hf as it is` and `api as it is` are the classes alone.
The table ends with how many pairs the two ways cut into other tokens: of these sets none, so that the prefix is all
that lies between them.
`api` needs lm-eval[api]. All compute in float32.

lm-eval runs its own task files and functions; only where the data lie is replaced. No download.

python benchmarks/lm_eval_equal.py [--data ../shared/data/eval] [--limit 200] [--ways run,here,...] [--json]
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

WAYS = ("run", "here", "server", "hf", "hf as it is", "api", "api as it is")
SPLITS = {"lambada_openai": "test", "hellaswag": "validation", "piqa": "validation"}
NAMES = {"lambada_openai": "lambada", "hellaswag": "hellaswag", "piqa": "piqa"}
FIGURES = ("perplexity", "acc", "acc_stderr", "acc_norm", "acc_norm_stderr")
BOOTSTRAP = 2  # draws, of a figure that is not compared; with none lm-eval leaves out every standard error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "eval")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    ways = [way for way in args.ways.split(",") if not way.startswith("api") or find_spec("tenacity")]
    if len(ways) < len(args.ways.split(",")):
        print("left out, since lm-eval's API classes want lm-eval[api]: api", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        offline(folder)
        write_data(args.data, folder, args.limit)
        write_tasks(folder)
        model = folder / "model"
        command = ["convert", str(gosling()), str(model), "--to", "hf"]
        subprocess.run([sys.executable, "-m", "rookery", *command], check=True, capture_output=True)
        found = {way: measured(way, folder, model) for way in ways}
        cut = cut_otherwise(folder, model)
    print(json.dumps({"ways": found, "cut otherwise": cut}) if args.json else table(found, cut))


def measured(way: str, folder: Path, model: Path) -> dict[str, Any]:
    """{"results": {task: figures}, "logprobs": {task: [[nats of each choice], ...]}, "seconds": of it all}."""
    begin = time.perf_counter()
    if way == "run":
        found = by_run(folder, model)
    elif way == "here":
        found = by_lm_eval(folder, lambda: lm()(str(model), threads=1, dtype="float32"))
    elif way.startswith("hf"):
        found = by_lm_eval(folder, partial(hugging_face, model, way == "hf"))
    else:
        with serving(model, folder) as url:
            make = (lambda: lm()(url)) if way == "server" else partial(local_completions, url, way == "api")
            found = by_lm_eval(folder, make)
    return {**found, "seconds": time.perf_counter() - begin}


def by_run(folder: Path, model: Path) -> dict[str, Any]:
    import rookery
    from rookery import evaluate

    tasks = [evaluate.make(NAMES[task], {}, str(folder / f"{task}.jsonl")) for task in SPLITS]
    out = folder / "run"
    results = evaluate.run(evaluate.Local(rookery.load(model, threads=1, dtype="float32")), tasks, out=str(out))[
        "results"
    ]
    logprobs = {}
    for task, name in NAMES.items():
        rows = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        logprobs[task] = [row.get("logprobs", [row.get("logprob")]) for row in rows]
    return {"results": {task: chosen(results[name]) for task, name in NAMES.items()}, "logprobs": logprobs}


def by_lm_eval(folder: Path, make: Callable[[], Any]) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    asked = {f"local_{task}": task for task in SPLITS}
    with redirect_stdout(sys.stderr):
        found = lm_eval.simple_evaluate(make(), tasks=list(asked), task_manager=manager, bootstrap_iters=BOOTSTRAP)
    assert found is not None
    results = {
        asked[name]: chosen({key.removesuffix(",none"): value for key, value in figures.items()})
        for name, figures in found["results"].items()
    }
    logprobs = {
        asked[name]: [[answer[0] for answer in sample["filtered_resps"]] for sample in samples]
        for name, samples in found["samples"].items()
    }
    return {"results": results, "logprobs": logprobs}


def chosen(figures: dict[str, Any]) -> dict[str, float]:
    return {name: float(figures[name]) for name in FIGURES if isinstance(figures.get(name), int | float)}


def lm() -> Any:
    from rookery.evaluate import LM

    return LM


def encode_pair(encode: Callable[[str], list[int]], prefix: list[int], context: str, continuation: str) -> Any:
    """As evaluate.requests.pair."""
    kept = context.rstrip()
    return [*prefix, *encode(kept)], encode(context[len(kept) :] + continuation)


def cut_otherwise(folder: Path, model: Path) -> dict[str, list[int]]:
    """{task: [pairs that lm-eval's own classes cut into other tokens, of all]}"""
    import rookery
    from rookery import evaluate

    coder = evaluate.Local(rookery.load(model)).coder
    found = {}
    for task, name in NAMES.items():
        items = evaluate.make(name, {}, str(folder / f"{task}.jsonl")).items(coder)
        cut = [encode_pair(coder.encode, [], a.context, a.continuation) for item in items for a in item.requests]
        whole = [coder.encode("".join(coder.decode_bytes(part).decode() for part in parts)) for parts in cut]
        found[task] = [sum(a + b != ids for (a, b), ids in zip(cut, whole, strict=True)), len(cut)]
    return found


def hugging_face(model: Path, ours: bool) -> Any:
    from lm_eval.models.huggingface import HFLM

    import rookery.hf  # noqa: F401 # transformers learns the architecture

    made = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=16)
    if ours:
        encode = partial(made.tokenizer.encode, add_special_tokens=False)
        made._encode_pair = partial(encode_pair, encode, [made.tokenizer.bos_token_id])
    return made


def local_completions(url: str, ours: bool) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    made = LocalCompletionsAPI(base_url=f"{url}/v1/completions", model="model", batch_size=16)
    assert made.tokenizer_backend == "remote"
    if ours:
        made._encode_pair = partial(encode_pair, made.tokenizer.encode, [made.tokenizer.bos_token_id])
    return made


@contextmanager
def serving(model: Path, folder: Path) -> Iterator[str]:
    command = [
        sys.executable,
        "-m",
        "rookery",
        "serve",
        "-m",
        str(model),
        "--port",
        "0",
        "-t",
        "1",
        "--dtype",
        "float32",
    ]
    said = folder / "server.txt"
    with (
        said.open("wb") as file,
        subprocess.Popen([*command, "--store", str(folder / "store")], stderr=file, stdout=file) as server,
    ):
        try:
            while not (found := re.search(r"serving \S+ at (http://\S+)\n", said.read_text())):
                if server.poll() is not None:
                    raise SystemExit(f"the server ended: {said.read_text()}")
                time.sleep(0.05)
            yield found[1]
        finally:
            server.terminate()


def gosling() -> Path:
    from importlib.resources import files

    return Path(str(files("rookery") / "models" / "gosling.gguf"))


def offline(folder: Path) -> None:
    """Before the libraries are imported."""
    os.environ |= dict.fromkeys(("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "HF_DATASETS_DISABLE_PROGRESS_BARS"), "1")
    os.environ |= {"HF_HOME": str(folder / "home"), "TOKENIZERS_PARALLELISM": "false", "LMEVAL_LOG_LEVEL": "ERROR"}
    os.environ |= {"OMP_NUM_THREADS": "1", "DISABLE_MULTIPROC": "1"}


def write_data(source: Path, folder: Path, limit: int) -> None:
    """The first `limit` items of each set, in the fields that its lm-eval task reads."""
    labels = (source / "piqa_valid-labels.lst").read_text().split()
    with (source / "lambada_test.jsonl").open() as lambada, (source / "piqa_valid.jsonl").open() as piqa:
        rows = {
            "lambada_openai": [json.loads(line) for line in islice(lambada, limit)],
            "piqa": [{**json.loads(line), "label": int(labels[n])} for n, line in enumerate(islice(piqa, limit))],
        }
    with gzip.open(source / "hellaswag_val.jsonl.gz", "rt") as hellaswag:
        rows["hellaswag"] = [original(json.loads(line)) for line in islice(hellaswag, limit)]
    for task, items in rows.items():
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def original(row: dict[str, Any]) -> dict[str, Any]:
    """A HellaSwag row that has one text for all, in the set's own fields; the two forms differ in a capital letter."""
    activity, _, text = row["ctx"].partition(": ")
    first, point, second = text.rpartition(". ")
    parts = {"ctx_a": first + point.strip(), "ctx_b": second} if point else {"ctx_a": text, "ctx_b": ""}
    return {"activity_label": activity, **parts, "endings": row["endings"], "label": str(row["label"])}


def write_tasks(folder: Path) -> None:
    """lm-eval's own files, with the data's place replaced."""
    import lm_eval

    rooms = Path(lm_eval.__file__).parent / "tasks"
    own = {
        "lambada_openai": rooms / "lambada" / "lambada_openai.yaml",
        "hellaswag": rooms / "hellaswag" / "hellaswag.yaml",
        "piqa": rooms / "piqa" / "piqa.yaml",
    }
    (folder / "tasks").mkdir()
    for task, file in own.items():
        said = {
            "include": str(file),
            "task": f"local_{task}",
            "tag": None,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {SPLITS[task]: str(folder / f"{task}.jsonl")}},
            "training_split": None,
        }
        (folder / "tasks" / f"{task}.yaml").write_text(json.dumps(said))  # YAML holds JSON


def table(found: dict[str, Any], cut: dict[str, list[int]]) -> str:
    first = next(iter(found))
    lines = [f"{'':16}{'way':14}{'perplexity':>12}{'acc':>8}{'acc_norm':>10}{'furthest from ' + first + ', nats':>28}"]
    for task in SPLITS:
        for way, made in found.items():
            figures = made["results"][task]
            apart = furthest(found[first]["logprobs"][task], made["logprobs"][task])
            shown = [figures.get(name, float("nan")) for name in ("perplexity", "acc", "acc_norm")]
            lines.append(f"{task:16}{way:14}{shown[0]:12.5g}{shown[1]:8.4f}{shown[2]:10.4f}{apart:28.2g}")
    lines += [f"{way}: {made['seconds']:.1f} s" for way, made in found.items()]
    lines += [f"{task}: {other} of {count} pairs cut otherwise" for task, (other, count) in cut.items()]
    return "\n".join(lines)


def furthest(one: list[list[float]], other: list[list[float]]) -> float:
    """Nats between the log-probabilities of the same answers."""
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    return max(abs(a - b) for a, b in pairs)


if __name__ == "__main__":
    main()

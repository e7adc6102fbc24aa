"""`rookery plan`: what tuning or serving a model will take, from its sizes alone."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from typing import Any

from rookery.cli import options
from rookery.cli.progress import Job
from rookery.errors import InputError

UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
ALL = ("lora", "rslora", "dora", "pissa", "miss", "qlora-int8", "qlora-nf4", "state", "full")
DECODE, REPEATS = 32, 3  # of a measurement
# Measured on runs of 80 to 1,200 MB, glibc 2.36 (benchmarks/plan.py prints both); jemalloc costs 12 % of the time.
HEAP = "the C library keeps freed pieces, 1.3 to 4 times that in all; LD_PRELOAD=libjemalloc.so.2 keeps few"


def parser() -> options.Parser:
    made = options.Parser(
        "rookery plan",
        "[options]",
        "Say what tuning a model will take, by method: parameters, memory, arithmetic, time;\n"
        "with --serve, what serving it will: sessions a gigabyte, tokens a second, money.\n"
        "Memory is counted by running the real code over tensors that have sizes alone. The\n"
        "model is a file (-m) or a size: --shape rwkv7-g1-1.5b, or v7:24x2048 with ,vocab= ,ffn=\n"
        ",head= and low-rank widths after it. Sizes in bytes are written as 16GB or 24GiB.",
    )
    made.add_argument("--shape", metavar="S", help="sizes instead of a file: a published name, or v7:24x2048")
    made.add_argument("--serve", action="store_true", help="plan serving")
    made.add_argument("--context", type=options.whole(1), metavar="N", help="tokens of a sequence (default: 1024;"
                      " with --serve 8192)")  # fmt: skip
    made.add_argument(
        "--batch", type=options.whole(1), metavar="N", help="sequences of a step (default: 1; with --serve 16)"
    )
    made.add_argument("--measure", action="store_true", help="run the model here for some seconds")
    made.add_argument("--tflops", type=_positive, metavar="X", help="TFLOP/s that the machine does, for the time")
    tuning = made.add_argument_group("tuning")
    tuning.add_argument("--method", metavar="M", default="all", help=f"{', '.join(ALL)}, or all (default: all)")
    tuning.add_argument("--rank", type=options.whole(1), default=16, metavar="N", help="of the pairs (default: 16)")
    tuning.add_argument("--targets", default="att,ffn", metavar="GLOB,..", help="what is adapted (default: att,ffn)")
    tuning.add_argument(
        "--micro-batch", type=options.whole(1), metavar="N", help="sequences at a time (default: all of --batch)"
    )
    tuning.add_argument("--precision", default="fp32", metavar="P", help="fp32 or bf16 (default: fp32)")
    tuning.add_argument("--grad-cp", action="store_true", help="recompute each block in the backward pass")
    tuning.add_argument("--slice", type=options.whole(1), metavar="N", help="tokens in memory at a time")
    tuning.add_argument("--free", type=_size, metavar="SIZE", help="what the device has: say the longest context in it")
    serving = made.add_argument_group("serving")
    serving.add_argument("--type", metavar="TYPE", help="of the weights (default: the file's; of a shape q8_0)")
    serving.add_argument("--memory", type=_size, metavar="SIZE", help="for weights and sessions")
    serving.add_argument("--bandwidth", type=_positive, metavar="GB/S", help="of the memory, for the greatest speed")
    serving.add_argument("--tokens-per-second", type=_positive, metavar="X", help="of --batch sequences in all")
    serving.add_argument("--price", type=_positive, metavar="X", help="of the machine for an hour")
    options.add_general(made, json="print one object")
    options.add_model(made)
    return made


def run(args: argparse.Namespace) -> int:
    return _serve(args) if args.serve else _tune(args)


# tuning


def _tune(args: argparse.Namespace) -> int:
    import rookery.backends.torch  # noqa: F401  # says which extra is missing
    from rookery.tune import plan

    if args.device not in (None, "cpu", "cuda"):
        raise InputError(f"--device {args.device}: cpu or cuda is wanted")
    names = ALL if args.method == "all" else (args.method,)
    if args.method not in ("all", "train", *ALL):
        raise InputError(f"--method {args.method}: {', '.join(ALL)} or all is wanted")
    config, weights = _model(args)
    stored = "bf16" if weights is None else _stored(weights)
    found = []
    with Job("counting", "methods") as job:
        for i, name in enumerate(names):
            job.update(i, len(names))
            if name == "state" and config.version == "4" and args.method == "all":
                continue  # it has no state to tune
            settings = plan.with_method(_settings(args), "full" if name == "train" else name)
            p = plan.plan(config, settings, stored)
            if args.free:
                p = plan.fitted(config, settings, stored, args.free, p)
            if args.tflops:
                p = plan.at_rate(p, args.tflops * 1e12, f"at {args.tflops:g} TFLOP/s")
            if args.measure:
                p = plan.measured(config, settings, stored, p)
            found.append(p)
    if args.json:
        said = [p.json() for p in found]
        print(json.dumps({"model": found[0].model, "methods": said} if args.method == "all" else said[0]))
    else:
        print(_table(found, args) if args.method == "all" else _page(found[0], args))
    return 0


def _settings(args: argparse.Namespace) -> Any:
    """The tuning run that the flags describe."""
    from rookery.tune.config import Settings

    s, batch = Settings(), args.batch or 1
    return replace(
        s,
        adapter=replace(s.adapter, rank=args.rank, targets=tuple(args.targets.split(","))),
        data=replace(s.data, train=("-",), ctx_len=args.context or 1024),
        optimiser=replace(s.optimiser, batch=batch, micro_batch=args.micro_batch or 0),
        run=replace(
            s.run,
            precision=args.precision,
            grad_cp=args.grad_cp,
            slice=args.slice or 0,
            device=args.device or "cpu",
            threads=args.threads or 0,
        ),
    )


def _stored(weights: Any) -> str:
    """The type of its matrices; "mixed" where they have several."""
    types = {weights.tensors[p.name].dtype for p in weights.params if p.kind in ("att", "ffn")}
    return types.pop() if len(types) == 1 else "mixed"


def _page(p: Any, args: argparse.Namespace) -> str:
    from rookery.train.count import short

    kinds = ("weights", "gradients", "moments", "activations", "logits", "working")
    how = [f"{p.micro_batch} x {p.ctx_len} tokens at a time", p.precision]
    how += ["recomputing blocks"] * p.checkpointing + [f"slices of {p.slice}"] * bool(p.slice)
    lines = {
        "model": p.model,
        "method": f"{p.method}: {p.trained:,} numbers trained, of a model of {short(p.parameters)}",
        "memory": f"{_bytes(p.total)} at the worst moment, besides torch's own ({', '.join(how)})",
        "": ", ".join(f"{name} {_bytes(getattr(p, name))}" for name in kinds),
        "loading": f"{_bytes(p.loading)} in the computer's memory, once",
        "arithmetic": f"{p.flops_per_token / 1e9:,.3g} GFLOP a token, forwards and backwards",
        "time": p.pace
        if p.tokens_per_second is None
        else f"{p.seconds_per_step:,.3g} s a step of {p.tokens_per_step:,} tokens, "
        f"{p.tokens_per_second:,.0f} tokens/s, {p.pace}",
    }
    if args.device in (None, "cpu"):
        lines["resident"] = HEAP
    if args.free:
        fits = f"contexts up to {p.longest_context:,}, or {p.largest_batch:,} sequences of {p.ctx_len} at a time"
        lines["fits"] = f"in {_bytes(args.free)}: " + (fits if p.longest_context else "not at all")
    return "\n".join(f"{label:<12} {line}" for label, line in lines.items())


def _table(found: list[Any], args: argparse.Namespace) -> str:
    from rookery.train.count import short

    head = ["method", "trained", "weights", "gradients", "moments", "activations", "total", "GFLOP/token"]
    timed, fits = any(p.tokens_per_second for p in found), bool(args.free)
    head += ["tokens/s"] * timed + ["context", "sequences"] * fits
    rows = []
    for p in found:
        sizes = (p.weights, p.gradients, p.moments, p.activations, p.total)
        row = [p.method, short(p.trained), *map(_bytes, sizes), f"{p.flops_per_token / 1e9:.3g}"]
        row += [f"{p.tokens_per_second:,.0f}" if p.tokens_per_second else "-"] * timed
        rows.append(row + [f"{n:,}" for n in (p.longest_context, p.largest_batch) if n is not None])
    wide = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    p = found[0]
    said = [f"{p.model}; {p.micro_batch} x {p.ctx_len} tokens at a time, {p.precision}", ""]
    if args.free:
        said[0] += f"; context, sequences: the most in {_bytes(args.free)}"
    return "\n".join(said + ["  ".join(_aligned(row, wide)) for row in [head, *rows]])


def _aligned(row: list[str], wide: list[int]) -> list[str]:
    first, *others = zip(row, wide, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(n) for cell, n in others)]


# serving


def _serve(args: argparse.Namespace) -> int:
    from rookery.tune import plan_serve

    if args.measure and args.shape is not None:
        raise InputError("--measure with --serve wants a model to run: -m FILE")
    config, weights = _model(args)
    type = (args.type or ("" if weights else "q8_0")).lower()
    size = plan_serve.of_shape(config, type) if type or weights is None else plan_serve.of_file(weights)
    p = plan_serve.plan(config, type or "as stored", size, args.context or 8192, args.memory)
    rows, flops = args.batch or 16, args.tflops and args.tflops * 1e12
    bandwidth = args.bandwidth and args.bandwidth * 1e9
    speeds: list[Any] = []
    if args.measure:
        speeds, streamed = _measured(args, rows)
        bandwidth = bandwidth or streamed
    if bandwidth:
        speeds += [plan_serve.roofline(p, n, bandwidth, flops) for n in sorted({1, rows})]
    if args.tokens_per_second:
        speeds.append(plan_serve.Speed(rows, args.tokens_per_second, "given"))
    if args.price:
        speeds = [plan_serve.priced(speed, args.price) for speed in speeds]
    p = replace(p, speeds=tuple(speeds))
    print(json.dumps(p.json()) if args.json else _serve_page(p, bandwidth, args.price))
    return 0


def _measured(args: argparse.Namespace, rows: int) -> tuple[list[Any], float | None]:
    """Speeds of one and of `rows` sequences here, and the bytes a second that the engine's threads read."""
    from rookery import bench
    from rookery.tune.plan_serve import Speed

    settings = bench.Settings(prefill=0, decode=DECODE, rows=tuple(sorted({1, rows})), repeats=REPEATS)
    with Job(f"measuring {args.model}", "tokens") as job:
        report = bench.measure(lambda _: options.load_model(args), settings, (args.threads,), job.update)["runs"][0]
    speeds = [Speed(t["rows"], t["tokens_per_second"]["median"], "measured") for t in report["tests"]]
    stream = report.get("stream_gb_per_second")
    return speeds, stream and stream["median"] * 1e9


def _serve_page(p: Any, bandwidth: float | None, price: float | None) -> str:
    cache = p.cache
    lines = [
        ("model", f"{p.model}, {p.parameters / 1e9:.3g} G parameters"),
        ("weights", f"{_bytes(p.weights)} ({p.type}), of which a step reads {_bytes(p.read_per_step)}"),
        ("session", f"{_bytes(p.state_float32)} at any length; stored {_bytes(p.state_stored)}"),
        ("sessions", f"{p.sessions_per_gb:,.0f} a GB, stored {p.stored_per_gb:,.0f} a GB"),
    ]
    if p.memory is not None:
        room = f"{p.sessions_in_memory:,} beside the weights" if p.memory > p.weights else "the weights do not fit"
        lines.append(("", f"in {_bytes(p.memory)}: {room}"))
    lines.append((
        "Transformer",
        f"{cache.name}, grouped queries, 16 bits: {_bytes(cache.bytes_per_token)} a token, "
        f"{_bytes(cache.bytes)} at {p.context:,} tokens, {cache.sessions_per_gb:,.3g} a GB",
    ))  # fmt: skip
    for s in p.speeds:
        how = f"at most, at {bandwidth / 1e9:,.0f} GB/s" if s.source == "roofline" and bandwidth else s.source
        cost = "" if s.cost_per_million is None else f", {s.cost_per_million:,.3g} a million tokens"
        lines.append((f"{s.rows} at a time", f"{s.tokens_per_second:,.0f} tokens/s ({how}){cost}"))
    if not p.speeds:
        lines.append(("speed", "--bandwidth GB/S, --tokens-per-second X or --measure says it"))
    elif price:
        lines.append(("price", f"{price:g} an hour"))
    return "\n".join(f"{label:<12} {line}" for label, line in lines)


def _model(args: argparse.Namespace) -> tuple[Any, Any]:
    """The sizes, and the weights where there is a file."""
    if args.shape is not None:
        from rookery.tune import shapes

        if args.model != "gosling":  # its default
            raise InputError(f"-m {args.model} and --shape {args.shape} both say a size; give one")
        return shapes.find(args.shape), None
    from rookery import weights

    found = weights.load(args.model)
    return found.config, found


def _bytes(n: float) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB" if n >= 1e5 else f"{n:,.0f} bytes"


def _size(text: str) -> int:
    """An argparse type: bytes, as 16GB, 24GiB, 1.5e9."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?(?:e\d+)?)\s*([kmgt]i?)?b?", text.strip().lower())
    size = float(found[1]) * UNITS[(found[2] or "").upper()] if found else float("inf")
    if size == float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: 16GB, 24GiB or a number of bytes is wanted")
    return int(size)


def _positive(text: str) -> float:
    """An argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value

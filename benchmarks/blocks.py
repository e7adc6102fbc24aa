"""Block encoders against llama.cpp's own: the error of each type, and speeds.

    python benchmarks/blocks.py [--ggml FOLDER] [--weights MODEL ...] [--json]

FOLDER holds the libggml*.so that llama-cpp-python builds. First both decode random bytes, to the same bits. Errors are
root mean squares of value minus original as a share of the original's; both encodings are decoded by Rookery. Speeds
are of one thread, best of three, in millions of numbers a second.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rookery import _native, weights
from rookery.formats import blocks, blocks_numpy

GGML = {"q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q4_k": 12, "q5_k": 13, "q6_k": 14}
ROWS, COLUMNS = 512, 2048


def check_decoding(base: ctypes.CDLL) -> None:
    """Random blocks, infinite scales and NaN left out, mean the same numbers to ggml, to the bit."""
    for dtype, (size, elements) in blocks.BLOCKS.items():
        data = np.random.default_rng(3).integers(0, 256, (ROWS, size), dtype=np.uint8)
        for high in (209,) if dtype == "q6_k" else (1, 3):
            data[:, high] &= 0xFB
        theirs = np.empty(ROWS * elements, np.float32)
        run = getattr(base, f"dequantize_row_{dtype.replace('k', 'K')}")
        run.argtypes, run.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
        run(data.ctypes.data, theirs.ctypes.data, theirs.size)
        ours = blocks.decode(dtype, data, theirs.shape)
        np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def ggml_encoder(folder: Path) -> Callable[[str, Any], Any]:
    base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    check_decoding(base)
    cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"))
    cpu.ggml_cpu_init()
    run = base.ggml_quantize_chunk
    run.restype = ctypes.c_size_t
    run.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def encode(dtype: str, values: Any) -> Any:
        out = np.empty(blocks.nbytes(dtype, values.shape), np.uint8)
        rows, columns = values.shape
        written = run(GGML[dtype], values.ctypes.data, out.ctypes.data, 0, rows, columns, None)
        assert written == out.nbytes
        return out

    return encode


def samples(paths: list[str]) -> Iterator[tuple[str, Any]]:
    """Name and float32 [rows, columns]; matrices of a model are joined, in rows of 256."""
    random = np.random.default_rng(1)
    shape = ROWS, COLUMNS
    yield "normal", random.normal(0, 0.02, shape).astype(np.float32)
    yield "Student t, 3 degrees", (0.02 * random.standard_t(3, shape)).astype(np.float32)
    yield "Laplace", random.laplace(0, 0.02, shape).astype(np.float32)
    yield "uniform", random.uniform(-0.02, 0.02, shape).astype(np.float32)
    for path in paths:
        file = weights.load(path)
        rows = [file.tensors[p.name].float32().ravel() for p in file.params if p.quantise]
        joined = np.concatenate(rows)
        yield Path(path).stem, joined[: len(joined) // 256 * 256].reshape(-1, 256)


def error(dtype: str, values: Any, data: Any) -> float:
    rest = blocks.decode(dtype, data, values.shape).astype(np.float64) - values
    return float(np.sqrt(np.mean(rest**2) / np.mean(values.astype(np.float64) ** 2)))


def speeds(dtype: str, theirs: Callable[[str, Any], Any] | None) -> dict[str, float]:
    values = np.random.default_rng(2).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    data = blocks.encode(dtype, values)
    runs = {
        "encode": lambda: blocks.encode(dtype, values),
        "decode": lambda: blocks.decode(dtype, data, values.shape),
        "decode in NumPy": lambda: blocks_numpy.decode(dtype, data),
    }
    if theirs:
        runs["encode in ggml"] = lambda: theirs(dtype, values)
    return {what: values.size / min(seconds(run) for _ in range(3)) / 1e6 for what, run in runs.items()}


def seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ggml", type=Path, metavar="FOLDER", help="where libggml-base.so lies")
    parser.add_argument("--weights", nargs="*", default=["gosling"], metavar="MODEL")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    _native.check()
    theirs = ggml_encoder(args.ggml) if args.ggml else None
    table: list[dict[str, Any]] = []
    for name, values in samples(args.weights):
        for dtype in blocks.BLOCKS:
            row: dict[str, Any] = {
                "data": name,
                "type": dtype,
                "error": error(dtype, values, blocks.encode(dtype, values)),
            }
            if theirs:
                row["ratio"] = row["error"] / error(dtype, values, theirs(dtype, values))
            table.append(row)
            if not args.json:
                print(
                    f"{name:26} {dtype} error {row['error']:.5f}"
                    + (f"  {row['ratio']:.4f} of ggml's" if theirs else "")
                )
    for dtype in blocks.BLOCKS:
        found = speeds(dtype, theirs)
        table.append({"type": dtype, **found})
        if not args.json:
            print(dtype, *(f"  {what} {value:.0f} M/s" for what, value in found.items()))
    if args.json:
        print(json.dumps(table))


if __name__ == "__main__":
    main()

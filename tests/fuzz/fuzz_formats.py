"""Fuzz the readers, and what makes models and states of their tensors: only a RookeryError may come out.

    python tests/fuzz/fuzz_formats.py --runs 100000 [--seed 1] [--plain]

Uses atheris (coverage-guided; `pip install atheris`) where it is installed and `--plain` is not given, else random
mutations. The first byte of an input chooses what the rest is: a whole file, the pickle of a checkpoint, the header of
a safetensors file, the tensor list of a ggmf file, or a GGUF with its two counts first; so the inner parsers are
reached without a lucky outer one.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

try:
    import atheris
except ImportError:
    atheris = None

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))

import forge

from rookery import State, errors, formats, weights
from rookery.weights.load import of_file
from rookery.weights.names import gguf

outcomes: Counter[str] = Counter()


def wrap(data: bytes) -> bytes:
    """The file that an input stands for."""
    kind, rest = data[0] % 5, data[1:]
    if kind == 1:
        return forge.checkpoint(rest)
    if kind == 2:
        return forge.safetensors(rest, bytes(11))
    if kind == 3:
        return forge.ggmf([]) + rest
    if kind == 4:  # two bytes for the counts of tensors and of metadata
        return forge.gguf(counts=(rest[0], rest[1] if len(rest) > 1 else 0))[:24] + rest[2:]
    return rest


def one_input(data: bytes) -> None:
    """Parse, decode what was found, try it as a model and a state, and let anything but a RookeryError through."""
    if len(data) < 2 or len(data) > 2**16:
        return
    try:
        file = formats.parse("fuzzed", np.frombuffer(wrap(data), np.uint8))
    except errors.FileError as error:
        if "\n" in str(error):
            raise AssertionError("a message of several lines") from error
        outcomes[type(error).__name__] += 1
        return
    outcomes["read"] += 1
    for tensor in file.tensors.values():
        assert tensor.nbytes <= 2**26 + 8 * 2**17
        assert tensor.array().shape == tensor.shape
    for make in (renamed, of_file, State.of_file):
        try:
            make(file)  # type: ignore[operator]
        except errors.RookeryError as error:
            outcomes[type(error).__name__] += 1
        else:
            outcomes[make.__qualname__] += 1


def renamed(file: formats.File) -> None:
    """The tensors of a GGUF under BlinkDL's names, made as they would be for a back end."""
    if file.format == "gguf":
        for tensor in gguf.to_blinkdl(file.path, file.tensors, file.metadata).values():
            assert tensor.array().shape == tensor.shape


def llama_cpp(version: int) -> bytes:
    """One of each kind of tensor that llama.cpp transforms, too few for a model."""
    names = ["token_embd", "blk.7.time_mix_w1", "blk.7.channel_mix_value", "blk.0.channel_mix_lerp_k"]
    names.append("blk.7.time_mix_r_k" if version == 7 else "blk.7.time_mix_decay_w1")
    tensors = [(f"{name}.weight".encode(), (4, 2), 0, 32 * i) for i, name in enumerate(names)]
    tensors.append((b"blk.0.time_mix_lerp_fused.weight", (1, 1, 1, 6 if version == 7 else 5), 0, 160))
    tensors.append((b"blk.9.time_mix_output.weight", (32, 2), 8, 192))
    head = [(b"general.architecture", 8, forge.gguf_text(b"rwkv%d" % version))]
    head += [(b"rwkv7.wkv.head_size", 4, b"\2\0\0\0"), (b"rwkv6.rescale_every_n_layers", 4, b"\3\0\0\0")]
    return bytes((4, len(tensors), len(head))) + forge.gguf(head, tensors, b"\7" * 260)[24:]


def seeds() -> list[bytes]:
    """Valid inputs of every kind."""
    files = forge.valid()
    parts = [b"\1" + forge.PICKLE, b"\2" + files["safetensors"][8:-11], b"\3" + files["ggmf"][24:]]
    parts += [llama_cpp(6), llama_cpp(7)]
    parts.append(b"\4" + bytes((3, len(forge.GGUF_VALUES))) + files["gguf"][24:])
    return [b"\0" + data for data in [*files.values(), *whole_models()]] + parts


def whole_models() -> list[bytes]:
    """The smallest committed model, and a state of it, as files."""
    path = Path(__file__).parents[1] / "fixtures" / "v4.safetensors"
    tensors = {name: t for name, t in formats.read(path).tensors.items() if ".1." not in name}
    for name in ("emb.weight", "head.weight"):
        tensors[name] = type(tensors[name]).of(tensors[name].array()[:2])
    with tempfile.TemporaryDirectory() as folder:
        formats.write(f"{folder}/m.pth", tensors)
        formats.write(f"{folder}/m.safetensors", tensors)
        weights.convert(f"{folder}/m.pth", f"{folder}/m.gguf")
        model = weights.load(f"{folder}/m.safetensors")
        State.start(model.config, model).save(f"{folder}/s.safetensors")
        return [(Path(folder) / name).read_bytes() for name in ("m.pth", "m.safetensors", "m.gguf", "s.safetensors")]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few edits: bytes set, cut out, doubled, or numbers at their limits written over."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(5):
            case 0:
                out[at : at + 1] = rng.randbytes(1)
            case 1:
                del out[at : at + rng.randint(1, 8)]
            case 2:
                out[at:at] = out[at : at + rng.randint(1, 16)]
            case 3:
                size = rng.choice([1, 2, 4, 8])
                value = rng.choice([0, 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1, 2 ** (4 * size)])
                out[at : at + size] = value.to_bytes(size, "little")
            case 4:
                other = rng.choice(seeds())
                start = rng.randrange(len(other))
                out[at:at] = other[start : start + rng.randint(1, 24)]
    return bytes(out)


def plain(runs: int, seed: int) -> None:
    rng = random.Random(seed)
    start = seeds()
    pool = start * 4
    for _ in range(runs):
        data = mutate(rng.choice(pool), rng)
        try:
            one_input(data)
        except Exception:
            print(f"failing input: {data.hex()}", file=sys.stderr)
            raise
        if rng.random() < 0.3:  # let edits pile up
            pool[rng.randrange(len(start), len(pool))] = data


def guided(runs: int, seed: int) -> None:
    for data in seeds():
        one_input(data)  # imports the readers, which only then can be instrumented
    atheris.instrument_all()
    with tempfile.TemporaryDirectory() as corpus:
        for i, data in enumerate(seeds()):
            (Path(corpus) / str(i)).write_bytes(data)
        options = [f"-runs={runs}", f"-seed={seed}", "-max_len=4096", "-rss_limit_mb=2048", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *options, corpus], one_input)
        atheris.Fuzz()  # ends the process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="random mutations even where atheris is installed")
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    if atheris and not arguments.plain:
        guided(arguments.runs, arguments.seed)
        return
    plain(arguments.runs, arguments.seed)
    print(f"{arguments.runs} inputs, outcomes: {dict(outcomes.most_common())}")


if __name__ == "__main__":
    main()

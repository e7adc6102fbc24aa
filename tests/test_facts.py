"""What docs/facts.md says was computed here, computed again and compared at the digits printed there."""

from __future__ import annotations

import re
from math import ceil, e, exp, prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rookery.architecture import Config, v4, v5, v6, v7
from rookery.backends.layout import Layout
from rookery.backends.reference.ops import Ops
from rookery.lab.metrics import check_bounds, transitions, white_noise_coherence
from rookery.tune.plan_serve import HALF, TRANSFORMERS
from tolerances import PRINTED

Table = npt.NDArray[np.float64]

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "facts.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")}
VOCABULARY = 65536
SHAPES = {  # layers, width, ranks of w, a, v, g
    "0.1B": (12, 768, (64, 64, 32, 128)),
    "0.4B": (24, 1024, (64, 64, 32, 128)),
    "1.5B": (24, 2048, (96, 96, 64, 256)),
    "2.9B": (32, 2560, (96, 96, 64, 320)),
    "7.2B": (32, 4096, (128, 128, 96, 480)),
}
NUMBER = r"(-?[\d,]*\.?\d+(?:e-?\d+)?)"


def row(section: str, begins: str) -> list[str]:
    """The cells of the one row that begins so in a section's tables, without the first."""
    found = [line for line in SECTIONS[section].splitlines() if line.strip().startswith(f"| {begins} |")]
    assert len(found) == 1, f"{begins!r} begins {len(found)} rows of {section!r}"
    return [cell.strip() for cell in found[0].strip().strip("|").split("|")][1:]


def says(text: str, *values: float) -> None:
    """The page has `text`, in which every {} stands for one of `values` as it is printed there."""
    pattern = re.escape(text).replace(re.escape("{}"), NUMBER)
    found = re.findall(pattern, " ".join(PAGE.split()))
    assert len(found) == 1, f"{text!r} is there {len(found)} times"
    for printed, value in zip([found[0]] if isinstance(found[0], str) else found[0], values, strict=True):
        equal(printed, value)


def equal(printed: str, value: float) -> None:
    """Half of the last printed digit, and what is left of a rounding away from even."""
    number, _, power = printed.replace(",", "").partition("e")
    digit = 10.0 ** (int(power or 0) - len(number.partition(".")[2]))
    assert abs(value - float(printed.replace(",", ""))) <= 0.501 * digit, f"{printed} is said of {value}"


def config(version: str, layers: int, width: int, ranks: tuple[int, ...] = ()) -> Config:
    heads = 0 if version == "4" else width // 64
    return Config(version, layers, width, VOCABULARY, 4 * width, heads, dict(zip("wavg", ranks, strict=False)))


def state_numbers(module: Any, version: str, layers: int, width: int) -> int:
    return layers * sum(piece.size for piece in module.state(config(version, layers, width)))


def parameters(layers: int, width: int, ranks: tuple[int, ...]) -> int:
    return sum(prod(param.file_shape) for param in v7.params(config("7", layers, width, ranks)))


def test_states() -> None:
    for shape, (layers, width, _) in SHAPES.items():
        size, four, later = row("The state", shape)
        assert size == f"{layers} x {width}"
        equal(four, 4e-6 * state_numbers(v4, "4", layers, width))
        for module, version in ((v5, "5.0"), (v5, "5.2"), (v6, "6"), (v7, "7")):
            equal(later, 4e-6 * state_numbers(module, version, layers, width))
    assert state_numbers(v4, "4", 1, 768) == 5 * 768
    assert state_numbers(v7, "7", 1, 768) == 66 * 768
    equal(row("The state", "v4 14B")[1], 4e-6 * state_numbers(v4, "4", 40, 5120))
    equal(row("The state", "13.3B")[2], 4e-6 * state_numbers(v7, "7", 61, 4096))
    small, large = (4 * state_numbers(v4, "4", *shape) for shape in ((12, 768), (40, 5120)))
    says("leaves out the exponent: {} KB and {} MB in float32", small / 1e3, large / 1e6)


def test_caches() -> None:
    layers, heads, size, weights = TRANSFORMERS["Llama-3.2-3B"]
    grouped, whole = 2 * layers * heads * size * HALF, 2 * 32 * 2560 * HALF
    mamba, rwkv = 4 * 64 * (5120 * 128 + 4 * 5376), 4 * state_numbers(v7, "7", 32, 2560)
    for name, token, always in (
        (f"3B with grouped queries ({layers} layers, {heads} heads of {size})", grouped, 0),
        ("3B with all heads (32 layers of width 2,560)", whole, 0),
        ("Mamba-2 2.7B (64 layers; 5,120 x 128 and a convolution of 4 x 5,376)", 0, mamba),
        ("RWKV-7 2.9B", 0, rwkv),
    ):
        said, *sizes = row("The state", name)
        equal(said, token)
        for cell, context in zip(sizes, (4_096, 131_072, 1_000_000), strict=True):
            equal(cell, (token * context + always) / 1e9)
    says("Mamba-2's state is {} times RWKV-7's", mamba / rwkv)
    says("passes RWKV-7's state at {} tokens", ceil(rwkv / grouped))
    says("its own weights (3.21B in 16 bits) only at {} tokens", ceil(HALF * weights / grouped))
    says("width 4,096, all heads, 16 bits: {} GB", 2 * 32 * 4096 * HALF * 8192 / 1e9)


def test_parameters() -> None:
    counted = {shape: parameters(*sizes) for shape, sizes in SHAPES.items()}
    says("V = 65,536 (here): {}B, {}B, {}B, {}B, {}B.", *(count / 1e9 for count in counted.values()))
    says("which gives {} M for 0.4B", counted["0.4B"] / 1e6)
    says("those of 7.2B would give {}B", parameters(61, 4096, SHAPES["7.2B"][2]) / 1e9)
    says("Adam in mixed precision: {} GB", 16 * counted["7.2B"] / 1e9)
    for layers, width, ranks in SHAPES.values():  # the formula beside it
        inside = layers * (19 * width + 12 * width**2 + 2 * width * sum(ranks))
        assert parameters(layers, width, ranks) == 2 * VOCABULARY * width + 4 * width + inside


def test_roofs() -> None:
    for shape in ("0.1B", "1.5B", "2.9B", "7.2B"):
        read = HALF * (parameters(*SHAPES[shape]) - VOCABULARY * SHAPES[shape][1])
        size, *speeds = row("Speed has a roof", shape)
        equal(size, read / 1e9)
        for cell, bandwidth in zip(speeds, (41e9, 1.01e12, 2.04e12), strict=True):
            equal(cell, bandwidth / read)
    says("2.04 TB/s / 6.2 GB = {}", 2.04e12 / 6.2e9)


def test_losses_and_perplexities() -> None:
    says("exp(2.2621) = {}", exp(2.2621))
    says("a loss of 1.8415, which is {} a token", exp(1.8415))
    says("14B 1.7579, {}; 169M 2.5355, {} (here)", exp(1.7579), exp(2.5355))
    says("LAMBADA's 5,153 passages is {} to {} points", *(100 * sqrt(p * (1 - p) / 5153) for p in (0.76, 0.65)))


def test_coherence() -> None:
    says("of 512 numbers scores {}, of 5,000 {};", white_noise_coherence(512), white_noise_coherence(5000))
    says("0.9995 needs a variance of {}, and 5e-7 gives {}", 1 / 0.9995 - 1, 1 / (1 + 5e-7))


def test_bounds_of_what_a_token_does() -> None:
    floor = exp(-exp(-0.5))
    assert exp(v7.STEEPEST) == pytest.approx(floor, rel=PRINTED)
    says("of the token, exp(-e^(-1/2) sigma(.)), {} to 1", floor)
    says("at most one negative, above {} - 1 = {} (here)", floor, floor - 1)
    rng = np.random.default_rng(0)
    kk = rng.standard_normal((300, 16))
    kk /= np.linalg.norm(kk, axis=1, keepdims=True)
    log_decay, a = v7.STEEPEST * rng.beta(0.3, 0.3, kk.shape), rng.beta(0.3, 0.3, kk.shape)
    assert check_bounds(log_decay, kk, a).hold
    steepest = check_bounds(np.full(16, v7.STEEPEST), kk, np.ones(16))
    assert steepest.lowest == pytest.approx(floor - 1, abs=PRINTED)  # reached only there
    assert check_bounds(np.zeros(16), kk, a).lowest >= -PRINTED  # none negative where nothing decays
    third = np.sqrt([1 / 3, 2 / 3])
    growth = np.linalg.norm(transitions(np.zeros(2), third, np.array([1.0, 0.0])), 2)
    assert growth == pytest.approx(2 / sqrt(3), rel=PRINTED)
    says("is 2/sqrt(3) = {} (here)", float(growth))


def off(wrong: Table, right: Table) -> float:
    """In % of the right one's root mean square."""
    return 100 * sqrt(np.square(wrong - right).mean() / np.square(right).mean())


def drawn(*shapes: tuple[int, ...]) -> tuple[Table, ...]:
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(shape) for shape in shapes)


def test_the_snippet_of_transformers() -> None:
    tokens, channels = 64, 1000
    k, v, u = drawn((tokens, channels), (tokens, channels), (channels,))
    u, w = u / 2, -np.exp(np.linspace(-5, 3, channels))
    start = np.array([[0.0], [0.0], [-1e30]]).repeat(channels, 1)
    right, _ = Ops(Layout((tokens,)), 0).wkv4(k, v, w, u, start[None])
    assert off(explicit_sum(k, v, w, u), right) < 100 * PRINTED  # the sum that the page begins with is the model's
    assert off(as_transformers_has_it(k, v, w, u, mended=True), right) < 100 * PRINTED
    says("the output is off by {} % (root mean square)", off(as_transformers_has_it(k, v, w, u, mended=False), right))


def explicit_sum(k: Table, v: Table, w: Table, u: Table) -> Table:
    out = np.empty_like(v)
    for t in range(len(k)):
        weights = np.exp(k[: t + 1] + np.concatenate([np.arange(t)[::-1, None] * w, u[None]]))
        out[t] = (weights * v[: t + 1]).sum(0) / weights.sum(0)
    return out


def as_transformers_has_it(k: Table, v: Table, w: Table, u: Table, mended: bool) -> Table:
    above, below, top, out = np.zeros_like(u), np.zeros_like(u), np.full_like(u, -1e30), np.empty_like(v)
    for t in range(len(k)):
        q = np.maximum(u + k[t], top)
        new, old = np.exp(u + k[t] - q), np.exp(top - q if mended else top)
        out[t] = (new * v[t] + old * above) / (new + old * below)
        q = np.maximum(k[t], w + top)
        new, old = np.exp(k[t] - q), np.exp(w + top - q)
        above, below, top = new * v[t] + old * above, new + old * below, q
    return out


def test_the_snippet_of_the_wiki() -> None:
    tokens, size = 64, 16
    r, k, v, u, x = drawn((tokens, size), (tokens, size), (tokens, size), (size,), (tokens, size))
    log_decay = -np.exp(x - 2.5)
    start = np.zeros((1, 1, size, size))
    heads = [each[:, None] for each in (r, k, v, log_decay)]
    right = Ops(Layout((tokens,)), 1).wkv6(*heads, u[None], start)[0][:, 0]

    def summed(printed: bool) -> Table:
        out = np.empty_like(v)
        for t in range(tokens):
            at = [log_decay[:i] if printed else log_decay[i + 1 : t] for i in range(t)]
            weights = np.array([np.exp(part.sum(0)) for part in at] + [u])
            out[t] = ((r[t] * weights * k[: t + 1]).sum(1, keepdims=True) * v[: t + 1]).sum(0)
        return out

    assert off(summed(printed=False), right) < 100 * PRINTED
    says("has decayed most: off by {} %", off(summed(printed=True), right))


def test_the_snippets_with_a_negative_decay() -> None:
    factor = -exp(1.0)  # of the page's first value, w = 1
    says("two of them multiply the sum by {} a token", factor)
    total = 0.0
    signs = []
    for _ in range(64):
        total = factor * total + 1
        signs.append(np.sign(total))
    says("a token: 10^{} after 64 tokens", float(round(np.log10(abs(total)))))
    assert signs == [1, -1] * 32


def test_the_two_constants() -> None:
    says("in its CUDA kernels: {} apart", 0.606531 * sqrt(e) - 1)
    says("and {} in its CUDA kernels", exp(-0.5))


def test_every_row_of_the_sources_is_used() -> None:
    keys = re.findall(r"^\| (\w+) \| ", PAGE.partition("## Who is who")[0], re.MULTILINE)[1:]
    assert len(keys) == 9
    body = PAGE.partition("## Who is who")[2]
    assert [key for key in keys if not re.search(rf"\b{key}\b", body)] == []

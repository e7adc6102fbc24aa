"""What serving is said to take: bytes against real files, speeds and prices against arithmetic by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from rookery import formats, state, weights
from rookery.errors import InputError
from rookery.formats.tensor import Tensor
from rookery.tune import plan_serve, shapes
from rookery.weights.quantise import Plan, quantise

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
LARGE = shapes.find("rwkv7-g1-1.5b")


def of(type: str = "q8_0", **more: int) -> plan_serve.ServePlan:
    return plan_serve.plan(LARGE, type, plan_serve.of_shape(LARGE, type), **more)


@pytest.mark.parametrize("version", ["v4", "v5.2", "v6", "v7"])
@pytest.mark.parametrize("type", ["q8_0", "f16"])
def test_weights_are_those_of_the_file(version: str, type: str, tmp_path: Path) -> None:
    """The fixture in 16 bits, quantised: the file's tensors have as many bytes."""
    narrow, path = tmp_path / "narrow.safetensors", tmp_path / "m.gguf"
    source = weights.load(FIXTURES / f"{version}.safetensors")
    unused = {p.name for p in source.params if p.optional}
    kept = {n: Tensor.of(t.float32(), "bf16") for n, t in source.tensors.items() if n not in unused}
    formats.write(narrow, kept, {})
    quantise(narrow, path, Plan(type))
    whole, table = plan_serve.of_shape(source.config, type)
    made = formats.read(path).tensors
    assert whole == sum(t.nbytes for t in made.values())
    assert plan_serve.of_file(weights.load(path))[1] == table


def test_states() -> None:
    """serving.md 2.5: 12,976,128 bytes at 1.5B, at any length; v4's cannot be halved."""
    found = of()
    assert (found.state_float32, found.state_stored) == (12_976_128, 6_488_064)
    assert found.sessions_per_gb == pytest.approx(77.06, abs=0.01)
    small = shapes.find("rwkv4-pile-169m")
    v4 = plan_serve.plan(small, "f16", plan_serve.of_shape(small, "f16"))
    assert v4.state_float32 == v4.state_stored == 4 * state.size(small) == 4 * 5 * 12 * 768


def test_what_is_left_beside_the_weights() -> None:
    found = of(memory=4_000_000_000)
    assert found.sessions_in_memory == (4_000_000_000 - found.weights) // 12_976_128
    assert of(memory=1_000_000_000).sessions_in_memory == 0
    assert of().sessions_in_memory is None


def test_the_cache_of_a_transformer_of_its_size() -> None:
    found = of(context=10_000)
    assert found.cache.name == "Qwen2.5-1.5B"
    assert found.cache.bytes_per_token == 2 * 28 * 2 * 128 * 2
    assert found.cache.bytes == 10_000 * found.cache.bytes_per_token
    assert plan_serve.cache(7_200_000_000, 1).name == "Llama-3.1-8B"


def test_speed_by_bandwidth() -> None:
    found = of()
    one, many = (plan_serve.roofline(found, rows, 100e9) for rows in (1, 16))
    assert one.tokens_per_second == pytest.approx(100e9 / (found.read_per_step + 2 * 12_976_128))
    assert many.tokens_per_second == pytest.approx(16 * 100e9 / (found.read_per_step + 32 * 12_976_128))
    assert found.read_per_step < found.weights
    slow = plan_serve.roofline(found, 16, 100e9, flops=1e12)
    assert slow.tokens_per_second == pytest.approx(1e12 / (2 * found.parameters))


def test_price() -> None:
    speed = plan_serve.priced(plan_serve.Speed(1, 1000.0, "given"), 3.6)
    assert speed.cost_per_million == pytest.approx(1.0)  # 1,000 s, of which one costs a thousandth
    assert speed.tokens_per_second == 1000.0


def test_an_unknown_type() -> None:
    with pytest.raises(InputError, match="no type 'q9' to quantise to; choose from q8_0"):
        plan_serve.of_shape(LARGE, "q9")

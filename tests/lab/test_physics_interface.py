"""Substrates behind their interface: by name, seeded, replayed to the bit; and the physics' couplings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rookery.errors import InputError, StateError
from rookery.lab.substrates import Substrate, make, stream
from rookery.lab.substrates.attractors import ATTRACTORS, rk4
from rookery.lab.substrates.physics import Physics
from tolerances import PHYSICS_CLOSED, PHYSICS_LOOP

TOKENS = [5, 0, 65535, 17, 17, None, 3, 250, 1, 9]
# Every random number and every part of the state takes part.
ALL: list[tuple[str, dict[str, Any]]] = [
    ("physics", {"n": 48, "coupling": "both", "patterns": 3}),
    ("physics", {"n": 48, "coupling": "text->physics", "radius": 3.0}),
    ("physics", {"n": 48, "mode": "overdamped", "coupling": "text->physics"}),
    ("physics", {"n": 48, "g": 0.0, "lam": 0.0}),
    ("frozen", {"n": 48}),
    ("iid", {"n": 48}),
    ("ar1", {"n": 48}),
    ("nulls", {"n": 48}),
]
each = pytest.mark.parametrize(("name", "settings"), ALL, ids=[f"{i}-{name}" for i, (name, _) in enumerate(ALL)])


def run(substrate: Substrate) -> list[dict[str, Any]]:
    found = []
    for token in TOKENS:
        substrate.step(token)
        found.append(substrate.components())
    return found


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(np.array_equal(x[key], y[key]) for key in x) for x, y in zip(a, b, strict=True)
    )


@each
def test_substrate_is_one(name: str, settings: dict[str, Any]) -> None:
    substrate = make(name, **settings)
    assert isinstance(substrate, Substrate)
    assert (substrate.name, substrate.tick, substrate.logits()) == (name, 0, None)
    run(substrate)
    assert substrate.tick == len(TOKENS)
    substrate.reset()
    assert substrate.tick == 0


@each
def test_replay_to_the_bit(name: str, settings: dict[str, Any]) -> None:
    """From a snapshot, twice, and in another substrate that had another seed."""
    substrate = make(name, **settings)
    substrate.reset(11)
    run(substrate)
    kept = substrate.snapshot()
    first = run(substrate)
    for other in (substrate, substrate, make(name, **settings)):
        if other is not substrate:
            other.reset(12)
            run(other)
        other.restore(kept)
        assert other.tick == len(TOKENS)
        assert same(run(other), first)


@each
def test_seeds(name: str, settings: dict[str, Any]) -> None:
    substrate, runs = make(name, **settings), []
    for seed in (1, 2, 1):
        substrate.reset(seed)
        runs.append([substrate.components(), *run(substrate)])
    assert same(runs[0], runs[2])
    for before, after in zip(runs[0], runs[1], strict=True):
        assert all(not np.array_equal(before[key], after[key]) for key in before)


def test_what_each_seed_seeds() -> None:
    """The run's: noise, and where it begins; `wiring`: mixing, patterns and directions, and nothing of the run."""
    ends = []
    for seed in (1, 2):
        p = Physics(n=24, g=0.0)
        p.reset(seed)
        p.position[:], p.velocity[:] = 0.0, 0.0
        p.step()
        ends.append(p.position.copy())
    assert np.abs(ends[0] - ends[1]).min() > 0.0
    one, other = Physics(n=24, patterns=2, wiring=1), Physics(n=24, patterns=2, wiring=2)
    assert same([one.components()], [other.components()])
    one.step()
    other.step()
    apart = {key: not np.array_equal(value, other.components()[key]) for key, value in one.components().items()}
    assert apart == {"position": True, "velocity": True, "world": False}


@each
def test_components_are_copies(name: str, settings: dict[str, Any]) -> None:
    substrate = make(name, **settings)
    before = substrate.components()
    for value in substrate.components().values():
        assert value.dtype == np.float64
        value[...] = np.nan
    assert same([substrate.components()], [before])


@each
def test_perturb_is_relative(name: str, settings: dict[str, Any]) -> None:
    """By 1 % of the component's norm, along the direction; the others stay, but on a sphere, to which all is held."""
    substrate = make(name, **settings)
    run(substrate)
    for component, before in substrate.components().items():
        others = substrate.components()
        direction = stream(3, component).standard_normal(before.shape)
        substrate.perturb(component, direction, 0.01)
        moved = substrate.components()[component] - before
        sphere = "radius" in settings and component != "world"
        np.testing.assert_allclose(np.linalg.norm(moved), 0.01 * np.linalg.norm(before), rtol=0.2 if sphere else 1e-6)
        cosine = np.vdot(moved, direction) / np.linalg.norm(moved) / np.linalg.norm(direction)
        assert cosine > (0.8 if sphere else 1.0 - 1e-9)
        if not sphere:
            others[component] = substrate.components()[component]
            assert same([substrate.components()], [others])


@each
def test_perturb_refuses(name: str, settings: dict[str, Any]) -> None:
    substrate = make(name, **settings)
    component, value = next(iter(substrate.components().items()))
    for bad in (np.zeros(value.shape), np.full(value.shape, np.nan), np.ones(7)):
        with pytest.raises(InputError, match="direction"):
            substrate.perturb(component, bad, 0.1)
    with pytest.raises(InputError, match="wanted one of"):
        substrate.perturb("soul", np.ones(7), 0.1)
    with pytest.raises(InputError, match="size inf"):
        substrate.perturb(component, np.ones(value.shape), math.inf)


@each
def test_restore_refuses_another(name: str, settings: dict[str, Any]) -> None:
    substrate = make(name, **settings)
    before = substrate.components()
    for snapshot in (make(name, **settings | {"n": 49}).snapshot(), make("iid", n=7).snapshot(), {}, None):
        with pytest.raises(StateError, match="snapshot"):
            substrate.restore(snapshot)
    assert same([substrate.components()], [before])


def test_make_refuses() -> None:
    with pytest.raises(InputError, match=r"'fysics': wanted one of rwkv.*did you mean 'physics'"):
        make("fysics")
    with pytest.raises(InputError, match=r"'physics'.*'mass'.*its settings are n, "):
        make("physics", mass=1.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"n": 2}, {"n": 5.0}, {"attractors": 0}, {"inner_steps": 0}, {"patterns": -1}, {"wiring": -1}, {"m": 0.0},
        {"T": -1.0}, {"T": math.nan}, {"gam": -0.1}, {"lam": -1.0}, {"dt": 0.0}, {"dt": "fast"}, {"radius": 0.0},
        {"g": True}, {"mode": "brownian"}, {"coupling": "text"}, {"k": -1.0, "lam": 0.0}, {"dt": 0.05},
        {"g": 0.0, "dt": 2.0}, {"g": 0.0, "dt": 1.0, "mode": "overdamped"}, {"gam": 0.0, "mode": "overdamped"},
    ],
)  # fmt: skip
def test_settings_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^physics {'|'.join(settings)}"):
        Physics(**{"n": 8} | settings)


def test_tick_against_plain_numbers() -> None:
    """One tick of everything, the noise aside, a number at a time."""
    p = Physics(n=6, attractors=3, T=0.0, lam=0.7, k=1.3, m=0.8, gam=0.4, g=0.6, coupling="text->physics", push=0.5)
    p.reset(3)
    rng = np.random.default_rng(5)
    p.position[:], p.velocity[:] = rng.standard_normal((2, 6))
    world = p._world
    assert world
    x, v = p.position.tolist(), p.velocity.tolist()
    points = [tuple(row) for row in world.points.tolist()]

    def force() -> list[float]:
        z = [
            (points[i][axis] - ATTRACTORS[kind].mean[axis]) / ATTRACTORS[kind].sd[axis]
            for i, kind in enumerate(world.kinds)
            for axis in range(3)
        ]
        square = sum(value * value for value in x)
        u = [sum(z[row] * world.mixing[row, i] for row in range(9)) for i in range(6)]
        return [-1.3 * x[i] - 0.7 * square * x[i] / 6 + 0.6 * u[i] for i in range(6)]

    arrow = stream(0, "token", 41).standard_normal(6)
    v = [v[i] + 0.5 / 0.8 * arrow[i] / math.sqrt(sum(arrow**2)) for i in range(6)]
    for _ in range(10):
        now = force()
        for i in range(6):
            v[i] += 0.005 / 0.8 * now[i]
            x[i] += 0.005 * v[i]
            v[i] *= math.exp(-0.4 / 0.8 * 0.01)
            x[i] += 0.005 * v[i]
        points = [rk4(ATTRACTORS[kind].field, at, 0.01) for kind, at in zip(world.kinds, points, strict=True)]
        now = force()
        for i in range(6):
            v[i] += 0.005 / 0.8 * now[i]
    p.step(41)
    np.testing.assert_allclose(p.position, x, rtol=0, atol=PHYSICS_LOOP)
    np.testing.assert_allclose(p.velocity, v, rtol=0, atol=PHYSICS_LOOP)


def test_linear_response_to_the_world() -> None:
    """lam = 0, T = 0: twice the gain, twice the motion."""
    runs = [Physics(T=0.0, lam=0.0, g=g) for g in (0.25, 0.5)]
    for _ in range(30):
        for p in runs:
            p.step()
    np.testing.assert_allclose(runs[1].position, 2.0 * runs[0].position, rtol=1e-10, atol=1e-12)
    assert np.linalg.norm(runs[1].position) > 0.1


def test_a_token_strikes() -> None:
    """The impulse response of a damped oscillator, push/(m omega) exp(-gam t/2m) sin(omega t), along the token's own
    direction.
    """
    settings: dict[str, Any] = {"T": 0.0, "g": 0.0, "lam": 0.0, "m": 2.0, "push": 3.0, "coupling": "text->physics"}
    p, ends = Physics(**settings), []
    for token in (8, 9, 8):
        p.reset()
        p.step(token)
        for _ in range(9):
            p.step()
        ends.append(p.position.copy())
    omega, t = math.sqrt(1.0 / 2.0 - 0.125**2), 1.0
    size = 3.0 / (2.0 * omega) * math.exp(-0.125 * t) * math.sin(omega * t)
    assert np.linalg.norm(ends[0]) == pytest.approx(size, rel=PHYSICS_CLOSED)
    assert np.array_equal(ends[0], ends[2])
    assert abs(ends[0] @ ends[1]) < 0.2 * size**2, "tokens push in directions of their own"
    other = Physics(**settings | {"wiring": 1})
    other.step(8)
    p.reset()
    p.step(8)
    assert abs(other.position @ p.position) < 0.2 * float(p.position @ p.position)


def test_a_token_strikes_without_inertia() -> None:
    p = Physics(T=0.0, g=0.0, lam=0.0, gam=2.0, push=3.0, coupling="text->physics", mode="overdamped")
    p.step(8)
    assert np.linalg.norm(p.position) == pytest.approx(1.5 * (1.0 - 0.01 / 2.0) ** 10, rel=1e-12)


def test_couplings_are_off_unless_chosen() -> None:
    ends = {}
    for coupling in ("none", "text->physics", "physics->text", "both"):
        p = Physics(n=32, coupling=coupling)  # type: ignore[arg-type]
        p.step(4)
        ends[coupling] = p
    alone = Physics(n=32)
    alone.step()
    moved = {name for name, p in ends.items() if not np.array_equal(p.position, alone.position)}
    assert moved == {"text->physics", "both"}
    assert {name for name, p in ends.items() if p.signal() is not None} == {"physics->text", "both"}


def test_signal_is_one_unit_direction() -> None:
    p = Physics(n=32, coupling="physics->text")
    read = []
    for row in np.eye(32):
        p.position[:] = row
        read.append(p.signal())
    assert np.linalg.norm(np.array(read, np.float64)) == pytest.approx(1.0, rel=1e-12)
    p.position[:] = 0.0
    assert p.signal() == 0.0


def test_tokens_refused() -> None:
    p = Physics(n=8, coupling="text->physics")
    for bad in (-1, 1.5, True):
        with pytest.raises(InputError, match="token"):
            p.step(bad)  # type: ignore[arg-type]
    assert p.tick == 0


def test_streams_are_apart() -> None:
    a = stream(1, "noise").standard_normal(1000)
    assert np.array_equal(a, stream(1, "noise").standard_normal(1000))
    for other in (stream(2, "noise"), stream(1, "start"), stream(1, "noise", 0)):
        assert abs(np.corrcoef(a, other.standard_normal(1000))[0, 1]) < 0.2
    with pytest.raises(InputError, match="seed -1"):
        stream(-1)

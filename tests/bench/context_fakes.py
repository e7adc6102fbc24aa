"""Peers of which everything is known, a clock that only they move, and a sweep over them without a process."""

from __future__ import annotations

from typing import Any

from rookery.bench.context import point as points
from rookery.bench.context.settings import Point, Settings

MEGA = 1_000_000
BANDWIDTH = 10.0  # GB/s of the fake machine
EACH = {"transformer-gqa": 8000, "transformer-mha": 32_000}  # bytes of KV a token


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Peer:
    """Reads its bytes at the bandwidth, or `speed` times as fast; every fifth step takes a little longer."""

    runtime, note, parameters, embedding_parameters, weight_bytes = "torch, fake", "", 25 * MEGA, 8 * MEGA, 100 * MEGA

    def __init__(self, kind: str, clock: Clock, speed: float = 0.5) -> None:
        self.kind, self.clock, self.speed = kind, clock, speed
        self.constant, self.config = kind not in EACH, {"width": 384}
        self.calls: list[tuple[str, int]] = []
        self.depth = self.room = self.steps = 0

    def state_bytes(self, depth: int) -> int:
        return EACH.get(self.kind, 0) * depth or MEGA

    def bytes_per_token(self, depth: int) -> int:
        return self.weight_bytes + self.state_bytes(depth)

    def inject(self, depth: int, extra: int) -> None:
        self.calls.append(("inject", depth))
        self.clock.now += 1000.0  # must not be counted
        self.depth, self.room = depth, depth + extra

    def prefill(self, tokens: Any, extra: int) -> None:
        self.calls.append(("prefill", len(tokens)))
        self.clock.now += len(tokens) * 1e-3
        self.depth, self.room = len(tokens), len(tokens) + extra

    def step(self, token: int) -> None:
        assert 0 <= token < 8192
        assert self.depth < self.room
        self.steps += 1
        self.depth += 1
        self.clock.now += (
            self.bytes_per_token(self.depth) / (self.speed * BANDWIDTH * 1e9) * (1 + (self.steps % 5 == 0))
        )

    def train(self, length: int) -> Any:
        def step() -> float:
            self.calls.append(("train", length))
            self.clock.now += length * 1e-2
            return 1.0

        return step


class Fakes:
    """`spawn` and `need` for `sweep`. `slow`: kinds and how fast they are, of the bandwidth."""

    def __init__(self, clock: Clock, speeds: dict[str, float] | None = None) -> None:
        self.clock, self.speeds = clock, speeds or {}
        self.spawned: list[Point] = []
        self.broken: set[Point] = set()

    def build(self, kind: str, settings: Settings) -> Peer:
        return Peer(kind, self.clock, self.speeds.get(kind, 0.5))

    def spawn(self, point: Point, settings: Settings) -> dict[str, Any]:
        self.spawned.append(point)
        if point in self.broken:
            return {**point._asdict(), "status": "failed", "why": "ValueError: planted"}
        if point.phase == "stream":
            return {**point._asdict(), "status": "measured", "gb_per_second": {"sum": [8.0, 9.0], "mv": [BANDWIDTH]}}
        row = points.measure(point, settings, self.build)
        return row | {"peak_bytes": 3 * MEGA, "baseline_bytes": 200 * MEGA, "build_peak_bytes": 2 * MEGA}

    def need(self, point: Point, settings: Settings) -> int:
        peer = self.build(point.kind, settings)
        return peer.weight_bytes * (4 if point.phase == "train" else 1) + peer.state_bytes(point.length)

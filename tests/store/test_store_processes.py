"""Several programs on one file, and programs that are killed while they write."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_things import check, environment, talk

from rookery import store

RACE = """
import sys
from store_things import snapshot, turn
from rookery import store
with store.open(sys.argv[1]) as made:
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(int(sys.argv[3])):
        at = made.heads("first")["main"]
        node = turn(at, int(sys.argv[2]), n)
        made.put(node.key, snapshot(n))
        print(at, node.id, int(made.add("first", node, "main", at)))
    assert made.stats()["failed"] == 0
"""

WRITE = """
import sys
from store_things import snapshot, turn
from rookery import store
made = store.open(sys.argv[1])
at = made.heads("first")["main"]
print("ready", flush=True)
n = 0
while True:
    n += 1
    node = turn(at, n)
    made.put(node.key, snapshot(n, n=5000))
    assert made.add("first", node, "main", at)
    at = node.id
    print(at, flush=True)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    program = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert program.stdout
    assert program.stdout.readline() == "ready\n"
    return program


def test_two_programs_race_for_one_head(place: str) -> None:
    if place == ":memory:":
        pytest.skip("memory is one program's")
    each = 200
    with store.open(place) as made:
        made.create(talk())
        programs = [start(RACE, place, number, each) for number in range(2)]
        outputs = [""] * 2
        for program in programs:
            assert program.stdin
            program.stdin.write("go\n")
            program.stdin.flush()
        for i, program in enumerate(programs):
            outputs[i] = program.communicate()[0]
            assert program.returncode == 0
        rows = [line.split() for output in outputs for line in output.splitlines()]
        winners = {at: node for at, node, won in rows if won == "1"}
        nodes = made.nodes("first")
        assert len(rows) == 2 * each
        assert set(nodes) == {node for _, node, _ in rows}
        assert len(winners) == sum(won == "1" for _, _, won in rows), "one place was won twice"
        assert each <= len(winners), "who loses has lost to someone"
        line, at = [], made.heads("first")["main"]
        while at is not None:
            line.append(at)
            at = nodes[at].parent
        assert line[::-1] == [winners[str(before)] for before in (None, *line[:0:-1])]
    if place.endswith(".db"):
        check(Path(place))


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_any_moment_nothing_acknowledged_is_lost(tmp_path: Path, kills: int) -> None:
    path, draw = tmp_path / "talks.db", random.Random(kills)
    acknowledged: set[str] = set()
    with store.open(path, budget=2 << 20) as made:
        made.create(talk())
    for _ in range(kills):
        with start(WRITE, path) as program:
            time.sleep(draw.uniform(0, 0.08))
            os.kill(program.pid, signal.SIGKILL)
            assert program.stdout
            lines = program.stdout.read().split("\n")[:-1]  # what follows the last line end was not said whole
        acknowledged.update(lines)
        check(path)
        with store.open(path) as made:
            nodes, head = made.nodes("first"), made.heads("first")["main"]
        assert acknowledged <= set(nodes)
        assert len(nodes) - len(acknowledged) <= kills  # at most the turn that was being written, each time
        if lines:
            assert head is not None
            assert lines[-1] in (head, nodes[head].parent)
        acknowledged = set(nodes)
    assert len(acknowledged) > kills

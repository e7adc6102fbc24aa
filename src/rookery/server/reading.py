"""What a talk has to read anew goes through the engine, beside the replies, and so waits its turn among the owners."""

from __future__ import annotations

import queue
from collections.abc import Callable
from functools import partial

from rookery.engine import Ended, Engine, Event, Failed, Marked, Sequence, Start
from rookery.session.tree import Point, Reading, Tree


def through(engine: Engine) -> Callable[[Tree, Reading], Point]:
    """A way to read for `Talks`."""
    return partial(_read, engine)


def _read(engine: Engine, tree: Tree, reading: Reading) -> Point:
    """The point at the end of `reading`, whose marks are kept on the way. Blocks. Raises Busy and what goes wrong."""
    if not reading.tokens:
        return reading.point
    heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
    marks = dict(reading.marks)

    def start() -> Start:
        return Start(reading.point.state.copy(), reading.tokens, reading.point.logits, tuple(marks))

    engine.submit(Sequence(start, heard.put, owner=tree.owner, model=tree.model))
    while True:
        event = heard.get()
        if isinstance(event, Marked):
            tree.put(marks[event.at], Point(event.logits, event.state))
        elif isinstance(event, Failed):
            raise event.error
        elif isinstance(event, Ended):
            assert event.point is not None
            return Point(*event.point)

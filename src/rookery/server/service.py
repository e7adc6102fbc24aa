"""What the routes share: the model, the engine that runs it, the store of talks; and the phases of a server's life."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from anyio import CapacityLimiter
from fastapi import Request

from rookery import chat
from rookery import store as stores
from rookery.engine import Engine, Prefixes
from rookery.model import Model
from rookery.sampling import Sampling
from rookery.server.errors import ApiError
from rookery.server.feed import Outbox
from rookery.server.keys import Keys
from rookery.server.metrics import Metrics
from rookery.server.reading import through
from rookery.server.records import Records
from rookery.server.settings import Settings
from rookery.server.talks import Talks

PROFILE = "demo"  # where a template recommends nothing
READERS = 8
GRACE = 0.5  # seconds in which work whose client has just been answered ends by itself
T = TypeVar("T")


@dataclass(kw_only=True)
class Service:
    """One model being served."""

    settings: Settings
    model: Model
    engine: Engine
    prefixes: Prefixes
    store: stores.Store
    talks: Talks
    template: chat.Template
    sampling: Sampling  # for what a chat request leaves out
    keys: Keys
    metrics: Metrics
    records: Records
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    works: dict[str, Any] = field(default_factory=dict)  # responses in the making, by id
    loop: asyncio.AbstractEventLoop = field(init=False)
    outbox: Outbox = field(init=False)
    readers: CapacityLimiter = field(init=False)  # threads in which states that are lost are read anew

    @property
    def names(self) -> list[str]:
        """What the model is called: its id, then the other aliases."""
        given = (name.strip() for name in (self.settings.alias or "").split(","))
        return [name for name in given if name] or [Path(self.model.weights.path).stem]

    @property
    def name(self) -> str:
        """The model's id."""
        return self.names[0]

    def check_model(self, name: str | None) -> None:
        """Raises ApiError 404 for the id of another model; None is this one."""
        if name and name not in self.names:
            raise ApiError(404, f"no model {name[:100]!r} here; there is {self.name!r}", code="model_not_found")

    def left_out(self, held: bool) -> Sampling:
        """The sampling of what a chat request leaves out; `held`: to a form, which penalties would spoil, for it has to
        repeat its signs.
        """
        return replace(self.sampling, presence=0.0, frequency=0.0) if held else self.sampling

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the engine run; what it tells is brought to `loop`."""
        self.loop, self.outbox = loop, Outbox(loop, self.engine)
        self.readers = CapacityLimiter(READERS)
        self.engine.start()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that outlives its request. At the server's end it is cancelled once, and then has
        `settings.store_seconds` to store what it has.
        """
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def close(self) -> None:
        """End all work, then the engine, then the store."""
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=GRACE)
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=self.settings.store_seconds)
        await asyncio.to_thread(self.engine.close)
        await asyncio.to_thread(self.store.close)
        await asyncio.to_thread(self.records.close)


def build(settings: Settings, model: Model, keys: Keys, metrics: Metrics) -> Service:
    """The service of a loaded model, warmed by one step. Raises what the store, the template and the model raise."""
    weights = model.weights
    if settings.template is None:
        template = chat.load(None, weights.metadata, weights.path if weights.format == "hf" else None)
    else:
        template = chat.load(settings.template)
    model.tokenizer  # noqa: B018, a model without one is refused now
    model.forward(0)
    model.weights.fingerprint  # noqa: B018, a pass over the file that no request should wait for
    store = open_store(settings)
    engine = Engine(model, max_batch=settings.max_batch, max_waiting=settings.max_waiting)
    made = Service(
        settings=settings,
        model=model,
        engine=engine,
        prefixes=Prefixes(model, budget=settings.prefix_bytes),
        store=store,
        talks=Talks(model, store, template, read=through(engine), hot=settings.open_talks),
        template=template,
        sampling=template.sampling or chat.PROFILES[PROFILE],
        keys=keys,
        metrics=metrics,
        records=Records(settings.folder if settings.records else None),
    )
    metrics.watch(
        model.state().flat.nbytes,
        engine=made.engine.stats,
        store=store.stats,
        prefixes=lambda: {name: getattr(made.prefixes, name) for name in ("bytes", "hits", "misses", "evicted")},
        records=made.records.stats,
    )
    return made


def open_store(settings: Settings) -> stores.Store:
    """The store that the settings name. Its folder is made, private. Raises what `rookery.store.open` raises."""
    where = settings.store
    if settings.folder is not None:
        os.makedirs(settings.folder, mode=0o700, exist_ok=True)
        where = os.path.join(settings.folder, "talks.db")
    return stores.open(where, settings.half, settings.store_bytes)


class Life:
    """From listening to gone. The service is there from "ready" on."""

    def __init__(
        self, settings: Settings, keys: Keys | None = None, announce: Callable[[Service], None] | None = None
    ) -> None:
        self.settings, self.keys, self.metrics, self._announce = settings, keys or Keys(), Metrics(), announce
        self.phase: Literal["loading", "ready", "draining"] = "loading"
        self.service: Service | None = None

    def ready(self, service: Service) -> None:
        """Called in the event loop. Told to end meanwhile, it only has the service to close."""
        self.service = service
        if self.phase == "loading":
            service.start(asyncio.get_running_loop())
            self.phase = "ready"
            if self._announce is not None:
                self._announce(service)

    def drain(self) -> None:
        self.phase = "draining"


def service(request: Request) -> Service:
    """The service, for a route; nothing reaches a route before it is there (door.py)."""
    life: Life = request.app.state.life
    assert life.service is not None
    return life.service

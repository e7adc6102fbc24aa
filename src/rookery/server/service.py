"""What the routes share: the model, the engine that runs it, the store of talks; and the phases of a server's life."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from anyio import CapacityLimiter
from fastapi import Request

from rookery import chat
from rookery import store as stores
from rookery.engine import Engine
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
from rookery.server.variants import Variant, of_talk, variants
from rookery.session import Session

PROFILE = "demo"  # where a template recommends nothing
READERS = 8
GRACE = 0.5  # seconds in which work whose client has just been answered ends by itself
T = TypeVar("T")


@dataclass(kw_only=True)
class Service:
    """One model being served, and its variants."""

    settings: Settings
    variants: tuple[Variant, ...]  # the first is the model itself
    engine: Engine
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
    def model(self) -> Model:
        """The one that the others are made of."""
        return self.variants[0].model

    @property
    def name(self) -> str:
        """Its id."""
        return self.variants[0].name

    def variant(self, name: str | None) -> Variant:
        """The one that is called so; None: the model itself. Raises ApiError 404."""
        if not name:
            return self.variants[0]
        for each in self.variants:
            if name in each.names:
                return each
        there = " and ".join(repr(each.name) for each in self.variants[:20])
        raise ApiError(404, f"no model {name[:100]!r} here; there is {there}", code="model_not_found")

    def variant_of(self, talk: Session) -> Variant:
        """The one that holds a stored talk."""
        return of_talk(self.variants, talk)

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
    made_of = variants(settings, model)
    models = list(dict.fromkeys(each.model for each in made_of))
    for each in models:
        each.forward(0)
        each.weights.fingerprint  # noqa: B018, a pass over the file that no request should wait for
    store = open_store(settings)
    engine = Engine(model, max_batch=settings.max_batch, max_waiting=settings.max_waiting)
    made = Service(
        settings=settings,
        variants=made_of,
        engine=engine,
        store=store,
        talks=Talks(
            model,
            store,
            template,
            others=models[1:],
            initials=[each.initial for each in made_of if each.initial is not None],
            read=through(engine),
            hot=settings.open_talks,
        ),
        template=template,
        sampling=template.sampling or chat.PROFILES[PROFILE],
        keys=keys,
        metrics=metrics,
        records=Records(settings.folder if settings.records else None),
    )
    known = made_of[0].prefixes.kept
    metrics.watch(
        model.state().flat.nbytes,
        engine=made.engine.stats,
        store=store.stats,
        prefixes=lambda: {name: getattr(known, name) for name in ("bytes", "hits", "misses", "evicted")},
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

"""The routes put together, within what guards them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from rookery import __version__
from rookery.server import errors
from rookery.server.answers import event_shapes
from rookery.server.door import Door
from rookery.server.guard import Guard
from rookery.server.service import Life, Service

ROUTES = [
    "chat",
    "completions",
    "embeddings",
    "health",
    "llama",
    "models",
    "page",
    "responses",
    "states",
    "tokens",
]  # modules beside this one, each with a `router`

Load = Callable[[], Service]
Failed = Callable[[Exception], None]


def make(life: Life, load: Load, failed: Failed) -> FastAPI:
    """The app. When it starts, `load` is called in a thread to bring the service; what it raises goes to `failed`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_bring(life, load, failed))
        yield
        life.drain()
        await loading  # it cannot be interrupted
        if life.service is not None:
            await life.service.close()

    app = FastAPI(
        title="Rookery",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.life = life
    routers = [import_module(f"rookery.server.{name}").router for name in ROUTES]
    errors.install(app, routers)
    for router in routers:
        app.include_router(router)
    app.add_middleware(Door, life=life)
    if life.settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=life.settings.cors,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(Guard, metrics=life.metrics)
    document = app.openapi
    app.openapi = lambda: _as_answered(document(), open=life.keys.open)  # type: ignore[method-assign]
    return app


async def _bring(life: Life, load: Load, failed: Failed) -> None:
    try:
        life.ready(await asyncio.to_thread(load))
    except Exception as error:
        failed(error)


def _as_answered(document: dict[str, Any], *, open: bool) -> dict[str, Any]:
    """FastAPI documents 422 for what is answered with 400 here; it knows nothing of our events and keys, which a server
    that is `open` does not ask for.
    """
    for path in document.get("paths", {}).values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            if "401" in operation["responses"] and not open:
                operation["security"] = [{"key": []}]
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas |= event_shapes()
    return document

"""Whether it lives, whether it is ready, what it counts, and the description of the routes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from rookery.server.errors import ERRORS, ApiError
from rookery.server.keys import Caller, needs
from rookery.server.service import Life

router = APIRouter()
NOT_READY: dict[int | str, dict[str, Any]] = {503: ERRORS[503]}
KEYED: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 403, 503)}


class Health(BaseModel):
    status: str


@router.get("/health/live")
async def live() -> Health:
    """200 as soon as it listens."""
    return Health(status="ok")


@router.get("/health/ready", responses=NOT_READY)
@router.get("/health", responses=NOT_READY)
async def ready(request: Request) -> Health:
    """200 while it takes requests; 503 before and after."""
    life: Life = request.app.state.life
    if life.phase != "ready":
        raise ApiError(503, f"the server is {life.phase}", code=life.phase, headers={"Retry-After": "2"})
    if life.service is not None and not life.service.engine.alive:
        raise ApiError(503, "the engine has stopped; restart the server", code="engine_stopped")
    return Health(status="ok")


@router.get("/metrics", responses=KEYED, response_class=Response)
async def metrics(request: Request, caller: Annotated[Caller, Depends(needs("read"))]) -> Response:
    """In Prometheus' text format."""
    life: Life = request.app.state.life
    return Response(await run_in_threadpool(life.metrics.text), media_type=CONTENT_TYPE_LATEST)


@router.get("/openapi.json", responses=KEYED, include_in_schema=False)
async def openapi(request: Request, caller: Annotated[Caller, Depends(needs("read"))]) -> dict[str, Any]:
    document: dict[str, Any] = request.app.openapi()
    return document

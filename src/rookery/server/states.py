"""/v1/states: stored talks, each a tree of turns with heads that move over it.

A talk is `state_...`, which means its head "main"; another head of it is `state_....NAME`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from rookery.server import states_summary
from rookery.server.answers import gives
from rookery.server.answers_stored import Deleted, ImportedState, StateHead, StatePage, StateSummary, StateTree
from rookery.server.errors import ERRORS, ApiError
from rookery.server.keys import Caller, needs
from rookery.server.responses_shapes import ForkRequest, RewindRequest
from rookery.server.service import Service, service
from rookery.server.sse import while_connected
from rookery.server.talk_lists import Listed

router = APIRouter()
ROUTE = "/v1/states"
BYTES = "application/octet-stream"
FILE = {"content": {BYTES: {"schema": {"type": "string", "format": "binary"}}}}
Id = Annotated[str, Path(max_length=200)]
Reads = Annotated[Caller, Depends(needs("read"))]
Chats = Annotated[Caller, Depends(needs("chat"))]
T = TypeVar("T")


@router.get(ROUTE, **gives(StatePage))
async def list_states(
    request: Request,
    caller: Reads,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=200)] = None,
) -> dict[str, Any]:
    """The caller's talks, the last used first; those after the one of the id `after`."""
    talks = service(request).talks
    found = [_listed(talk) for talk in await run_in_threadpool(talks.list, caller.owner, limit + 1, after)]
    shown = found[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else "",
        "last_id": shown[-1]["id"] if shown else "",
        "has_more": len(found) > limit,
    }


@router.post(ROUTE, **gives(ImportedState), openapi_extra={"requestBody": {"required": True, **FILE}})
async def import_state(request: Request, caller: Chats) -> dict[str, Any]:
    """A new talk that begins with the state in a safetensors file, as an export gives it."""
    talks = service(request).talks
    id = await _reading(request, talks.import_, caller.owner, await request.body())
    return {"id": id, "object": "state"}


@router.get(ROUTE + "/{id}", **gives(StateTree))
async def retrieve_state(id: Id, request: Request, caller: Reads) -> dict[str, Any]:
    """The tree of a talk's turns, each a response by its id, with the beginnings of their texts; and its heads."""
    info = await run_in_threadpool(service(request).talks.info, caller.owner, id)
    turns = [asdict(turn) | {"text": turn.said} for turn in info.turns]
    return _listed(info.talk) | {"id": info.id, "at": info.at, "turns": turns, "heads": info.heads}


@router.delete(ROUTE + "/{id}", **gives(Deleted))
async def delete_state(id: Id, request: Request, caller: Chats) -> dict[str, Any]:
    """Delete a talk with all its turns and branches."""
    await run_in_threadpool(service(request).talks.delete, caller.owner, id)
    return {"id": id, "object": "state", "deleted": True}


@router.post(ROUTE + "/{id}/fork", **gives(StateHead))
async def fork_state(id: Id, body: ForkRequest, request: Request, caller: Chats) -> dict[str, Any]:
    """Another head of the talk, where `id` stands or at a response of it; both go on, each for itself."""
    talks = service(request).talks
    made = await run_in_threadpool(talks.fork, caller.owner, _within(id, body.at), body.name)
    return await _head(service(request), caller, made)


@router.post(ROUTE + "/{id}/rewind", **gives(StateHead))
async def rewind_state(id: Id, body: RewindRequest, request: Request, caller: Chats) -> dict[str, Any]:
    """Move a head back. The turns stay: responses after it can still be gone on with."""
    moved = await run_in_threadpool(service(request).talks.rewind, caller.owner, id, body.turns)
    return await _head(service(request), caller, moved)


@router.get(ROUTE + "/{id}/export", response_class=Response, responses={200: FILE, **ERRORS})
async def export_state(
    id: Id, request: Request, caller: Reads, at: Annotated[str | None, Query(max_length=200)] = None
) -> Response:
    """The state as a safetensors file, where `id` stands or at a response of its talk."""
    served = service(request)
    data = await _reading(request, served.talks.export, caller.owner, _within(id, at))
    return Response(data, media_type=BYTES, headers={"Content-Disposition": f'attachment; filename="{id}.safetensors"'})


@router.get(ROUTE + "/{id}/summary", **gives(StateSummary))
async def summarise_state(
    id: Id, request: Request, caller: Reads, at: Annotated[str | None, Query(max_length=200)] = None
) -> dict[str, Any]:
    """The state in numbers: for each layer's pieces norm, rms, max_abs; delta, rel_delta and cosine against the state
    before the first token; of WKV matrices the mean effective and stable rank. null: not defined.
    """
    served = service(request)
    return await _reading(request, _summary, served, caller.owner, id, _within(id, at))


def _summary(served: Service, owner: str, id: str, at: str) -> dict[str, Any]:
    """In a thread."""
    state = served.talks.state(owner, at)
    return {"id": id, "object": "state.summary", "layers": states_summary.layers(state, served.model.state())}


async def _reading(request: Request, work: Callable[..., T], *given: Any) -> T:
    """What may wait long for the engine to read a state anew: few threads do, so that the others' work finds some."""
    limiter = service(request).readers
    return await while_connected(request, to_thread.run_sync(work, *given, limiter=limiter))


async def _head(served: Service, caller: Caller, id: str) -> dict[str, Any]:
    """What is said of a head that was made or moved."""
    info = await run_in_threadpool(served.talks.info, caller.owner, id)
    return {"id": id, "object": "state", "at": info.at}


def _within(id: str, at: str | None) -> str:
    """The id of the place that is meant. 400 for one of another talk."""
    if at is None:
        return id
    if at[5:37] != id[6:38]:
        raise ApiError(400, "at: wanted the id of a response of this talk", param="at")
    return at


def _listed(talk: Listed) -> dict[str, Any]:
    return {
        "id": talk.id,
        "object": "state",
        "created_at": int(talk.created),
        "used_at": int(talk.used),
        "title": talk.title,
        "instructions": talk.system,
    }

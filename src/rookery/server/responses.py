"""/v1/responses: talks that the server keeps. A response is a turn of a talk, and its id goes on from there.

A response is stored when it says that it is over, not before.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from rookery.server import responses_answer, responses_request, talk_ids
from rookery.server.answers import ResponseEvent, gives
from rookery.server.answers_stored import Deleted, Page, StoredResponse
from rookery.server.errors import ApiError
from rookery.server.keys import Caller, needs
from rookery.server.responses_shapes import ResponseRequest
from rookery.server.responses_work import Work
from rookery.server.service import Service, service
from rookery.server.sse import EventStream, while_connected
from rookery.session.tree import INITIAL

router = APIRouter()
ROUTE = "/v1/responses"
Id = Annotated[str, Path(max_length=200)]
Reads = Annotated[Caller, Depends(needs("read"))]
Chats = Annotated[Caller, Depends(needs("chat"))]


@router.post(ROUTE, **gives(StoredResponse, ResponseEvent))
async def create_response(body: ResponseRequest, request: Request, caller: Chats) -> Response:
    """Say something and be answered. With `stream` the answer is server-sent events, the last of them
    `response.completed`, `response.incomplete` or `response.failed`.
    """
    served = service(request)
    work = await run_in_threadpool(responses_request.work, served, caller.owner, body, request.state.request_id)
    await work.begin()
    if body.stream:
        return EventStream(work.frames(), served.settings.ping_seconds, served.settings.stuck_seconds)
    return JSONResponse(await while_connected(request, work.finished()))


@router.get(ROUTE + "/{id}", **gives(StoredResponse))
async def retrieve_response(
    id: Id, request: Request, caller: Reads, stream: Annotated[bool, Query()] = False
) -> dict[str, Any]:
    """A stored response as it was answered, or one in the making. `stream`: not possible, its events are not kept."""
    served = service(request)
    if stream:
        raise ApiError(400, "stream: events are not kept; ask without it", code="unsupported", param="stream")
    if (work := _running(served, caller, id)) is not None:
        return work.answer.body("in_progress")
    return await run_in_threadpool(_stored, served, caller.owner, id)


@router.get(ROUTE + "/{id}/input_items", **gives(Page))
async def list_input_items(
    id: Id,
    request: Request,
    caller: Reads,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=200)] = None,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """What was said in this turn."""
    served = service(request)
    turn = await run_in_threadpool(served.talks.turn, caller.owner, id)
    items = responses_answer.said(turn, id[-32:])[:: 1 if order == "asc" else -1]
    return page(items, limit, after)


@router.delete(ROUTE + "/{id}", **gives(Deleted))
async def delete_response(id: Id, request: Request, caller: Chats) -> dict[str, Any]:
    """Delete the last response of a branch, and with a talk's only one the talk; 400 for a response that others follow,
    which were made of it.
    """
    await run_in_threadpool(_delete, service(request), caller.owner, id)
    return {"id": id, "object": "response", "deleted": True}


@router.post(ROUTE + "/{id}/cancel", **gives(StoredResponse))
async def cancel_response(id: Id, request: Request, caller: Chats) -> dict[str, Any]:
    """End a response in the making; what was written is kept. 400 for one that is over."""
    served = service(request)
    if (work := _running(served, caller, id)) is not None:
        work.cancel()
        return await work.finished()
    await run_in_threadpool(_stored, served, caller.owner, id)
    raise ApiError(400, "this response is over; there is nothing to cancel", code="response_over")


def _running(served: Service, caller: Caller, id: str) -> Work | None:
    work = served.works.get(id)
    return work if work is not None and work.owner == caller.owner else None


def _stored(served: Service, owner: str, id: str) -> dict[str, Any]:
    """In a thread."""
    turn = served.talks.turn(owner, id)
    session = served.talks.open(owner, id)
    return responses_answer.of_turn(session, turn, served.variant_of(session).name)


def _delete(served: Service, owner: str, id: str) -> None:
    """In a thread. A talk that began with a state of its own stays: it can be begun with again."""
    talks, session = served.talks, served.talks.open(owner, id)
    talks.delete_turn(owner, id)
    state = talk_ids.state(session.name)
    if session.settings.get(INITIAL) is None and not talks.info(owner, state).turns:
        talks.delete(owner, state)


def page(items: list[dict[str, Any]], limit: int, after: str | None) -> dict[str, Any]:
    """A page of a list, as OpenAI gives it. 400 where `after` is none of its ids."""
    begin = 0
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise ApiError(400, f"after: {after[:100]!r} is not in this list", param="after")
        begin = ids.index(after) + 1
    found = items[begin : begin + limit]
    return {
        "object": "list",
        "data": found,
        "first_id": found[0]["id"] if found else "",
        "last_id": found[-1]["id"] if found else "",
        "has_more": begin + limit < len(items),
    }

"""Every refusal in OpenAI's shape: {"error": {"message", "type", "param", "code"}}.

Routes raise `ApiError`, or any RookeryError, which has its status here; what is none of these is a 500 (guard.py), and
says nothing of its cause but the request's id.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from rookery import errors
from rookery.engine import Busy, Cancelled
from rookery.server import talk_ids

INVALID, UNAVAILABLE = "invalid_request_error", "service_unavailable"
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large", 503: UNAVAILABLE}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "The request makes no sense as it is",
        401: "No key, or one that is not known",
        403: "The key may not do this",
        404: "No such thing, or it is another's",
        408: "The request came too slowly",
        413: "The request is too large",
        429: "Too many requests wait; see Retry-After",
        431: "Too many headers",
        500: "A fault of the server",
        503: "Not ready, or the store cannot be written; see Retry-After",
    }.items()
}


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.type = type or TYPES.get(status) or ("server_error" if status >= 500 else INVALID)
        self.code = code or CODES.get(status)
        self.headers = dict(headers or {})


def gone() -> ApiError:
    """What is told where the server ends before the answer does."""
    return ApiError(503, "the server is going down", code="draining", headers={"Retry-After": "5"})


def as_api(error: Exception) -> ApiError | None:
    """What a client is told of `error`; None if that is no business of a client's."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _validation(error)
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, Cancelled):  # by the engine's end: a client that has cancelled is told nothing
        return gone()
    if isinstance(error, Busy):
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
        return ApiError(429, "too many requests wait; try again later", code="queue_full", headers=headers)
    if isinstance(error, errors.RookeryError):
        return _of_rookery(error)
    return None


def _of_http(error: HTTPException) -> ApiError:
    """What the framework refuses."""
    message = str(error.detail)
    if error.status_code == 404:
        message = "no such path; /openapi.json describes those that there are"
    elif error.status_code == 405:
        message = f"not with this method, but with {(error.headers or {}).get('Allow', 'another')}"
    return ApiError(error.status_code, message, headers=error.headers)


def _of_rookery(error: errors.RookeryError) -> ApiError | None:
    if isinstance(error, errors.NoSuchTalk):
        return ApiError(404, str(talk_ids.unknown()))  # the store's own text may name a path
    if isinstance(error, errors.StoreError | errors.CannotWrite):
        headers = {"Retry-After": "5"}
        message = "the store of talks cannot be used now; nothing was kept"  # its own text may name a path
        return ApiError(503, message, code="store_unavailable", headers=headers)
    if isinstance(error, errors.MissingExtra):
        return ApiError(501, str(error), code="not_installed")
    if isinstance(error, errors.FileError):
        return ApiError(400, str(error).removeprefix(f"{error.path}: "))
    if isinstance(
        error,
        errors.InputError | errors.TokenError | errors.TokenizerError | errors.TemplateError | errors.StateError,
    ):
        return ApiError(400, str(error))
    return None


def _validation(error: RequestValidationError) -> ApiError:
    """What is wrong with which field. Where one of several forms was wanted, the one that went furthest complains."""
    first = max(error.errors(), key=lambda complaint: len(complaint["loc"]))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first.get('ctx', {}).get('error', 'it cannot be read')}")
    place = first["loc"][1:] if first["loc"][0] != "body" else _within(error.body, first)
    param = ".".join(map(str, place))[:200] or None
    return ApiError(400, f"{param or first['loc'][0]}: {first['msg']}"[:500], param=param)


def _within(body: Any, complaint: Mapping[str, Any]) -> list[str | int]:
    """The place in the body, without the names of forms that pydantic puts between."""
    found: list[str | int] = []
    for part in complaint["loc"][1:]:
        if isinstance(body, Mapping | list):
            with suppress(LookupError, TypeError):
                body = body[part]
                found.append(part)
    return [*found, complaint["loc"][-1]] if complaint["type"] == "missing" else found


def body(error: Exception) -> dict[str, Any]:
    """The JSON of an answer, or of the last frame of a stream that fails."""
    told = as_api(error) or ApiError(500, "a fault of the server; its log has more under this request's id")
    return {"error": {"message": told.message, "type": told.type, "param": told.param, "code": told.code}}


def answer(error: Exception) -> Response:
    """The whole answer."""
    told = as_api(error)
    return JSONResponse(body(error), told.status if told else 500, headers=told.headers if told else None)


async def _answer(request: Request, error: Exception) -> Response:
    if as_api(error) is None:
        raise error
    found = answer(error)
    if found.status_code == 405:
        found.headers["Allow"] = _allowed(request)
    return found


def _allowed(request: Request) -> str:
    """All methods of the path: each is a route of its own, and Starlette names those of one."""
    routes = [route for router in request.app.state.routers for route in router.routes]
    there = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for route in there for method in route.methods}))


def install(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Answer errors of the routes so."""
    app.state.routers = routers
    for kind in (ApiError, RequestValidationError, HTTPException, errors.RookeryError):
        app.add_exception_handler(kind, _answer)


def places(error: Exception) -> str:
    """The places of a fault, without its message: that may hold a user's words."""
    frames = traceback.extract_tb(error.__traceback__)
    return "\n".join(f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)

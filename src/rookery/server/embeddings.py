"""/v1/embeddings: a text as a vector of length one.

pooling "mean" (the default): the mean over the tokens of what the last layer gives, C numbers.
pooling "state": what the model remembers rather than what it thinks: of every layer's WKV state the mean over the keys
(v4: numerator by denominator), layers * C numbers.
RWKV reads from left to right and was not trained for this: good for likeness of texts, not for a search in millions.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from rookery import engine
from rookery.engine import Ended, Failed, Start
from rookery.server import feed
from rookery.server.errors import ERRORS, ApiError, gone
from rookery.server.keys import Caller, needs
from rookery.server.service import Service, service
from rookery.server.shapes import Name, Shape
from rookery.server.sse import while_connected
from rookery.server.texts import Prompts, prompts
from rookery.server.variants import Variant
from rookery.state import Array, State

router = APIRouter()


class EmbeddingRequest(Shape):
    """`input`: a text, or a list of them; a text may also be token ids, or ids and texts, one after the other.
    `dimensions` is refused: a vector cut short would mean something else. `pooling` is an extension.
    """

    model: Name | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, lt=2**31)
    pooling: Literal["mean", "state"] | None = None
    user: Name | None = None


class Embedding(BaseModel):
    """`embedding`: numbers, or their bytes as little-endian float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


@router.post("/v1/embeddings", responses={**ERRORS, 200: {"model": Embeddings}}, response_model=None)
@router.post("/embeddings", include_in_schema=False, response_model=None)
async def embeddings(
    body: EmbeddingRequest, request: Request, caller: Annotated[Caller, Depends(needs("chat"))]
) -> JSONResponse:
    """A vector for each text."""
    served = service(request)
    variant = served.variant(body.model)
    if body.dimensions is not None:
        raise ApiError(400, "dimensions: the vectors have one length here; leave it out", param="dimensions")
    texts = await run_in_threadpool(prompts, served, body.input, "input")
    found = await while_connected(request, vectors(served, variant, texts, caller.owner, body.pooling or "mean"))
    count = sum(map(len, texts))
    data = [
        {"object": "embedding", "index": n, "embedding": _written(vector, body.encoding_format)}
        for n, vector in enumerate(found)
    ]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "data": data, "model": variant.name, "usage": usage})


async def vectors(served: Service, variant: Variant, texts: list[list[int]], owner: str, pooling: str) -> list[Array]:
    gate = asyncio.Semaphore(served.settings.max_batch)

    async def one(tokens: list[int]) -> Array:
        async with gate:
            return await _vector(served, variant, tokens, owner, pooling)

    tasks = [asyncio.create_task(one(tokens)) for tokens in texts]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _vector(served: Service, variant: Variant, tokens: list[int], owner: str, pooling: str) -> Array:
    """[C], or [layers * C] for "state"; its length is one."""

    def start() -> Start:
        return Start(state=variant.state(), prompt=tokens)

    def sequence(listen: Callable[[engine.Event], None]) -> engine.Sequence:
        return engine.Sequence(start, listen, owner=owner, hidden=pooling == "mean", model=variant.model)

    async with feed.open(served, sequence) as events:
        async for event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Ended):
                served.metrics.prompt(len(tokens), 0)
                if event.hidden is not None:
                    return _unit(event.hidden)
                assert event.point is not None
                return _unit(remembered(event.point[1]))
    raise gone()


def remembered(state: State) -> Array:
    """[layers * C]: see the module's words on "state"."""
    found = []
    for n in range(state.config.n_layer):
        wkv = state.layer(n).wkv.astype(np.float64)  # [H, N_key, N_value]; v4: [3, C]
        v4 = wkv.ndim == 2
        found.append(wkv[0] / np.maximum(wkv[1], 1e-30) if v4 else wkv.mean(axis=1).ravel())
    return np.concatenate(found)


def _unit(vector: Array) -> Array:
    wide = vector.astype(np.float64)
    length = float(np.linalg.norm(wide))
    return (wide / length if length else wide).astype("<f4")


def _written(vector: Array, form: str | None) -> list[float] | str:
    return base64.b64encode(vector.tobytes()).decode() if form == "base64" else vector.tolist()

"""The model that is served and its variants, as OpenAI's list and as llama.cpp's /props."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from rookery import __version__
from rookery.server.errors import ERRORS
from rookery.server.keys import Caller, needs
from rookery.server.service import Service, service
from rookery.server.tokens import end_name, jinja
from rookery.server.variants import Variant

router = APIRouter()
ASKED: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 403, 404, 503)}
Reader = Annotated[Caller, Depends(needs("read"))]


class Meta(BaseModel):
    """Sizes. `size`: bytes of the file or folder."""

    n_params: int
    n_vocab: int
    n_embd: int
    n_layer: int
    n_ctx_train: int | None = None  # none: no length is too long
    size: int
    version: str
    fingerprint: str


class ModelCard(BaseModel):
    """`parent`: of which model it is a variant."""

    id: str
    aliases: list[str]
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rookery"
    parent: str | None = None
    meta: Meta


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Props(BaseModel):
    """What llama.cpp's clients look at."""

    model_alias: str
    build_info: str
    total_slots: int
    chat_template: str
    bos_token: str
    eos_token: str
    modalities: dict[str, bool]
    default_generation_settings: dict[str, Any]


@router.get("/v1/models", responses=ASKED)
@router.get("/models", include_in_schema=False)
async def models(request: Request, caller: Reader) -> ModelList:
    """The model, and its variants."""
    served = service(request)
    return ModelList(data=[await run_in_threadpool(_card, served, each) for each in served.variants])


@router.get("/v1/models/{id:path}", responses=ASKED)
@router.get("/models/{id:path}", include_in_schema=False)
async def model(id: str, request: Request, caller: Reader) -> ModelCard:
    """That model."""
    served = service(request)
    return await run_in_threadpool(_card, served, served.variant(id or "?"))


@router.get("/props", responses=ASKED)
async def props(request: Request, caller: Reader) -> Props:
    """Settings of the server, as far as they concern its clients."""
    served = service(request)
    end, sampling = end_name(served.model.tokenizer) or "", served.sampling
    params = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return Props(
        model_alias=served.name,
        build_info=f"rookery {__version__}",
        total_slots=served.settings.max_batch,
        chat_template=jinja(served.template) or "",
        bos_token=end,
        eos_token=end,
        modalities={"vision": False, "audio": False},
        default_generation_settings={"n_ctx": served.settings.max_prompt_tokens, "params": params},
    )


def _card(served: Service, variant: Variant) -> ModelCard:
    weights, config = variant.model.weights, variant.model.config
    changed, size = _file(weights.path)
    meta = Meta(
        n_params=weights.parameters,
        n_vocab=config.n_vocab,
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        size=size,
        version=config.version,
        fingerprint=weights.fingerprint,
    )
    parent = None if variant is served.variants[0] else served.name
    return ModelCard(id=variant.name, aliases=list(variant.names), created=changed, parent=parent, meta=meta)


def _file(path: str) -> tuple[int, int]:
    """When a model's file was last changed, and its bytes; of a folder, all its files'."""
    try:
        size = os.path.getsize(path)
        if os.path.isdir(path):
            size = sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
        return int(os.path.getmtime(path)), size
    except OSError:  # it was taken away, or never was a file
        return 0, 0

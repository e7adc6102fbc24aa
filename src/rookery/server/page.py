"""The page at `/`: three files of this package, which talk with the server that gave them and with nobody else."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

FOLDER = Path(__file__).with_name("static")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked again each time: a newer server has a newer page
}

router = APIRouter(include_in_schema=False)


def _file(name: str, media_type: str) -> FileResponse:
    return FileResponse(FOLDER / name, media_type=media_type, headers=HEADERS)


@router.get("/")
async def index() -> FileResponse:
    return _file("index.html", "text/html")


@router.get("/page.js")
async def script() -> FileResponse:
    return _file("page.js", "text/javascript")


@router.get("/page.css")
async def style() -> FileResponse:
    return _file("page.css", "text/css")

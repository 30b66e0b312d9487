"""The documents: OpenAPI as JSON, and a page that renders it without any other host."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

STATIC = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Asset:
    """Bytes that do not change while the process lives."""

    def __init__(self, body: bytes, media_type: str) -> None:
        self._body = body
        self._media_type = media_type
        self._etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'

    async def answer(self, request: Request) -> Response:
        """The bytes, or 304 for who has them."""
        headers = {"etag": self._etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == self._etag:
            return Response(status_code=304, headers=headers)
        return Response(self._body, media_type=self._media_type, headers=headers)


def router(document: dict[str, Any]) -> APIRouter:
    """The page, its assets, the document. Each file has its own route: no path is ever joined."""
    routes = APIRouter()
    openapi = Asset(json.dumps(document, ensure_ascii=False).encode(), "application/json")
    _add(routes, "/openapi.json", openapi.answer)
    add_files(routes, STATIC, "/docs", {"docs.html": "/docs"})
    return routes


def add_files(routes: APIRouter, folder: Path, below: str, pages: dict[str, str]) -> None:
    """A route for each file of a folder: pages at paths of their own, all others below one."""
    for file in sorted(folder.iterdir()):
        if file.is_file():
            asset = Asset(file.read_bytes(), _TYPES[file.suffix])
            _add(routes, pages.get(file.name, f"{below}/{file.name}"), asset.answer)


def _add(routes: APIRouter, path: str, answer: Callable[[Request], Any]) -> None:
    routes.add_route(path, answer, methods=["GET"])

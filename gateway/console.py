"""The console: a page for people at `/`, and the totals that its charts are drawn from.

It scrapes nothing itself and reads no token; the page calls the same routes as anyone else.
"""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway import docs
from gateway.caller import Callers
from gateway.scrape import Scraper

METRICS = "/console/metrics"
READING = "/gristmill.registry.v1.RegistryService/GetServerInfo"
"""The method whose scope the totals need."""


def router(callers: Callers, scraper: Scraper) -> APIRouter:
    """The page and its assets, for anyone; the totals, for who may read."""
    routes = APIRouter()
    docs.add_files(routes, docs.STATIC / "console", "/console", {"console.html": "/"})

    async def totals(request: Request) -> Response:
        await callers.admit(READING, request.scope, request.headers)
        return JSONResponse(await scraper.totals())

    routes.add_route(METRICS, totals, methods=["GET"])
    return routes

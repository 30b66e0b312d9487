"""Puts the gateway together: table, channels, routes, documents. Opens no port."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from gateway import console, contract, docs, guard, health, openapi
from gateway.bodies import ENCODINGS, BodyBounds, BodyBudget
from gateway.caller import Callers, Delegation
from gateway.calls import Calls
from gateway.config import GatewayConfig, listed
from gateway.contract import Method, Mounted
from gateway.dialect import Dialect, ErrorShape, Operation
from gateway.edge import Edge, EdgeParts
from gateway.errors import Answer, RefusalError
from gateway.inhand import InHand
from gateway.oip import operations as oip
from gateway.oip import routes as oip_routes
from gateway.openai import routes as openai
from gateway.ratelimit import limiter
from gateway.routing import RouteTable
from gateway.scrape import Scraper
from gateway.simple import operations as simple
from gateway.transcode import Limits, Transcoder
from gateway.upstream import connect
from services.runtime.auth import Authenticator, TokenFile
from services.runtime.errors import NotImplementedYet
from services.runtime.tracing import Tracing

DIALECTS: tuple[tuple[Sequence[Operation], ErrorShape], ...] = (
    (openai.OPERATIONS, openai.error_shape),
    (oip.OPERATIONS, oip_routes.error_shape),
    (simple.OPERATIONS, simple.error_shape),
)
"""What is spoken besides the contract."""


@dataclass(frozen=True)
class Gateway:
    """The application and what its lifecycle needs."""

    app: FastAPI
    table: RouteTable[Method]
    in_hand: InHand
    bodies: BodyBudget
    calls: Calls
    callers: Callers
    scraper: Scraper

    def drain(self) -> None:
        """Refuse new work; end the streams that would never end."""
        self.in_hand.draining = True
        self.calls.drain()

    async def close(self) -> None:
        """Close what leads out of this process."""
        await self.calls.close()
        await self.callers.close()
        await self.scraper.close()


def table_of(mounted: Sequence[Mounted] = contract.MOUNTED) -> RouteTable[Method]:
    """The table of every annotated method; ValueError where two want the same requests."""
    return RouteTable(route for service in mounted for route in contract.routes(service))


def spoken() -> list[Operation]:
    """Every operation of every dialect."""
    return [one for operations, _ in DIALECTS for one in operations]


def build(config: GatewayConfig, mounted: Sequence[Mounted] = contract.MOUNTED) -> Gateway:
    """The gateway of a configuration; ValueError says what is wrong with it."""
    tokens = TokenFile.read(config.token_file) if config.token_file else None
    table = table_of(mounted)
    calls = Calls(
        connect(config), Tracing("gateway", config.otlp_endpoint, config.trace_sample_ratio)
    )
    in_hand = InHand(config.max_concurrent_requests)
    bodies = BodyBudget(config.max_buffered_bytes)
    dialects: list[Dialect] = []
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(
        Edge,
        parts=EdgeParts(
            guard.guard(
                listed(config.allowed_origins),
                listed(config.allowed_hosts),
                tokens=tokens is not None,
                encodings=ENCODINGS if config.compressed_bodies else (),
            ),
            in_hand,
            BodyBounds(config.max_body_bytes, bodies),
            lambda scope, found: _shaped(dialects, scope, found),
            config.log_sample_every,
        ),
    )
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _refuse)
    app.include_router(
        health.router(health.Readiness(calls.upstreams, in_hand, config.probe_timeout_s))
    )
    app.include_router(docs.router(openapi.document(table, spoken(), guarded=tokens is not None)))
    callers = Callers(
        Authenticator(tokens),
        Delegation(config.own_token()),
        limiter(
            config.rate_limit_per_s,
            config.rate_limit_burst,
            config.rate_limit_redis_url,
            config.rate_limit_redis_timeout_ms / 1000,
        ),
        config.rate_limit_per_s,
    )
    scraper = Scraper(config.metrics())
    app.include_router(console.router(callers, scraper))
    limits = Limits(
        config.default_timeout_s,
        config.default_stream_timeout_s,
        config.max_json_depth,
        config.ping_interval_s,
    )
    dialects += (Dialect(found, shape, calls, callers, limits) for found, shape in DIALECTS)
    # Before the few fixed routes, since nearly every request is for them.
    app.router.routes[:0] = [Transcoder(table, calls, callers, limits), *dialects]
    return Gateway(app, table, in_hand, bodies, calls, callers, scraper)


def _shaped(dialects: Sequence[Dialect], scope: Scope, found: Answer) -> Answer:
    for dialect in dialects:
        if dialect.matches(scope)[1]:
            return dialect.shaped(found, scope["path"])
    return found


async def _refuse(request: Request, error: Exception) -> Response:
    """What Starlette and FastAPI refuse themselves, in our shape: the edge writes it."""
    if isinstance(error, HTTPException):
        if error.status_code == 501:
            raise NotImplementedYet(error.detail) from None
        raise RefusalError(error.status_code, headers=error.headers) from None
    raise RefusalError(400) from None

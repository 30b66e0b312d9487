"""Whether this process lives, and whether everything behind it answers. Calls health only."""

import asyncio
from collections.abc import Mapping

from fastapi import APIRouter
from starlette.responses import JSONResponse

from gateway.inhand import InHand
from gateway.upstream import Upstream


class Readiness:
    """Asks every upstream; those who ask at the same time share the answer."""

    def __init__(
        self, upstreams: Mapping[str, Upstream], in_hand: InHand, probe_timeout_s: float
    ) -> None:
        self._upstreams = upstreams
        self._in_hand = in_hand
        self._probe_timeout_s = probe_timeout_s
        self._probe: asyncio.Task[dict[str, str]] | None = None

    async def states(self) -> dict[str, str]:
        """The health status of each upstream, by name."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._ask())
        return await asyncio.shield(self._probe)

    async def _ask(self) -> dict[str, str]:
        names = list(self._upstreams)
        states = await asyncio.gather(
            *(self._upstreams[name].serving(self._probe_timeout_s) for name in names)
        )
        return dict(zip(names, states, strict=True))

    async def answer(self) -> JSONResponse:
        """200 when everything serves, else 503; each upstream with its status."""
        states = await self.states()
        ready = all(state == "SERVING" for state in states.values())
        status = "SERVING" if ready else "NOT_SERVING"
        if self._in_hand.draining:
            status = "DRAINING"
        body = {
            "status": status,
            "upstreams": {name: {"status": state} for name, state in states.items()},
        }
        serving = status == "SERVING"
        headers = {} if serving else {"retry-after": "1"}
        return JSONResponse(body, 200 if serving else 503, headers)


def router(readiness: Readiness) -> APIRouter:
    """The two health routes."""
    routes = APIRouter()

    @routes.get("/health/live")
    async def live() -> JSONResponse:
        return JSONResponse({"status": "LIVE"})

    @routes.get("/health/ready")
    async def ready() -> JSONResponse:
        return await readiness.answer()

    return routes

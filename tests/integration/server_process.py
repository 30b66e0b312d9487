"""A server of its own process: it holds calls until it is told, and says what happens to it.

One JSON object a line on standard output; a line on standard input releases what is held.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

from pydantic_settings import SettingsConfigDict

from services.runtime import logs
from services.runtime.config import ServerConfig, load
from services.runtime.errors import Draining
from services.runtime.health import Health
from services.runtime.server import Server, main
from tests.harness import Scripted, bidi_response, classifier, pb


class Config(ServerConfig):
    """The settings of this process."""

    model_config = SettingsConfigDict(env_prefix="GRISTMILL_SERVER_PROCESS_")


def say(event: str, **more: Any) -> None:
    """Tell the test."""
    print(json.dumps({"event": event, **more}), flush=True)


class Behaviour:
    """What the calls do, and how many there were."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.draining = asyncio.Event()
        self.accepted = 0
        self.answered = 0

    async def unary(self, request: Any, _context: Any) -> Any:
        """Answer, or hold a call whose text says so."""
        self.accepted += 1
        text = request.items[0].text.text
        if text == "hold":
            await self._hold()
        else:
            await asyncio.sleep(0)
        self.answered += 1
        return pb.ClassifyResponse(model=text)

    async def stream(self, request: Any, _context: Any) -> AsyncIterator[Any]:
        """One message, then nothing until the drain; then one more, the item in hand."""
        yield pb.ClassifyStreamResponse(index=0)
        await self.draining.wait()
        yield pb.ClassifyStreamResponse(index=1)
        raise Draining("this server is shutting down")

    async def bidi(self, requests: Any, _context: Any) -> AsyncIterator[Any]:
        """Echo the first id, then hold the stream whatever the drain wants."""
        async for request in requests:
            yield bidi_response(request.items[0].id)
            await self._hold()

    async def _hold(self) -> None:
        say("held")
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            say("cancelled")
            raise

    def begin_drain(self) -> None:
        """What a service does when the drain begins."""
        self.draining.set()
        say("draining")

    async def close(self) -> None:
        """What a service does when nothing is in hand any more."""
        say("closing", accepted=self.accepted, answered=self.answered)


async def listen_to_the_test(behaviour: Behaviour) -> None:
    """Release what is held on the first line."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    if await reader.readline():
        behaviour.released.set()


async def run(config: Config) -> None:
    """Serve until a signal."""
    behaviour = Behaviour()
    service = classifier(
        Scripted(behaviour.unary, behaviour.stream, behaviour.bidi),
        on_drain=[behaviour.begin_drain],
        on_close=[behaviour.close],
    )
    server = Server(config, service, Health())
    listening = asyncio.ensure_future(listen_to_the_test(behaviour))

    async def started() -> None:
        server.ready()
        say("listening", port=server.port, transport=server.transport)

    await server.run(started)
    listening.cancel()


if __name__ == "__main__":
    settings = load(Config, sys.argv[1:])
    logs.configure("server-process", settings.log_level, settings.log_format)
    main(lambda: run(settings))

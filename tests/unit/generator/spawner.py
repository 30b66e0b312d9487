"""Starts engine processes one after another on uvloop while grpc is busy; prints how they began.

A process of its own: the tests' loop is not uvloop, and grpc's fork handlers are for the process.
"""

import asyncio
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import uvloop

from services.generator.engine import EngineSettings
from services.generator.engines import openvino

PATH = "/harness.Echo/Echo"


async def _echo(request: bytes, context: Any) -> bytes:
    return request


async def _first_line(engine: openvino.OpenVinoEngine) -> str:
    ours, theirs = socket.socketpair()
    process = engine._spawn(theirs.fileno())
    theirs.close()
    reader, writer = await asyncio.open_connection(sock=ours)
    line = await reader.readline()
    writer.close()
    return f"{line.decode().strip()} {await asyncio.to_thread(process.wait)}"


async def main(count: int) -> None:
    """Start `count` processes under load."""
    openvino.WORKER = "tests.unit.generator.hello_worker"
    engine = openvino.OpenVinoEngine(Path("none"), EngineSettings())
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    handler = grpc.unary_unary_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("harness.Echo", {"Echo": handler}),)
    )
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(PATH)

        async def ask() -> None:
            while True:
                await call(b"x" * 1000)

        asking = [asyncio.ensure_future(ask()) for _ in range(4)]
        began = Counter([await _first_line(engine) for _ in range(count)])
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    await server.stop(None)
    print(dict(began))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))

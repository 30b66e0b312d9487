"""The native server, with threads of its own for streams whose readers are behind.

pygrpc-native waits for such a reader on a thread of the loop's default pool, which has a few: some
slow readers would take them all, and nothing else that needs one would go on. Knows no service.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# `from pygrpc_native import aio` recurses in 0.5; the module itself does not.
import pygrpc_native.aio as native
from pygrpc_native._native import STREAM_CLOSED, STREAM_FULL

MOST_BEHIND = 4096
"""Streams that wait on a thread at once; further ones wait for one of these."""


class Server(native.Server):
    """A native server whose slow readers hold up nobody."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._behind = ThreadPoolExecutor(MOST_BEHIND, thread_name_prefix="slow-reader")

    async def _send(self, call: Any, context: Any, response: Any) -> bool:
        front = self._front
        data = self._encode(call, context, response)
        if data is None or front is None:
            return False
        context._initial_sent = True
        sent = front.stream_try_send(call.call_id, data)
        if sent == STREAM_FULL:
            loop = asyncio.get_running_loop()
            send = front.stream_send
            return bool(await loop.run_in_executor(self._behind, send, call.call_id, data))
        return bool(sent != STREAM_CLOSED)

    async def stop(self, grace: float | None) -> None:
        """As grpc.aio's; the threads end with their streams."""
        await super().stop(grace)
        self._behind.shutdown(wait=False)

"""Messages to JSON and back off the event loop where they are large. Knows no HTTP and no call.

proto3 JSON: names in lowerCamelCase, 64-bit integers as strings, bytes as base64. Fields without
presence are written even when they hold their default, so a score of 0 is there to be read.
"""

import asyncio
import json
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from gateway import plain

T = TypeVar("T")
# Several milliseconds of Python for each of these.
LARGE_BYTES = 64 * 1024


def encode(message: Message) -> bytes:
    """A message as JSON, on one line."""
    return json.dumps(
        plain.tree_of(message), separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


async def encoded(message: Message) -> bytes:
    """`encode`, in a thread for a large message."""
    return await aside(message.ByteSize(), lambda: encode(message))


async def aside(size_bytes: int, work: Callable[[], T]) -> T:
    """Run `work` here, or in a thread where its size would hold up everyone else."""
    if size_bytes < LARGE_BYTES:
        return work()
    return await asyncio.to_thread(work)

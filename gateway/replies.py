"""Writes answers to an ASGI `send`: one message, a stream of them, an error. Knows no method."""

import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from types import MappingProxyType

from google.protobuf.message import Message
from starlette.types import Send

from gateway import wire
from gateway.errors import Answer
from gateway.streams import Framing, Silence

JSON = "application/json"
NOTHING: Mapping[str, str] = MappingProxyType({})


async def reply(
    send: Send, body: bytes, status: int = 200, more: Mapping[str, str] = NOTHING
) -> None:
    """A message as a whole answer, with more headers."""
    fields = {"content-type": JSON, "content-length": str(len(body)), **more}
    await send(start_of(status, fields))
    await send({"type": "http.response.body", "body": body})


async def reply_cacheable(send: Send, body: bytes, headers: Mapping[str, str]) -> None:
    """A message that its reader may keep and ask for again; 304 for who has it already."""
    etag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
    fields = {"etag": etag, "cache-control": "private, no-cache", "vary": "authorization"}
    asked = [one.strip().removeprefix("W/") for one in headers.get("if-none-match", "").split(",")]
    if etag in asked or asked == ["*"]:
        await send(start_of(304, fields))
        await send({"type": "http.response.body", "body": b""})
        return
    await reply(send, body, more=fields)


async def reply_empty(send: Send) -> None:
    """An answer with headers only."""
    await send(start_of(204, {}))
    await send({"type": "http.response.body", "body": b""})


async def reply_error(send: Send, answer: Answer) -> None:
    """An error as a whole answer."""
    await reply(send, answer.encoded(), answer.http, answer.headers)


async def reply_stream(
    send: Send,
    items: AsyncGenerator[Message | Silence, None],
    framing: Framing,
    error_of: Callable[[Exception], Answer],
) -> None:
    """A stream. What fails before its first bytes is raised, so that it becomes a status.

    Silence begins the stream too: a caller of something that seldom happens should know that it
    was let in.
    """
    started = False
    try:
        async with aclosing(items):
            async for item in items:
                if isinstance(item, Silence):
                    data = framing.silence()
                else:
                    data = framing.message(await wire.encoded(item))
                if not started:
                    started = True
                    await send(start_of(200, _stream_headers(framing)))
                await send({"type": "http.response.body", "body": data, "more_body": True})
    except Exception as error:
        if not started:
            raise
        last = framing.error(error_of(error).encoded())
        await send({"type": "http.response.body", "body": last, "more_body": True})
    if not started:
        await send(start_of(200, _stream_headers(framing)))
    await send({"type": "http.response.body", "body": b""})


def _stream_headers(framing: Framing) -> dict[str, str]:
    # Proxies that hold a stream back until it ends make it useless.
    return {"content-type": framing.media_type, "x-accel-buffering": "no"}


def start_of(status: int, headers: dict[str, str]) -> dict[str, object]:
    """The beginning of an answer."""
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": raw}

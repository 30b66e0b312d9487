"""Classifies any number of items on a bidi stream, on a new one after a cut; awaiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import suppress

from gristmill_client._aio_bidi_streams import AsyncClassifyBidiStream
from gristmill_client._backlog import Backlog
from gristmill_client.errors import GristmillError
from gristmill_client.prediction import Item, Prediction


async def classify_many(
    open_stream: Callable[[], AsyncClassifyBidiStream],
    items: Iterable[Item] | AsyncIterable[Item],
    backlog: Backlog,
) -> AsyncIterator[tuple[int, Prediction]]:
    new = _each(items)
    while True:
        async with open_stream() as stream:
            while True:
                has_room = stream.has_room
                message = backlog.message(await _several(new, backlog.wanted)) if has_room else {}
                if not message and backlog.idle:
                    await _finish(stream)
                    return
                try:
                    if message:
                        await stream.send_many(message)
                        continue
                    name, prediction = await anext(stream)
                except GristmillError as error:
                    pause = backlog.cut(error)
                    break
                yield backlog.answered(name), prediction
        await asyncio.sleep(pause)


async def _finish(stream: AsyncClassifyBidiStream) -> None:
    """Ends well, which leaving would not: to the server that is a caller who gave up."""
    await stream.close_send()
    with suppress(GristmillError):
        await anext(stream, None)


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def _several(items: AsyncIterator[Item], count: int) -> list[Item]:
    found: list[Item] = []
    while len(found) < count:
        try:
            found.append(await anext(items))
        except StopAsyncIteration:
            break
    return found

"""Waiting for an event, but not for ever."""

import asyncio


async def within(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event came within so long."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True

"""Leaving a ClassifyBidi stream, or dropping it, leaves nothing behind, here or on the server."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from gristmill_client import AsyncClient, Client

from tests.unit.client.fake_bidi import FakeBidi, answer, held
from tests.unit.client.fakes import SOON_S, serving


def test_leaving_the_block_cancels_the_stream() -> None:
    fake = FakeBidi(held)
    before = set(threading.enumerate())
    with serving(fake.register) as address, Client(classifier=address) as client:
        with client.classify_bidi() as stream:
            stream.send_many(["x", "y"])
            assert fake.read.acquire(timeout=SOON_S)
        assert fake.gone.wait(SOON_S)
        assert list(stream) == []
        assert stream.pending == ("1", "2")
    expect_no_sender_since(before)


def expect_no_sender_since(before: set[threading.Thread]) -> None:
    """gRPC's threads, of which one pulls what is sent, end with the stream and the client."""
    end = time.monotonic() + SOON_S
    while left := [one for one in threading.enumerate() if one not in before]:
        if all(one.name.startswith("ThreadPoolExecutor") for one in left):  # the server's
            return
        assert time.monotonic() < end, left
        time.sleep(0.005)


async def test_leaving_the_async_block_cancels_the_stream() -> None:
    fake = FakeBidi(held)
    with serving(fake.register) as address:
        async with AsyncClient(classifier=address) as client:
            async with client.classify_bidi() as stream:
                await stream.send_many(["x", "y"])
                assert await asyncio.to_thread(fake.read.acquire, timeout=SOON_S)
            assert await asyncio.to_thread(fake.gone.wait, SOON_S)
            assert [name async for name, _ in stream] == []
            assert stream.pending == ("1", "2")
            others = asyncio.all_tasks() - {asyncio.current_task()}
            async with asyncio.timeout(SOON_S):
                await asyncio.gather(*others, return_exceptions=True)


def test_a_stream_that_is_dropped_is_cancelled() -> None:
    fake = FakeBidi(held)
    before = set(threading.enumerate())
    with serving(fake.register) as address, Client(classifier=address) as client:
        stream = client.classify_bidi()
        stream.send("x")
        assert fake.read.acquire(timeout=SOON_S)
        del stream
        gc.collect()
        assert fake.gone.wait(SOON_S)
    expect_no_sender_since(before)


def test_closing_from_another_thread_ends_the_iteration() -> None:
    fake = FakeBidi(held)
    with serving(fake.register) as address, Client(classifier=address) as client:
        with client.classify_bidi() as stream, ThreadPoolExecutor() as threads:
            stream.send("x")
            reading = threads.submit(lambda: next(stream, "the end"))
            assert fake.read.acquire(timeout=SOON_S)
            stream.close()
            assert reading.result(SOON_S) == "the end"


async def test_closing_from_another_task_ends_the_iteration() -> None:
    fake = FakeBidi(held)
    with serving(fake.register) as address:
        async with AsyncClient(classifier=address) as client, client.classify_bidi() as stream:
            await stream.send("x")
            reading = asyncio.ensure_future(anext(stream, "the end"))
            await asyncio.sleep(0)
            await stream.close()
            assert await reading == "the end"


async def test_a_cancelled_task_cancels_its_stream_and_stays_cancelled() -> None:
    fake = FakeBidi(held)
    with serving(fake.register) as address:
        async with AsyncClient(classifier=address) as client, client.classify_bidi() as stream:
            await stream.send("x")
            reading = asyncio.ensure_future(anext(stream))
            assert await asyncio.to_thread(fake.read.acquire, timeout=SOON_S)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert await asyncio.to_thread(fake.gone.wait, SOON_S)


def test_a_stream_that_is_read_to_its_end_is_not_cancelled() -> None:
    fake = FakeBidi(lambda fake, requests, context: answer(requests))
    with serving(fake.register) as address, Client(classifier=address) as client:
        with client.classify_bidi() as stream:
            stream.send("x")
            stream.close_send()
            assert [name for name, _ in stream] == ["1"]
        assert fake.ended.wait(SOON_S)
        assert not fake.gone.is_set()

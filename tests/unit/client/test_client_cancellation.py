"""Closing a stream, or giving up a task, stops the work on the server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from gristmill_client import AsyncClient, Client

from tests.unit.client.conftest import Twin
from tests.unit.client.fake_registry import FakeRegistry
from tests.unit.client.fakes import SOON_S, FakeClassifier, FakeGenerator, serving


def test_closing_a_text_stream_cancels_the_call(twin: Callable[..., Twin]) -> None:
    generator = FakeGenerator()
    generator.hold = True
    with serving(generator.register) as address:
        client = twin(generator=address)
        stream = client.open(lambda: client.client.stream("x"))
        assert client.next(stream) == "Hello"
        client.close(stream)
        assert generator.cancelled.wait(SOON_S)
        assert client.collect(stream) == []
        assert stream.text == "Hello"


def test_leaving_the_block_cancels_the_call() -> None:
    generator = FakeGenerator()
    generator.hold = True
    with serving(generator.register) as address, Client(generator=address) as client:
        with client.stream("x") as stream:
            next(stream)
        assert generator.cancelled.wait(SOON_S)


async def test_leaving_the_async_block_cancels_the_call() -> None:
    generator = FakeGenerator()
    generator.hold = True
    with serving(generator.register) as address:
        async with AsyncClient(generator=address) as client:
            async with client.stream("x") as stream:
                await anext(stream)
            assert await asyncio.to_thread(generator.cancelled.wait, SOON_S)


def test_closing_a_classification_cancels_the_call(twin: Callable[..., Twin]) -> None:
    classifier = FakeClassifier()
    classifier.hold = True
    with serving(classifier.register) as address:
        client = twin(classifier=address)
        stream = client.open(lambda: client.client.classify_stream(["a", "b"]))
        client.next(stream)
        client.close(stream)
        assert classifier.cancelled.wait(SOON_S)


async def test_a_cancelled_task_cancels_its_call_and_stays_cancelled() -> None:
    generator = FakeGenerator()
    generator.hold = True
    with serving(generator.register) as address:
        async with AsyncClient(generator=address) as client:
            stream = client.stream("x")
            await anext(stream)
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(generator.cancelled.wait, SOON_S)


async def test_closing_from_another_task_ends_the_iteration() -> None:
    generator = FakeGenerator()
    generator.hold = True
    with serving(generator.register) as address:
        async with AsyncClient(generator=address) as client:
            stream = client.stream("x")
            await anext(stream)
            task = asyncio.ensure_future(anext(stream, "the end"))
            await asyncio.sleep(0)
            await stream.close()
            assert await task == "the end"


def test_closing_a_watch_ends_it(twin: Callable[..., Twin]) -> None:
    begun, ended = threading.Event(), threading.Event()

    def silence(context: Any) -> Any:
        context.add_callback(ended.set)
        begun.set()
        ended.wait(SOON_S)
        yield from ()

    registry = FakeRegistry(watch_scripts=[silence])
    with serving(registry.register) as address:
        client = twin(registry=address)
        watch = client.open(lambda: client.client.models.watch())
        closing = threading.Thread(target=close_when, args=(begun, client, watch))
        closing.start()
        assert client.collect(watch) == []
        closing.join()
        assert ended.wait(SOON_S)


def close_when(begun: threading.Event, client: Twin, watch: Any) -> None:
    """From another thread, as its kind allows."""
    begun.wait(SOON_S)
    if client.runner is None:
        watch.close()
    else:
        asyncio.run_coroutine_threadsafe(watch.close(), client.runner.get_loop()).result()

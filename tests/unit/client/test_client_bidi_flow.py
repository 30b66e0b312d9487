"""ClassifyBidi under way: how much is held, who waits for whom, and what wakes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import result_pb2
from gristmill_client import (
    AsyncClient,
    ClassifyBidiStream,
    Client,
    DeadlineExceeded,
    InvalidRequest,
)
from gristmill_client._bidi import QUEUE_BYTES, WINDOW, Outbox

from tests.unit.client.fake_bidi import FakeBidi
from tests.unit.client.fakes import SOON_S, error_info, refuse, serving

BRIEFLY_S = 0.05


def refused_at_go(fake: FakeBidi, requests: Iterator[Any], context: Any) -> Iterator[Any]:
    """Reads nothing."""
    fake.wait()
    refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "wrong", error_info("INVALID_FIELD"))
    yield


def large(fake: FakeBidi, requests: Iterator[Any], context: Any) -> Iterator[Any]:
    """More than any transport holds, for whoever does not read it."""
    for request in requests:
        label = result_pb2.LabelScore(label="x" * 20_000)
        found = result_pb2.ItemResult(classification=result_pb2.Classification(labels=[label]))
        yield pb.ClassifyBidiResponse(
            results=[pb.BidiResult(id=one.id, result=found) for one in request.items]
        )


# Much is sent before anything is read.


def test_a_window_may_be_sent_before_anything_is_read() -> None:
    with serving(FakeBidi(large).register) as address, Client(classifier=address) as client:
        with client.classify_bidi() as stream:
            sent = [stream.send("x") for _ in range(WINDOW)]
            assert not stream.has_room
            assert [name for name, _ in zip(sent, stream, strict=False)] == sent
            assert stream.has_room


async def test_a_window_may_be_sent_before_anything_is_read_async() -> None:
    with serving(FakeBidi(large).register) as address:
        async with AsyncClient(classifier=address) as client, client.classify_bidi() as stream:
            sent = [await stream.send("x") for _ in range(WINDOW)]
            assert not stream.has_room
            assert [(await anext(stream))[0] for _ in sent] == sent
            assert stream.has_room


def test_beyond_the_window_a_send_waits_no_longer_than_its_items_have() -> None:
    fake = FakeBidi()
    with serving(fake.register) as address, Client(classifier=address) as client:
        with client.classify_bidi() as stream:
            sent = stream.send_many(["x"] * (WINDOW - 1))
            sent += stream.send_many(["x"] * WINDOW)  # of any size, while there is room
            with pytest.raises(DeadlineExceeded, match="nothing was sent"):
                stream.send("x", id="too many", timeout=BRIEFLY_S)
            assert list(stream.pending) == sent
            for _ in range(WINDOW):
                next(stream)
            stream.send("x", id="fits", timeout=BRIEFLY_S)
            stream.close_send()
            assert len(list(stream)) == WINDOW
    assert "too many" not in fake.effective
    assert "fits" in fake.effective


async def test_beyond_the_window_a_send_waits_no_longer_than_its_items_have_async() -> None:
    fake = FakeBidi()
    with serving(fake.register) as address:
        async with AsyncClient(classifier=address) as client, client.classify_bidi() as stream:
            await stream.send_many(["x"] * WINDOW)
            with pytest.raises(DeadlineExceeded, match="nothing was sent"):
                await stream.send("x", id="too many", timeout=BRIEFLY_S)
            assert len(stream.pending) == WINDOW
            await anext(stream)
            await stream.send("x", id="fits", timeout=BRIEFLY_S)
            await stream.close_send()
            assert len([name async for name, _ in stream]) == WINDOW
    assert "too many" not in fake.effective


def test_bytes_that_wait_to_be_sent_are_bounded_too() -> None:
    outbox = Outbox()
    message = pb.ClassifyBidiRequest(items=[pb.BidiItem(id="1")])
    message.items[0].item.image.data = bytes(QUEUE_BYTES // 2)
    outbox.put(message)
    assert outbox.has_room
    message.items[0].id = "2"
    outbox.put(message)
    assert not outbox.settled
    outbox.take()
    assert outbox.has_room


# Who waits is woken.


def until_it_waits(stream: ClassifyBidiStream) -> None:
    """Until another thread waits to send, of which nothing tells."""
    end = time.monotonic() + SOON_S
    while not stream._sending._settled._waiters:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_result_that_is_taken_lets_a_waiting_thread_send() -> None:
    with serving(FakeBidi().register) as address, Client(classifier=address) as client:
        with client.classify_bidi() as stream, ThreadPoolExecutor() as threads:
            stream.send_many(["x"] * WINDOW)
            waiting = threads.submit(stream.send, "x", id="late")
            until_it_waits(stream)
            next(stream)
            assert waiting.result(SOON_S) == "late"


async def test_a_result_that_is_taken_lets_a_waiting_task_send() -> None:
    with serving(FakeBidi().register) as address:
        async with AsyncClient(classifier=address) as client, client.classify_bidi() as stream:
            await stream.send_many(["x"] * WINDOW)
            waiting = asyncio.ensure_future(stream.send("x", id="late"))
            await asyncio.sleep(0)
            assert not waiting.done()
            await anext(stream)
            async with asyncio.timeout(SOON_S):
                assert await waiting == "late"


@pytest.mark.parametrize("how", ["the server", "close", "close_send"])
def test_the_end_wakes_a_waiting_thread(how: str) -> None:
    fake = FakeBidi(refused_at_go)
    with serving(fake.register) as address, Client(classifier=address) as client:
        with client.classify_bidi() as stream, ThreadPoolExecutor() as threads:
            for _ in range(4):  # more than fits between: gRPC's own thread is stuck too
                stream.send_many(["x" * 12_000] * (WINDOW // 4))
            waiting = threads.submit(stream.send, "x")
            until_it_waits(stream)
            if how != "the server":
                getattr(stream, how)()
                with pytest.raises(RuntimeError, match="close"):
                    waiting.result(SOON_S)
                return
            fake.go.set()
            with pytest.raises(InvalidRequest):
                next(stream)
            with pytest.raises(InvalidRequest):
                waiting.result(SOON_S)


@pytest.mark.parametrize("how", ["the server", "close", "close_send"])
async def test_the_end_wakes_a_waiting_task(how: str) -> None:
    fake = FakeBidi(refused_at_go)
    with serving(fake.register) as address:
        async with AsyncClient(classifier=address) as client, client.classify_bidi() as stream:
            await stream.send_many(["x"] * WINDOW)
            waiting = asyncio.ensure_future(stream.send("x"))
            await asyncio.sleep(0)
            if how != "the server":
                await getattr(stream, how)()
                with pytest.raises(RuntimeError, match="close"):
                    await waiting
                return
            fake.go.set()
            with pytest.raises(InvalidRequest):
                await anext(stream)
            with pytest.raises(InvalidRequest):
                await waiting

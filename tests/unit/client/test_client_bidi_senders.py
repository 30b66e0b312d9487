"""Several send on one ClassifyBidi stream at once, each its own; and nothing is lost at its end."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from gristmill_client import AsyncClient, Client, Unavailable

from tests.unit.client.fake_bidi import FakeBidi, drains_after
from tests.unit.client.fakes import SOON_S, serving

SENDERS = 8
EACH = 100


def test_threads_may_send_at_once() -> None:
    """Each with a model of its own, which is the contract's state of the whole stream."""
    fake = FakeBidi()
    with serving(fake.register) as address, Client(classifier=address) as client:
        with client.classify_bidi() as stream, ThreadPoolExecutor(SENDERS) as threads:

            def send(sender: int) -> list[str]:
                found = []
                for number in range(EACH):
                    name = f"{sender}.{number}"
                    items = {name: "x", f"{name} too": "y"}
                    found += stream.send_many(items, model=f"m{sender}", top_k=sender + 1)
                return found

            senders = [threads.submit(send, sender) for sender in range(SENDERS)]
            received = [next(stream)[0] for _ in range(2 * SENDERS * EACH)]
            sent = [name for sender in senders for name in sender.result(SOON_S)]
            assert stream.pending == ()
            stream.close_send()
            assert list(stream) == []
    check_senders(fake, sent, received)


async def test_tasks_may_send_at_once() -> None:
    fake = FakeBidi()
    with serving(fake.register) as address:
        async with AsyncClient(classifier=address) as client, client.classify_bidi() as stream:

            async def send(sender: int) -> list[str]:
                found = []
                for number in range(EACH):
                    name = f"{sender}.{number}"
                    items = {name: "x", f"{name} too": "y"}
                    found += await stream.send_many(items, model=f"m{sender}", top_k=sender + 1)
                    await asyncio.sleep(0)
                return found

            async def all_sent() -> list[str]:
                shares = await asyncio.gather(*(send(sender) for sender in range(SENDERS)))
                await stream.close_send()
                return [name for share in shares for name in share]

            sending = asyncio.ensure_future(all_sent())
            received = [name async for name, _ in stream]
            sent = await sending
    check_senders(fake, sent, received)


def check_senders(fake: FakeBidi, sent: list[str], received: list[str]) -> None:
    assert len(received) == 2 * SENDERS * EACH
    assert sorted(received) == sorted(sent)
    for name, (model, options) in fake.effective.items():
        sender = int(name.partition(".")[0])
        assert (model.model, options.top_k) == (f"m{sender}", sender + 1)


def test_threads_that_send_while_a_server_drains_lose_nothing() -> None:
    """Each id is answered or pending."""
    with serving(FakeBidi(drains_after(50)).register) as address:
        with Client(classifier=address) as client, client.classify_bidi() as stream:
            with ThreadPoolExecutor(SENDERS) as threads:
                senders = [threads.submit(send_until_the_end, stream) for _ in range(SENDERS)]
                received = []
                with pytest.raises(Unavailable) as caught:
                    while True:
                        received.append(next(stream)[0])
                sent = [name for sender in senders for name in sender.result(SOON_S)]
            assert caught.value.reason == "DRAINING"
            assert len(received) == 50
            assert sorted([*received, *stream.pending]) == sorted(sent)


def send_until_the_end(stream: Any) -> list[str]:
    sent = []
    while True:
        try:
            sent.append(stream.send("x"))
        except Unavailable as error:
            assert error.reason == "DRAINING"
            return sent


async def test_tasks_that_send_while_a_server_drains_lose_nothing() -> None:
    """Many times: grpc.aio itself loses the status, and results, in about half of them."""
    with serving(FakeBidi(drains_after(50)).register) as address:
        async with AsyncClient(classifier=address) as client:
            for _ in range(20):
                async with client.classify_bidi() as stream:
                    sending = asyncio.ensure_future(send_until_the_end_async(stream))
                    received = []
                    with pytest.raises(Unavailable) as caught:
                        while True:
                            received.append((await anext(stream))[0])
                    sent = await sending
                    assert (caught.value.reason, len(received)) == ("DRAINING", 50)
                    assert sorted([*received, *stream.pending]) == sorted(sent)


async def send_until_the_end_async(stream: Any) -> list[str]:
    sent = []
    while True:
        try:
            sent.append(await stream.send("x"))
        except Unavailable as error:
            assert error.reason == "DRAINING"
            return sent
        await asyncio.sleep(0)

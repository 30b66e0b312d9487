"""Bodies in pieces: how many are taken, and what still comes after a refusal."""

import asyncio
import json
import time
from contextlib import suppress

import pytest

from gateway import protocol
from gateway.protocol import MAX_PARTS
from tests.harness import SOON_S, soon
from tests.unit.gateway.stack import BODY, CLASSIFY, Stack, stack
from tests.unit.gateway.talk import budget

PLAIN = json.dumps(BODY).encode()


async def raw(s: Stack, *parts: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which this has been said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", s.gateway.port)
    writer.writelines(parts)
    await soon(writer.drain())
    return reader, writer


def head(*lines: str) -> bytes:
    """The head of a request to classify."""
    said = (f"POST {CLASSIFY} HTTP/1.1", "host: localhost", "content-type: application/json")
    return "\r\n".join((*said, *lines, "", "")).encode()


def chunks(body: bytes, count: int) -> bytes:
    """A body in so many chunks of one byte, padded with spaces."""
    padded = body + b" " * (count - len(body))
    return b"".join(b"1\r\n%c\r\n" % one for one in padded) + b"0\r\n\r\n"


CHUNKED = head("transfer-encoding: chunked")


class TestPieces:
    @pytest.mark.parametrize(("count", "status"), [(MAX_PARTS, 200), (MAX_PARTS + 1, 413)])
    async def test_a_body_has_a_largest_number_of_chunks(self, count: int, status: int) -> None:
        async with stack() as s:
            reader, writer = await raw(s, CHUNKED, chunks(PLAIN, count))
            answer = await soon(reader.readuntil(b"\r\n"))
            assert answer.startswith(b"HTTP/1.1 %d " % status), answer
            writer.close()
            assert await s.gateway.gateway.in_hand.wait_idle(SOON_S)
            assert budget(s).held_bytes == 0

    async def test_each_request_of_a_connection_counts_by_itself(self) -> None:
        async with stack() as s:
            body = chunks(PLAIN, MAX_PARTS * 2 // 3)
            for _ in range(3):
                reader, writer = await raw(s, CHUNKED, body)
                for again in range(2):
                    assert (await soon(reader.readuntil(b"\r\n"))).startswith(b"HTTP/1.1 200 ")
                    if not again:
                        await soon(reader.readuntil(b"\r\n\r\n"))
                        await soon(reader.readuntil(b"}"))
                        writer.writelines((CHUNKED, body))
                        await soon(writer.drain())
                writer.close()


class TestWhatComesAfterARefusal:
    @pytest.mark.parametrize("first", [b"1\r\nx\r\n", b"ffff\r\n"])
    async def test_is_cut_off_soon(self, first: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(protocol, "LINGER_S", 0.3)
        refused = head("transfer-encoding: chunked", "content-encoding: br")
        async with stack() as s:
            reader, writer = await raw(s, refused, first)
            assert (await soon(reader.readuntil(b"\r\n"))).startswith(b"HTTP/1.1 415 ")
            began = time.monotonic()
            sending = asyncio.create_task(endless(writer))
            with suppress(ConnectionError):
                await soon(reader.read())
            assert 0.1 < time.monotonic() - began < 3.0
            await soon(sending)

    async def test_is_let_through_where_it_ends_in_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(protocol, "LINGER_S", 0.5)
        refused = head("transfer-encoding: chunked", "content-encoding: br")
        async with stack() as s:
            reader, writer = await raw(s, refused, b"1\r\nx\r\n")
            assert (await soon(reader.readuntil(b"}]"))).startswith(b"HTTP/1.1 415 ")
            writer.writelines((b"1\r\nx\r\n" * 1000, b"0\r\n\r\n"))
            await asyncio.sleep(1.0)
            writer.writelines((head(f"content-length: {len(PLAIN)}"), PLAIN))
            rest = await soon(reader.readuntil(b"HTTP/1.1 200 "))
            assert rest.count(b"HTTP/1.1") == 1
            writer.close()

    async def test_has_no_hold_over_the_next_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # The next one begins before the answer to the first: it is slow, and nothing refused it.
        monkeypatch.setattr(protocol, "LINGER_S", 0.2)
        arrived, release = asyncio.Event(), asyncio.Event()

        async def held(request: object, context: object) -> None:
            arrived.set()
            await release.wait()

        async with stack(held) as s:
            one = head(f"content-length: {len(PLAIN)}")
            reader, writer = await raw(s, one, PLAIN, one, PLAIN[:5])
            await soon(arrived.wait())
            release.set()
            await soon(reader.readuntil(b"HTTP/1.1 200 "))
            await asyncio.sleep(1.0)
            writer.write(PLAIN[5:])
            await soon(reader.readuntil(b"HTTP/1.1 200 "))
            writer.close()


async def endless(writer: asyncio.StreamWriter) -> None:
    """Send until the connection is no more."""
    with suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

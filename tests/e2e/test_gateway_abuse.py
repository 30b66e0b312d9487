"""Attacks on a gateway, each while somebody else calls it at a steady rate and must not notice.

Real processes: a gateway, a classifier behind it, the caller. What is refused is refused as
documented; afterwards the process is the same, with the memory and the files that it had.

The machine that runs this may be shared, so the caller's p99 may double, and any call may take
50 ms. The long form makes the same attacks for much longer.
"""

import asyncio
import gzip
import random
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress

import pytest

from gateway.protocol import HEAD_TIMEOUT_S
from tests.e2e.abuse import GROWN_MIB, Caller, Door, gateways, many_files, sockets
from tests.e2e.processes import Service
from tests.e2e.raw import (
    BIDI,
    CHUNKED,
    GET,
    POST,
    Answer,
    chunks,
    frame,
    length,
    one_by_one,
    padded,
    refused,
)
from tests.e2e.steady_caller import BODY

MIB = 2**20
LARGE = 64 * MIB + 1
CALLS = 100
LONG = [pytest.mark.soak, pytest.mark.timeout(600)]
forms = pytest.mark.parametrize("calls", [CALLS, pytest.param(20 * CALLS, marks=LONG)])
"""How many calls of the steady caller an attack lasts for."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Service]]:
    """The processes, and room for our end of their connections."""
    with many_files(8192), gateways(tmp_path_factory.mktemp("abuse")) as found:
        yield found


@pytest.fixture(scope="module")
def plain(running: dict[str, Service]) -> Iterator[Door]:
    """The gateway as it comes."""
    with Caller.of(running["plain"].port) as caller:
        door = Door(running["plain"], caller)
        asyncio.run(door.settle(2 * CALLS))
        yield door


@pytest.fixture
def compressed(running: dict[str, Service]) -> Iterator[Door]:
    """The one that takes compressed bodies."""
    with Caller.of(running["compressed"].port) as caller:
        door = Door(running["compressed"], caller)
        asyncio.run(door.settle(CALLS))
        yield door


@forms
async def test_bodies_that_are_too_large(plain: Door, calls: int) -> None:
    part = b" " * MIB

    async def attack() -> None:
        for size, sent in ((LARGE, 64), (32 * MIB + 1, 32), (10**15, 1)):
            declared = POST + b"content-length: %d\r\n\r\n" % size
            answer = await plain.ask(declared, (part for _ in range(sent)))
            refused(answer, 413, "MESSAGE_TOO_LARGE")
        answer = await plain.ask(CHUNKED, chunks(iter([MIB] * 64 + [1])))
        refused(answer, 413, "MESSAGE_TOO_LARGE")

    await plain.hold("bodies of 64 MiB and a byte", attack, calls)


@forms
async def test_json_that_is_too_deep(plain: Door, calls: int) -> None:
    async def attack() -> None:
        for depth in (101, 100_000, 400_000):
            for opened, closed in ((b"[", b"]"), (b'{"a":', b"}")):
                body = opened * depth + b"1" + closed * depth
                answer = await plain.ask(POST + length(body), body)
                refused(answer, 400, "INVALID_FIELD", "nested deeper than 100")
        body = b'{"items":' + b"[" * 99 + b"]" * 99 + b"}"
        answer = await plain.ask(POST + length(body), body)
        assert answer.status == 400
        assert "nested deeper" not in answer.error["message"]

    await plain.hold("deep JSON", attack, calls)


@forms
async def test_bodies_in_too_many_chunks(plain: Door, calls: int) -> None:
    async def attack() -> None:
        answer = await plain.ask(CHUNKED, one_by_one(padded(65_537)))
        refused(answer, 413, "MESSAGE_TOO_LARGE", "too many chunks")
        answer = await plain.ask(CHUNKED, one_by_one(padded(65_536)))
        assert answer.status == 200, str(answer)

    await plain.hold("chunks of one byte", attack, calls)


@forms
async def test_bodies_that_inflate(plain: Door, compressed: Door, calls: int) -> None:
    zeros = zlib.compressobj(1, wbits=31)
    bomb = b"".join(zeros.compress(bytes(MIB)) for _ in range(256)) + zeros.flush()
    bombs = {b"gzip": bomb, b"deflate": zlib.compress(bytes(64 * MIB), 1)}
    gzipped, small = POST + b"content-encoding: gzip\r\n", gzip.compress(BODY)
    twice = gzip.compress(small)

    async def attack() -> None:
        for kind, body in bombs.items():
            head = POST + b"content-encoding: " + kind + b"\r\n" + length(body)
            refused(await plain.ask(head, body), 415, "MEDIA_TYPE_REFUSED")
            refused(await compressed.ask(head, body), 413, "MESSAGE_TOO_LARGE")
        assert (await compressed.ask(gzipped + length(small), small)).status == 200
        refused(await compressed.ask(gzipped + length(twice), twice), 400, "INVALID_FIELD")
        for wrong in (small[:-4], small * 2, b"x" + small):
            answer = await compressed.ask(gzipped + length(wrong), wrong)
            refused(answer, 400, "MALFORMED_REQUEST")

    await compressed.hold("bodies that inflate", attack, calls)
    await plain.hold_back_to_normal()


@forms
async def test_two_thousand_connections_that_say_nothing(plain: Door, calls: int) -> None:
    """Or half of a head: they are cut in time."""

    async def cut(number: int) -> float:
        reader, writer = await plain.open()
        began = time.monotonic()
        writer.write(POST[: number % 2 * 40])
        with suppress(ConnectionError):
            async with asyncio.timeout(HEAD_TIMEOUT_S + 10):
                assert await reader.read() == b""
        writer.transport.abort()
        return time.monotonic() - began

    async def attack() -> None:
        waits = await asyncio.gather(*(cut(number) for number in range(2000)))
        assert max(waits) < HEAD_TIMEOUT_S + 3
        assert min(waits) > HEAD_TIMEOUT_S - 1

    await plain.hold("2000 idle connections", attack, calls)


@forms
async def test_heads_that_are_too_large(plain: Door, calls: int) -> None:
    """However they come."""
    one = b"x: " + b"y" * (65_537 - len(b"xhostlocalhost")) + b"\r\n"
    many = b"".join(b"x%d: y\r\n" % number for number in range(20_000))

    async def attack() -> None:
        for more in (one, many, one * 64):
            for pieces in ([GET + more + b"\r\n"], [GET, more[:9000], more[9000:], b"\r\n"]):
                refused(await plain.ask(*pieces), 431, "HEADERS_TOO_LARGE")

    await plain.hold("large heads", attack, calls)


@forms
async def test_what_follows_a_body_is_bounded_too(plain: Door, calls: int) -> None:
    trailers = b"".join(b"x%d: %s\r\n" % (number, b"y" * 1000) for number in range(1000))

    async def attack() -> None:
        most = 0.0

        def endless() -> Iterator[bytes]:
            nonlocal most
            yield b"2\r\n{}\r\n0\r\n"
            for _ in range(64):
                yield trailers
                most = max(most, plain.grown_mib)

        _, writer = await plain.open()
        with suppress(ConnectionError):
            for piece in (CHUNKED, *endless()):
                writer.write(piece)
                await writer.drain()
        writer.transport.abort()
        assert most < GROWN_MIB, f"{most:.0f} MiB are held of what follows a body"

    await plain.hold("endless trailers", attack, calls)


@forms
async def test_metadata_that_http_keeps_for_itself(plain: Door, calls: int) -> None:
    """What a connection is about is not a caller's to say, least of all one that others share."""
    names = ("connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection", "te")

    async def attack() -> None:
        for name in names:
            head = POST + f"grpc-metadata-{name}: x\r\n".encode()
            answer = await plain.ask(head + length(BODY), BODY)
            assert answer.status in (200, 400), f"{name}: {answer}"

    await plain.hold("metadata that HTTP keeps for itself", attack, calls)


@forms
async def test_readers_that_do_not_read(plain: Door, calls: int) -> None:
    """Large answers, one after another, and streams."""
    items = BODY[BODY.index(b'"items": [') + 10 : -2]
    asked = BODY.replace(items, b",".join([items] * 250))
    stream = POST.replace(b"classify ", b"classify:stream ") + length(asked) + asked
    page = GET.replace(b"/health/live", b"/openapi.json") + b"\r\n"

    async def attack() -> None:
        held = []
        try:
            for number in range(60):
                held.append(await plain.stuck(stream if number % 2 else page * 4))
                await plain.pause()
            await plain.called(time.monotonic(), 20)
        finally:
            for one in held:
                one.close()

    await plain.hold("readers that do not read", attack, calls)


@forms
async def test_bodies_that_come_byte_by_byte(plain: Door, calls: int) -> None:
    head = POST + b"x-gristmill-timeout-ms: 1000\r\ncontent-length: 1000\r\n\r\n"

    async def slow() -> None:
        reader, writer = await plain.open()
        writer.write(head)
        answering = asyncio.create_task(Answer.read(reader))
        with suppress(ConnectionError):
            while not answering.done():
                writer.write(b" ")
                await asyncio.wait([answering], timeout=0.1)
        answer = await answering
        writer.transport.abort()
        refused(answer, 504, "DEADLINE_EXPIRED")

    async def attack() -> None:
        async with asyncio.timeout(15):
            await asyncio.gather(*(slow() for _ in range(100)))

    await plain.hold("slow bodies", attack, calls)


@forms
async def test_clients_that_die(plain: Door, calls: int) -> None:
    """In a head, in a body, while they wait, and in a WebSocket; with and without a goodbye."""
    request = POST + length(BODY) + BODY
    starts = [request[:30], request[:-20], request, CHUNKED + b"ffff\r\n{", BIDI, BIDI[:-2]]
    starts += [POST.replace(b"classify ", b"classify:stream ") + length(BODY) + BODY]
    reset = struct.pack("ii", 1, 0)

    async def attack() -> None:
        for number in range(70):
            if number % 7 == 0:
                await plain.pause()
            _, writer = await plain.open()
            writer.write(starts[number % len(starts)])
            if number % 2:
                own = writer.get_extra_info("socket")
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            writer.transport.abort()

    await plain.hold("clients that die", attack, calls)


@forms
async def test_websockets_that_do_nothing(plain: Door, calls: int) -> None:
    async def attack() -> None:
        async with sockets(plain, 200):
            await plain.called(time.monotonic(), calls)

    await plain.hold("200 idle WebSockets", attack, calls)


@forms
async def test_websockets_that_are_never_read(plain: Door, calls: int) -> None:
    """First as they fill up what holds their answers, then as they are stuck."""
    text = BODY.replace(b'{"floatF', b'{"id": "a", "item": {"floatF').replace(b"}}]", b"}}}]")

    async def attack() -> None:
        async with sockets(plain, 4) as loud:
            for _, writer in loud:
                writer.transport.pause_reading()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        while True:
                            writer.write(frame(text) * 100)
                            await writer.drain()
            await plain.called(time.monotonic(), 20)

    await plain.hold("WebSockets that are never read", attack, calls)


@forms
async def test_messages_in_pieces_are_bodies_too(plain: Door, calls: int) -> None:
    """Twelve WebSockets, each with 30 MiB of a message that does not end: 256 may be held."""
    part = b" " * MIB

    async def attack() -> None:
        async with sockets(plain, 12) as found:
            for _, writer in found:
                with suppress(ConnectionError):
                    for number in range(30):
                        writer.write(frame(part, opcode=0 if number else 1, last=False))
                        await writer.drain()
            await plain.pause()
            # A buffer that grows has an eighth more than is in it.
            assert plain.grown_mib < 256 * 9 / 8 + GROWN_MIB, f"{plain.grown_mib:.0f} MiB are held"

    await plain.hold("messages in pieces", attack, calls)


@forms
async def test_requests_in_a_row(plain: Door, calls: int) -> None:
    async def attack() -> None:
        reader, writer = await plain.open()
        writer.write((GET + b"\r\n" + POST + length(BODY) + BODY) * 100)
        async with asyncio.timeout(30):
            found = [(await Answer.read(reader)).status for _ in range(200)]
        writer.transport.abort()
        assert found == [200] * 200
        for _ in range(3):
            own = await plain.stuck((GET + b"\r\n") * 5000)
            await plain.called(time.monotonic(), 10)
            own.close()

    await plain.hold("requests in a row", attack, calls)


@forms
async def test_bytes_that_mean_nothing(plain: Door, calls: int) -> None:
    dice = random.Random(17)
    starts = (b"", b"GET ", GET, POST, CHUNKED, CHUNKED + b"5\r\n", BIDI)

    async def attack() -> None:
        for number in range(70):
            if number % 7 == 0:
                await plain.pause()
            _, writer = await plain.open()
            with suppress(ConnectionError):
                writer.write(starts[number % len(starts)] + dice.randbytes(dice.randrange(20_000)))
                await writer.drain()
            writer.transport.abort()

    await plain.hold("random bytes", attack, calls)

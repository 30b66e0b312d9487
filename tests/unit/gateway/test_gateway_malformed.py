"""Bytes that are no request, or a wrong one: refused by HTTP itself, in the one shape of errors.

Whatever comes is answered or cut, at once; nothing is left behind, and the next caller is served.
"""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway.protocol import BoundedProtocol
from gateway.socket_protocol import BoundedSocket
from tests.unit.gateway.access import HANDSHAKE, TOKENS, Front, front, hold_headers

GET = b"GET /registry/v1/models HTTP/1.1\r\nhost: localhost\r\n"
POST = b"POST /classifier/v1/classify HTTP/1.1\r\nhost: localhost\r\n"
MINE = f"authorization: Bearer {TOKENS['all']}\r\n".encode()
BIDI = GET.replace(b"registry/v1/models", b"classifier/v1/classify:bidi") + MINE
UPGRADE = "".join(f"{name}: {value}\r\n" for name, value in HANDSHAKE).encode()
CHUNKED = POST + b"transfer-encoding: chunked\r\n"
ANSWER_S = 4.0
"""Less than any of the gateway's own limits: what waits for one of those was not refused."""

MALFORMED = {
    "nothing that is HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "another version": GET.replace(b"1.1", b"3.7") + b"\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /registry/v1/models\r\n\r\n",
    "no host": b"GET /registry/v1/models HTTP/1.0\r\n\r\n",
    "a name for CONNECT": b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "bytes in the target": b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "two lengths": POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
    "a length and chunks": CHUNKED + b"content-length: 5\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "a negative length": POST + b"content-length: -5\r\n\r\nabcde",
    "a length with a sign": POST + b"content-length: +5\r\n\r\nabcde",
    "a length in hexadecimal": POST + b"content-length: 0x5\r\n\r\nabcde",
    "a length beyond all": POST + b"content-length: " + b"9" * 40 + b"\r\n\r\nabcde",
    "an encoding that is none": POST + b"transfer-encoding: xchunked\r\n\r\nabcdef",
    "chunked and more": POST + b"transfer-encoding: chunked, gzip\r\n\r\nabcdef",
    "a chunk without a length": CHUNKED + MINE + b"\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk beyond all": CHUNKED + MINE + b"\r\n" + b"f" * 20 + b"\r\n{}\r\n",
    "a space before the colon": GET + b"authorization : " + MINE[15:] + b"\r\n",
    "a header over two lines": GET + b"x: a\r\n " + MINE + b"\r\n",
    "ends of lines without returns": (GET + MINE).replace(b"\r\n", b"\n") + b"\n",
    "a zero in a header": GET + b"x: a\x00b\r\n\r\n",
    "a header without a name": GET + b": x\r\n\r\n",
    "a name that is none": GET + b"x(y): z\r\n\r\n",
}
HANDSHAKES = {
    "without a key": UPGRADE.replace(b"sec-websocket-key", b"x"),
    "with a bad key": UPGRADE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhl"),
    "of another version": UPGRADE.replace(b": 13", b": 12"),
    "with many headers": UPGRADE + b"".join(b"x%d: y\r\n" % n for n in range(200)),
    "with a long header": UPGRADE + b"x: " + b"y" * 9000 + b"\r\n",
    "with a body": UPGRADE + b"content-length: 2\r\n",
    "with a body that does not come": UPGRADE + b"content-length: 2000000000\r\n",
    "with chunks": UPGRADE + b"transfer-encoding: chunked\r\n",
}


@pytest_asyncio.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Front]:
    """With tokens; what its loop had to say at the end was nothing."""
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    async with front(tmp_path) as found:
        yield found
    assert said == []


async def answered(f: Front, what: bytes) -> Any:
    """The answer to bytes, which comes at once, or the connection is cut at once."""
    try:
        async with asyncio.timeout(ANSWER_S):
            return await f.send(what)
    except TimeoutError:
        raise AssertionError("neither answered nor cut") from None


async def hold_clean(f: Front) -> None:
    """The next caller is served, and nothing of those before is left."""
    assert (await f.ask("GET", "/health/live")).status == 200
    kinds = (BoundedProtocol, BoundedSocket)
    async with asyncio.timeout(ANSWER_S):
        while any(isinstance(one, kinds) for one in gc.get_objects()):
            await asyncio.sleep(0.01)
            gc.collect()


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_malformed_is_refused_in_the_one_shape(guarded: Front, name: str) -> None:
    answer = await answered(guarded, MALFORMED[name])
    assert answer.status == 400, str(answer)
    error = json.loads(answer.body)["error"]
    assert error["requestId"] == answer.get("x-request-id")
    assert error["reason"] == "MALFORMED_REQUEST"
    guarded.hold_decent(answer, name)
    assert guarded.recorder.calls == []
    await hold_clean(guarded)


async def test_what_is_malformed_is_refused_with_what_browsers_must_be_told(guarded: Front) -> None:
    hold_headers(await answered(guarded, MALFORMED["another version"]), "another version")


@pytest.mark.parametrize("name", HANDSHAKES)
async def test_a_handshake_that_is_none_is_refused_in_the_one_shape(
    guarded: Front, name: str
) -> None:
    answer = await answered(guarded, BIDI + HANDSHAKES[name] + b"\r\n{}")
    assert 400 <= answer.status < 500, str(answer)
    guarded.hold_decent(answer, name)
    assert json.loads(answer.body)["error"]["requestId"] == answer.get("x-request-id")
    assert guarded.recorder.calls == []
    await hold_clean(guarded)


@pytest.mark.parametrize("verb", [b"POST", b"CONNECT", b"OPTIONS"])
async def test_a_handshake_is_a_get(guarded: Front, verb: bytes) -> None:
    answer = await answered(guarded, BIDI.replace(b"GET", verb) + UPGRADE + b"\r\n")
    assert 400 <= answer.status < 500, str(answer)
    guarded.hold_decent(answer, verb)
    await hold_clean(guarded)


async def test_after_an_upgrade_to_nothing_the_connection_ends(guarded: Front) -> None:
    """What follows is no request any more: it must not stay open, waiting for nobody."""
    head = GET + MINE + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.server.port)
    writer.write(head + GET + MINE + b"\r\n")
    async with asyncio.timeout(ANSWER_S * 2):
        data = await reader.readuntil(b"\r\n\r\n")
        assert data.startswith(b"HTTP/1.1 ")
        writer.write(GET + MINE + b"\r\n")
        await reader.read()
    writer.close()


@pytest.mark.parametrize(
    ("trailer", "status"),
    [
        (MINE, 401),
        (b"x-gristmill-identity: root\r\n" + MINE, 401),
        (b"host: evil.example\r\n", 401),
        (b"origin: https://evil.example\r\n", 401),
    ],
)
async def test_what_follows_a_body_is_no_header(
    guarded: Front, trailer: bytes, status: int
) -> None:
    """Trailers: whoever stands in front and takes headers away has not seen them."""
    answer = await answered(guarded, CHUNKED + b"\r\n2\r\n{}\r\n0\r\n" + trailer + b"\r\n")
    assert answer.status == status, str(answer)
    assert guarded.recorder.calls == []


async def test_requests_on_one_connection_are_each_their_own(guarded: Front) -> None:
    """The second has no token, and none of the first; answers come in order."""
    heads = [GET + MINE, GET, GET + b"authorization: Bearer x\r\n", GET + MINE]
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.server.port)
    writer.write(b"".join(head + b"\r\n" for head in heads))
    found = []
    async with asyncio.timeout(ANSWER_S):
        for _ in heads:
            line, *rest = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
            (length,) = [int(one.split()[1]) for one in rest if one.startswith(b"content-length")]
            await reader.readexactly(length)
            found.append(int(line.split()[1]))
    writer.close()
    assert found == [200, 401, 401, 200]

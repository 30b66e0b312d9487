"""Bodies that are compressed, and bodies in pieces: what is taken, and what each may cost."""

import asyncio
import gzip
import json
import random
import re
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from gateway.bodies import PIECE_BYTES
from tests.harness import SOON_S, soon
from tests.unit.gateway.stack import BODY, CLASSIFY, error_of, stack
from tests.unit.gateway.talk import budget
from tests.unit.gateway.test_gateway_process import process

PLAIN = json.dumps(BODY).encode()
MIB = 2**20
CHAT = b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'


def headers(encoding: str, **more: str) -> dict[str, str]:
    """Those of a JSON body in this encoding."""
    return {"content-type": "application/json", "content-encoding": encoding, **more}


async def in_pieces(body: bytes, size: int = 7) -> AsyncIterator[bytes]:
    """The same in chunks."""
    for start in range(0, len(body), size):
        yield body[start : start + size]


def bomb(size: int, level: int = 9) -> bytes:
    """So many zeros in gzip."""
    packer = zlib.compressobj(level, wbits=31)
    parts = [packer.compress(bytes(min(MIB, size - done))) for done in range(0, size, MIB)]
    return b"".join((*parts, packer.flush()))


class TestRefusedUnlessAskedFor:
    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP", "gzip, gzip"])
    async def test_for_any_method_and_route(self, encoding: str) -> None:
        given = {"content": gzip.compress(PLAIN), "headers": headers(encoding)}
        async with stack() as s:
            for method, path in (
                ("POST", CLASSIFY),
                ("GET", "/registry/v1/models/m"),
                ("PATCH", "/registry/v1/models/m"),
                ("DELETE", "/registry/v1/models/m"),
                ("POST", "/v1/chat/completions"),
                ("POST", "/nowhere"),
            ):
                response = await soon(s.client.request(method, path, **given))
                assert response.status_code == 415, (method, path)
            assert s.calls == []
            assert budget(s).held_bytes == 0

    async def test_in_the_shape_of_every_error(self) -> None:
        async with stack() as s:
            response = await s.client.post(CLASSIFY, content=b"{}", headers=headers("gzip"))
            error_of(response, 415, "MEDIA_TYPE_REFUSED")
            assert "or as" not in response.text
            for none in ("identity", ""):
                response = await s.client.post(CLASSIFY, content=PLAIN, headers=headers(none))
                assert response.status_code == 200


class TestTaken:
    @pytest.mark.parametrize(
        ("encoding", "pack"),
        [
            ("gzip", gzip.compress),
            ("GZip", gzip.compress),
            ("deflate", zlib.compress),
            ("identity", bytes),
        ],
    )
    async def test_is_what_was_packed(self, encoding: str, pack: Callable[[bytes], bytes]) -> None:
        text = {"items": [{"text": {"text": "good " * 20_000}}]}
        body = pack(json.dumps(text).encode())
        async with stack(compressed_bodies=True) as s:
            for content in (body, in_pieces(body, 1 + len(body) // 50)):
                response = await soon(
                    s.client.post(CLASSIFY, content=content, headers=headers(encoding))
                )
                assert response.status_code == 200, response.text
            assert budget(s).held_bytes == 0
        assert [call[0].items[0].text.text for call in s.calls] == ["good " * 20_000] * 2

    async def test_in_single_bytes_too(self) -> None:
        async with stack(compressed_bodies=True) as s:
            content = in_pieces(gzip.compress(PLAIN), 1)
            response = await soon(s.client.post(CLASSIFY, content=content, headers=headers("gzip")))
        assert response.status_code == 200

    @pytest.mark.parametrize(
        "size", [PIECE_BYTES * n + more for n in (1, 2) for more in (-1, 0, 1)]
    )
    async def test_is_taken_in_pieces_of_any_size(self, size: int) -> None:
        body = PLAIN + bytes(random.Random(size).choices(b" \n\t", k=size - len(PLAIN)))
        packed = gzip.compress(body)
        async with stack(compressed_bodies=True) as s:
            for content, status in ((packed, 200), (packed[:-1], 400), (packed + b"x", 400)):
                given = headers("gzip")
                response = await soon(s.client.post(CLASSIFY, content=content, headers=given))
                assert response.status_code == status
                assert budget(s).held_bytes == 0

    async def test_is_whole_where_it_is_large(self) -> None:
        text = random.Random(1).randbytes(450_000).hex()
        body = gzip.compress(json.dumps({"items": [{"text": {"text": text}}] * 3}).encode())
        async with stack(compressed_bodies=True) as s:
            response = await soon(s.client.post(CLASSIFY, content=body, headers=headers("gzip")))
            assert response.status_code == 200
        assert [one.text.text == text for one in s.calls[0][0].items] == [True] * 3

    @pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "x-gzip", "gzip, gzip", "*"])
    async def test_other_encodings_are_415(self, encoding: str) -> None:
        async with stack(compressed_bodies=True) as s:
            response = await s.client.post(CLASSIFY, content=PLAIN, headers=headers(encoding))
            error_of(response, 415, "MEDIA_TYPE_REFUSED")
            assert "gzip, deflate" in response.text

    async def test_without_a_body_it_says_nothing(self) -> None:
        async with stack(compressed_bodies=True) as s:
            path = "/registry/v1/models/m"
            response = await s.client.get(path, headers={"content-encoding": "gzip"})
        assert response.status_code == 200

    async def test_only_json_here_too(self) -> None:
        async with stack(compressed_bodies=True) as s:
            given = headers("gzip") | {"content-type": "text/plain"}
            response = await s.client.post(CLASSIFY, content=gzip.compress(PLAIN), headers=given)
            error_of(response, 415, "MEDIA_TYPE_REFUSED")

    @pytest.mark.parametrize("encoding", ["gzip", "deflate"])
    @pytest.mark.parametrize(
        "damage",
        [
            lambda body: body[:-1],
            lambda body: body[: len(body) // 2],
            lambda body: body[:1],
            lambda body: body + b"x",
            lambda body: body + body,
            lambda body: body[:-1] + bytes([body[-1] ^ 1]),
            lambda body: b"\0" + body,
            lambda body: PLAIN,
        ],
    )
    async def test_what_is_damaged_is_400(
        self, encoding: str, damage: Callable[[bytes], bytes]
    ) -> None:
        pack = gzip.compress if encoding == "gzip" else zlib.compress
        body = damage(pack(PLAIN))
        async with stack(compressed_bodies=True) as s:
            for content in (body, in_pieces(body), in_pieces(body, len(body) - 1 or 1)):
                given = headers(encoding)
                response = await soon(s.client.post(CLASSIFY, content=content, headers=given))
                error_of(response, 400, "MALFORMED_REQUEST")
            assert s.calls == []
            assert budget(s).held_bytes == 0
            assert (await s.classify()).status_code == 200

    async def test_openai_routes_take_and_refuse_the_same(self) -> None:
        async with stack(compressed_bodies=True) as s:
            chat, given = "/v1/chat/completions", headers("gzip")
            taken = await soon(s.client.post(chat, content=gzip.compress(CHAT), headers=given))
            assert taken.status_code == 501, "nothing behind it generates"
            damaged = await soon(s.client.post(chat, content=b"no gzip", headers=given))
            assert damaged.status_code == 400
            assert damaged.json()["error"]["type"] == "invalid_request_error"
            assert budget(s).held_bytes == 0


class TestBombs:
    @pytest.mark.parametrize("pieces", [None, 100])
    async def test_are_413(self, pieces: int | None) -> None:
        body = bomb(20 * MIB)
        async with stack(compressed_bodies=True, max_body_bytes=MIB) as s:
            content = body if pieces is None else in_pieces(body, pieces)
            response = await soon(s.client.post(CLASSIFY, content=content, headers=headers("gzip")))
            error_of(response, 413, "MESSAGE_TOO_LARGE")
            assert budget(s).held_bytes == 0

    async def test_both_sizes_count_together(self) -> None:
        body = PLAIN + b" " * 2000
        packed = gzip.compress(body)
        both = len(body) + len(packed)
        for most, status in ((both, 200), (both - 1, 413)):
            async with stack(compressed_bodies=True, max_body_bytes=most) as s:
                response = await s.client.post(CLASSIFY, content=packed, headers=headers("gzip"))
                assert response.status_code == status

    async def test_are_held_against_all_bodies_together(self) -> None:
        body = gzip.compress(b"[" + b" " * 3000 + b"]")
        async with stack(compressed_bodies=True, max_body_bytes=4096, max_buffered_bytes=4096) as s:
            budget(s).take(2000)
            response = await s.client.post(CLASSIFY, content=body, headers=headers("gzip"))
            error_of(response, 429, "QUEUE_FULL")
            assert budget(s).held_bytes == 2000

    async def test_do_not_grow_the_process(self) -> None:
        body = bomb(1024 * MIB)
        assert len(body) < 1.1 * MIB
        settings = {
            "GRISTMILL_GATEWAY_COMPRESSED_BODIES": "true",
            "GRISTMILL_GATEWAY_MAX_BODY_BYTES": str(8 * MIB),
            "GRISTMILL_GATEWAY_MAX_BUFFERED_BYTES": str(16 * MIB),
        }
        async with process(**settings) as (child, url):
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=SOON_S) as client:
                small = {"content": gzip.compress(PLAIN), "headers": headers("gzip")}
                assert (await soon(client.post(CLASSIFY, **small))).status_code == 503
                before = peak_bytes(child.pid)
                given = {"content": body, "headers": headers("gzip")}
                for _ in range(4):
                    assert (await soon(client.post(CLASSIFY, **given))).status_code == 413
                found = await asyncio.gather(*(client.post(CLASSIFY, **given) for _ in range(16)))
                assert {one.status_code for one in found} <= {413, 429}
                grown = peak_bytes(child.pid) - before
        assert grown < 32 * MIB, f"{grown / MIB:.0f} MiB"


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(line) * 1024

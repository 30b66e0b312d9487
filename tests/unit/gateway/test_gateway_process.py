"""The process: `python -m gateway` from its start to its exit, and the bounds of its listener."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from tests.harness import soon
from tests.unit.gateway.stack import CLASSIFY, stack


@asynccontextmanager
async def process(*flags: str, **environment: str) -> AsyncIterator[tuple[Process, str]]:
    """A running gateway and its URL."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "--port", "0", "--admin-port", "-1", *flags),
        env={**os.environ, **environment},
        stdout=DEVNULL,
        stderr=PIPE,
    )
    assert child.stderr is not None
    try:
        while line := await soon(child.stderr.readline()):
            if found := re.search(r'"address": "([^"]+)"', line.decode()):
                break
        else:
            raise AssertionError("it did not start")
        yield child, f"http://{found[1]}"
    finally:
        if child.returncode is None:
            child.kill()
        await soon(child.communicate())


async def test_the_first_signal_drains_and_exits_0() -> None:
    async with process() as (child, url):
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            assert (await soon(client.get("/health/live"))).status_code == 200
            assert (await soon(client.get("/health/ready"))).status_code == 503
        child.send_signal(signal.SIGTERM)
        assert await soon(child.wait()) == 0


async def test_the_second_signal_exits_at_once() -> None:
    async with process("--drain-grace-s", "600") as (child, url):
        host, _, port = url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        # A body that never comes is in hand for as long as its deadline.
        head = f"POST {CLASSIFY} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{{"
        writer.write(head.encode())
        await writer.drain()
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            # The loop has read what was sent before once it answers what was sent after.
            await soon(client.get("/health/live"))
            child.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                while (await client.get("/health/ready")).json()["status"] != "DRAINING":
                    pass
        assert child.returncode is None
        child.send_signal(signal.SIGTERM)
        assert await soon(child.wait()) == 1
        writer.close()


async def _exit(*flags: str, **environment: str) -> tuple[int | None, str]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *flags),
        env={**os.environ, **environment},
        stdout=DEVNULL,
        stderr=PIPE,
    )
    _, stderr = await soon(child.communicate())
    return child.returncode, stderr.decode()


async def test_a_configuration_that_cannot_be_kept_is_exit_2() -> None:
    code, said = await _exit("--nothing", "1")
    assert code == 2
    code, said = await _exit("--host", "0.0.0.0")
    assert code == 2
    assert "loopback" in said
    code, said = await _exit("--admin-port", "-1", "--upstream-token-file", "/nowhere/token")
    assert code == 2
    assert "upstream_token_file" in said
    assert "/nowhere" not in said
    code, said = await _exit(GRISTMILL_GATEWAY_NOTHING="1")
    assert code == 2
    assert "GRISTMILL_GATEWAY_NOTHING" in said


async def test_a_port_in_use_is_said_in_a_line() -> None:
    async with stack() as s:
        code, said = await _exit("--admin-port", "-1", "--port", str(s.gateway.port))
    assert code == 2
    assert "cannot listen" in said
    assert "Traceback" not in said


async def _raw(port: int, *parts: bytes) -> bytes:
    """Everything the gateway answers on one connection until it closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        try:
            await writer.drain()
        except ConnectionError:
            break
    try:
        return await soon(reader.read())
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_head_without_end_is_cut_off() -> None:
    async with stack() as s:
        endless = [b"GET / HTTP/1.1\r\nhost: localhost\r\nx: "] + [b"x" * 65536] * 8
        answer = await _raw(s.gateway.port, *endless)
        assert answer == b"" or b" 431 " in answer.split(b"\r\n")[0]
        many = b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % n for n in range(20000))
        answer = await _raw(s.gateway.port, many)
        assert answer == b"" or b" 431 " in answer.split(b"\r\n")[0]
        assert (await s.classify()).status_code == 200


async def test_an_upgrade_to_anything_else_is_a_plain_request() -> None:
    async with stack() as s:
        request = (
            b"GET /classifier/v1/classify:bidi HTTP/1.1\r\nhost: localhost\r\n"
            b"connection: upgrade, close\r\nupgrade: h2c\r\n\r\n"
        )
        answer = await _raw(s.gateway.port, request)
    assert answer.startswith(b"HTTP/1.1 426 ")
    assert b"upgrade: websocket" in answer
    assert b'"reason":"UPGRADE_REQUIRED"' in answer


async def test_odd_paths_are_only_unknown() -> None:
    async with stack() as s:
        for path in (b"/%00", b"/%ff%fe", b"//docs", b"/docs/../health/live", b"/a%2Fb", b"/%2e"):
            head = b"GET " + path + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            answer = await _raw(s.gateway.port, head)
            assert answer.startswith(b"HTTP/1.1 404 "), (path, answer)

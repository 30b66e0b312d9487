"""The cache that replicas share, in a real Redis: there, killed, back, silent, and full."""

import asyncio
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.inference.cache import redis as module
from services.inference.cache.keys import Key
from services.inference.cache.redis import PREFIX, RedisCache, connect
from services.inference.cache.sealing import Sealer
from services.inference.cache.values import Value
from services.inference.scoring import Outputs
from tests.harness import SOON_S, FakeClock, metric, soon
from tests.redis import Redis, redis

SECRET = b"a secret of this test"
LONG_S = 60.0
"""So long that nothing takes it, however busy this machine is."""
TIMEOUT_S = 0.2
"""Where it is met."""
SLACK_S = 5.0


@pytest.fixture(scope="module")
def shared() -> Iterator[Redis]:
    with redis() as server:
        yield server


@pytest.fixture
def server(shared: Redis) -> Redis:
    with shared.client() as client:
        client.flushall()
    return shared


def value(number: float) -> Value:
    return Value.of(Outputs({"p": np.full((1, 3), number, np.float32)}), 0, 7, truncated=True)


def key(number: int) -> Key:
    return number.to_bytes(32, "little")


def numbers(found: Sequence[Value | None]) -> list[float | None]:
    """What values hold."""
    return [None if one is None else float(one.outputs["p"][0]) for one in found]


@asynccontextmanager
async def replica(
    server: Redis | None,
    clock: Callable[[], float] = time.monotonic,
    *,
    timeout_s: float = LONG_S,
    ttl_s: float = LONG_S,
    secret: bytes = SECRET,
    url: str = "",
    password: str | None = None,
    client: Any = None,
) -> AsyncIterator[RedisCache]:
    if client is None:
        client = connect(url or (server.url if server else ""), password)
    cache = RedisCache(client, Sealer(secret), timeout_s, ttl_s, clock)
    try:
        yield cache
    finally:
        await soon(cache.close())


async def written(cache: RedisCache) -> None:
    """Return when everything that was stored has been sent."""
    if cache._writer is not None:
        await soon(cache._writer)


async def taken(cache: RedisCache, *keys: Key) -> list[float | None]:
    return numbers(await soon(cache.lookup(keys, LONG_S)))


def errors(reason: str) -> float:
    return metric("gristmill_cache_errors_total", reason=reason)


async def test_what_one_replica_stored_another_has(server: Redis) -> None:
    async with replica(server) as one, replica(server) as other:
        one.store(key(1), value(1))
        one.store(key(2), value(2))
        await written(one)
        assert await taken(other, key(2), key(3), key(1)) == [2, None, 1]
        (found,) = await other.lookup([key(1)], LONG_S)
        assert found is not None
        assert (found.tokens, found.truncated) == (7, True)


async def test_a_value_lasts_for_its_time(server: Redis) -> None:
    async with replica(server, ttl_s=0.3) as cache:
        cache.store(key(1), value(1))
        await written(cache)
        with server.client() as client:
            left_ms = client.pttl(PREFIX + key(1))
            assert 0 < left_ms <= 300
            async with asyncio.timeout(SOON_S):
                while client.exists(PREFIX + key(1)):
                    await asyncio.sleep(0.02)
        assert await taken(cache, key(1)) == [None]


@pytest.mark.parametrize("how", ["cut", "changed", "empty", "another's", "other secret", "noise"])
async def test_what_is_no_value_of_ours_is_a_miss(server: Redis, how: str) -> None:
    async with replica(server) as cache, replica(server, secret=SECRET + b".") as stranger:
        for number in (1, 2, 3):
            cache.store(key(number), value(number))
        await written(cache)
        if how == "other secret":
            stranger.store(key(2), value(9))
            await written(stranger)
        with server.client() as client:
            good = client.get(PREFIX + key(2))
            assert isinstance(good, bytes)
            bad = {
                "cut": good[:-1],
                "changed": good[:-1] + bytes([good[-1] ^ 1]),
                "empty": b"",
                "another's": client.get(PREFIX + key(1)),
                "other secret": good,
                "noise": b"\x80\x04\x95.",
            }[how]
            client.set(PREFIX + key(2), bad)
        before = errors("corrupt")
        assert await taken(cache, key(1), key(2), key(3)) == [1, None, 3]
        assert errors("corrupt") == before + 1


async def test_a_key_of_another_type_is_a_miss(server: Redis) -> None:
    with server.client() as client:
        client.lpush(PREFIX + key(1), b"x")
    async with replica(server) as cache:
        assert await taken(cache, key(1)) == [None]
        cache.store(key(1), value(1))
        await written(cache)
        assert await taken(cache, key(1)) == [1]


async def test_a_server_that_is_killed_in_use_is_misses_and_no_error(server: Redis) -> None:
    clock = FakeClock()
    async with replica(server, clock) as cache:
        cache.store(key(1), value(1))
        await written(cache)
        assert await taken(cache, key(1)) == [1]
        before = errors("unavailable")
        under_way = [asyncio.ensure_future(cache.lookup([key(1)], LONG_S)) for _ in range(20)]
        server.kill()
        try:
            for one in under_way:
                assert numbers(await soon(one)) in ([None], [1])
            assert await taken(cache, key(1)) == [None]
            assert errors("unavailable") > before
            count = errors("unavailable")
            for _ in range(50):
                cache.store(key(2), value(2))
                assert await taken(cache, key(1)) == [None]
            assert errors("unavailable") == count, "nobody asked again"
            clock.advance(1.0)
            assert await taken(cache, key(1), key(2)) == [None, None]
            assert errors("unavailable") == count + 1, "one did"
            assert await taken(cache, key(1)) == [None]
            assert errors("unavailable") == count + 1
        finally:
            server.start()
        clock.advance(1.0)
        assert await taken(cache, key(1)) == [None], "it keeps nothing"
        cache.store(key(1), value(3))
        await written(cache)
        assert await taken(cache, key(1)) == [3]


async def test_a_server_that_is_away_from_the_start_is_found_later(server: Redis) -> None:
    clock = FakeClock()
    server.kill()
    try:
        async with replica(server, clock) as cache:
            cache.store(key(1), value(1))
            await written(cache)
            assert await taken(cache, key(1)) == [None]
            server.start()
            clock.advance(1.0)
            assert await taken(cache, key(1)) == [None]
            cache.store(key(1), value(1))
            await written(cache)
            assert await taken(cache, key(1)) == [1]
    finally:
        server.kill()
        server.start()


async def test_a_silent_server_costs_the_timeout_once(server: Redis) -> None:
    clock = FakeClock()
    async with replica(server) as writer:
        writer.store(key(1), value(1))
        await written(writer)
    async with replica(server, clock, timeout_s=TIMEOUT_S) as cache:
        before = errors("timeout")
        server.hold()
        try:
            started = time.monotonic()
            many = [cache.lookup([key(1)], LONG_S) for _ in range(20)]
            assert [numbers(one) for one in await soon(asyncio.gather(*many))] == [[None]] * 20
            assert TIMEOUT_S <= time.monotonic() - started < TIMEOUT_S + SLACK_S
            count = errors("timeout")
            assert count > before
            for _ in range(100):
                assert await taken(cache, key(1)) == [None]
                cache.store(key(2), value(2))
            assert errors("timeout") == count, "nobody asked again"
            clock.advance(1.0)
            started = time.monotonic()
            for _ in range(100):
                assert await taken(cache, key(1)) == [None]
            assert TIMEOUT_S <= time.monotonic() - started < TIMEOUT_S + SLACK_S
            assert errors("timeout") == count + 1, "one did"
        finally:
            server.let_go()
        async with asyncio.timeout(SOON_S):
            while await taken(cache, key(1)) != [1]:  # on a busy machine it may be late again
                clock.advance(1.0)


async def test_the_end_of_a_caller_is_not_that_of_the_server(server: Redis) -> None:
    """Nor does the answer to one who left reach who comes next on the connection."""
    async with replica(server) as cache:
        for number in range(40):
            cache.store(key(number), value(number))
        await written(cache)
        server.hold()
        try:
            started = time.monotonic()
            assert numbers(await cache.lookup([key(1)], TIMEOUT_S)) == [None]
            assert time.monotonic() - started < TIMEOUT_S + SLACK_S
            left = [asyncio.ensure_future(cache.lookup([key(n)], LONG_S)) for n in range(20)]
            await asyncio.sleep(0)
            for one in left:
                one.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            assert numbers(await cache.lookup([key(1)], 0.0)) == [None]
            later = [asyncio.ensure_future(cache.lookup([key(n)], LONG_S)) for n in range(40)]
            await asyncio.sleep(0)
        finally:
            server.let_go()
        found = await soon(asyncio.gather(*later))
        assert [numbers(one) for one in found] == [[n] for n in range(40)]


class Counting:
    """A client that counts what is sent."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.lookups: list[int] = []
        self.pipelines = 0

    async def mget(self, names: list[bytes]) -> Any:
        self.lookups.append(len(names))
        return await self._client.mget(names)

    def pipeline(self, **how: Any) -> Any:
        self.pipelines += 1
        return self._client.pipeline(**how)

    async def aclose(self) -> None:
        await self._client.aclose()


async def test_what_is_asked_in_one_turn_goes_out_together(server: Redis) -> None:
    client = Counting(connect(server.url, None))
    async with replica(server, client=client) as cache:
        for number in range(module.MOST_WRITES + 1):
            cache.store(key(number), value(number))
        await written(cache)
        assert client.pipelines == 2
        many = [cache.lookup([key(n), key(n + 1)], LONG_S) for n in range(30)]
        found = await soon(asyncio.gather(*many))
        assert [numbers(one) for one in found] == [[n, n + 1] for n in range(30)]
        assert client.lookups == [60]
        many = [cache.lookup([key(n)] * 100, LONG_S) for n in range(30)]
        found = await soon(asyncio.gather(*many))
        assert [numbers(one) for one in found] == [[n] * 100 for n in range(30)]
        assert max(client.lookups) < module.MOST_KEYS + 100
        sent = len(client.lookups)
        assert numbers(await cache.lookup([key(1)], 0.0)) == [None]
        assert len(client.lookups) == sent, "for whom has no time nobody is asked"


class Held:
    """A client that answers when it is let go."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.lookups: list[list[bytes]] = []
        self.gate = asyncio.Event()

    async def mget(self, names: list[bytes]) -> Any:
        self.lookups.append(names)
        await self.gate.wait()
        return [self.data] * len(names)

    async def aclose(self) -> None:
        """It holds nothing."""


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_few_lookups_are_under_way_and_the_rest_waits_together() -> None:
    data = Sealer(SECRET).seal(key(1), value(1))
    assert data is not None
    client = Held(data)
    async with replica(None, client=client) as cache:
        asking = []
        for _ in range(20):
            asking.append(asyncio.ensure_future(cache.lookup([key(1)], LONG_S)))
            await turns()
        left = asking.pop()
        left.cancel()
        await turns()
        assert [len(names) for names in client.lookups] == [1] * module.READERS
        client.gate.set()
        found = await soon(asyncio.gather(*asking))
        assert [numbers(one) for one in found] == [[1]] * 19
        waited = 19 - module.READERS
        assert [len(names) for names in client.lookups] == [*[1] * module.READERS, waited]


async def test_what_nobody_waits_for_any_more_is_not_opened() -> None:
    client = Held(b"not even this")
    before = errors("corrupt")
    async with replica(None, client=client) as cache:
        left = asyncio.ensure_future(cache.lookup([key(1)], LONG_S))
        await turns()
        left.cancel()
        await turns()
        client.gate.set()
        await turns()
    assert errors("corrupt") == before


async def test_a_flood_uses_no_more_connections_than_it_may(server: Redis) -> None:
    async with replica(server) as cache:
        for number in range(500):
            cache.store(key(number), value(number))
        asking = []
        for number in range(500):
            asking.append(asyncio.ensure_future(cache.lookup([key(number)], LONG_S)))
            await asyncio.sleep(0)
        await soon(asyncio.gather(*asking))
        with server.client() as client:
            assert len(client.client_list()) <= module.READERS + 1 + 1


async def test_what_cannot_be_written_in_time_is_dropped(server: Redis) -> None:
    large = Value.of(Outputs({"p": np.zeros((1, 60_000), np.float32)}), 0)
    too_large = Value.of(Outputs({"p": np.zeros((1, 70_000), np.float32)}), 0)
    async with replica(server) as cache:
        before = errors("dropped")
        for number in range(200):
            cache.store(key(number), large)
            assert cache._unwritten_bytes <= module.MOST_UNWRITTEN_BYTES
        assert errors("dropped") == before + 200 - module.MOST_UNWRITTEN_BYTES // large.nbytes
        await written(cache)
        assert cache._unwritten_bytes == 0
        cache.store(key(1000), too_large)
        await written(cache)
    kept = server.keys()
    assert len(kept) == module.MOST_UNWRITTEN_BYTES // large.nbytes
    assert PREFIX + key(1000) not in kept


async def test_large_values_leave_the_loop_to_others(server: Redis) -> None:
    """However many come at once."""
    large = Value.of(Outputs({"p": np.ones((1, 50_000), np.float32)}), 0)
    keys = [key(number) for number in range(30)]
    client = Counting(connect(server.url, None))
    async with replica(server, client=client) as cache:
        for one in keys:
            cache.store(one, large)
        await written(cache)
        assert client.pipelines >= 30 // (1 + module.TURN_BYTES // 200_000)
        opened: list[int] = [0]
        turns: list[int] = []
        open_one = cache._sealer.open

        class Counted(Sealer):
            def open(self, key: Key, data: bytes) -> Value:
                opened[0] += 1
                return open_one(key, data)

        cache._sealer = Counted(SECRET)
        looking = asyncio.ensure_future(cache.lookup(keys, LONG_S))
        while not looking.done():
            before = opened[0]
            await asyncio.sleep(0)
            turns.append(opened[0] - before)
        assert numbers(await looking) == [1] * 30
        assert max(turns) <= 1 + module.TURN_BYTES // 200_000


async def test_what_the_server_refuses_is_counted_and_lookups_go_on(server: Redis) -> None:
    async with replica(server) as cache:
        cache.store(key(1), value(1))
        await written(cache)
        with server.client() as client:
            client.config_set("maxmemory", "1")
            client.config_set("maxmemory-policy", "noeviction")
        try:
            before = errors("refused")
            cache.store(key(2), value(2))
            await written(cache)
            assert errors("refused") == before + 1
            assert await taken(cache, key(1), key(2)) == [1, None]
        finally:
            with server.client() as client:
                client.config_set("maxmemory", "0")


async def test_closing_writes_what_waits(server: Redis) -> None:
    async with replica(server) as cache:
        for number in range(100):
            cache.store(key(number), value(number))
    assert len(server.keys()) == 100


async def test_closing_beside_a_silent_server_ends(server: Redis) -> None:
    server.hold()
    try:
        async with asyncio.timeout(SOON_S):
            async with replica(server) as cache:
                cache.store(key(1), value(1))
                asking = asyncio.ensure_future(cache.lookup([key(1)], LONG_S))
                await asyncio.sleep(0)
        assert numbers(await soon(asking)) == [None]
    finally:
        server.let_go()


async def test_it_says_once_that_the_server_is_away_and_once_that_it_is_back(
    server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    clock = FakeClock()
    async with replica(server, clock) as cache:
        server.kill()
        try:
            for _ in range(5):
                assert await taken(cache, key(1)) == [None]
                clock.advance(1.0)
        finally:
            server.start()
        clock.advance(1.0)
        for _ in range(5):
            assert await taken(cache, key(1)) == [None]
    said = [record.message for record in caplog.records if "the cache server" in record.message]
    assert ["away" in one for one in said] == [True, False]
    assert str(server.port) not in "".join(said)


class Slow:
    """A client that answers, after some time on a clock."""

    def __init__(self, clock: FakeClock, seconds: float) -> None:
        self.clock = clock
        self.seconds = seconds
        self.lookups = 0

    async def mget(self, names: list[bytes]) -> Any:
        self.lookups += 1
        self.clock.advance(self.seconds)
        return [None] * len(names)

    async def aclose(self) -> None:
        """It holds nothing."""


async def test_a_server_that_always_answers_too_late_is_as_good_as_away() -> None:
    clock = FakeClock()
    client = Slow(clock, 0.95)
    async with replica(None, clock, client=client, timeout_s=0.9) as cache:
        cache._breaker.failed(clock())
        clock.advance(1.0)
        for _ in range(3):
            assert await taken(cache, key(1)) == [None]
        assert client.lookups == 1, "once in a pause"
        assert not cache._breaker.well
        client.seconds = 0.0
        clock.advance(1.0)
        for _ in range(3):
            assert await taken(cache, key(1)) == [None]
        assert client.lookups == 4
        assert cache._breaker.well


async def test_a_password_is_shown_and_needed(tmp_path: Path) -> None:
    with redis("--requirepass", "open sesame") as server:
        async with replica(server, password="open sesame") as cache:
            cache.store(key(1), value(1))
            await written(cache)
            assert await taken(cache, key(1)) == [1]
        before = errors("unavailable")
        async with replica(server) as cache:
            assert await taken(cache, key(1)) == [None]
        assert errors("unavailable") == before + 1


async def test_a_socket_of_this_machine_will_do(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis("--unixsocket", str(path)) as server:
        async with replica(server, url=f"unix://{path}") as cache:
            cache.store(key(1), value(1))
            await written(cache)
            assert await taken(cache, key(1)) == [1]


def certify(folder: Path) -> tuple[str, str]:
    """A certificate for loopback that nobody has heard of, and its key."""
    names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    files = (str(folder / "cert.pem"), str(folder / "key.pem"))
    out = ("-out", files[0], "-keyout", files[1])
    command = ["openssl", "req", "-x509", *made, *names, *out]
    subprocess.run(command, check=True, capture_output=True)
    return files


async def test_it_goes_over_tls_and_trusts_nobody_unknown(tmp_path: Path) -> None:
    certificate, private = certify(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = ("--tls-cert-file", certificate, "--tls-key-file", private)
    with redis("--tls-port", str(port), *files, "--tls-auth-clients", "no") as server:
        url = f"rediss://127.0.0.1:{port}/0"
        trusted = f"{url}?ssl_ca_certs={certificate}"
        async with replica(server, url=trusted) as cache:
            cache.store(key(1), value(1))
            await written(cache)
            assert await taken(cache, key(1)) == [1]
        before = errors("unavailable")
        async with replica(server, url=url) as cache:
            assert await taken(cache, key(1)) == [None]
        assert errors("unavailable") == before + 1

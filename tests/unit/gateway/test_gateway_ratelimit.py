"""How often one identity may call: buckets here and in Redis, and what a caller is told."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import ratelimit
from gateway.config import GatewayConfig
from gateway.ratelimit import InMemory, InRedis, limiter
from tests.harness import SOON_S, FakeClock, metric, soon
from tests.redis import Redis, redis
from tests.unit.gateway.stack import CLASSIFY, Stack, error_of, stack
from tests.unit.gateway.test_gateway_auth import token_file

# So slow that nothing comes back while a test runs: what is counted is the burst.
SLOW = {"rate_limit_per_s": 0.01}
# So fast that the time of a test matters and can be measured.
STEADY = {"rate_limit_per_s": 20.0, "rate_limit_burst": 10.0}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    """A Redis for the tests that do it no harm."""
    with redis() as running:
        yield running


@pytest.fixture
def shared(server: Redis) -> Redis:
    """The same with nothing in it."""
    with server.client() as client:
        client.flushall()
    return server


async def statuses(s: Stack, count: int, **more: Any) -> list[int]:
    """What so many requests are answered with, one after another."""
    return [(await s.classify(**more)).status_code for _ in range(count)]


class TestInMemory:
    @given(
        rate=st.floats(0.1, 100.0),
        burst=st.floats(1.0, 50.0),
        asked=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 3.0)), max_size=200),
    )
    @settings(deadline=None)
    async def test_gives_burst_and_rate_to_each_alone_and_never_more(
        self, rate: float, burst: float, asked: list[tuple[str, float]]
    ) -> None:
        clock = FakeClock()
        buckets = InMemory(rate, burst, clock)
        taken: dict[str, list[float]] = defaultdict(list)
        for who, pause in asked:
            clock.advance(pause)
            wait_s = await buckets.wait_s(who)
            times = taken[who]
            if wait_s == 0:
                times.append(clock.now)
                # In any window that ends now, however it begins.
                for index, since in enumerate(times):
                    most = burst + (clock.now - since) * rate + 1e-3
                    assert len(times) - index <= most, (who, times)
            else:
                assert len(times) >= int(burst), "refused within its burst"
                assert 0 < wait_s <= 1 / rate + 1e-3

    @given(rate=st.floats(0.1, 100.0), burst=st.floats(1.0, 20.0))
    @settings(deadline=None)
    async def test_whoever_waits_as_told_gets_through(self, rate: float, burst: float) -> None:
        clock = FakeClock()
        buckets = InMemory(rate, burst, clock)
        waited = 0
        for _ in range(60):
            wait_s = await buckets.wait_s("a")
            if wait_s:
                waited += 1
                clock.advance(wait_s)
                assert await buckets.wait_s("a") == 0
        assert waited

    async def test_forgets_the_one_unused_for_longest(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ratelimit, "MOST_IDENTITIES", 2)
        buckets = InMemory(0.01, 1.0, FakeClock())
        assert [await buckets.wait_s(who) > 0 for who in "aba"] == [False, False, True]
        assert await buckets.wait_s("c") == 0
        assert await buckets.wait_s("a") > 0
        assert await buckets.wait_s("b") == 0

    async def test_no_rate_is_no_limit(self) -> None:
        unlimited = limiter(0.0, 0.0, "", 1.0)
        assert {await unlimited.wait_s("a") for _ in range(1000)} == {0.0}


class TestBothRefillAlike:
    @pytest.mark.parametrize("burst", [0.5, 1.0, 2.5, 10.0])
    async def test_the_first_burst(self, shared: Redis, burst: float) -> None:
        here = InMemory(0.01, burst, time.monotonic)
        there = InRedis(shared.url, SOON_S, 0.01, burst, time.monotonic)
        try:
            for _ in range(15):
                assert (await here.wait_s("a") > 0) == (await there.wait_s("a") > 0)
        finally:
            await there.close()

    async def test_and_the_rest(self, shared: Redis) -> None:
        there = InRedis(shared.url, SOON_S, 50.0, 5.0, time.monotonic)
        try:
            began, taken = time.monotonic(), 0
            while time.monotonic() - began < 1.0:
                wait_s = await there.wait_s("a")
                taken += not wait_s
                await asyncio.sleep(wait_s)
            elapsed = time.monotonic() - began
        finally:
            await there.close()
        assert taken <= 5 + elapsed * 50 + 1
        assert taken >= 25

    async def test_nothing_is_left_behind_for_good(self, shared: Redis) -> None:
        there = InRedis(shared.url, SOON_S, 0.5, 2.0, time.monotonic)
        try:
            await there.wait_s("a")
        finally:
            await there.close()
        (key,) = shared.keys()
        with shared.client() as client:
            assert 4000 <= client.pttl(key) <= 5000


class TestRefusals:
    async def test_say_until_when(self) -> None:
        async with stack(rate_limit_per_s=0.5, rate_limit_burst=3) as s:
            assert await statuses(s, 3) == [200] * 3
            response = await s.classify()
            assert len(s.calls) == 3
        error = error_of(response, 429, "QUOTA_EXCEEDED")
        assert error["status"] == "RESOURCE_EXHAUSTED"
        assert response.headers["retry-after"] == "2"
        (hint,) = [d for d in error["details"] if d["@type"].endswith("google.rpc.RetryInfo")]
        assert 1.0 < float(hint["retryDelay"].removesuffix("s")) <= 2.0

    async def test_hold_for_all_routes_together(self) -> None:
        async with stack(**SLOW, rate_limit_burst=2) as s:
            assert (await s.classify()).status_code == 200
            assert (await soon(s.client.get("/registry/v1/models/m"))).status_code == 200
            error_of(await soon(s.client.get("/registry/v1/watch")), 429, "QUOTA_EXCEEDED")
            error_of(await s.classify(), 429, "QUOTA_EXCEEDED")
            for path in ("/health/live", "/openapi.json"):
                assert (await soon(s.client.get(path))).status_code == 200

    async def test_speak_as_openai_does_on_its_routes(self) -> None:
        async with stack(**SLOW, rate_limit_burst=1) as s:
            assert (await s.classify()).status_code == 200
            response = await soon(s.client.post("/v1/chat/completions", json=CHAT))
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) > 1
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["type"], error["code"]) == ("rate_limit_error", "quota_exceeded")

    async def test_without_a_burst_it_is_that_of_a_second(self) -> None:
        async with stack(rate_limit_per_s=4.0) as s:
            assert (await statuses(s, 4)) == [200] * 4
        async with stack(**SLOW) as s:
            assert (await statuses(s, 3)) == [200, 429, 429]


class TestIdentities:
    async def test_each_has_its_own_limit(self, tmp_path: Path) -> None:
        tokens = token_file(tmp_path, alice=("a" * 20, "infer"), bob=("b" * 20, "infer"))
        alice, bob = ({"headers": {"authorization": "Bearer " + one * 20}} for one in "ab")
        async with stack(token_file=tokens, **SLOW, rate_limit_burst=3) as s:
            assert await statuses(s, 4, **alice) == [200, 200, 200, 429]
            assert await statuses(s, 4, **bob) == [200, 200, 200, 429]
            said = error_of(await s.classify(**alice), 429, "QUOTA_EXCEEDED")["message"]
            assert "alice" in said
            assert "bob" not in said
            # Whoever is not let in uses nobody's.
            assert await statuses(s, 5) == [401] * 5
            assert len(s.calls) == 6

    async def test_without_tokens_each_address_has(self) -> None:
        async with stack(**SLOW, rate_limit_burst=2) as s, client_at("127.0.0.2", s) as other:
            assert await statuses(s, 3) == [200, 200, 429]
            found = [(await other.post(CLASSIFY, json={"items": []})).status_code for _ in range(3)]
            assert found == [400, 400, 429]
            forwarded = {"headers": {"x-forwarded-for": "10.0.0.1"}}
            assert await statuses(s, 2, **forwarded) == [429, 429]


@asynccontextmanager
async def client_at(address: str, s: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """A client of another address of loopback."""
    transport = httpx.AsyncHTTPTransport(local_address=address)
    base = f"http://127.0.0.1:{s.gateway.port}"
    async with httpx.AsyncClient(transport=transport, base_url=base, timeout=SOON_S) as client:
        yield client


@asynccontextmanager
async def two(url: str, **config: Any) -> AsyncIterator[tuple[Stack, Stack]]:
    """Two gateways with one Redis."""
    given = {"rate_limit_redis_url": url, "rate_limit_redis_timeout_ms": 200.0, **config}
    async with stack(**given) as a, stack(**given) as b:
        yield a, b


async def by_turns(a: Stack, b: Stack, count: int) -> int:
    """How many of so many requests get through, to each in turn."""
    found = [await s.classify() for _ in range(count // 2) for s in (a, b)]
    assert {one.status_code for one in found} <= {200, 429}
    return sum(one.status_code == 200 for one in found)


class TestRedis:
    async def test_gateways_share_a_limit(self, shared: Redis) -> None:
        async with two(shared.url, **SLOW, rate_limit_burst=10) as (a, b):
            assert await by_turns(a, b, 30) == 10
            assert len(a.calls) == len(b.calls) == 5
            error_of(await a.classify(), 429, "QUOTA_EXCEEDED")
        assert shared.keys() == [b"gristmill:rate:127.0.0.1"]

    async def test_at_the_same_time_too(self, shared: Redis) -> None:
        async with two(shared.url, **SLOW, rate_limit_burst=10) as (a, b):
            found = await asyncio.gather(*(s.classify() for _ in range(20) for s in (a, b)))
        assert sorted(one.status_code for one in found) == [200] * 10 + [429] * 30

    async def test_one_that_was_never_there_stops_no_request(self) -> None:
        with redis() as gone:
            gone.kill()
            async with two(gone.url, **SLOW, rate_limit_burst=5) as (a, b):
                assert await by_turns(a, b, 20) == 10

    async def test_one_that_ends_and_comes_back(self) -> None:
        with redis() as server:
            async with two(server.url, **SLOW, rate_limit_burst=5) as (a, b):
                assert await by_turns(a, b, 20) == 5
                server.kill()
                assert await by_turns(a, b, 20) == 10
                server.start()
                await shared_again(a, b, server)

    async def test_one_that_is_held_still_delays_no_request_for_long(self) -> None:
        with redis() as server:
            async with two(server.url, **SLOW, rate_limit_burst=5) as (a, b):
                assert await by_turns(a, b, 20) == 5
                errors = metric("gristmill_rate_limit_errors_total")
                server.hold()
                try:
                    began = time.monotonic()
                    assert (await a.classify()).status_code == 200
                    # The time that Redis has, and a wide margin for the machine.
                    assert time.monotonic() - began < 0.2 + 0.5
                    began = time.monotonic()
                    assert await by_turns(a, b, 20) == 9
                    assert time.monotonic() - began < 2.0
                    assert metric("gristmill_rate_limit_errors_total") - errors <= 4
                finally:
                    server.let_go()
                await shared_again(a, b, server)


async def shared_again(a: Stack, b: Stack, server: Redis) -> None:
    """Both ask Redis again within seconds, and refuse by what it says."""
    key = "gristmill:rate:127.0.0.1"
    for one in (a, b):
        async with asyncio.timeout(SOON_S):
            while True:
                with server.client() as client:
                    client.delete(key)
                await one.classify()
                with server.client() as client:
                    if client.exists(key):
                        break
                await asyncio.sleep(0.05)
    with server.client() as client:
        client.delete(key)
    assert await by_turns(a, b, 20) == 5


def test_its_url_is_never_shown() -> None:
    shown = GatewayConfig(rate_limit_redis_url="redis://:secret@127.0.0.1:1/0")
    assert "secret" not in repr(shown)

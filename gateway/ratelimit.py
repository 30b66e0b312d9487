"""How often one identity may call, over all routes: a token bucket, here or in Redis for several.

Both refill alike. What cannot ask Redis in time limits by itself until it can again: a limit that
is off by the number of gateways is better than none, and than no service.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import redis.asyncio as package
from redis.exceptions import RedisError

from services.runtime import logs, metrics
from services.runtime.admission import TokenBucket
from services.runtime.errors import QuotaExceeded

MOST_IDENTITIES = 10_000
"""Buckets kept; the one unused for longest goes first, and would be full by then."""
AGAIN_S = 1.0
"""Redis that has failed is left alone for so long."""

# KEYS[1] the bucket; ARGV rate, burst. Answers how many milliseconds to wait, 0 for none. The
# clock is Redis's own, so that gateways need not agree on theirs.
SCRIPT = """
local rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local held = redis.call('HMGET', KEYS[1], 'level', 'at')
local level, at = tonumber(held[1]) or burst, tonumber(held[2]) or now
level = math.min(burst, level + math.max(0, now - at) * rate)
local wait = 0
if level >= 1 then level = level - 1 else wait = math.ceil((1 - level) / rate * 1000) end
redis.call('HSET', KEYS[1], 'level', tostring(level), 'at', tostring(now))
redis.call('PEXPIRE', KEYS[1], math.ceil(burst / rate * 1000) + 1000)
return wait
"""


class Limiter(Protocol):
    """Takes one request from the bucket of an identity."""

    async def wait_s(self, identity: str) -> float:
        """0 where it was there; else the seconds until it will be, and nothing is taken."""

    async def close(self) -> None:
        """Let go of what it holds."""


class Unlimited:
    """No limit."""

    async def wait_s(self, identity: str) -> float:
        """Always there."""
        return 0.0

    async def close(self) -> None:
        """Nothing to do."""


class InMemory:
    """The buckets of this process."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = max(1.0, burst)
        self._clock = clock
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    async def wait_s(self, identity: str) -> float:
        """From the identity's own bucket."""
        now = self._clock()
        bucket = self._buckets.get(identity)
        if bucket is None:
            bucket = self._buckets[identity] = TokenBucket(
                self._rate, self._burst, self._burst, now
            )
            if len(self._buckets) > MOST_IDENTITIES:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(identity)
        wait_s = bucket.wait_s(1.0, now)
        if not wait_s:
            bucket.take(1.0)
        return wait_s

    async def close(self) -> None:
        """Nothing to do."""


class InRedis:
    """The buckets of all gateways that share a Redis."""

    def __init__(
        self, url: str, timeout_s: float, rate: float, burst: float, clock: Callable[[], float]
    ) -> None:
        self._client = package.Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s
        )
        self._script: Any = self._client.register_script(SCRIPT)
        self._arguments = [rate, max(1.0, burst)]
        self._own = InMemory(rate, burst, clock)
        self._clock = clock
        self._away_until = 0.0
        self._log = logs.get_logger()

    async def wait_s(self, identity: str) -> float:
        """From the shared bucket; from our own where Redis does not answer."""
        if self._clock() >= self._away_until:
            try:
                key = f"gristmill:rate:{identity}"
                return int(await self._script(keys=[key], args=self._arguments)) / 1000
            except (RedisError, OSError, TimeoutError) as error:
                self._away_until = self._clock() + AGAIN_S
                metrics.RATE_LIMIT_ERRORS.inc()
                self._log.warning("rate limits are not shared", error=type(error).__name__)
        return await self._own.wait_s(identity)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def limiter(rate: float, burst: float, url: str, timeout_s: float) -> Limiter:
    """The limiter of a configuration."""
    if not rate:
        return Unlimited()
    burst = burst or rate
    if not url:
        return InMemory(rate, burst, time.monotonic)
    return InRedis(url, timeout_s, rate, burst, time.monotonic)


def refusal(identity: str, rate: float, wait_s: float) -> QuotaExceeded:
    """What a caller gets that comes too often."""
    said = f"{identity} may make {rate:g} requests a second"
    return QuotaExceeded(said, retry_after_s=wait_s)

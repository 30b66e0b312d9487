"""Answers that replicas share in Redis. Knows no model; a server that is away costs nobody more
than the timeout, once a second.

What all messages of one turn of the loop look up goes out as one MGET. No caller's end cuts a
command short: a connection is given up only when it has been silent for long. Writes go out behind
the callers, in pipelines, bounded. Neither ever raises: whatever fails is a miss and a metric.
"""

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from services.inference.cache.breaker import Breaker
from services.inference.cache.keys import Key
from services.inference.cache.sealing import Sealer
from services.inference.cache.values import Value
from services.runtime import metrics
from services.runtime.deadline import Clock

if TYPE_CHECKING:
    from redis.asyncio import Redis

PREFIX = b"gristmill:answer:"
READERS = 4
"""Lookups under way at once; more wait for each other within their timeouts."""
MOST_KEYS = 512
"""In one lookup of several messages."""
MOST_WRITES = 32
"""In one pipeline: about a millisecond of the loop."""
MOST_UNWRITTEN_BYTES = 16 * 2**20
MOST_VALUE_BYTES = 2**18
"""A larger one takes too long to move, and to seal."""
TURN_BYTES = 2**18
"""Sealed or opened in one turn of the loop; the rest waits for the next."""
GIVE_UP_S = 1.0
"""When a command, with connecting, has failed for good."""
_log = structlog.get_logger()
Found = list[Value | None]


def connect(url: str, password: str | None) -> "Redis":
    """A client of the server at a redis://, rediss:// or unix:// URL; connects when it is used."""
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    more = {} if password is None else {"password": password}
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=READERS + 1,
        timeout=GIVE_UP_S,
        socket_connect_timeout=GIVE_UP_S,
        socket_timeout=GIVE_UP_S,
        # Trying again is the breaker's affair.
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        **more,
    )
    return Redis.from_pool(pool)


@dataclass(slots=True, eq=False)
class _Asked:
    """What one message looks up; its future gives None where there is no answer in time."""

    keys: Sequence[Key]
    answer: asyncio.Future[Found | None]


class RedisCache:
    """A server as a cache; belongs to the running loop."""

    def __init__(
        self,
        client: "Redis",
        sealer: Sealer,
        timeout_s: float,
        ttl_s: float,
        clock: Clock = time.monotonic,
    ) -> None:
        self._client = client
        self._sealer = sealer
        self._timeout_s = timeout_s
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._clock = clock
        self._breaker = Breaker()
        self._asked: deque[_Asked] = deque()
        self._unwritten: deque[tuple[Key, Value]] = deque()
        self._unwritten_bytes = 0
        self._due = False
        self._readers: set[asyncio.Task[None]] = set()
        self._writer: asyncio.Task[None] | None = None

    async def lookup(self, keys: Sequence[Key], within_s: float) -> Found:
        """The value of each key that the server has, at most the timeout or `within_s` later."""
        if within_s <= 0 or not self._breaker.allows(self._clock()):
            return [None] * len(keys)
        loop = asyncio.get_running_loop()
        asked = _Asked(keys, loop.create_future())
        self._asked.append(asked)
        if not self._due:
            self._due = True
            loop.call_soon(self._read_all)
        timer = loop.call_later(
            min(self._timeout_s, within_s), self._late, asked, self._timeout_s <= within_s
        )
        try:
            return await asked.answer or [None] * len(keys)
        finally:
            timer.cancel()

    def store(self, key: Key, value: Value) -> None:
        """Have a value written, soon and behind the caller's back; while the server is away, not.

        Where more waits to be written than there is room for, it is dropped.
        """
        if not self._breaker.well or value.nbytes > MOST_VALUE_BYTES:
            return
        if self._unwritten_bytes + value.nbytes > MOST_UNWRITTEN_BYTES:
            metrics.CACHE_ERRORS.labels("dropped").inc()
            return
        self._unwritten.append((key, value))
        self._unwritten_bytes += value.nbytes
        if self._writer is None or self._writer.done():
            self._writer = asyncio.ensure_future(self._write_all())

    async def close(self) -> None:
        """Write what waits if that takes no longer than a command may, and end."""
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=GIVE_UP_S)
            self._writer.cancel()
        for task in self._readers:
            task.cancel()
        ending = [*self._readers, *([self._writer] if self._writer else [])]
        await asyncio.gather(*ending, return_exceptions=True)
        await self._client.aclose()

    def _late(self, asked: _Asked, is_timeout: bool) -> None:
        if not asked.answer.done():
            asked.answer.set_result(None)
            if is_timeout:  # else it is the caller that had no time
                self._failed("timeout", "no answer in time")

    def _read_all(self) -> None:
        self._due = False
        while self._asked and len(self._readers) < READERS:
            batch: list[_Asked] = []
            while self._asked and sum(len(one.keys) for one in batch) < MOST_KEYS:
                asked = self._asked.popleft()
                if not asked.answer.done():
                    batch.append(asked)
            if batch:
                self._spawn(self._read(batch))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._readers.add(task)
        task.add_done_callback(self._readers.discard)

    async def _read(self, batch: Sequence[_Asked]) -> None:
        started = self._clock()
        try:
            async with asyncio.timeout(GIVE_UP_S):
                names = [PREFIX + key for asked in batch for key in asked.keys]
                found = iter(await self._client.mget(names))
            # What answers late every time is no better than one that does not.
            if self._clock() - started <= self._timeout_s and self._breaker.succeeded():
                _log.info("the cache server is back")
            for asked in batch:
                values = await self._opened_all(asked, found)
                if not asked.answer.done():
                    asked.answer.set_result(values)
        except Exception as error:
            self._failed("unavailable", type(error).__name__)
        finally:
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_result(None)
            asyncio.get_running_loop().call_soon(self._read_all)

    async def _opened_all(self, asked: _Asked, found: Iterator[bytes | str | None]) -> Found:
        values: Found = []
        opened = 0
        for key in asked.keys:
            data = next(found)
            if asked.answer.done():  # it did not wait
                continue
            values.append(self._opened(key, data))
            opened += len(data or ())
            if opened > TURN_BYTES:
                opened = 0
                await asyncio.sleep(0)
        return values

    def _opened(self, key: Key, data: bytes | str | None) -> Value | None:
        if not isinstance(data, bytes):
            return None
        try:
            return self._sealer.open(key, data)
        except ValueError:
            metrics.CACHE_ERRORS.labels("corrupt").inc()
            return None

    async def _write_all(self) -> None:
        while self._unwritten:
            pipeline = self._client.pipeline(transaction=False)
            taken = count = 0
            while self._unwritten and count < MOST_WRITES and taken < TURN_BYTES:
                key, value = self._unwritten.popleft()
                taken, count = taken + value.nbytes, count + 1
                self._unwritten_bytes -= value.nbytes
                data = self._sealer.seal(key, value)
                if data is not None:
                    pipeline.set(PREFIX + key, data, px=self._ttl_ms)
            try:
                async with asyncio.timeout(GIVE_UP_S):
                    said = await pipeline.execute(raise_on_error=False)
            except Exception as error:
                self._failed("unavailable", type(error).__name__)
                self._unwritten.clear()
                self._unwritten_bytes = 0
            else:
                refused = sum(isinstance(one, Exception) for one in said)
                metrics.CACHE_ERRORS.labels("refused").inc(refused)

    def _failed(self, reason: str, said: str) -> None:
        metrics.CACHE_ERRORS.labels(reason).inc()
        if self._breaker.failed(self._clock()):
            _log.warning("the cache server is away", reason=reason, said=said)

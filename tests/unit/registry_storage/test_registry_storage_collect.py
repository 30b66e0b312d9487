"""Collecting removes what nobody refers to and what is old, and never anything else."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.registry.storage import collect
from services.registry.storage.blobs import Blobs, open_blobs
from services.registry.storage.collect import Collected, Collector
from tests.unit.registry_storage.place import Place, begun, get, put, sha

HOUR = timedelta(hours=1)
BYTES = [bytes([n]) * (1000 + n) for n in range(6)]


@dataclass
class Registry:
    """A model of the database: who refers to what, and one writer at a time."""

    references: Counter[str] = field(default_factory=Counter)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked: list[int] = field(default_factory=list)

    def guard(self, digests: Sequence[str]) -> AbstractAsyncContextManager[set[str]]:
        """What the collector is given."""

        @asynccontextmanager
        async def held() -> AsyncIterator[set[str]]:
            self.asked.append(len(digests))
            async with self.lock:
                yield {digest for digest in digests if not self.references[digest]}

        return held()


def later(hours: float) -> datetime:
    """The time in so many hours."""
    return datetime.now(UTC) + timedelta(hours=hours)


def collector(blobs: Blobs, registry: Registry, hours: float = 2) -> Collector:
    """One that takes whatever is over an hour old, in some hours."""
    return Collector(blobs, registry.guard, HOUR, lambda: later(hours))


async def test_what_no_version_refers_to_goes_and_all_else_stays(blobs: Blobs) -> None:
    registry = Registry(Counter([sha(BYTES[1])]))
    for data in BYTES[:3]:
        await put(blobs, data)
    found = await collector(blobs, registry).collect()
    assert found == Collected(blobs=2, bytes=len(BYTES[0]) + len(BYTES[2]))
    assert [await blobs.has(sha(data), len(data)) for data in BYTES[:3]] == [False, True, False]
    assert await get(blobs, BYTES[1]) == BYTES[1]
    await put(blobs, BYTES[0])
    assert await get(blobs, BYTES[0]) == BYTES[0]


async def test_what_is_young_stays(blobs: Blobs, place: Place) -> None:
    registry = Registry()
    await put(blobs, BYTES[0])
    await (await begun(blobs, BYTES[1], 500)).close()
    assert await collector(blobs, registry, 0.5).collect() == Collected()
    assert registry.asked == [], "and the database is left in peace"
    assert await collector(blobs, registry, 1.1).collect() == Collected(
        blobs=1, parts=1, bytes=len(BYTES[0]) + 500
    )
    assert place.files("blobs") == place.files("uploads") == []


async def test_an_upload_that_is_open_stays_however_old(blobs: Blobs) -> None:
    upload = await begun(blobs, BYTES[0], 500)
    assert await collector(blobs, Registry()).collect() == Collected()
    await upload.write(500, BYTES[0][500:])
    await upload.complete()
    assert await get(blobs, BYTES[0]) == BYTES[0]


async def test_a_corrupt_blob_that_was_set_aside_stays_for_good(blobs: Blobs, place: Place) -> None:
    await put(blobs, BYTES[0])
    place.flip(BYTES[0])
    await blobs.set_aside(sha(BYTES[0]))
    assert await collector(blobs, Registry(), 10**5).collect() == Collected()
    assert len(place.files("quarantine")) == 1


async def test_the_database_is_asked_about_a_hundred_at_a_time(local: Place) -> None:
    blobs, registry = local.open(), Registry()
    for n in range(250):
        path = local.blob(b"%d" % n)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d" % n)
    found = await collector(blobs, registry).collect()
    assert found.blobs == 250
    assert registry.asked == [collect.BATCH, collect.BATCH, 50]


async def test_a_blob_that_came_anew_since_it_was_listed_stays(blobs: Blobs, place: Place) -> None:
    """Between the list and the lock someone may take the same bytes in for a version to come."""
    await put(blobs, BYTES[0])
    place.age(place.blob(BYTES[0]), 7200)
    registry = Registry()

    @asynccontextmanager
    async def late(digests: Sequence[str]) -> AsyncIterator[set[str]]:
        made = place.root.parent / "made"
        made.write_bytes(BYTES[0])
        await blobs.adopt(made, sha(BYTES[0]), len(BYTES[0]))
        async with registry.guard(digests) as unreferenced:
            yield unreferenced

    found = await Collector(blobs, late, HOUR, lambda: later(0)).collect()
    assert found == Collected()
    assert await get(blobs, BYTES[0]) == BYTES[0]


async def test_whoever_begins_to_refer_waits_until_the_batch_is_gone(blobs: Blobs) -> None:
    """Then it finds the bytes gone and sends them again, rather than losing them later."""
    registry = Registry()
    await put(blobs, BYTES[0])
    seen: list[bool] = []

    async def refer() -> None:
        async with registry.lock:
            registry.references[sha(BYTES[0])] += 1
            seen.append(await blobs.has(sha(BYTES[0]), len(BYTES[0])))

    await asyncio.gather(collector(blobs, registry).collect(), refer())
    assert seen == [await blobs.has(sha(BYTES[0]), len(BYTES[0]))]


class Life(RuleBasedStateMachine):
    """Versions come and go, uploads are begun and finished, and collectors run all the while."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = TemporaryDirectory()
        self.registry = Registry()
        self.ready: set[str] = set()
        self.versions: list[tuple[int, str]] = []
        self.uploads: dict[int, tuple[object, bytes]] = {}

    @initialize()
    def open(self) -> None:
        self.stores = [open_blobs(self.folder.name, 300, {}) for _ in range(2)]

    def run(self, work: object) -> object:
        return self.loop.run_until_complete(work)

    @rule(n=st.sampled_from(range(len(BYTES))))
    def create_version(self, n: int) -> None:
        async def create() -> None:
            async with self.registry.lock:
                self.registry.references[sha(BYTES[n])] += 1
                self.versions.append((n, "uploading"))

        self.run(create())

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), share=st.floats(0, 1), store=st.integers(0, 1))
    def upload_some(self, data: st.DataObject, share: float, store: int) -> None:
        n, _ = data.draw(st.sampled_from(self.versions))
        content = BYTES[n]

        async def some() -> None:
            upload = await self.stores[store].open_upload(sha(content), len(content))
            if upload is not None:
                at = upload.durable_bytes
                until = max(at, int(share * len(content)))
                await upload.write(at, content[at:until])
                await upload.close()

        self.run(some())

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), store=st.integers(0, 1), collecting=st.booleans())
    def upload_and_finalize(self, data: st.DataObject, store: int, collecting: bool) -> None:
        place = data.draw(st.sampled_from(range(len(self.versions))))
        n, _ = self.versions[place]

        async def finalize() -> None:
            await put(self.stores[store], BYTES[n], chunk=200)
            assert await self.stores[store].has(sha(BYTES[n]), len(BYTES[n]))
            self.versions[place] = (n, "ready")

        self.run(self.beside(finalize(), collecting))

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), collecting=st.booleans())
    def delete_version(self, data: st.DataObject, collecting: bool) -> None:
        version = data.draw(st.sampled_from(self.versions))

        async def delete() -> None:
            async with self.registry.lock:
                self.versions.remove(version)
                self.registry.references[sha(BYTES[version[0]])] -= 1

        self.run(self.beside(delete(), collecting))

    @rule(store=st.integers(0, 1), hours=st.sampled_from([0.0, 2.0]))
    def collect(self, store: int, hours: float) -> None:
        self.run(collector(self.stores[store], self.registry, hours).collect())

    async def beside(self, work: object, collecting: bool) -> None:
        """The work alone, or while both replicas collect."""
        running = [collector(store, self.registry).collect() for store in self.stores if collecting]
        await asyncio.gather(work, *running)

    @invariant()
    def no_version_that_is_ready_has_lost_bytes(self) -> None:
        async def check() -> None:
            for n, state in set(self.versions):
                if state == "ready":
                    assert await get(self.stores[0], BYTES[n]) == BYTES[n]

        self.run(check())

    def teardown(self) -> None:
        async def end() -> None:
            await collector(self.stores[0], self.registry).collect()
            left = {found.digest async for found in self.stores[1].stored()}
            assert left <= {sha(BYTES[n]) for n, _ in self.versions}
            assert [found async for found in self.stores[1].unfinished()] == []

        if hasattr(self, "stores"):
            self.run(end())
        self.loop.close()
        self.folder.cleanup()


Life.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestLife = Life.TestCase

"""Watching: every change once, in order, no gap, from anywhere, whatever is cut and whoever writes.

The oracle is the list of what the test itself did, each entry with the task that the model had.
"""

import asyncio
import random
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from services.registry.models import Models
from services.registry.resources import (
    AliasRecord,
    ChangeRecord,
    ModelRecord,
    Resource,
    Task,
    VersionRecord,
)
from services.registry.store import Store, Write
from services.registry.watch import Event, Selection, Watch
from services.runtime.errors import Draining, OutOfRange
from tests.harness import metric, soon
from tests.unit.registry.parts import Parts, by, opened

NOW = datetime(2026, 1, 2, tzinfo=UTC)
NAMES = ("a", "b", "c")
TASKS: tuple[Task, ...] = ("classification", "generation")
SILENCE_S = 0.005


@dataclass
class Done:
    """One change that the test made."""

    name: str
    model: str
    task: Task
    etag: str | None
    """Of the resource after; None where it is gone."""


@dataclass
class Writer:
    """Writes at random, and remembers."""

    parts: Parts
    rng: random.Random
    done: list[Done] = field(default_factory=list)
    there: dict[str, Resource] = field(default_factory=dict)

    async def step(self) -> None:
        """One transaction of one to three changes, all of one model."""
        model = self.rng.choice(NAMES)
        own = self.there.get(f"models/{model}")
        async with self.parts.store.write(by()) as write:
            if not isinstance(own, ModelRecord):
                task = self.rng.choice(TASKS)
                record = ModelRecord(id=model, task=task, create_time=NOW, update_time=NOW)
                self._did(record.task, await write.save(None, record))
                return
            belongs = [r for r in self.there.values() if r.name.startswith(own.name + "/")]
            if self.rng.random() < 0.25:
                for resource in [*belongs, own]:
                    await write.remove(resource)
                    self._gone(own.task, resource)
                return
            for _ in range(self.rng.randrange(1, 4)):
                own = await self._change(write, own)

    async def _change(self, write: Write, own: ModelRecord) -> ModelRecord:
        kind = self.rng.choice(("model", "version", "alias", "remove"))
        number = self.rng.randrange(1, 4)
        if kind == "model":
            own = await write.save(own, own)
            self._did(own.task, own)
        elif kind == "version":
            before = self.there.get(f"{own.name}/versions/{number}")
            assert before is None or isinstance(before, VersionRecord)
            after = VersionRecord(model=own.id, version=number, artifacts=(), create_time=NOW)
            self._did(own.task, await write.save(before, after))
        elif kind == "alias":
            held = self.there.get(f"{own.name}/aliases/live")
            assert held is None or isinstance(held, AliasRecord)
            alias = AliasRecord(model=own.id, alias="live", version=number, update_time=NOW)
            self._did(own.task, await write.save(held, alias))
        else:
            gone = self.there.get(f"{own.name}/versions/{number}")
            if gone is not None:
                await write.remove(gone)
                self._gone(own.task, gone)
        return own

    def _did(self, task: Task, after: Resource) -> None:
        self.there[after.name] = after
        model = after.id if isinstance(after, ModelRecord) else after.model
        self.done.append(Done(after.name, model, task, after.etag))

    def _gone(self, task: Task, before: Resource) -> None:
        del self.there[before.name]
        model = before.id if isinstance(before, ModelRecord) else before.model
        self.done.append(Done(before.name, model, task, None))


@dataclass
class Watcher:
    """Watches with cuts, and keeps what it was told."""

    selection: Selection
    start: int | None
    rng: random.Random
    snapshots: list[tuple[int, dict[str, Resource]]] = field(default_factory=list)
    changes: list[ChangeRecord] = field(default_factory=list)
    at: int | None = None
    """Up to where it knows everything."""

    def __post_init__(self) -> None:
        self.at = self.start

    async def run(self, parts: Parts, over: asyncio.Event) -> None:
        """Watch until everything that was done has been told."""
        while True:
            patience = self.rng.randrange(1, 12)
            part: dict[str, Resource] = {}
            events = parts.watch.events(self.at, self.selection, SILENCE_S)
            async with aclosing(events):
                async for event in events:
                    self._take(event, part)
                    silent = event.change is None and event.snapshot is None
                    if over.is_set() and silent and self.at == await parts.store.revision():
                        return
                    patience -= 1
                    if patience == 0:
                        break
                    if self.rng.random() < 0.3:
                        await asyncio.sleep(0)

    def _take(self, event: Event, part: dict[str, Resource]) -> None:
        if event.snapshot is not None:
            assert self.at is None, "a snapshot that nobody asked for"
            assert event.snapshot.name not in part
            part[event.snapshot.name] = event.snapshot
            return
        if event.snapshot_complete:
            assert self.at is None
            self.snapshots.append((event.revision, part))
        else:
            assert self.at is not None, "changes before the snapshot was complete"
            assert event.revision >= self.at
        if event.change is not None:
            assert self.at is not None
            assert event.change.revision == event.revision > self.at
            self.changes.append(event.change)
        self.at = event.revision

    def wants(self, done: Done) -> bool:
        """Whether the selection covers a change."""
        named = not self.selection.models or done.model in self.selection.models
        return named and self.selection.task in (None, done.task)

    def check(self, writer: Writer) -> None:
        """Hold what it was told against what was done."""
        first = self.start or 0
        state: dict[str, str] = {}
        if self.start is None:
            # A long snapshot may be cut and asked for anew; the last one counts.
            (first, snapshot) = self.snapshots[-1]
            assert len(self.snapshots) == 1, "a snapshot although the revision was known"
            state = _after(writer.done[:first], self)
            assert {name: one.etag for name, one in snapshot.items()} == state
        expected = [
            (revision, one.name, one.etag)
            for revision, one in enumerate(writer.done, 1)
            if revision > first and self.wants(one)
        ]
        told = [(c.revision, c.name, c.after.etag if c.after else None) for c in self.changes]
        assert told == expected
        for change in self.changes:
            if change.after is not None:
                state[change.name] = change.after.etag
            else:
                state.pop(change.name, None)
        if self.start is None:
            assert state == _after(writer.done, self)


def _after(done: list[Done], watcher: Watcher) -> dict[str, str]:
    state: dict[str, str] = {}
    for one in done:
        if one.etag is None:
            state.pop(one.name, None)
        elif watcher.wants(one):
            state[one.name] = one.etag
    return state


SELECTIONS = st.builds(
    Selection,
    st.frozensets(st.sampled_from((*NAMES, "unknown")), max_size=2),
    st.sampled_from((None, *TASKS)),
)


# A smaller seed is no simpler one: nothing is gained by shrinking.
@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    seed=st.integers(0, 2**32),
    selections=st.lists(SELECTIONS, min_size=2, max_size=4),
    before=st.integers(0, 20),
    after=st.integers(0, 15),
    page=st.sampled_from((1, 2, 3, 500)),
)
def test_every_watcher_is_told_every_change_once_in_order(
    template: Path, seed: int, selections: list[Selection], before: int, after: int, page: int
) -> None:
    rng = random.Random(seed)

    async def run(root: Path) -> None:
        async with opened(root, page=page, template=template) as parts:
            writer = Writer(parts, rng)
            for _ in range(before):
                await writer.step()
            over = asyncio.Event()
            watchers = []
            async with asyncio.TaskGroup() as group:
                for selection in selections:
                    start = rng.choice((None, rng.randrange(len(writer.done) + 1)))
                    watchers.append(Watcher(selection, start, random.Random(rng.random())))
                    group.create_task(watchers[-1].run(parts, over))
                for _ in range(after):
                    await writer.step()
                    await asyncio.sleep(rng.choice((0, 0, 0.001)))
                over.set()
            assert await parts.store.revision() == len(writer.done)
            for watcher in watchers:
                watcher.check(writer)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(asyncio.wait_for(run(Path(folder)), 60))


async def _first(parts: Parts, after: int | None, count: int) -> list[Event]:
    found = []
    events = parts.watch.events(after, Selection(), 30.0)
    async with aclosing(events), asyncio.timeout(20):
        async for event in events:
            found.append(event)
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize("after", range(6))
async def test_a_model_that_comes_back_with_another_task_is_told_to_the_right_watchers(
    parts: Parts, after: int
) -> None:
    await parts.model(task="generation")
    await parts.version({"a": b"x"})
    await parts.models.delete_model(by(), "models/m", "", force=True, dry=False)
    await parts.model(task="classification")
    await parts.version({"a": b"x"})
    everyone = asyncio.Event()
    everyone.set()
    for task, theirs in (("generation", range(1, 6)), ("classification", range(6, 9))):
        watcher = Watcher(Selection(task=task), after, random.Random(after))
        await soon(watcher.run(parts, everyone))
        told = [change.revision for change in watcher.changes]
        assert told == [revision for revision in theirs if revision > after]


async def test_a_snapshot_begins_with_models_and_ends_with_one_bookmark(parts: Parts) -> None:
    await parts.model("b")
    await parts.ready("b")
    await parts.pointers.set_alias(by(), "models/b/aliases/live", 1, None, "", dry=False)
    await parts.model("a")
    revision = await parts.store.revision()
    events = await _first(parts, None, 5)
    assert [event.snapshot.name for event in events if event.snapshot] == [
        "models/a",
        "models/b",
        "models/b/versions/1",
        "models/b/aliases/live",
    ]
    assert events[-1] == Event(revision, snapshot_complete=True)
    assert {event.revision for event in events} == {revision}


async def test_the_snapshot_of_nothing_is_complete_at_revision_0(parts: Parts) -> None:
    assert await _first(parts, None, 1) == [Event(0, snapshot_complete=True)]


async def test_a_revision_that_was_never_reached_is_refused(parts: Parts) -> None:
    await parts.model()
    for revision in (2, 2**63 - 1):
        with pytest.raises(OutOfRange):
            await _first(parts, revision, 1)


async def test_silence_is_filled_with_bookmarks_that_move_on(parts: Parts) -> None:
    await parts.model("a")
    events = parts.watch.events(0, Selection(frozenset({"b"})), SILENCE_S)
    async with aclosing(events):
        assert await soon(anext(events)) == Event(1)
        await parts.model("c")
        seen = await soon(anext(events))
        while seen.revision == 1:
            seen = await soon(anext(events))
        assert seen == Event(2), "a watcher of b must learn that nothing of b happened up to 2"


async def test_a_watcher_waits_without_reading_the_database(parts: Parts) -> None:
    woken: list[Event] = []

    async def follow() -> None:
        async for event in parts.watch.events(None, Selection(), 30.0):
            woken.append(event)

    following = asyncio.create_task(follow())
    while not woken:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    assert len(woken) == 1
    await parts.model()
    while len(woken) < 2:
        await asyncio.sleep(0.001)
    assert woken[1].change is not None
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


class Disturbed(Store):
    """A store in which something is written just after a watcher has read."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def changes(self, after: int, limit: int) -> list[ChangeRecord]:
        """What was read before the disturbance."""
        found = await super().changes(after, limit)
        if (meanwhile := self.meanwhile) is not None:
            self.meanwhile = None
            await meanwhile()
        return found


async def test_a_change_made_while_a_watcher_reads_does_not_wait_for_the_silence_to_end(
    parts: Parts,
) -> None:
    store = Disturbed(parts.database)
    models = Models(store)

    async def another() -> None:
        await models.create_model(by(), "b", "generation", "", {}, dry=False)

    await models.create_model(by(), "a", "generation", "", {}, dry=False)
    store.meanwhile = another
    events = Watch(store, 500).events(0, Selection(), 3600.0)
    async with aclosing(events):
        told = [await soon(anext(events)) for _ in range(2)]
    assert [event.change and event.change.name for event in told] == ["models/a", "models/b"]


@pytest.mark.parametrize("page", [1, 2, 500])
async def test_a_drain_ends_every_watch_with_a_revision_to_go_on_from(
    tmp_path: Path, template: Path, page: int
) -> None:
    async with opened(tmp_path / "r", template=template, page=page) as parts:
        told: dict[int, list[int]] = {number: [] for number in range(6)}

        async def follow(number: int) -> int:
            selection = Selection(frozenset() if number % 2 else frozenset({"m3"}))
            after = None if number < 2 else 0
            try:
                async for event in parts.watch.events(after, selection, 30.0):
                    if event.change:
                        told[number].append(event.revision)
            except Draining as error:
                assert error.reason_given == "DRAINING"
                return int(error.metadata["revision"])
            raise AssertionError("the watch ended")

        following = [asyncio.create_task(follow(number)) for number in told]
        for number in range(7):
            await parts.model(f"m{number}")
        parts.watch.drain()
        ends = await soon(asyncio.gather(*following))
    async with opened(tmp_path / "r", page=page) as parts:
        await parts.model("m7")
        for number, end in enumerate(ends):
            rest = [change.revision for change in await parts.store.changes(end, 99)]
            if number % 2:
                first = 1 if number > 2 else min([*told[number], *rest])
                assert told[number] + rest == list(range(first, 9))
            else:
                assert told[number] == ([4] if end >= 4 and told[number] else told[number])
                assert (4 in told[number]) != (4 in rest) or number == 0
            assert rest[-1] == 8


async def test_a_watch_that_begins_during_the_drain_ends_too(parts: Parts) -> None:
    await parts.model()
    parts.watch.drain()
    with pytest.raises(Draining) as caught:
        await _first(parts, None, 99)
    assert caught.value.metadata == {"revision": "1"}


async def test_watchers_leave_nothing_behind(parts: Parts) -> None:
    before = metric("gristmill_registry_watchers")
    await parts.model()
    for _ in range(20):
        await _first(parts, None, 1)
        with pytest.raises(OutOfRange):
            await _first(parts, 99, 1)
    assert metric("gristmill_registry_watchers") == before
    assert not parts.watch._waiting

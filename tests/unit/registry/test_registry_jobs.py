"""Long work in the database, on either: who gets a job, who may still end it, and what that does.

No worker runs beside these tests: each takes jobs by hand and says what came of them. Time passes
only when the clock is read, or when a test says so.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2
from sqlalchemy import func, select, update

from services.registry.config import RegistryConfig
from services.registry.jobs import KEPT, KINDS, JobKind, OperationRecord
from services.registry.lifecycle import CANCELLED
from services.registry.operations import OperationsServicer
from services.registry.resources import (
    PointRecord,
    ProfileRecord,
    RejectionRecord,
    VersionRecord,
    version_key,
)
from services.registry.tables import OPERATIONS, REGISTRY
from services.registry.worker.assignment import Converted, Profiled, Validated
from services.runtime.errors import (
    AlreadyExists,
    Conflict,
    Draining,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
)
from tests.harness import SOON_S, soon
from tests.unit.registry.conftest import Place
from tests.unit.registry.parts import MANIFEST, Parts, Ticking, by, weights

LEASE = timedelta(seconds=1000)
"""Many readings of the clock, each of which is a second."""
FINE = Validated((), None)
BAD = Validated((RejectionRecord(path="model.onnx", rule="header", message="is none"),), None)


class Desk(Parts):
    """A registry whose jobs nobody does but the test."""

    clock: Ticking

    def pass_time(self, span: timedelta) -> None:
        """Let time pass at once."""
        self.clock.now += span

    async def lease(self, worker: str = "w", *kinds: JobKind) -> OperationRecord:
        """The next job, which must be there."""
        found = await self.jobs.lease(worker, kinds or KINDS, 0)
        assert found is not None, "no job is due"
        return found

    async def idle(self) -> bool:
        """Whether no job is due."""
        return await self.jobs.lease("idle", KINDS, 0) is None

    async def uploaded(self, seed: bytes = b"w") -> VersionRecord:
        """A version whose bytes are here, not finalized."""
        files = {"model.yaml": MANIFEST, "model.onnx": weights(seed)}
        version = await self.version(files)
        await self.put(*files.values())
        return version

    async def begun(self, seed: bytes = b"w") -> OperationRecord:
        """The check of a new version, waiting."""
        found = await self.lifecycle.finalize(by(), (await self.uploaded(seed)).name)
        assert isinstance(found, OperationRecord)
        return found

    async def ready(
        self, model: str = "m", seed: bytes = b"w", metrics: dict[str, float] | None = None
    ) -> VersionRecord:
        """A version that may be served."""
        await self.begun(seed)
        job = await self.lease()
        await self.lifecycle.complete(job.name, job.lease, FINE)
        return await self.of(job)

    async def profiling(self, name: str, **details: Any) -> OperationRecord:
        """A profile of a version, waiting."""
        request = {"batch_sizes": [1], "lengths": [1], **details}
        return await self.lifecycle.begin(by(), "profile", name, request, dry=False)

    async def of(self, job: OperationRecord) -> VersionRecord:
        """The version that a job is on, as it is now."""
        return await self.store.version(*version_key(job.subject))

    async def get(self, job: OperationRecord) -> OperationRecord:
        """A job as it is now."""
        return await self.jobs.get(job.name)


@asynccontextmanager
async def desk(root: Path, database: str) -> AsyncIterator[Desk]:
    """A registry without a worker."""
    root.mkdir(parents=True, exist_ok=True)
    config = RegistryConfig(
        data_dir=root, database=database, worker="external", lease_s=LEASE.total_seconds()
    )
    clock = Ticking()
    made = Desk(config, clock)
    made.clock = clock
    await made.open()
    try:
        yield made
    finally:
        # The tests that share the database do not empty this, and live earlier than some here.
        async with made.database.write() as connection:
            await connection.execute(update(REGISTRY).values(commit_time=Ticking().now))
        await made.close()


@pytest.fixture
async def parts(place: Place) -> AsyncIterator[Desk]:
    """An empty registry but for the model m."""
    async with desk(place.root, place.database) as found:
        await found.model()
        yield found


def measured(job: OperationRecord, **metrics: float) -> Profiled:
    """The outcome of a profile."""
    model, version = version_key(job.subject)
    points = (PointRecord(batch_size=1, length=1, p50_us=5, p95_us=7),)
    record = ProfileRecord(
        model=model,
        version=version,
        fingerprint="cpu 1 x 2",
        points=points,
        measure_time=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return Profiled(record, metrics)


async def lost(call: Any) -> None:
    """A call by one who no longer holds the lease."""
    with pytest.raises(Conflict) as raised:
        await soon(call)
    assert raised.value.reason_given == "LEASE_LOST"


async def test_jobs_are_leased_oldest_first_each_once_and_by_kind(parts: Desk) -> None:
    version = await parts.ready()
    begun = [await parts.profiling(version.name) for _ in range(3)]
    begun.append(await parts.begun(b"2"))
    assert await parts.jobs.lease("w", ["convert", "import"], 0) is None
    checked = await parts.lease("w", "finalize", "convert")
    assert checked.name == begun[3].name == "operations/finalize.m.2"
    for older in begun[:3]:
        job = await parts.lease("worker-7")
        assert (job.name, job.state, job.attempts) == (older.name, "running", 1)
        assert (job.worker, job.subject, job.kind) == ("worker-7", version.name, "profile")
        assert job.request == {"batch_sizes": [1], "lengths": [1]}
        assert await parts.get(job) == job
    assert await parts.idle()


async def test_whoever_waits_for_work_is_given_what_comes(parts: Desk) -> None:
    version = await parts.ready()
    waiting = asyncio.ensure_future(parts.jobs.lease("w", KINDS, SOON_S))
    begun = await parts.profiling(version.name)
    found = await soon(waiting)
    assert found is not None
    assert found.name == begun.name
    waiting = asyncio.ensure_future(parts.jobs.lease("w", KINDS, SOON_S))
    await asyncio.sleep(0)
    parts.jobs.drain()
    with pytest.raises(Draining):
        await soon(waiting)


async def test_a_lease_that_ran_out_is_anothers_and_the_first_can_change_nothing(
    parts: Desk,
) -> None:
    version = await parts.ready()
    await parts.profiling(version.name)
    first = await parts.lease("first")
    parts.pass_time(LEASE)
    second = await parts.lease("second")
    assert (second.name, second.attempts, second.worker) == (first.name, 2, "second")
    assert second.lease != first.lease
    revision = await parts.store.revision()

    await lost(parts.jobs.renew(first.name, first.lease, 0.9, "late"))
    await lost(parts.jobs.release(first.name, first.lease))
    await lost(parts.lifecycle.complete(first.name, first.lease, measured(first, late=1.0)))
    assert await parts.get(second) == second
    assert await parts.of(first) == version
    assert await parts.store.revision() == revision
    assert await parts.lifecycle.profiles(version.name) == []

    await parts.lifecycle.complete(second.name, second.lease, measured(second, p95_ms=0.5))
    assert (await parts.of(second)).metrics == {"p95_ms": 0.5}
    ended = await parts.get(second)
    assert (ended.state, ended.progress, ended.lease) == ("done", 1.0, "")
    assert await parts.idle()


async def test_a_lease_that_is_renewed_is_kept(parts: Desk) -> None:
    await parts.begun()
    job = await parts.lease()
    for step in range(1, 5):
        parts.pass_time(LEASE * 0.9)
        assert await parts.jobs.renew(job.name, job.lease, step / 5, f"step {step}") is False
        assert await parts.idle()
        told = await parts.get(job)
        assert (told.progress, told.message) == (step / 5, f"step {step}")
    await parts.lifecycle.complete(job.name, job.lease, FINE)
    assert (await parts.of(job)).state == "ready"


async def test_a_job_that_is_given_back_is_as_new(parts: Desk) -> None:
    await parts.begun()
    for _ in range(5):
        job = await parts.lease()
        assert job.attempts == 1
        await parts.jobs.release(job.name, job.lease)
        assert (await parts.get(job)).state == "waiting"
        await lost(parts.jobs.renew(job.name, job.lease, 0.5, ""))
        await lost(parts.lifecycle.complete(job.name, job.lease, FINE))
    assert (await parts.of(job)).state == "validating"


@pytest.mark.parametrize("renewed", [True, False])
async def test_an_outcome_counts_once(parts: Desk, renewed: bool) -> None:
    version = await parts.ready()
    await parts.profiling(version.name)
    job = await parts.lease()
    if renewed:
        await parts.jobs.renew(job.name, job.lease, 0.5, "")
    before = await parts.store.revision()
    results = await asyncio.gather(
        *(parts.lifecycle.complete(job.name, job.lease, measured(job, a=n)) for n in (1.0, 2.0)),
        return_exceptions=True,
    )
    refused = [result for result in results if result is not None]
    assert [type(error) for error in refused] == [Conflict]
    assert await parts.store.revision() == before + 1
    await lost(parts.lifecycle.complete(job.name, job.lease, measured(job, a=3.0)))
    assert (await parts.of(job)).metrics["a"] in (1.0, 2.0)
    assert len(await parts.lifecycle.profiles(version.name)) == 1
    (change, *_) = await parts.store.history("m", 2**62, 1)
    assert (change.actor, change.name) == ("ann", version.name), "whoever asked for it did it"


async def test_a_job_that_nobody_began_is_cancelled_at_once(parts: Desk) -> None:
    version = await parts.ready()
    begun = await parts.profiling(version.name)
    await parts.lifecycle.cancel(begun.name)
    ended = await parts.get(begun)
    assert (ended.state, ended.cancelled) == ("done", True)
    assert ended.failure is not None
    assert (ended.failure.status, ended.failure.reason) == ("CANCELLED", "CANCELLED")
    assert ended.end_time is not None
    assert await parts.idle()
    await parts.lifecycle.cancel(begun.name)
    assert await parts.get(begun) == ended, "what has ended is left alone"
    with pytest.raises(NotFound):
        await parts.lifecycle.cancel("operations/profile.none")


async def test_a_check_that_was_cancelled_can_be_asked_for_again(parts: Desk) -> None:
    begun = await parts.begun()
    await parts.lifecycle.cancel(begun.name)
    assert (await parts.of(begun)).state == "uploading"
    again = await parts.lifecycle.finalize(by(), begun.subject)
    assert isinstance(again, OperationRecord)
    assert (again.name, again.state, again.failure) == (begun.name, "waiting", None)
    job = await parts.lease()
    await parts.lifecycle.complete(job.name, job.lease, FINE)
    assert (await parts.of(begun)).state == "ready"


async def test_whoever_works_on_a_cancelled_job_is_told_and_ends_it(parts: Desk) -> None:
    version = await parts.ready()
    await parts.profiling(version.name)
    job = await parts.lease()
    assert await parts.jobs.renew(job.name, job.lease, 0.25, "half way") is False
    await parts.lifecycle.cancel(job.name)
    asked = await parts.get(job)
    assert (asked.state, asked.cancelled) == ("running", True)
    assert await parts.jobs.renew(job.name, job.lease, 0.5, "") is True
    await parts.lifecycle.complete(job.name, job.lease, CANCELLED)
    ended = await parts.get(job)
    assert ended.failure is not None
    assert (ended.state, ended.failure.status, ended.progress) == ("done", "CANCELLED", 0.5)
    assert await parts.of(job) == version


async def converted(parts: Desk) -> tuple[OperationRecord, VersionRecord]:
    """A conversion that waits for the check of what it made."""
    version = await parts.ready()
    request = {"conversion": "onnx", "max_difference": 0.1}
    await parts.lifecycle.begin(by(), "convert", version.name, request, dry=False)
    job = await parts.lease()
    made = await parts.uploaded(b"made")
    await parts.lifecycle.complete(job.name, job.lease, Converted(made.name))
    parent = await parts.get(job)
    assert (parent.state, parent.progress) == ("running", 0.9)
    return parent, made


@pytest.mark.parametrize("outcome", [FINE, BAD])
async def test_a_conversion_ends_with_the_check_of_what_it_made(
    parts: Desk, outcome: Validated
) -> None:
    parent, made = await converted(parts)
    await lost(parts.lifecycle.complete(parent.name, "0123456789abcdef", Converted(made.name)))
    parts.pass_time(LEASE * 10)
    child = await parts.lease()
    assert (child.subject, child.kind, child.parent) == (made.name, "finalize", parent.name)
    assert await parts.idle(), "nobody is given what only waits"
    await parts.lifecycle.complete(child.name, child.lease, outcome)
    ended = [await parts.get(child), await parts.get(parent)]
    assert [record.state for record in ended] == ["done", "done"]
    state = "rejected" if outcome.rejections else "ready"
    for record in ended:
        assert record.result is not None
        found = VersionRecord.model_validate(record.result["version"])
        assert found == await parts.of(child)
        assert (found.name, found.state) == (made.name, state)


async def test_to_cancel_a_conversion_cancels_the_check_that_it_waits_for(parts: Desk) -> None:
    parent, made = await converted(parts)
    await parts.lifecycle.cancel(parent.name)
    child = await parts.jobs.get(f"operations/finalize.m.{made.version}")
    for record in (child, await parts.get(parent)):
        assert record.state == "done"
        assert record.failure is not None
        assert record.failure.status == "CANCELLED"
    assert (await parts.of(child)).state == "uploading"
    assert await parts.idle()


async def test_to_cancel_a_conversion_reaches_whoever_checks_what_it_made(parts: Desk) -> None:
    parent, _ = await converted(parts)
    child = await parts.lease()
    await parts.lifecycle.cancel(parent.name)
    assert await parts.jobs.renew(child.name, child.lease, 0.5, "") is True
    assert (await parts.get(parent)).state == "running"
    await parts.lifecycle.complete(child.name, child.lease, CANCELLED)
    ended = await parts.get(parent)
    assert ended.failure == CANCELLED
    assert ended.state == "done"


async def test_whoever_waits_hears_of_the_end_or_how_it_stands(parts: Desk) -> None:
    begun = await parts.begun()
    assert (await soon(parts.jobs.wait(begun.name, 0.01))).state == "waiting"
    waiting = asyncio.ensure_future(parts.jobs.wait(begun.name, SOON_S))
    job = await parts.lease()
    await parts.jobs.renew(job.name, job.lease, 0.5, "")
    await parts.lifecycle.complete(job.name, job.lease, FINE)
    assert (await soon(waiting)).state == "done"
    assert (await soon(parts.jobs.wait(begun.name, SOON_S))).state == "done"
    with pytest.raises(NotFound) as raised:
        await parts.jobs.wait("operations/none", SOON_S)
    assert raised.value.reason_given == "OPERATION_NOT_FOUND"

    other = await parts.begun(b"2")
    waiting = asyncio.ensure_future(parts.jobs.wait(other.name, 10 * SOON_S))
    await asyncio.sleep(0)
    parts.jobs.drain()
    assert (await soon(waiting)).state == "waiting"


async def test_lists_are_whole_newest_first_in_pages(parts: Desk) -> None:
    version = await parts.ready()
    names = [(await parts.profiling(version.name)).name for _ in range(5)]
    for _ in range(2):
        job = await parts.lease()
        await parts.lifecycle.complete(job.name, job.lease, measured(job))
    expected = [*reversed(names), "operations/finalize.m.1"]
    servicer: Any = OperationsServicer(parts.jobs, parts.lifecycle)

    async def listed(**fields: Any) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            request = operations_pb2.ListOperationsRequest(page_token=token, **fields)
            page = await servicer.ListOperations(request, None)
            found += [operation.name for operation in page.operations]
            assert len(page.operations) <= (fields.get("page_size") or 50)
            if not (token := page.next_page_token):
                return found

    for size in (0, 1, 2, 3, 6, 100):
        assert await listed(page_size=size) == expected
    for filter_, wanted in (
        ("done = true", [*reversed(names[:2]), expected[-1]]),
        ("done=false", expected[:3]),
    ):
        assert await listed(page_size=2, filter=filter_) == wanted
    for bad in ({"filter": "kind = profile"}, {"page_token": "bm9wZQ=="}, {"page_token": "!"}):
        with pytest.raises(InvalidRequest):
            await servicer.ListOperations(operations_pb2.ListOperationsRequest(**bad), None)


async def test_operations_of_one_moment_are_all_listed(parts: Desk) -> None:
    version = await parts.ready()
    moment = parts.clock.now + timedelta(days=1)
    for _ in range(4):
        parts.clock.now = moment
        await parts.profiling(version.name)
    seen: list[str] = []
    after: tuple[str, str] | None = None
    while page := await parts.jobs.listed(after, 1):
        seen += [record.name for record in page]
        after = page[-1].create_time.isoformat(), page[-1].name
    assert len(seen) == len(set(seen)) == 5


async def test_only_what_has_ended_can_be_deleted(parts: Desk) -> None:
    version = await parts.ready()
    begun = await parts.profiling(version.name)
    with pytest.raises(FailedPrecondition, match="has not ended"):
        await parts.jobs.delete(begun.name)
    job = await parts.lease()
    with pytest.raises(FailedPrecondition, match="has not ended"):
        await parts.jobs.delete(begun.name)
    await parts.lifecycle.complete(job.name, job.lease, measured(job))
    await parts.jobs.delete(job.name)
    with pytest.raises(NotFound):
        await parts.get(job)
    with pytest.raises(NotFound):
        await parts.jobs.delete(job.name)


async def test_a_check_over_which_three_workers_were_lost_rejects_the_version(parts: Desk) -> None:
    begun = await parts.begun()
    for attempt in range(1, 4):
        assert await parts.desk.lease("w", KINDS, 0) is not None
        job = await parts.get(begun)
        assert job.attempts == attempt
        parts.pass_time(LEASE)
    assert await parts.desk.lease("w", KINDS, 0) is None
    version = await parts.of(begun)
    assert version.state == "rejected"
    (rejection,) = version.rejections
    assert rejection.rule == "check-lost"
    assert "3 workers" in rejection.message
    ended = await parts.get(begun)
    assert (ended.state, ended.failure) == ("done", None)
    await lost(parts.lifecycle.complete(job.name, job.lease, FINE))
    assert (await parts.of(begun)).state == "rejected"


async def test_other_work_over_which_three_workers_were_lost_fails(parts: Desk) -> None:
    version = await parts.ready()
    begun = await parts.profiling(version.name)
    for _ in range(3):
        await parts.lease()
        parts.pass_time(LEASE)
    assert await parts.desk.lease("w", KINDS, 0) is None
    ended = await parts.get(begun)
    assert ended.failure is not None
    assert (ended.failure.status, ended.failure.reason) == ("INTERNAL", "BACKEND_FAILED")
    assert await parts.of(begun) == version


async def test_two_who_finalize_at_once_get_one_operation(parts: Desk) -> None:
    version = await parts.uploaded()
    found = await asyncio.gather(
        *(parts.lifecycle.finalize(by(call=str(n)), version.name) for n in range(8))
    )
    assert {record.name for record in found} == {"operations/finalize.m.1"}
    async with parts.database.read() as connection:
        count = (await connection.execute(select(func.count()).select_from(OPERATIONS))).scalar()
    assert count == 1
    job = await parts.lease()
    assert await parts.idle()
    await parts.lifecycle.complete(job.name, job.lease, FINE)
    ended = await parts.lifecycle.finalize(by(), version.name)
    assert isinstance(ended, VersionRecord)
    assert ended.state == "ready"


async def test_a_repeated_request_id_begins_one_operation(parts: Desk) -> None:
    version = await parts.ready()
    request = {"batch_sizes": [1], "lengths": [1]}
    found = await asyncio.gather(
        *(
            parts.lifecycle.begin(by("r-1"), "profile", version.name, request, dry=False)
            for _ in range(4)
        )
    )
    (name,) = {record.name for record in found}
    job = await parts.lease()
    assert job.name == name
    assert await parts.idle()
    with pytest.raises(AlreadyExists):
        other = by("r-1", digest="other")
        await parts.lifecycle.begin(other, "profile", version.name, request, dry=False)
    another = by("r-1", identity="bob")
    begun = await parts.lifecycle.begin(another, "profile", version.name, request, dry=False)
    assert begun.name != name
    parts.pass_time(timedelta(hours=25))
    later = await parts.lifecycle.begin(by("r-1"), "profile", version.name, request, dry=False)
    assert later.name not in (name, begun.name)


async def test_to_begin_needs_a_version_that_is_ready(parts: Desk) -> None:
    version = await parts.uploaded()
    for kind in ("convert", "evaluate", "profile"):
        with pytest.raises(FailedPrecondition, match="is uploading, not ready"):
            await parts.lifecycle.begin(by(), kind, version.name, {"dataset": "x"}, dry=False)  # type: ignore[arg-type]  # each is a kind
    ready = await parts.ready(seed=b"2")
    with pytest.raises(FailedPrecondition, match="data.jsonl"):
        await parts.lifecycle.begin(
            by(), "evaluate", ready.name, {"dataset": ready.name}, dry=False
        )
    await parts.model("llm", "generation")
    assert await parts.idle()


@pytest.mark.parametrize("kind", ["finalize", "profile"])
@pytest.mark.parametrize("running", [True, False])
async def test_a_job_whose_version_is_deleted_fails(parts: Desk, kind: str, running: bool) -> None:
    if kind == "finalize":
        begun = await parts.begun()
    else:
        begun = await parts.profiling((await parts.ready()).name)
    if running:
        job = await parts.lease()
    await parts.models.delete_version(by(), begun.subject, "", dry=False)
    revision = await parts.store.revision()
    if running:
        outcome = FINE if kind == "finalize" else measured(job, a=1.0)
        await parts.lifecycle.complete(job.name, job.lease, outcome)
    else:
        assert await parts.desk.lease("w", KINDS, 0) is None
    ended = await parts.get(begun)
    assert (ended.state, ended.result) == ("done", None)
    assert ended.failure is not None
    assert (ended.failure.status, ended.failure.reason) == ("NOT_FOUND", "VERSION_NOT_FOUND")
    assert await parts.store.revision() == revision


async def test_what_ended_long_ago_is_forgotten(parts: Desk) -> None:
    version = await parts.ready()
    running = await parts.profiling(version.name)
    assert (await parts.lease()).name == running.name
    waiting = await parts.profiling(version.name)
    assert await parts.jobs.forget() == 0
    parts.pass_time(KEPT + timedelta(hours=1))
    fresh = await parts.begun(b"2")
    await parts.lifecycle.cancel(fresh.name)
    assert await parts.jobs.forget() == 1
    left = [record.name for record in await parts.jobs.listed(None, 100)]
    assert left == [fresh.name, waiting.name, running.name]
    # What was acknowledged can be asked for as long as the version is there.
    servicer: Any = OperationsServicer(parts.jobs, parts.lifecycle)
    request = operations_pb2.GetOperationRequest(name="operations/finalize.m.1")
    past = await servicer.GetOperation(request, None)
    assert past.done
    assert past.HasField("response")


async def test_a_restart_gives_back_what_the_dead_process_had_in_hand(tmp_path: Path) -> None:
    async with desk(tmp_path / "r", "") as before:
        await before.model()
        await before.begun()
        first = await before.lease()
    async with desk(tmp_path / "r", "") as after:
        again = await after.lease()
        assert (again.name, again.attempts) == (first.name, 2)
        await lost(after.lifecycle.complete(first.name, first.lease, FINE))
        await after.lifecycle.complete(again.name, again.lease, FINE)
        assert (await after.of(again)).state == "ready"


async def test_replicas_lease_each_job_once(tmp_path: Path, emptied: str) -> None:
    async with desk(tmp_path / "1", emptied) as one, desk(tmp_path / "2", emptied) as two:
        await one.model()
        version = await one.ready()
        # Enough for all: a leaser that waits is woken by the other replica's announcement.
        leasers = [
            asyncio.ensure_future(registry.jobs.lease(f"{n}-{at}", KINDS, SOON_S))
            for n in range(8)
            for at, registry in enumerate((one, two))
        ]
        begun = [
            (await (one, two)[n % 2].profiling(version.name)).name for n in range(len(leasers))
        ]
        found = [job for job in await soon(asyncio.gather(*leasers)) if job is not None]
        assert sorted(job.name for job in found) == sorted(begun)
        assert len({job.lease for job in found}) == len(begun)
        assert {job.attempts for job in found} == {1}
        assert await one.idle()
        assert await two.idle()

        job = found[0]
        waiting = asyncio.ensure_future(one.jobs.wait(job.name, SOON_S))
        results = await asyncio.gather(
            *(r.lifecycle.complete(job.name, job.lease, measured(job)) for r in (one, two)),
            return_exceptions=True,
        )
        assert sorted(type(result) for result in results if result) == [Conflict]
        assert (await soon(waiting)).state == "done"

"""Traffic policies, archives, repeated requests and the history, on both databases."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.registry.database import Database
from services.registry.resources import (
    ChangeRecord,
    Resource,
    SplitRecord,
    TrafficPolicyRecord,
    VersionRecord,
)
from services.registry.store import Span, Store
from services.runtime import traffic
from services.runtime.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    GristmillError,
    InvalidRequest,
    NotFound,
)
from tests.unit.registry.conftest import Place
from tests.unit.registry.parts import Parts, Ticking, by, opened

M, V1, V2, V3 = "models/m", "models/m/versions/1", "models/m/versions/2", "models/m/versions/3"
LIVE, CANARY, POLICY = "models/m/aliases/live", "models/m/aliases/canary", "models/m/trafficPolicy"
DAY = timedelta(hours=24)


def to(version: int, weight: int = 1) -> SplitRecord:
    """A share for a version."""
    return SplitRecord(version=version, weight=weight)


def over(alias: str, weight: int = 1) -> SplitRecord:
    """A share for an alias."""
    return SplitRecord(alias=alias, weight=weight)


async def policy(
    parts: Parts, *splits: SplitRecord, sticky: str = "", shadow: int = 0, etag: str = ""
) -> TrafficPolicyRecord:
    """Set the policy of "m"."""
    return await parts.pointers.set_policy(by(), POLICY, splits, sticky, shadow, etag, dry=False)


async def alias(parts: Parts, name: str, version: int) -> None:
    """Point an alias of "m"."""
    await parts.pointers.set_alias(by(), name, version, None, "", dry=False)


async def resolved(store: Store, draw: float = 0.0, **ref: Any) -> tuple[int, str]:
    """The version that a reference to "m" means, and what chose it."""
    found, chosen_by = await store.resolve("m", ref.get("version", 0), ref.get("alias", ""), draw)
    return found.version, chosen_by


async def names(parts: Parts) -> list[str]:
    """The names of all resources."""
    return [resource.name for resource in (await parts.store.snapshot()).resources]


async def unchanged(parts: Parts, attempt: Awaitable[Any], error: type[GristmillError]) -> Any:
    """An attempt that is refused and leaves everything; gives the error."""
    before = await parts.store.revision()
    with pytest.raises(error) as caught:
        await attempt
    assert await parts.store.revision() == before
    return caught.value


def clock(parts: Parts) -> Ticking:
    """The clock of a registry."""
    found = parts.store._clock
    assert isinstance(found, Ticking)
    return found


# What a policy may be.


async def test_a_policy_is_created_replaced_and_deleted(stocked: Parts) -> None:
    with pytest.raises(NotFound) as missing:
        await stocked.store.policy("m")
    assert missing.value.reason_given == "TRAFFIC_POLICY_NOT_FOUND"
    assert missing.value.resource == ("traffic_policy", POLICY)
    first = await policy(stocked, to(1, 90), over("live", 10), sticky="x-user", shadow=2)
    assert await stocked.store.policy("m") == first
    assert (first.name, first.sticky_key, first.shadow_version) == (POLICY, "x-user", 2)
    assert first.splits == (to(1, 90), over("live", 10))
    revision = await stocked.store.revision()
    again = await policy(stocked, to(1, 90), over("live", 10), sticky="x-user", shadow=2)
    assert (again, await stocked.store.revision()) == (first, revision), "nothing changed"
    second = await policy(stocked, to(2))
    assert second.etag != first.etag
    assert second.update_time >= first.update_time
    await stocked.pointers.delete_policy(by(), POLICY, second.etag, dry=False)
    with pytest.raises(NotFound):
        await stocked.store.policy("m")
    changes = await stocked.store.history("m", 2**62, 3, Span(resource=POLICY))
    assert [one.kind for one in changes] == ["deleted", "updated", "created"]
    assert [one.after for one in changes] == [None, second, first]


@pytest.mark.parametrize(
    ("splits", "error"),
    [
        ((), InvalidRequest),
        ((to(1, 0),), InvalidRequest),
        ((to(1, 0), over("live", 0)), InvalidRequest),
        ((to(1), to(1)), InvalidRequest),
        ((to(1), to(1, 0)), InvalidRequest),
        ((over("live"), over("live", 2)), InvalidRequest),
        ((to(3),), FailedPrecondition),
        ((to(1), to(3, 0)), FailedPrecondition),
        ((to(9),), NotFound),
        ((to(2**32 - 1),), NotFound),
        ((over("nowhere"),), NotFound),
        ((to(1), over("nowhere", 0)), NotFound),
    ],
)
async def test_a_policy_that_cannot_be_followed_is_refused(
    stocked: Parts, splits: tuple[SplitRecord, ...], error: type[GristmillError]
) -> None:
    await unchanged(stocked, policy(stocked, *splits), error)


async def test_the_shadow_version_must_be_ready_and_the_model_there(stocked: Parts) -> None:
    for shadow, error in ((3, FailedPrecondition), (9, NotFound)):
        await unchanged(stocked, policy(stocked, to(1), shadow=shadow), error)
    for name, wrong in (("models/x/trafficPolicy", NotFound), (M, InvalidRequest)):
        setting = stocked.pointers.set_policy(by(), name, (to(1),), "", 0, "", dry=False)
        await unchanged(stocked, setting, wrong)


async def test_a_policy_changes_only_from_its_present_reading(stocked: Parts) -> None:
    error = await unchanged(stocked, policy(stocked, to(1), etag="made up"), Conflict)
    assert error.reason_given == "ETAG_MISMATCH"
    old = await policy(stocked, to(1))
    new = await policy(stocked, to(2), etag=old.etag)
    await unchanged(stocked, policy(stocked, to(1), etag=old.etag), Conflict)
    deleting = stocked.pointers.delete_policy(by(), POLICY, old.etag, dry=False)
    await unchanged(stocked, deleting, Conflict)
    setting = (policy(stocked, to(1, n), etag=new.etag) for n in range(2, 6))
    ends = await asyncio.gather(*setting, return_exceptions=True)
    assert sum(isinstance(end, Conflict) for end in ends) == 3


async def test_what_a_policy_names_stays(stocked: Parts) -> None:
    await alias(stocked, LIVE, 1)
    await alias(stocked, CANARY, 1)
    await policy(stocked, over("canary"), to(2, 0))
    refused = FailedPrecondition
    models, pointers = stocked.models, stocked.pointers
    await unchanged(stocked, models.archive_version(by(), V2, "", restore=False), refused)
    await unchanged(stocked, models.delete_version(by(), V2, "", dry=False), refused)
    await unchanged(stocked, pointers.delete_alias(by(), CANARY, "", dry=False), refused)
    await pointers.delete_alias(by(), LIVE, "", dry=False)
    await policy(stocked, over("canary"), shadow=2)
    error = await unchanged(stocked, models.delete_version(by(), V2, "", dry=False), refused)
    assert "the traffic policy" in error.message
    await pointers.delete_policy(by(), POLICY, "", dry=False)
    await models.delete_version(by(), V2, "", dry=False)
    await pointers.delete_alias(by(), CANARY, "", dry=False)
    await models.archive_version(by(), V1, "", restore=False)


async def test_a_policy_goes_with_its_model(stocked: Parts) -> None:
    await policy(stocked, to(1))
    await stocked.models.delete_model(by(), M, "", force=True, dry=False)
    assert await names(stocked) == []
    (first, *_, last) = await stocked.store.history("m", 2**62, 6)
    assert (first.name, last.name) == (M, POLICY)
    await stocked.model()
    with pytest.raises(NotFound):
        await stocked.store.policy("m")


# What a reference means.


async def test_a_policy_chooses_where_neither_version_nor_alias_is_named(stocked: Parts) -> None:
    assert await resolved(stocked.store) == (1, "live")
    await policy(stocked, to(2))
    assert await resolved(stocked.store) == (2, "traffic_policy")
    assert await resolved(stocked.store, version=1) == (1, "version")
    assert await resolved(stocked.store, alias="live") == (1, "alias")
    await policy(stocked, over("live"))
    assert await resolved(stocked.store) == (1, "traffic_policy")
    await alias(stocked, LIVE, 2)
    assert await resolved(stocked.store) == (2, "traffic_policy"), "the alias is followed"
    await stocked.pointers.delete_policy(by(), POLICY, "", dry=False)
    assert await resolved(stocked.store) == (2, "live")


async def test_calls_are_shared_out_by_weight(stocked: Parts) -> None:
    await alias(stocked, CANARY, 2)
    await policy(stocked, to(1, 3), to(2, 0), over("canary", 1))
    rng, draws = random.Random(4), 600
    found = Counter([await resolved(stocked.store, rng.random()) for _ in range(draws)])
    assert set(found) == {(1, "traffic_policy"), (2, "traffic_policy")}
    assert abs(found[1, "traffic_policy"] / draws - 0.75) < 0.06
    assert await resolved(stocked.store, 0.7499999) == (1, "traffic_policy")
    assert await resolved(stocked.store, 0.75) == (2, "traffic_policy")
    assert await resolved(stocked.store, 1 - 2**-53) == (2, "traffic_policy")


async def test_a_callers_value_stays_on_its_version(stocked: Parts) -> None:
    draws = {f"user-{n}": traffic.draw("m", f"user-{n}") for n in range(300)}
    await policy(stocked, to(1, 50), to(2, 50), sticky="x-user")
    first = {user: await resolved(stocked.store, draw) for user, draw in draws.items()}
    assert 75 < sum(version == 1 for version, _ in first.values()) < 225
    await policy(stocked, to(1, 60), to(2, 40), sticky="x-user")
    moved = 0
    for user, draw in draws.items():
        version, _ = await resolved(stocked.store, draw)
        assert (version, *first[user]) in ((version, version, "traffic_policy"), (1, *first[user]))
        moved += version != first[user][0]
    assert 0 < moved < 75, "about a tenth moves, towards the heavier share"


async def test_what_was_written_is_resolved_at_once(stocked: Parts) -> None:
    rng = random.Random(6)
    for _ in range(40):
        version, what = rng.choice((1, 2)), rng.randrange(3)
        if what == 0:
            await policy(stocked, to(version))
            assert await resolved(stocked.store) == (version, "traffic_policy")
        elif what == 1:
            await alias(stocked, LIVE, version)
            assert await resolved(stocked.store, alias="live") == (version, "alias")
            await policy(stocked, over("live"))
            assert await resolved(stocked.store) == (version, "traffic_policy")
        else:
            await policy(stocked, to(version))
            await stocked.pointers.delete_policy(by(), POLICY, "", dry=False)
            assert (await resolved(stocked.store))[1] == "live"
        said = str(rng.random())
        await stocked.models.update_version(by(), V1, "", {"description": said}, dry=False)
        record, _ = await stocked.store.resolve("m", 1, "")
        assert record.description == said


async def test_readers_beside_writers_never_go_back(stocked: Parts) -> None:
    """Each reader sees the versions of a share in the order in which it was given."""
    acknowledged = 0
    done = asyncio.Event()

    async def write() -> None:
        nonlocal acknowledged
        for weight in range(1, 30):
            await stocked.models.update_version(
                by(), V1, "", {"description": f"{weight}"}, dry=False
            )
            acknowledged = weight
        done.set()

    async def read() -> int:
        last = count = 0
        while not done.is_set():
            least = max(last, acknowledged)
            record, _ = await stocked.store.resolve("m", 0, "live")
            last = int(record.description or 0)
            assert last >= least
            count += 1
            await asyncio.sleep(0)
        return count

    *counts, _ = await asyncio.gather(read(), read(), read(), write())
    assert min(counts) > 5


@pytest.mark.parametrize("stock", ["postgresql"], indirect=True)
async def test_a_write_through_one_replica_is_resolved_through_the_other_at_once(
    copied: Place,
) -> None:
    async with opened(copied.root, database=copied.database) as parts:
        # It hears no announcements: what it says must come from the database.
        other = Database(copied.database)
        try:
            store = Store(other)
            for number in range(30):
                version = 1 + number % 2
                await policy(parts, to(version, number + 1))
                assert await resolved(store) == (version, "traffic_policy")
                await alias(parts, LIVE, version)
                assert await resolved(store, alias="live") == (version, "alias")
            await parts.models.delete_model(by(), M, "", force=True, dry=False)
            with pytest.raises(NotFound):
                await resolved(store)
        finally:
            await other.close()


# Archives.


async def test_a_model_is_put_away_and_taken_back(stocked: Parts) -> None:
    models = stocked.models
    before = await stocked.store.model("m")
    away = await models.archive_model(by(), M, before.etag, restore=False)
    assert away.archive_time == away.update_time
    assert away.etag != before.etag
    assert away == await stocked.store.model("m")
    assert len(await names(stocked)) == 5, "it keeps everything"
    revision = await stocked.store.revision()
    assert await models.archive_model(by(), M, "", restore=False) == away
    assert await stocked.store.revision() == revision, "it is away already"
    await unchanged(stocked, models.archive_model(by(), M, before.etag, restore=True), Conflict)
    await unchanged(stocked, models.archive_model(by(), "models/x", "", restore=True), NotFound)
    back = await models.archive_model(by(), M, away.etag, restore=True)
    assert back.archive_time is None
    same = {"etag": "", "update_time": before.update_time}
    assert back.model_copy(update=same) == before.model_copy(update=same)
    assert await models.archive_model(by(), M, "", restore=True) == back


async def test_a_version_is_put_away_and_taken_back(stocked: Parts) -> None:
    models = stocked.models
    before = await stocked.store.version("m", 2)
    away = await models.archive_version(by(), V2, before.etag, restore=False)
    assert (away.state, away.ready_time) == ("archived", before.ready_time)
    assert await models.archive_version(by(), V2, "", restore=False) == away
    await unchanged(stocked, policy(stocked, to(2)), FailedPrecondition)
    await unchanged(stocked, alias(stocked, CANARY, 2), FailedPrecondition)
    finished = await stocked.lifecycle.finalize(by(), V2)
    assert isinstance(finished, VersionRecord)
    assert finished.state == "archived"
    await unchanged(stocked, models.archive_version(by(), V2, before.etag, restore=True), Conflict)
    back = await models.archive_version(by(), V2, away.etag, restore=True)
    assert back.model_copy(update={"etag": before.etag}) == before
    assert await models.archive_version(by(), V2, "", restore=True) == back
    await policy(stocked, to(2))


async def test_only_what_is_ready_and_free_is_put_away(stocked: Parts) -> None:
    archive, refused = stocked.models.archive_version, FailedPrecondition
    error = await unchanged(stocked, archive(by(), V1, "", restore=False), refused)
    assert "alias live" in error.message
    await unchanged(stocked, archive(by(), V3, "", restore=False), refused)  # uploading
    await unchanged(stocked, archive(by(), V3, "", restore=True), refused)
    await unchanged(stocked, archive(by(), "models/m/versions/9", "", restore=True), NotFound)


# Repetitions.

Repeat = Callable[[Parts], Awaitable[Any]]
REPEATED: dict[str, Repeat] = {
    "set_policy": lambda p: p.pointers.set_policy(by("r"), POLICY, (to(2),), "", 0, "", dry=False),
    "archive_model": lambda p: p.models.archive_model(by("r"), M, "", restore=False),
    "archive_version": lambda p: p.models.archive_version(by("r"), V2, "", restore=False),
    "update_model": lambda p: p.models.update_model(
        by("r"), M, "", {"description": "x"}, dry=False
    ),
}


@pytest.mark.parametrize("name", REPEATED)
async def test_a_repetition_is_answered_the_same_for_a_day(stocked: Parts, name: str) -> None:
    first = await REPEATED[name](stocked)
    # What was made of it since does not change the answer.
    await stocked.pointers.set_policy(by(), POLICY, (to(1),), "", 0, "", dry=False)
    await stocked.models.archive_model(by(), M, "", restore=True)
    await stocked.models.archive_version(by(), V2, "", restore=True)
    revision = await stocked.store.revision()
    clock(stocked).now += DAY - timedelta(minutes=1)
    await stocked.store.forget_requests()
    assert await REPEATED[name](stocked) == first
    with pytest.raises(AlreadyExists):
        await stocked.models.update_model(
            by("r", digest="other"), M, "", {"description": "y"}, dry=False
        )
    assert await stocked.store.revision() == revision
    clock(stocked).now += timedelta(minutes=2)
    again = await REPEATED[name](stocked)
    assert again.etag != first.etag
    assert await stocked.store.revision() == revision + 1, "the id is free again"
    assert await REPEATED[name](stocked) == again


async def test_old_request_ids_are_forgotten(stocked: Parts) -> None:
    await REPEATED["update_model"](stocked)
    assert await stocked.store.forget_requests() == 0
    clock(stocked).now += DAY + timedelta(minutes=1)
    assert await stocked.store.forget_requests() == 1
    assert await stocked.store.forget_requests() == 0


# History.


async def wandering(parts: Parts, seed: int) -> None:
    """Changes of all kinds, while the clock stands, runs and goes back."""
    rng = random.Random(seed)
    for _ in range(40):
        clock(parts).now += timedelta(seconds=rng.choice((-500, -3, -1, 0, 0, 5, 60, 3600)))
        what = rng.randrange(6)
        try:
            if what == 0:
                await alias(parts, rng.choice((LIVE, CANARY)), rng.choice((1, 2)))
            elif what == 1:
                target = rng.choice((LIVE, CANARY))
                await parts.pointers.delete_alias(by(), target, "", dry=False)
            elif what == 2:
                share = rng.choice((to(1), to(2), over("live"), over("canary")))
                await policy(parts, share, sticky=rng.choice(("", "x-user")))
            elif what == 3:
                await parts.pointers.delete_policy(by(), POLICY, "", dry=False)
            elif what == 4:
                restore = rng.random() < 0.5
                await parts.models.archive_version(by(), V2, "", restore=restore)
            else:
                said = {"description": str(rng.random())}
                await parts.models.update_model(by(), M, "", said, dry=False)
        except (NotFound, FailedPrecondition):
            pass


def replay(changes: list[ChangeRecord], name: str, moment: datetime) -> Resource | None:
    """What a resource was at a moment, told from all that happened."""
    found: Resource | None = None
    for change in changes:
        if change.commit_time <= moment and change.name == name:
            found = change.after
    return found


@pytest.mark.parametrize("seed", [1, 2])
async def test_what_was_at_a_moment_is_what_a_replay_gives(stocked: Parts, seed: int) -> None:
    await wandering(stocked, seed)
    changes = await stocked.store.changes(0, 1000)
    assert len({change.name for change in changes}) >= 6
    times = [change.commit_time for change in changes]
    assert times == sorted(times), "revisions and times have the same order"
    assert len(set(times)) < len(times), "the clock went back"
    step = timedelta(microseconds=1)
    moments = {at + by_ for at in times for by_ in (-step, timedelta(), step)}
    moments |= {datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)}
    rng = random.Random(seed)
    for moment in rng.sample(sorted(moments), 25):
        for name in (LIVE, CANARY, POLICY, V2, M):
            assert await stocked.store.at(name, moment) == replay(changes, name, moment)


async def test_the_history_is_cut_by_time_and_resource(stocked: Parts) -> None:
    await wandering(stocked, 7)
    await stocked.model("other")
    changes = [one for one in await stocked.store.changes(0, 1000) if one.name != "models/other"]
    rng = random.Random(7)
    times = [change.commit_time for change in changes]
    for _ in range(25):
        start, end = (rng.choice((None, *times)) for _ in range(2))
        resource = rng.choice(("", LIVE, POLICY, V1, M, "models/m/aliases/none"))
        wanted = [
            change
            for change in reversed(changes)
            if (start is None or change.commit_time >= start)
            and (end is None or change.commit_time < end)
            and resource in ("", change.name)
        ]
        found = await stocked.store.history("m", 2**62, 1000, Span(start, end, resource))
        assert found == wanted
        if len(wanted) > 3:
            older = await stocked.store.history(
                "m", wanted[1].revision, 2, Span(start, end, resource)
            )
            assert older == wanted[2:4]


async def test_times_never_go_back_even_over_a_restart(copied: Place) -> None:
    async with opened(copied.root, database=copied.database) as parts:
        clock(parts).now += timedelta(days=3)
        await policy(parts, to(1))
        last = (await parts.store.changes(0, 1000))[-1]
    async with opened(copied.root, database=copied.database) as parts:  # its clock begins anew
        found = await policy(parts, to(2))
        change = (await parts.store.changes(last.revision, 10))[-1]
        assert found.update_time == change.commit_time == last.commit_time
        assert await parts.store.at(POLICY, last.commit_time) == found

"""One write, one transaction, one change: etags, request ids, trials, what a restart keeps."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from services.registry.listing import Listing
from services.registry.resources import ChangeRecord, ModelRecord, SplitRecord, VersionRecord
from services.registry.store import Author
from services.runtime.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    GristmillError,
    NotFound,
)
from tests.unit.registry.conftest import Place
from tests.unit.registry.parts import Parts, artifact, by, opened

Attempt = Callable[[Parts, Author, bool], Awaitable[Any]]
M, V1, LIVE = "models/m", "models/m/versions/1", "models/m/aliases/live"
POLICY = "models/m/trafficPolicy"


async def changes(parts: Parts, after: int = 0) -> list[ChangeRecord]:
    """All changes."""
    return await parts.store.changes(after, 1000)


async def said(parts: Parts, after: int = 0) -> list[tuple[str, str]]:
    """Kind and name of all changes."""
    return [(change.kind, change.name) for change in await changes(parts, after)]


async def everything(parts: Parts) -> list[str]:
    """All that is stored, to compare."""
    snapshot = await parts.store.snapshot()
    return [str(snapshot.revision), *map(repr, snapshot.resources)]


ATTEMPTS: dict[str, Attempt] = {
    "create_model": lambda p, a, dry: p.models.create_model(
        a, "new", "generation", "d", {"k": "v"}, dry=dry
    ),
    "update_model": lambda p, a, dry: p.models.update_model(
        a, M, "", {"description": "new"}, dry=dry
    ),
    "delete_model": lambda p, a, dry: p.models.delete_model(a, M, "", force=True, dry=dry),
    "create_version": lambda p, a, dry: p.models.create_version(
        a, "m", [artifact("a", b"x")], "", {}, {}, None, dry=dry
    ),
    "update_version": lambda p, a, dry: p.models.update_version(
        a, V1, "", {"metrics": {"f1": 0.5}}, dry=dry
    ),
    "delete_version": lambda p, a, dry: p.models.delete_version(
        a, "models/m/versions/2", "", dry=dry
    ),
    "move_alias": lambda p, a, dry: p.pointers.set_alias(a, LIVE, 2, None, "", dry=dry),
    "create_alias": lambda p, a, dry: p.pointers.set_alias(
        a, "models/m/aliases/next", 2, None, "", dry=dry
    ),
    "delete_alias": lambda p, a, dry: p.pointers.delete_alias(a, LIVE, "", dry=dry),
    "set_policy": lambda p, a, dry: p.pointers.set_policy(
        a, POLICY, (SplitRecord(version=2, weight=1),), "x-user", 1, "", dry=dry
    ),
    "archive_model": lambda p, a, dry: p.models.archive_model(a, M, "", restore=False),
    "archive_version": lambda p, a, dry: p.models.archive_version(
        a, "models/m/versions/2", "", restore=False
    ),
    "delete_policy": lambda p, a, dry: p.pointers.delete_policy(a, POLICY, "", dry=dry),
    "restore_model": lambda p, a, dry: p.models.archive_model(a, M, "", restore=True),
    "restore_version": lambda p, a, dry: p.models.archive_version(
        a, "models/m/versions/2", "", restore=True
    ),
}
PREPARED: dict[str, Attempt] = {
    "delete_policy": ATTEMPTS["set_policy"],
    "restore_model": ATTEMPTS["archive_model"],
    "restore_version": ATTEMPTS["archive_version"],
}
"""What must have been done before an attempt."""
NO_TRIAL = {"archive_model", "archive_version", "restore_model", "restore_version"}
"""What cannot be tried without doing it."""
EXPECTED: dict[str, list[tuple[str, str]]] = {
    "create_model": [("created", "models/new")],
    "update_model": [("updated", M)],
    "delete_model": [
        ("deleted", LIVE),
        ("deleted", V1),
        ("deleted", "models/m/versions/2"),
        ("deleted", "models/m/versions/3"),
        ("deleted", M),
    ],
    "create_version": [("created", "models/m/versions/4"), ("updated", M)],
    "update_version": [("updated", V1)],
    "delete_version": [("deleted", "models/m/versions/2")],
    "move_alias": [("updated", LIVE)],
    "create_alias": [("created", "models/m/aliases/next")],
    "delete_alias": [("deleted", LIVE)],
    "set_policy": [("created", POLICY)],
    "archive_model": [("updated", M)],
    "archive_version": [("updated", "models/m/versions/2")],
    "delete_policy": [("deleted", POLICY)],
    "restore_model": [("updated", M)],
    "restore_version": [("updated", "models/m/versions/2")],
}
each_attempt = pytest.mark.parametrize("name", ATTEMPTS)
each_trial = pytest.mark.parametrize("name", [name for name in ATTEMPTS if name not in NO_TRIAL])


async def prepared(parts: Parts, name: str) -> None:
    """Do what an attempt goes on from."""
    if name in PREPARED:
        await PREPARED[name](parts, by(), False)


@each_attempt
async def test_a_write_records_each_change_with_who_made_it(stocked: Parts, name: str) -> None:
    await prepared(stocked, name)
    before = await stocked.store.revision()
    old = {resource.name: resource for resource in (await stocked.store.snapshot()).resources}
    told: list[int] = []
    stocked.store.on_change.append(told.append)

    await ATTEMPTS[name](stocked, Author("bea", "call-7"), False)

    made = await changes(stocked, before)
    assert [(change.kind, change.name) for change in made] == EXPECTED[name]
    assert all((change.actor, change.request_id) == ("bea", "call-7") for change in made)
    revisions = [change.revision for change in made]
    assert revisions == sorted(set(revisions))
    # PostgreSQL announces it to this replica too.
    assert set(told) == {revisions[-1]}
    assert await stocked.store.revision() == revisions[-1]
    new = {resource.name: resource for resource in (await stocked.store.snapshot()).resources}
    for change in made:
        assert change.before == old.get(change.name)
        assert change.after == new.get(change.name)
    assert len({change.commit_time for change in made}) == 1


@each_trial
async def test_a_trial_says_what_would_be_and_changes_nothing(stocked: Parts, name: str) -> None:
    await prepared(stocked, name)
    before = await everything(stocked)
    told: list[int] = []
    stocked.store.on_change.append(told.append)

    trial = await ATTEMPTS[name](stocked, by("r1"), True)

    assert await everything(stocked) == before
    assert told == []
    real = await ATTEMPTS[name](stocked, by("r1"), False)  # the trial did not use up the id
    assert await said(stocked, int(before[0])) == EXPECTED[name]
    if real is None:
        assert trial is None
    else:
        own = {"etag": "", "create_time": None, "update_time": None}
        assert trial.model_copy(update=own) == real.model_copy(update=own)


@each_trial
async def test_a_trial_fails_as_the_real_thing_would(parts: Parts, name: str) -> None:
    """Of a registry that is empty but for a model called "new"."""
    await parts.model("new")
    failures = []
    for dry in (True, False):
        with pytest.raises(GristmillError) as caught:
            await ATTEMPTS[name](parts, by(), dry)
        failures.append((type(caught.value), caught.value.message))
    assert failures[0] == failures[1]


@each_attempt
async def test_a_repetition_changes_nothing_more_even_after_a_restart(
    copied: Place, name: str
) -> None:
    async with opened(copied.root, database=copied.database) as parts:
        await prepared(parts, name)
        first = await ATTEMPTS[name](parts, by("r1"), False)
        before = await everything(parts)
        assert await ATTEMPTS[name](parts, by("r1", call="other"), False) == first
        assert await everything(parts) == before
    async with opened(copied.root, database=copied.database) as parts:
        assert await ATTEMPTS[name](parts, by("r1"), False) == first
        assert await everything(parts) == before


@each_attempt
async def test_a_request_id_is_held_to_its_request(stocked: Parts, name: str) -> None:
    await prepared(stocked, name)
    await stocked.models.create_model(by("r1"), "first", "generation", "", {}, dry=False)
    before = await everything(stocked)
    for author in (by("r1", digest="another"), Author("ann", "c", "r1", "/another/Method", "d")):
        with pytest.raises(AlreadyExists, match="request_id was used for another request"):
            await ATTEMPTS[name](stocked, author, False)
    assert await everything(stocked) == before
    await ATTEMPTS[name](stocked, by("r1", identity="bea"), False)  # hers is another id
    assert await said(stocked, int(before[0])) == EXPECTED[name]


@each_attempt
async def test_of_equal_requests_at_once_one_is_carried_out(stocked: Parts, name: str) -> None:
    await prepared(stocked, name)
    before = await stocked.store.revision()
    await asyncio.gather(*(ATTEMPTS[name](stocked, by("r1"), False) for _ in range(4)))
    assert await said(stocked, before) == EXPECTED[name]


ETAGGED: dict[str, tuple[str, Callable[[Parts, str], Awaitable[Any]]]] = {
    "update_model": (M, lambda p, e: p.models.update_model(by(), M, e, {"labels": {}}, dry=False)),
    "delete_model": (M, lambda p, e: p.models.delete_model(by(), M, e, force=True, dry=False)),
    "update_version": (
        V1,
        lambda p, e: p.models.update_version(by(), V1, e, {"description": "x"}, dry=False),
    ),
    "delete_version": (
        "models/m/versions/3",
        lambda p, e: p.models.delete_version(by(), "models/m/versions/3", e, dry=False),
    ),
    "set_alias": (LIVE, lambda p, e: p.pointers.set_alias(by(), LIVE, 2, None, e, dry=False)),
    "delete_alias": (LIVE, lambda p, e: p.pointers.delete_alias(by(), LIVE, e, dry=False)),
    "archive_model": (M, lambda p, e: p.models.archive_model(by(), M, e, restore=False)),
    "archive_version": (
        "models/m/versions/2",
        lambda p, e: p.models.archive_version(by(), "models/m/versions/2", e, restore=False),
    ),
}


async def etag_of(parts: Parts, name: str) -> str:
    """The present etag of a resource."""
    found = {resource.name: resource for resource in (await parts.store.snapshot()).resources}
    return found[name].etag


@pytest.mark.parametrize("name", ETAGGED)
async def test_a_change_from_an_old_reading_is_refused(stocked: Parts, name: str) -> None:
    target, attempt = ETAGGED[name]
    old = await etag_of(stocked, target)
    if target == LIVE:
        await stocked.pointers.set_alias(by(), LIVE, 1, (), "", dry=False)
        await stocked.pointers.set_alias(by(), LIVE, 2, (), "", dry=False)
        await stocked.pointers.set_alias(by(), LIVE, 1, (), "", dry=False)
    elif "/versions/" in target:
        await stocked.models.update_version(by(), target, "", {"description": "y"}, dry=False)
    else:
        await stocked.models.update_model(by(), target, "", {"description": "y"}, dry=False)
    before = await everything(stocked)

    with pytest.raises(Conflict) as caught:
        await attempt(stocked, old)
    assert caught.value.reason_given == "ETAG_MISMATCH"
    assert await everything(stocked) == before
    await attempt(stocked, await etag_of(stocked, target))
    assert await everything(stocked) != before


async def test_of_two_who_move_an_alias_from_the_same_reading_one_is_told(stocked: Parts) -> None:
    etag = await etag_of(stocked, LIVE)
    ends = await asyncio.gather(
        *(stocked.pointers.set_alias(by(), LIVE, 2, None, etag, dry=False) for _ in range(5)),
        return_exceptions=True,
    )
    assert sum(isinstance(end, Conflict) for end in ends) == 4


async def test_a_model_with_versions_is_deleted_only_by_force(stocked: Parts) -> None:
    before = await everything(stocked)
    for dry in (True, False):
        with pytest.raises(FailedPrecondition, match="with force"):
            await stocked.models.delete_model(by(), M, "", force=False, dry=dry)
    assert await everything(stocked) == before
    await stocked.model("empty")
    await stocked.models.delete_model(by(), "models/empty", "", force=False, dry=False)


async def test_a_failure_in_the_middle_of_a_write_leaves_nothing_of_it(stocked: Parts) -> None:
    before = await everything(stocked)
    told: list[int] = []
    stocked.store.on_change.append(told.append)
    now = stocked.store.now()

    class Broken(Exception):
        pass

    async def half() -> None:
        async with stocked.store.write(by("r9")) as write:
            record = ModelRecord(id="half", task="generation", create_time=now, update_time=now)
            await write.save(None, record)
            raise Broken

    with pytest.raises(Broken):
        await half()
    cancelled = asyncio.create_task(_never_ends(stocked))
    await asyncio.sleep(0.05)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert await everything(stocked) == before
    assert told == []
    await stocked.models.create_model(by("r9"), "half", "generation", "", {}, dry=False)


async def _never_ends(parts: Parts) -> None:
    async with parts.store.write(by()) as write:
        now = write.now
        await write.save(
            None, ModelRecord(id="never", task="generation", create_time=now, update_time=now)
        )
        await asyncio.Event().wait()


async def test_version_numbers_are_given_once_whoever_asks(tmp_path: Path, template: Path) -> None:
    async def another(parts: Parts) -> VersionRecord:
        return await parts.version({"a": b"x"})

    async with opened(tmp_path / "r", template=template) as parts:
        await parts.model()
        made = await asyncio.gather(*(another(parts) for _ in range(10)))
        assert sorted(record.version for record in made) == list(range(1, 11))
        await parts.models.delete_version(by(), "models/m/versions/10", "", dry=False)
    async with opened(tmp_path / "r") as parts:
        assert (await another(parts)).version == 11
        assert (await parts.store.model("m")).latest_version == 11


async def test_revisions_go_on_after_everything_is_deleted_and_the_process_restarts(
    copied: Place,
) -> None:
    async with opened(copied.root, database=copied.database) as parts:
        await parts.models.delete_model(by(), M, "", force=True, dry=False)
        last = await parts.store.revision()
        assert (await parts.store.snapshot()).resources == []
    async with opened(copied.root, database=copied.database) as parts:
        assert await parts.store.revision() == last
        await parts.model()
        assert await parts.store.revision() == last + 1
        assert len(await changes(parts)) == last + 1


async def test_a_snapshot_is_of_one_moment(parts: Parts) -> None:
    await parts.model()
    writing = asyncio.gather(*(parts.version({"a": b"x"}) for _ in range(30)))
    seen = set()
    while not writing.done():
        snapshot = await parts.store.snapshot()
        (model,) = (r for r in snapshot.resources if isinstance(r, ModelRecord))
        versions = [r for r in snapshot.resources if isinstance(r, VersionRecord)]
        assert model.latest_version == len(versions)
        assert snapshot.revision == 1 + 2 * len(versions)
        seen.add(snapshot.revision)
    await writing
    assert len(seen) > 1


async def test_the_etag_changes_with_every_change(stocked: Parts) -> None:
    seen = set()
    for _ in range(20):
        record = await stocked.models.update_model(by(), M, "", {"description": "same"}, dry=False)
        assert re.fullmatch(r"[0-9a-f]{8,64}", record.etag)
        seen.add(record.etag)
    assert len(seen) == 20


async def test_what_is_missing_is_named(parts: Parts) -> None:
    await parts.model()
    for reading, reason, resource in (
        (parts.store.model("x"), "MODEL_NOT_FOUND", ("model", "models/x")),
        (parts.store.version("x", 1), "MODEL_NOT_FOUND", ("model", "models/x")),
        (parts.store.version("m", 1), "VERSION_NOT_FOUND", ("version", V1)),
        (parts.store.alias("m", "live"), "ALIAS_NOT_FOUND", ("alias", LIVE)),
        (parts.store.versions("x", Listing(9)), "MODEL_NOT_FOUND", ("model", "models/x")),
        (parts.store.aliases("x", "", 9), "MODEL_NOT_FOUND", ("model", "models/x")),
        (parts.store.policy("x"), "MODEL_NOT_FOUND", ("model", "models/x")),
        (parts.store.policy("m"), "TRAFFIC_POLICY_NOT_FOUND", ("traffic_policy", POLICY)),
        (parts.store.resolve("m", 0, ""), "ALIAS_NOT_FOUND", ("alias", LIVE)),
        (parts.store.batch_versions([("m", 1)]), "VERSION_NOT_FOUND", ("version", V1)),
    ):
        with pytest.raises(NotFound) as caught:
            await reading
        assert (caught.value.reason_given, caught.value.resource) == (reason, resource)

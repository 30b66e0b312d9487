"""Policies, archives, filters and the history over the wire, on both HTTP/2 servers."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import timestamp_pb2
from google.rpc.error_details_pb2 import BadRequest
from gristmill.registry.v1 import history_pb2, model_pb2, traffic_policy_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb

from tests.harness import collect, details, error_info, failure, reason, soon, status_of
from tests.unit.registry.wire import Here, Wire, registry

Code = grpc.StatusCode
M, V1, V2, LIVE = "models/m", "models/m/versions/1", "models/m/versions/2", "models/m/aliases/live"
POLICY = "models/m/trafficPolicy"
WRONG_STATE = (Code.FAILED_PRECONDITION, "WRONG_STATE")
MISMATCH = (Code.ABORTED, "ETAG_MISMATCH")
Split = traffic_policy_pb2.Split


@pytest.fixture
async def empty(tmp_path: Path, transport: str) -> AsyncIterator[Here]:
    """An empty registry."""
    async with registry(tmp_path / "r", transport) as found:
        yield found


@pytest.fixture
async def here(empty: Here) -> Here:
    """A registry with two ready versions of "m", the first of them live."""
    await empty.model()
    await empty.ready(b"1", metrics={"accuracy": 0.9}, labels={"team": "nlp"})
    await empty.ready(b"2", metrics={"accuracy": 0.8})
    await empty.alias(1)
    return empty


async def refused(call: Any, code: grpc.StatusCode, why: str) -> Any:
    """A call that must fail so; gives the error."""
    error = await failure(call)
    assert (error.code(), reason(error)) == (code, why), error.details()
    return error


async def field_refused(call: Any) -> str:
    """The one field for which a call is refused."""
    error = await refused(call, Code.INVALID_ARGUMENT, "INVALID_FIELD")
    (bad,) = details(status_of(error), BadRequest)
    (violation,) = bad.field_violations
    return str(violation.field)


def set_policy(here: Wire, *splits: Any, **fields: Any) -> Any:
    """A SetTrafficPolicy call."""
    own = {key: fields.pop(key) for key in ("request_id", "validate_only") if key in fields}
    held = traffic_policy_pb2.TrafficPolicy(**{"name": POLICY, "splits": splits, **fields})
    return here.stub.SetTrafficPolicy(pb.SetTrafficPolicyRequest(traffic_policy=held, **own))


async def resolve(here: Wire, sticky_value: str = "", **ref: Any) -> tuple[int, str]:
    """What a reference means, and what chose it."""
    named = model_pb2.ModelRef(model="m", **ref)
    request = pb.ResolveModelRequest(model=named, sticky_value=sticky_value)
    answer = await soon(here.stub.ResolveModel(request))
    return answer.version.version, answer.chosen_by


# Traffic policies.


async def test_a_policy_is_set_read_followed_and_deleted(here: Here) -> None:
    reading = pb.GetTrafficPolicyRequest(name=POLICY)
    missing = (Code.NOT_FOUND, "TRAFFIC_POLICY_NOT_FOUND")
    await refused(here.stub.GetTrafficPolicy(reading), *missing)
    shares = (Split(version=1, weight=1), Split(alias="live", weight=0), Split(version=2, weight=1))
    before = await here.revision()
    trial = await soon(set_policy(here, *shares, sticky_key="x-user", validate_only=True))
    assert list(trial.traffic_policy.splits) == list(shares)
    assert await here.revision() == before
    answer = await soon(set_policy(here, *shares, sticky_key="x-user", request_id="r1"))
    found = answer.traffic_policy
    assert (list(found.splits), found.sticky_key) == (list(shares), "x-user")
    assert found.etag
    assert found.HasField("update_time")
    again = await soon(set_policy(here, *shares, sticky_key="x-user", request_id="r1"))
    assert again == answer
    assert await here.revision() == before + 1
    reused = set_policy(here, *shares[:1], request_id="r1")
    await refused(reused, Code.ALREADY_EXISTS, "ALREADY_EXISTS")
    assert (await soon(here.stub.GetTrafficPolicy(reading))).traffic_policy == found

    drawn = {await resolve(here) for _ in range(60)}
    assert drawn == {(1, "traffic_policy"), (2, "traffic_policy")}
    stuck = {f"user-{n}": await resolve(here, f"user-{n}") for n in range(12)}
    assert set(stuck.values()) == drawn
    assert {user: await resolve(here, user) for user in stuck} == stuck
    assert await resolve(here, "user-1", version=2) == (2, "version")
    assert await resolve(here, "user-1", alias="live") == (1, "alias")

    deleting = pb.DeleteTrafficPolicyRequest(name=POLICY, etag="stale")
    await refused(here.stub.DeleteTrafficPolicy(deleting), *MISMATCH)
    await refused(set_policy(here, *shares, etag="stale"), *MISMATCH)
    deleting = pb.DeleteTrafficPolicyRequest(name=POLICY, etag=found.etag, validate_only=True)
    await soon(here.stub.DeleteTrafficPolicy(deleting))
    assert (await soon(here.stub.GetTrafficPolicy(reading))).traffic_policy == found
    deleting = pb.DeleteTrafficPolicyRequest(name=POLICY, etag=found.etag, request_id="r2")
    for _ in range(2):
        await soon(here.stub.DeleteTrafficPolicy(deleting))
    await refused(
        here.stub.DeleteTrafficPolicy(pb.DeleteTrafficPolicyRequest(name=POLICY)), *missing
    )
    assert await resolve(here, "user-1") == (1, "live")


async def test_a_policy_that_cannot_be_is_refused_by_its_field(here: Here) -> None:
    one = Split(version=1, weight=1)
    field = "traffic_policy.splits"
    for splits, more, expected in (
        ((), {}, field),
        ((Split(version=1),), {}, field),
        ((one, one), {}, field),
        ((Split(weight=1),), {}, f"{field}[0].target"),
        ((one, Split(version=0, weight=1)), {}, f"{field}[1].version"),
        ((Split(alias="a/b", weight=1),), {}, f"{field}[0].alias"),
        ((Split(version=1, weight=1_000_001),), {}, f"{field}[0].weight"),
        ((one,) * 17, {}, field),
        ((one,), {"sticky_key": "X-User"}, "traffic_policy.sticky_key"),
        ((one,), {"name": M}, "name"),
    ):
        assert await field_refused(set_policy(here, *splits, **more)) == expected
    huge = Split(version=2**32 - 1, weight=1)
    await refused(set_policy(here, huge), Code.NOT_FOUND, "VERSION_NOT_FOUND")
    nowhere = Split(alias="nowhere", weight=1)
    await refused(set_policy(here, nowhere), Code.NOT_FOUND, "ALIAS_NOT_FOUND")


# Archives.


async def test_a_model_is_put_away_and_taken_back(here: Here) -> None:
    def archive(**fields: Any) -> Any:
        return here.stub.ArchiveModel(pb.ArchiveModelRequest(name=M, **fields))

    async def listed(filter_: str = "") -> list[str]:
        answer = await soon(here.stub.ListModels(pb.ListModelsRequest(filter=filter_)))
        return [model.name for model in answer.models]

    away = (await soon(archive(request_id="r1"))).model
    assert away.HasField("archive_time")
    assert await listed() == []
    assert await listed("archive_time:*") == [M]
    await refused(archive(restore=True, etag="stale"), *MISMATCH)
    back = (await soon(archive(restore=True, etag=away.etag))).model
    assert not back.HasField("archive_time")
    assert await listed() == [M]
    assert (await soon(archive(request_id="r1"))).model == away
    assert await listed() == [M], "a repetition changes nothing"
    missing = here.stub.ArchiveModel(pb.ArchiveModelRequest(name="models/x"))
    await refused(missing, Code.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_a_version_is_put_away_and_taken_back(here: Here) -> None:
    def archive(name: str = V2, **fields: Any) -> Any:
        return here.stub.ArchiveModelVersion(pb.ArchiveModelVersionRequest(name=name, **fields))

    await refused(archive(V1), *WRONG_STATE)
    await soon(set_policy(here, Split(version=1, weight=1), shadow_version=2))
    await refused(archive(), *WRONG_STATE)
    gone = here.stub.DeleteModelVersion(pb.DeleteModelVersionRequest(name=V2))
    await refused(gone, *WRONG_STATE)
    await soon(set_policy(here, Split(version=1, weight=1)))
    away = (await soon(archive(request_id="r1"))).version
    assert away.state == model_pb2.VERSION_STATE_ARCHIVED
    assert (await soon(archive(request_id="r1"))).version == away
    await refused(set_policy(here, Split(version=2, weight=1)), *WRONG_STATE)
    await refused(archive(restore=True, etag="stale"), *MISMATCH)
    back = (await soon(archive(restore=True, etag=away.etag))).version
    assert back.state == model_pb2.VERSION_STATE_READY
    assert back == await here.get(V2)


# Reading many.


async def test_versions_are_read_together_or_not_at_all(here: Here) -> None:
    await here.model("other")
    foreign = (await here.version({"x": b"x"}, "other")).name

    def batch(parent: str, *names: str) -> Any:
        request = pb.BatchGetModelVersionsRequest(parent=parent, names=names)
        return here.stub.BatchGetModelVersions(request)

    for parent, names in ((M, [V2, V1, V2]), ("models/-", [foreign, V1])):
        answer = await soon(batch(parent, *names))
        assert list(answer.versions) == [await here.get(name) for name in names]
    assert await field_refused(batch(M, V1, foreign)) == "names[1]"
    assert await field_refused(batch(M)) == "names"
    assert await field_refused(batch("models/-", *[V1] * 101)) == "names"
    assert await field_refused(batch("models/-", M)) == "name"
    lost = batch("models/-", V1, "models/m/versions/4294967295")
    await refused(lost, Code.NOT_FOUND, "VERSION_NOT_FOUND")


async def test_lists_are_filtered_ordered_and_paged(empty: Here) -> None:
    for number, model in enumerate(("d", "a", "c", "b")):
        request = pb.CreateModelRequest(
            model_id=model,
            model=model_pb2.Model(task=model_pb2.TASK_DATASET, labels={"n": str(number % 2)}),
        )
        await soon(empty.stub.CreateModel(request))
    for number in range(5):
        metrics = {"f1": number / 10} if number != 2 else {}
        await empty.version({"x": b"x"}, "a", metrics=metrics)

    async def pages(call: Any, request: Any, field: str) -> list[list[str]]:
        found = []
        while True:
            answer = await soon(call(request))
            found.append([one.name.rpartition("/")[2] for one in getattr(answer, field)])
            request.page_token = answer.next_page_token
            if not request.page_token:
                return found

    listing = pb.ListModelsRequest(page_size=2, order_by="labels.n desc, create_time desc")
    assert await pages(empty.stub.ListModels, listing, "models") == [["b", "a"], ["c", "d"]]
    listing = pb.ListModelsRequest(filter='task = DATASET AND labels.n = "0" AND name != d')
    assert await pages(empty.stub.ListModels, listing, "models") == [["c"]]
    versions = pb.ListModelVersionsRequest(parent="models/a", page_size=2, order_by="metrics.f1")
    assert await pages(empty.stub.ListModelVersions, versions, "versions") == [
        ["1", "2"],
        ["4", "5"],
        ["3"],
    ]
    versions.filter, versions.order_by = "state = UPLOADING AND metrics.f1 > 0.05", ""
    assert await pages(empty.stub.ListModelVersions, versions, "versions") == [["5", "4"], ["2"]]

    token = (await soon(empty.stub.ListModels(pb.ListModelsRequest(page_size=2)))).next_page_token
    for fields, field in (
        ({"filter": "nonsense = 1"}, "filter"),
        ({"filter": 'name = "a\0"'}, "filter"),
        ({"filter": "x" * 2049}, "filter"),
        ({"order_by": "nonsense"}, "order_by"),
        ({"page_token": token, "filter": "name > a"}, "page_token"),
        ({"page_token": token, "order_by": "name"}, "page_token"),
        ({"page_token": token + "A"}, "page_token"),
        ({"page_size": -1}, "page_size"),
    ):
        assert await field_refused(empty.stub.ListModels(pb.ListModelsRequest(**fields))) == field
        if "name" not in (fields.get("order_by"), str(fields.get("filter"))[:4]):
            own = pb.ListModelVersionsRequest(parent="models/a", **fields)
            assert await field_refused(empty.stub.ListModelVersions(own)) == field


# History.


def stamp(moment: datetime) -> timestamp_pb2.Timestamp:
    """A moment on the wire."""
    found = timestamp_pb2.Timestamp()
    found.FromDatetime(moment)
    return found


async def test_the_history_says_what_was_at_a_moment(here: Here) -> None:
    await soon(set_policy(here, Split(version=1, weight=1)))
    await here.alias(2)
    await soon(here.stub.DeleteTrafficPolicy(pb.DeleteTrafficPolicyRequest(name=POLICY)))

    async def history(**fields: Any) -> Any:
        return await soon(here.stub.GetModelHistory(pb.GetModelHistoryRequest(name=M, **fields)))

    every = list((await history()).changes)
    assert [one.name for one in every[:4]] == [POLICY, LIVE, POLICY, LIVE]
    for resource in (LIVE, POLICY, V1, M):
        own = [one for one in every if one.name == resource]
        assert list((await history(resource=resource)).changes) == own
        for change in own:
            at = (await history(resource=resource, at_time=change.commit_time, page_size=1)).at
            assert at == change.after
        just_before = own[-1].commit_time.ToDatetime(UTC) - timedelta(microseconds=1)
        answer = await history(resource=resource, at_time=stamp(just_before))
        assert not answer.HasField("at")
    middle = every[2].commit_time
    assert list((await history(start_time=middle)).changes) == every[:3]
    assert list((await history(end_time=middle)).changes) == every[3:]
    assert list((await history(start_time=middle, end_time=middle)).changes) == []
    for fields, field in (
        ({"at_time": middle}, "at_time"),
        ({"resource": "models/n"}, "resource"),
        ({"resource": "models/mm/aliases/live"}, "resource"),
        ({"start_time": timestamp_pb2.Timestamp(seconds=2**60)}, "start_time"),
        ({"end_time": timestamp_pb2.Timestamp(nanos=-1)}, "end_time"),
    ):
        request = pb.GetModelHistoryRequest(name=M, **fields)
        assert await field_refused(here.stub.GetModelHistory(request)) == field


# Watching.


async def test_a_watch_tells_of_policies(here: Here) -> None:
    first = (await soon(set_policy(here, Split(version=1, weight=1)))).traffic_policy
    call = here.stub.Watch(pb.WatchRequest())
    snapshot = [await soon(call.read()) for _ in range(5)]
    assert snapshot[-1].snapshot.traffic_policy == first
    assert (await soon(call.read())).bookmark.snapshot_complete
    second = (await soon(set_policy(here, Split(alias="live", weight=5)))).traffic_policy
    change = (await soon(call.read())).change
    assert (change.name, change.kind) == (POLICY, history_pb2.CHANGE_KIND_UPDATED)
    assert (change.before.traffic_policy, change.after.traffic_policy) == (first, second)
    await soon(here.stub.DeleteTrafficPolicy(pb.DeleteTrafficPolicyRequest(name=POLICY)))
    change = (await soon(call.read())).change
    assert change.before.traffic_policy == second
    assert not change.HasField("after")
    call.cancel()


async def _rest(call: Any, into: list[Any]) -> None:
    while (message := await call.read()) is not grpc.aio.EOF:
        into.append(message)


async def test_a_slow_watcher_is_cut_and_goes_on_without_gap_or_repetition(
    tmp_path: Path, transport: str
) -> None:
    async with registry(tmp_path / "r", transport, watch_send_timeout_s=0.5) as here:
        labels = {f"k{n}": "x" * 4000 for n in range(64)}
        await here.model()
        # Small windows, so that little lies between the server and who does not read.
        channel = here.served.open(
            ("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0)
        )
        slow = Wire(channel)
        call = slow.stub.Watch(pb.WatchRequest(after_revision=0))
        seen = [(await soon(call.read())).revision]
        for number in range(60):
            request = pb.UpdateModelRequest(
                model=model_pb2.Model(name=M, description=str(number), labels=labels)
            )
            await soon(here.stub.UpdateModel(request))
        await here.served.idle()  # nobody reads: the server has given the call up
        got: list[Any] = []
        error = await failure(_rest(call, got))
        assert (error.code(), reason(error)) == (Code.RESOURCE_EXHAUSTED, "SLOW_CONSUMER")
        seen += [one.revision for one in got]
        assert 1 <= len(seen) < 61
        # Of the message in hand when it was cut, which may still arrive.
        assert int(error_info(error).metadata["revision"]) in (seen[-1], seen[-1] + 1)
        newest = await here.revision()
        again = slow.stub.Watch(pb.WatchRequest(after_revision=seen[-1]))
        while seen[-1] < newest:
            seen.append((await soon(again.read())).revision)
        again.cancel()
        assert seen == list(range(1, newest + 1))


async def test_what_is_compacted_is_watched_from_a_snapshot(tmp_path: Path, transport: str) -> None:
    async with registry(tmp_path / "r", transport, watch_keep_changes=3) as here:
        for model in "abcdef":
            await here.model(model)
        await here.parts.keep_house()
        info = await soon(here.stub.GetServerInfo(pb.GetServerInfoRequest()))
        assert (info.oldest_revision, info.revision) == (3, 6)
        for after in (0, 2):
            watch = collect(here.stub.Watch(pb.WatchRequest(after_revision=after)))
            error = await refused(watch, Code.OUT_OF_RANGE, "REVISION_COMPACTED")
            assert dict(error_info(error).metadata) == {"oldest_revision": "3", "revision": "6"}
        call = here.stub.Watch(pb.WatchRequest(after_revision=3))
        assert [(await soon(call.read())).revision for _ in range(3)] == [4, 5, 6]
        call.cancel()
        call = here.stub.Watch(pb.WatchRequest())
        found = [await soon(call.read()) for _ in range(7)]
        assert [one.snapshot.model.name[-1:] for one in found[:6]] == list("abcdef")
        assert found[6].bookmark.snapshot_complete
        call.cancel()
        answer = await soon(here.stub.GetModelHistory(pb.GetModelHistoryRequest(name="models/a")))
        assert [one.revision for one in answer.changes] == [1], "the history stays whole"


# Trials and repetitions.


async def test_trials_and_repetitions_of_the_older_calls_still_hold(here: Here) -> None:
    update = model_pb2.Model(name=M, description="new")
    version = model_pb2.ModelVersion(name=V2, description="new")
    calls: dict[str, Any] = {
        "UpdateModel": pb.UpdateModelRequest(model=update),
        "UpdateModelVersion": pb.UpdateModelVersionRequest(version=version),
        "SetTrafficPolicy": pb.SetTrafficPolicyRequest(
            traffic_policy=traffic_policy_pb2.TrafficPolicy(
                name=POLICY, splits=[Split(version=2, weight=1)]
            )
        ),
        "DeleteTrafficPolicy": pb.DeleteTrafficPolicyRequest(name=POLICY),
        "DeleteModelVersion": pb.DeleteModelVersionRequest(name=V2),
        "DeleteAlias": pb.DeleteAliasRequest(name=LIVE),
        "DeleteModel": pb.DeleteModelRequest(name=M, force=True),
    }
    for method, request in calls.items():
        call = getattr(here.stub, method)
        before = await here.revision()
        request.validate_only = True
        await soon(call(request))
        assert await here.revision() == before, method
        request.validate_only, request.request_id = False, f"id-{method}"
        first = await soon(call(request))
        after = await here.revision()
        assert after > before
        ends = await asyncio.gather(*(soon(call(request)) for _ in range(3)))
        assert ends == [first] * 3
        assert await here.revision() == after, method

"""The registry over the wire, on both HTTP/2 servers: what a caller may rely on."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2, field_mask_pb2, message_factory, timestamp_pb2
from google.rpc.error_details_pb2 import BadRequest, PreconditionFailure, ResourceInfo, RetryInfo
from gristmill.registry.v1 import alias_pb2, artifact_pb2, history_pb2, model_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb

from services.registry.resources import content_digest
from tests.harness import collect, details, error_info, failure, metadata, reason, soon, status_of
from tests.unit.registry.parts import MANIFEST, below, sha, weights
from tests.unit.registry.wire import Here, Sending, Wire, artifacts, registry

Code = grpc.StatusCode
M, V1, LIVE = "models/m", "models/m/versions/1", "models/m/aliases/live"
SEED = random.Random(3).randbytes(3_000_000)
DATA = weights(SEED)
FILES = {"model.yaml": MANIFEST, "model.onnx": DATA}
SERVICE = pb.DESCRIPTOR.services_by_name["RegistryService"]
Make = Callable[[str], Any]
EVERY = 256 * 1024


@pytest.fixture
async def here(tmp_path: Path, transport: str) -> AsyncIterator[Here]:
    """An empty registry that acknowledges each 256 KiB."""
    async with registry(tmp_path / "r", transport, fsync_every_bytes=EVERY) as found:
        yield found


async def refused(call: Any, code: grpc.StatusCode, why: str) -> Any:
    """A call that must fail so; gives the error."""
    error = await failure(call)
    assert (error.code(), reason(error)) == (code, why), error.details()
    return error


async def fields_refused(call: Any, why: str = "INVALID_FIELD") -> list[str]:
    """The fields for which a call is refused."""
    error = await refused(call, Code.INVALID_ARGUMENT, why)
    (bad,) = details(status_of(error), BadRequest)
    return [violation.field for violation in bad.field_violations]


async def test_from_nothing_to_a_model_that_is_served(here: Here) -> None:
    model = await here.model("m")
    assert (model.name, model.task, model.latest_version) == (M, 1, 0)
    version = await here.version(
        FILES, description="first", labels={"team": "nlp"}, metrics={"accuracy": 0.9}
    )
    assert (version.name, version.version) == (V1, 1)
    assert version.state == model_pb2.VERSION_STATE_UPLOADING
    assert version.digest == content_digest((path, sha(data)) for path, data in FILES.items())
    assert [one.stored for one in version.artifacts] == [False, False]

    for path, data in FILES.items():
        durable = await here.upload(V1, path, data)
        assert durable == sorted(durable)
        assert (durable[0], durable[-1]) == (0, len(data))
    assert len(durable) > 10, "what is durable is told on the way"
    assert [one.stored for one in (await here.get(V1)).artifacts] == [True, True]
    early = await failure(here.operation("operations/finalize.m.1"))
    assert early.code() is Code.NOT_FOUND, "nobody asked for it yet"

    ready = await here.finalize(V1)
    assert ready.state == model_pb2.VERSION_STATE_READY
    assert ready == await here.get(V1)
    assert ready.HasField("ready_time")
    assert list(ready.signature.labels) == ["negative", "positive"]
    alias = await here.alias(1)
    assert (alias.name, alias.version) == (LIVE, 1)
    for ref, chosen_by in (
        (model_pb2.ModelRef(model="m"), "live"),
        (model_pb2.ModelRef(model="m", alias="live"), "alias"),
        (model_pb2.ModelRef(model="m", version=1), "version"),
    ):
        answer = await soon(here.stub.ResolveModel(pb.ResolveModelRequest(model=ref)))
        assert (answer.version, answer.chosen_by) == (ready, chosen_by)
    for path, data in FILES.items():
        assert await here.download(V1, path) == data
    got = await soon(here.stub.GetModel(pb.GetModelRequest(name=M)))
    assert got.model.latest_version == 1
    info = await soon(here.stub.GetServerInfo(pb.GetServerInfoRequest()))
    assert (info.database, info.oldest_revision) == ("sqlite", 0)
    assert info.version
    assert info.revision == 6


async def test_an_upload_goes_on_where_it_was_durable_after_every_cut(here: Here) -> None:
    rng = random.Random(11)
    await here.model()
    await here.version(FILES)
    known = 0
    for _ in range(6):
        sending = Sending(here.stub)
        first = await sending.start(V1, "model.onnx")
        assert first.durable_bytes >= known, "what was acknowledged is gone"
        at = known = first.durable_bytes
        stop = min(known + rng.randrange(600_000), len(DATA) - 300_000)
        while at < stop:
            run = DATA[at : at + rng.randrange(1, 300_000)]
            await sending.send(at, run)
            at += len(run)
            if at - known >= EVERY:
                known = (await sending.answer()).durable_bytes
                assert known == at
        sending.call.cancel()
        await here.served.idle()
    durable = await here.upload(V1, "model.onnx", DATA)
    assert durable[0] >= known > 0
    await here.upload(V1, "model.yaml", MANIFEST)
    await here.finalize(V1)
    assert sha(await here.download(V1, "model.onnx")) == sha(DATA)


async def test_bytes_other_than_those_declared_are_refused_and_sent_anew(here: Here) -> None:
    await here.model()
    await here.version(FILES)
    wrong = DATA[:-1] + bytes([DATA[-1] ^ 1])
    sending = Sending(here.stub)
    await sending.start(V1, "model.onnx")
    await sending.send(0, wrong)
    error = await sending.failure()
    assert (error.code(), reason(error)) == (Code.DATA_LOSS, "ARTIFACT_CORRUPT")
    assert dict(error_info(error).metadata) == {"declared": sha(DATA), "received": sha(wrong)}
    assert (await here.upload(V1, "model.onnx", DATA))[0] == 0
    assert await here.download(V1, "model.onnx") == DATA


async def test_bytes_that_the_registry_has_are_not_sent_again(here: Here) -> None:
    await here.model()
    await here.ready(SEED)
    await here.model("other")
    version = await here.version(FILES | {"new": b"new"}, "other")
    assert {one.path: one.stored for one in version.artifacts} == {
        "model.yaml": True,
        "model.onnx": True,
        "new": False,
    }
    assert await here.upload(version.name, "model.onnx", b"never sent") == [len(DATA)]
    await refused(
        here.stub.FinalizeModelVersion(pb.FinalizeModelVersionRequest(name=version.name)),
        Code.FAILED_PRECONDITION,
        "WRONG_STATE",
    )
    await here.upload(version.name, "new", b"new")
    assert (await here.finalize(version.name)).state == model_pb2.VERSION_STATE_READY


async def test_a_version_that_fails_its_checks_says_why(here: Here) -> None:
    await here.model("m", model_pb2.TASK_GENERATION)
    files = {"model.yaml": MANIFEST, "model.PT": b"\x80\x04."}
    await here.version(files)
    for path, data in files.items():
        await here.upload(V1, path, data)
    found = await here.finalize(V1)
    assert found.state == model_pb2.VERSION_STATE_REJECTED
    assert [(one.path, one.rule) for one in found.rejections] == [
        ("model.PT", "pickle-refused"),
        ("model.yaml", "file-missing"),
        ("model.yaml", "task"),
        ("model.yaml", "manifest"),
    ]
    assert all(one.message for one in found.rejections)
    assert found == await here.get(V1) == await here.finalize(V1)
    await refused(_set(here, alias_pb2.Alias(name=LIVE, version=1)), *WRONG_STATE)


WRONG_STATE = (Code.FAILED_PRECONDITION, "WRONG_STATE")
GATE = alias_pb2.Gate(metric="accuracy", comparison=alias_pb2.COMPARISON_AT_LEAST, value=0.85)


def _set(here: Wire, alias: Any, *paths: str, **fields: Any) -> Any:
    mask = field_mask_pb2.FieldMask(paths=paths) if paths else None
    return here.stub.SetAlias(pb.SetAliasRequest(alias=alias, update_mask=mask, **fields))


async def test_a_gate_refuses_a_move_with_its_figure(here: Here) -> None:
    await here.model()
    await here.ready(b"1", metrics={"accuracy": 0.9})
    await here.ready(b"2", metrics={"accuracy": 0.8})
    first = await here.alias(1, gates=[GATE])
    assert list(first.gates) == [GATE]

    error = await refused(
        _set(here, alias_pb2.Alias(name=LIVE, version=2)), Code.FAILED_PRECONDITION, "GATE_UNMET"
    )
    (unmet,) = details(status_of(error), PreconditionFailure)
    (violation,) = unmet.violations
    assert (violation.type, violation.subject) == ("GATE_UNMET", "accuracy")
    assert violation.description == "0.8 is not >= 0.85"

    loose = alias_pb2.Alias(name=LIVE, version=2, gates=[], etag=first.etag)
    await refused(_set(here, loose, "version"), Code.FAILED_PRECONDITION, "GATE_UNMET")
    nothing = alias_pb2.Gate(metric="accuracy", comparison=alias_pb2.COMPARISON_AT_LEAST, value=0.0)
    loose.gates.append(nothing)
    await refused(_set(here, loose, "version"), Code.FAILED_PRECONDITION, "GATE_UNMET")
    moved = (await soon(_set(here, loose, "version", "gates"))).alias
    assert (moved.version, list(moved.gates)) == (2, [nothing])
    kept = (await soon(_set(here, alias_pb2.Alias(name=LIVE, version=1)))).alias
    assert list(kept.gates) == [nothing]
    del loose.gates[:]
    loose.etag = ""
    bare = (await soon(_set(here, loose, "gates", "version"))).alias
    assert (bare.version, list(bare.gates)) == (2, [])
    await refused(_set(here, first), Code.ABORTED, "ETAG_MISMATCH")


@pytest.mark.parametrize(
    ("gate", "field"),
    [
        (alias_pb2.Gate(metric="a", comparison=1), "alias.gates[0].limit"),
        (alias_pb2.Gate(metric="a", value=1), "alias.gates[0].comparison"),
        (alias_pb2.Gate(metric="a", comparison=9, value=1), "alias.gates[0].comparison"),  # type: ignore[arg-type]  # a value of a later contract
        (alias_pb2.Gate(comparison=1, value=1), "alias.gates[0].metric"),
    ],
)
async def test_a_gate_that_says_nothing_is_refused(here: Here, gate: Any, field: str) -> None:
    await here.model()
    await here.ready()
    alias = alias_pb2.Alias(name=LIVE, version=1, gates=[gate])
    assert await fields_refused(_set(here, alias)) == [field]


async def test_a_mask_is_held_to_what_can_change(here: Here) -> None:
    await here.model()
    await here.ready()
    alias = alias_pb2.Alias(name=LIVE, version=1)
    assert await fields_refused(_set(here, alias, "etag")) == ["update_mask"]
    assert await fields_refused(_set(here, alias, "gates"), "UNSUPPORTED_FIELD") == ["update_mask"]
    wanted = model_pb2.Model(name=M, description="new", labels={"a": "b"})
    for paths, description, labels in (
        (["description"], "new", {}),
        (["labels"], "new", {"a": "b"}),
    ):
        mask = field_mask_pb2.FieldMask(paths=paths)
        request = pb.UpdateModelRequest(model=wanted, update_mask=mask)
        found = (await soon(here.stub.UpdateModel(request))).model
        assert (found.description, dict(found.labels)) == (description, labels)
    for paths in (["task"], ["name"], ["description", "*"]):
        mask = field_mask_pb2.FieldMask(paths=paths)
        request = pb.UpdateModelRequest(model=wanted, update_mask=mask)
        assert await fields_refused(here.stub.UpdateModel(request)) == ["update_mask"]
    version = model_pb2.ModelVersion(name=V1, metrics={"f1": 0.5}, description="lost")
    mask = field_mask_pb2.FieldMask(paths=["metrics"])
    request = pb.UpdateModelVersionRequest(version=version, update_mask=mask)
    found = (await soon(here.stub.UpdateModelVersion(request))).version
    assert (dict(found.metrics), found.description) == ({"f1": 0.5}, "")
    assert found.digest == (await here.get(V1)).digest


async def test_any_part_of_an_artifact_can_be_read(whole: Here) -> None:
    for offset in (0, 1, 1 << 20, len(DATA) - 1, len(DATA)):
        for length in (0, 1, 1_500_000, 2**63):
            expected = DATA[offset : offset + length] if length else DATA[offset:]
            assert await whole.download(V1, "model.onnx", offset, length) == expected


@pytest.fixture
async def whole(here: Here) -> Here:
    """A registry with a version whose bytes are here."""
    await here.model()
    await here.ready(SEED)
    return here


async def test_a_download_says_first_what_it_will_be(whole: Here) -> None:
    request = pb.DownloadArtifactRequest(version=V1, path="model.onnx")
    first, *rest = await collect(whole.stub.DownloadArtifact(request))
    assert (first.size_bytes, first.sha256) == (len(DATA), sha(DATA))
    assert rest
    assert all((one.size_bytes, one.sha256) == (0, "") for one in rest)
    for offset in (len(DATA) + 1, 2**64 - 1):
        request = pb.DownloadArtifactRequest(version=V1, path="model.onnx", offset=offset)
        call = collect(whole.stub.DownloadArtifact(request))
        await refused(call, Code.OUT_OF_RANGE, "OFFSET_OUT_OF_RANGE")


async def test_an_empty_file_goes_both_ways(here: Here) -> None:
    await here.model()
    await here.version({"empty": b""})
    assert await here.upload(V1, "empty", b"") == [0, 0]
    (answer,) = await collect(
        here.stub.DownloadArtifact(pb.DownloadArtifactRequest(version=V1, path="empty"))
    )
    assert (answer.size_bytes, answer.sha256, answer.chunk.data) == (0, sha(b""), b"")


async def test_a_flipped_bit_is_data_loss_and_the_last_bytes_never_come(whole: Here) -> None:
    (path,) = [p for p in below(whole.parts.root / "artifacts") if p.name == sha(DATA)]
    path.write_bytes(DATA[:100] + bytes([DATA[100] ^ 4]) + DATA[101:])
    got: list[Any] = []
    request = pb.DownloadArtifactRequest(version=V1, path="model.onnx")
    error = await refused(
        collect(whole.stub.DownloadArtifact(request), got), Code.DATA_LOSS, "ARTIFACT_CORRUPT"
    )
    assert error_info(error).metadata["sha256"] == sha(DATA)
    assert sum(len(one.chunk.data) for one in got) < len(DATA)
    assert not path.exists()
    (aside,) = below(whole.parts.root / "artifacts" / "quarantine")
    assert len(aside.read_bytes()) == len(DATA), "put aside, never deleted"
    found = await whole.get(V1)
    assert found.state == model_pb2.VERSION_STATE_QUARANTINED
    assert [(one.path, one.rule) for one in found.rejections] == [("model.onnx", "digest")]
    again = collect(whole.stub.DownloadArtifact(request))
    await refused(again, Code.DATA_LOSS, "ARTIFACT_CORRUPT")

    await whole.upload(V1, "model.onnx", DATA)
    assert (await whole.finalize(V1)).state == model_pb2.VERSION_STATE_READY
    assert await whole.download(V1, "model.onnx") == DATA


BREACHES: dict[str, tuple[list[tuple[int, bytes] | None], Code, str]] = {
    "a gap": ([(0, b"a"), (2, b"c")], Code.INVALID_ARGUMENT, "INVALID_FIELD"),
    "twice": ([(0, b"a"), (0, b"a")], Code.INVALID_ARGUMENT, "INVALID_FIELD"),
    "past the end": ([(0, b"a"), (1, b"x" * len(DATA))], Code.INVALID_ARGUMENT, "INVALID_FIELD"),
    "a huge offset": ([(2**64 - 1, b"a")], Code.INVALID_ARGUMENT, "INVALID_FIELD"),
    "too large a chunk": ([(0, b"x" * (4 * 2**20 + 1))], Code.INVALID_ARGUMENT, "INVALID_FIELD"),
    "too few bytes": ([(0, b"a"), None], Code.INVALID_ARGUMENT, "INVALID_FIELD"),
}


@pytest.mark.parametrize("breach", BREACHES)
async def test_chunks_that_do_not_fit_end_the_call_and_keep_what_came(
    here: Here, breach: str
) -> None:
    chunks, code, why = BREACHES[breach]
    await here.model()
    await here.version(FILES)
    sending = Sending(here.stub)
    await sending.start(V1, "model.onnx")
    for chunk in chunks:
        if chunk is None:
            await sending.call.done_writing()
        else:
            await sending.send(*chunk)
    error = await sending.failure()
    assert (error.code(), reason(error)) == (code, why)
    again = Sending(here.stub)
    assert (await again.start(V1, "model.onnx")).durable_bytes == len(chunks) - 1
    again.call.cancel()


async def test_an_upload_begins_with_a_start_and_has_one(here: Here) -> None:
    await here.model()
    await here.version(FILES)
    start = pb.UploadArtifactRequest(start=pb.UploadStart(version=V1, path="model.onnx"))
    chunk = pb.UploadArtifactRequest(chunk=pb.Chunk(data=b"x"))
    for messages in ([], [chunk], [pb.UploadArtifactRequest()], [start, start]):
        sending = Sending(here.stub)
        for message in messages:
            await soon(sending.call.write(message))
        await sending.call.done_writing()
        error = await sending.failure()
        assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_of_two_uploads_of_the_same_bytes_the_newer_goes_on(here: Here) -> None:
    await here.model()
    await here.version(FILES)
    await here.version({"copy": DATA})
    older, newer = Sending(here.stub), Sending(here.stub)
    await older.start(V1, "model.onnx")
    await older.send(0, DATA[:300_000])
    assert (await older.answer()).durable_bytes == 300_000
    first = await newer.start("models/m/versions/2", "copy")
    assert first.durable_bytes == 300_000
    await older.send(300_000, b"x")
    error = await older.failure()
    assert (error.code(), reason(error)) == (Code.ABORTED, "CONCURRENT_CHANGE")
    await newer.send(300_000, DATA[300_000:])
    while not (await newer.answer()).complete:
        pass
    assert await here.download(V1, "model.onnx") == DATA


async def test_a_drain_ends_an_upload_and_the_next_process_goes_on(
    tmp_path: Path, transport: str
) -> None:
    async with registry(tmp_path / "r", transport, fsync_every_bytes=100_000) as here:
        await here.model()
        await here.version(FILES)
        sending = Sending(here.stub)
        await sending.start(V1, "model.onnx")
        await sending.send(0, DATA[:150_000])
        assert (await sending.answer()).durable_bytes == 150_000
        here.served.server.linger_s = 1.0  # native closes on what it has not sent yet
        await soon(here.served.server.drain())
        error = await sending.failure()
        assert (error.code(), reason(error)) == (Code.UNAVAILABLE, "DRAINING")
    async with registry(tmp_path / "r", transport) as here:
        assert (await here.upload(V1, "model.onnx", DATA))[0] == 150_000
        assert await here.download(V1, "model.onnx") == DATA


async def _watched(here: Wire, count: int, **fields: Any) -> list[Any]:
    call = here.stub.Watch(pb.WatchRequest(**fields))
    found = [await soon(call.read()) for _ in range(count)]
    call.cancel()
    return found


async def test_a_watch_tells_what_was_done_by_which_call(here: Here) -> None:
    await here.model()
    call = here.stub.Watch(pb.WatchRequest())
    snapshot, bookmark = [await soon(call.read()) for _ in range(2)]
    assert (snapshot.snapshot.model.name, snapshot.revision) == (M, 1)
    assert bookmark.bookmark.snapshot_complete
    await here.ready()
    for _ in range(4):  # the version, its model, validating, ready
        await soon(call.read())
    request = pb.SetAliasRequest(alias=alias_pb2.Alias(name=LIVE, version=1))
    await soon(here.stub.SetAlias(request, metadata=(("x-request-id", "my-call"),)))
    told = await soon(call.read())
    change = told.change
    assert told.revision == change.revision == 6
    assert (change.name, change.kind) == (LIVE, history_pb2.CHANGE_KIND_CREATED)
    assert (change.request_id, change.actor) == ("my-call", "")
    assert change.after.alias.version == 1
    assert not change.HasField("before")
    assert change.HasField("commit_time")
    await soon(here.stub.DeleteAlias(pb.DeleteAliasRequest(name=LIVE)))
    gone = (await soon(call.read())).change
    assert gone.kind == history_pb2.CHANGE_KIND_DELETED
    assert gone.before == change.after
    assert not gone.HasField("after")
    call.cancel()


async def test_a_watch_goes_on_after_a_revision_and_keeps_to_its_selection(here: Here) -> None:
    await here.model("a")
    await here.model("b", model_pb2.TASK_GENERATION)
    await here.model("c")
    await here.version({"x": b"x"}, "b")

    async def names(count: int, **fields: Any) -> list[str]:
        return [one.change.name for one in await _watched(here, count, **fields)]

    assert await names(4, after_revision=1) == [
        "models/b",
        "models/c",
        "models/b/versions/1",
        "models/b",
    ]
    assert await names(2, after_revision=0, names=["models/a", "models/c"]) == [
        "models/a",
        "models/c",
    ]
    assert await names(2, after_revision=2, task=model_pb2.TASK_GENERATION) == [
        "models/b/versions/1",
        "models/b",
    ]
    second = duration_pb2.Duration(seconds=1)
    told = await _watched(here, 2, after_revision=0, names=["models/c"], bookmark_interval=second)
    assert [one.WhichOneof("event") for one in told] == ["change", "bookmark"]
    assert [one.revision for one in told] == [3, 5]
    assert not told[1].bookmark.snapshot_complete


async def test_a_watch_that_cannot_be_is_refused(here: Here) -> None:
    half = duration_pb2.Duration(nanos=500_000_000)
    for fields, field in (
        ({"names": ["m"]}, "name"),
        ({"after_revision": -1}, "after_revision"),
        ({"bookmark_interval": half}, "bookmark_interval"),
        ({"task": 9}, "task"),
        ({"names": [M] * 1001}, "names"),
    ):
        watch = collect(here.stub.Watch(pb.WatchRequest(**fields)))  # type: ignore[arg-type]
        assert await fields_refused(watch) == [field]
    watch = collect(here.stub.Watch(pb.WatchRequest(after_revision=1)))
    await refused(watch, Code.OUT_OF_RANGE, "OFFSET_OUT_OF_RANGE")


async def test_a_drain_ends_a_watch_with_a_revision_to_go_on_from(here: Here) -> None:
    await here.model()
    call = here.stub.Watch(pb.WatchRequest(after_revision=0))
    assert (await soon(call.read())).revision == 1
    here.served.server.linger_s = 1.0  # native closes on what it has not sent yet
    await soon(here.served.server.drain())
    error = await refused(call.read(), Code.UNAVAILABLE, "DRAINING")
    assert error_info(error).metadata["revision"] == "1"
    assert details(status_of(error), RetryInfo)


async def _pages(call: Any, make: Callable[[str], Any], field: str) -> list[list[Any]]:
    found, token = [], ""
    while True:
        answer = await soon(call(make(token)))
        found.append(list(getattr(answer, field)))
        token = answer.next_page_token
        if not token:
            return found


async def test_lists_come_in_pages_that_new_entries_do_not_disturb(here: Here) -> None:
    for model in ("b", "m", "a", "B"):
        await here.model(model)
    for _ in range(5):
        await here.version({"x": b"x"})
    await here.upload(V1, "x", b"x")
    await here.ready()
    for alias in ("two", "one", "live"):
        await here.alias(6, f"models/m/aliases/{alias}")

    models = await _pages(
        here.stub.ListModels, lambda t: pb.ListModelsRequest(page_size=3, page_token=t), "models"
    )
    ids = [[one.name.removeprefix("models/") for one in page] for page in models]
    assert ids == [["B", "a", "b"], ["m"]]
    versions = await _pages(
        here.stub.ListModelVersions,
        lambda t: pb.ListModelVersionsRequest(parent=M, page_size=3, page_token=t),
        "versions",
    )
    assert [[one.version for one in page] for page in versions] == [[6, 5, 4], [3, 2, 1]]
    aliases = await _pages(
        here.stub.ListAliases,
        lambda t: pb.ListAliasesRequest(parent=M, page_size=2, page_token=t),
        "aliases",
    )
    assert [[one.name.rpartition("/")[2] for one in page] for page in aliases] == [
        ["live", "one"],
        ["two"],
    ]
    history = await _pages(
        here.stub.GetModelHistory,
        lambda t: pb.GetModelHistoryRequest(name=M, page_size=7, page_token=t),
        "changes",
    )
    revisions = [one.revision for page in history for one in page]
    assert revisions == sorted(revisions, reverse=True)
    assert len(revisions) == len(set(revisions)) == 1 + 2 * 6 + 2 + 3


async def test_the_history_of_a_model_stays_when_it_is_gone(here: Here) -> None:
    await here.model()
    await here.ready()
    await here.alias(1)
    refusal = here.stub.DeleteModel(pb.DeleteModelRequest(name=M))
    await refused(refusal, *WRONG_STATE)
    await soon(here.stub.DeleteModel(pb.DeleteModelRequest(name=M, force=True)))
    await refused(here.stub.GetModel(pb.GetModelRequest(name=M)), Code.NOT_FOUND, "MODEL_NOT_FOUND")
    answer = await soon(here.stub.GetModelHistory(pb.GetModelHistoryRequest(name=M)))
    assert [one.name for one in answer.changes[:3]] == [M, V1, LIVE]
    assert {one.kind for one in answer.changes[:3]} == {history_pb2.CHANGE_KIND_DELETED}
    assert answer.changes[-1].kind == history_pb2.CHANGE_KIND_CREATED


async def test_models_are_read_together_or_not_at_all(here: Here) -> None:
    for model in "ab":
        await here.model(model)
    names = ["models/b", "models/a", "models/b"]
    answer = await soon(here.stub.BatchGetModels(pb.BatchGetModelsRequest(names=names)))
    assert [one.name for one in answer.models] == names
    request = pb.BatchGetModelsRequest(names=[*names, "models/c"])
    await refused(here.stub.BatchGetModels(request), Code.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_a_call_may_be_tried_and_may_be_repeated(here: Here) -> None:
    model = model_pb2.Model(task=model_pb2.TASK_CLASSIFICATION, description="d")

    def create(model_id: str = "m", **fields: Any) -> Any:
        return here.stub.CreateModel(
            pb.CreateModelRequest(model_id=model_id, model=model, **fields)
        )

    assert (await soon(create(validate_only=True))).model.name == M
    assert await here.revision() == 0
    first = (await soon(create(request_id="r1"))).model
    assert (await soon(create(request_id="r1"))).model == first
    assert await here.revision() == 1
    exists = (Code.ALREADY_EXISTS, "ALREADY_EXISTS")
    for again in (create(), create(validate_only=True), create("n", request_id="r1")):
        await refused(again, *exists)
    error = await refused(create(), *exists)
    (resource,) = details(status_of(error), ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("model", M)
    stale = model_pb2.Model(name=M, etag="stale")
    await refused(
        here.stub.UpdateModel(pb.UpdateModelRequest(model=stale)), Code.ABORTED, "ETAG_MISMATCH"
    )


ABSENT: dict[str, tuple[Any, str, str]] = {
    "GetModel": (pb.GetModelRequest(name="models/x"), "MODEL_NOT_FOUND", "models/x"),
    "ListModelVersions": (
        pb.ListModelVersionsRequest(parent="models/x"),
        "MODEL_NOT_FOUND",
        "models/x",
    ),
    "ListAliases": (pb.ListAliasesRequest(parent="models/x"), "MODEL_NOT_FOUND", "models/x"),
    "GetModelVersion": (
        pb.GetModelVersionRequest(name="models/m/versions/7"),
        "VERSION_NOT_FOUND",
        "models/m/versions/7",
    ),
    "FinalizeModelVersion": (
        pb.FinalizeModelVersionRequest(name="models/m/versions/7"),
        "VERSION_NOT_FOUND",
        "models/m/versions/7",
    ),
    "GetAlias": (pb.GetAliasRequest(name=LIVE), "ALIAS_NOT_FOUND", LIVE),
    "DeleteAlias": (pb.DeleteAliasRequest(name=LIVE), "ALIAS_NOT_FOUND", LIVE),
    "ResolveModel": (
        pb.ResolveModelRequest(model=model_pb2.ModelRef(model="m")),
        "ALIAS_NOT_FOUND",
        LIVE,
    ),
    "DownloadArtifact": (
        pb.DownloadArtifactRequest(version=V1, path="none"),
        "ARTIFACT_NOT_FOUND",
        f"{V1}/none",
    ),
}


async def test_what_is_not_there_is_named(here: Here) -> None:
    await here.model()
    await here.version({"x": b"x"})
    for method, (request, why, name) in ABSENT.items():
        call = getattr(here.stub, method)(request)
        error = await refused(
            collect(call) if method == "DownloadArtifact" else call, Code.NOT_FOUND, why
        )
        (resource,) = details(status_of(error), ResourceInfo)
        assert resource.resource_name == name
        assert metadata(error)["x-request-id"]
    not_sent = here.stub.DownloadArtifact(pb.DownloadArtifactRequest(version=V1, path="x"))
    await refused(collect(not_sent), Code.NOT_FOUND, "ARTIFACT_NOT_FOUND")


async def test_a_finalize_operation_is_read_off_its_version(tmp_path: Path, transport: str) -> None:
    async with registry(tmp_path / "r", transport) as here:
        await here.model("a.1")
        version = await here.ready(model="a.1")
        name = "operations/finalize.a.1.1"
        operation = await here.operation(name)
        assert (operation.name, operation.done) == (name, True)
    async with registry(tmp_path / "r", transport) as here:
        operation = await here.operation(name)
        found = model_pb2.ModelVersion()
        assert operation.response.Unpack(found)
        assert found == version
        for name, why in (
            ("operations/finalize.x.1", "MODEL_NOT_FOUND"),
            ("operations/finalize.a.1.2", "VERSION_NOT_FOUND"),
            ("operations/finalize.a.1", "MODEL_NOT_FOUND"),
            ("operations/other", "OPERATION_NOT_FOUND"),
            ("", "OPERATION_NOT_FOUND"),
            ("operations/finalize.a.1.1\n", "OPERATION_NOT_FOUND"),
            ("operations/finalize.../../etc.1", "OPERATION_NOT_FOUND"),
        ):
            await refused(here.operation(name), Code.NOT_FOUND, why)


async def test_a_list_that_cannot_be_is_refused_by_field(here: Here) -> None:
    await here.model()
    for make in (
        lambda **fields: here.stub.ListModels(pb.ListModelsRequest(**fields)),
        lambda **fields: here.stub.ListModelVersions(
            pb.ListModelVersionsRequest(parent=M, **fields)
        ),
    ):
        for field, value in (("filter", "colour = red"), ("order_by", "colour desc")):
            assert await fields_refused(make(**{field: value})) == [field]
        assert await fields_refused(make(page_size=-1)) == ["page_size"]
        assert await fields_refused(make(page_token="!!!!")) == ["page_token"]
    now = timestamp_pb2.Timestamp(seconds=1)
    request = pb.GetModelHistoryRequest(name=M, at_time=now)
    assert await fields_refused(here.stub.GetModelHistory(request)) == ["at_time"]
    request = pb.GetModelHistoryRequest(name=M, resource="models/other")
    assert await fields_refused(here.stub.GetModelHistory(request)) == ["resource"]


HOSTILE = ("..", ".", "a\0", "a\n", "\na", "a/../b", "a/b", "a%2fb", "a\\b", "-a", "é", "a" * 129)
NAMED: dict[str, Make] = {
    "CreateModel": lambda n: pb.CreateModelRequest(model_id=n, model=model_pb2.Model(task=1)),  # type: ignore[arg-type]
    "GetModel": lambda n: pb.GetModelRequest(name=f"models/{n}"),
    "BatchGetModels": lambda n: pb.BatchGetModelsRequest(names=[f"models/{n}"]),
    "UpdateModel": lambda n: pb.UpdateModelRequest(model=model_pb2.Model(name=f"models/{n}")),
    "DeleteModel": lambda n: pb.DeleteModelRequest(name=f"models/{n}"),
    "CreateModelVersion": lambda n: pb.CreateModelVersionRequest(
        parent=f"models/{n}", version=model_pb2.ModelVersion(artifacts=artifacts({"a": b""}))
    ),
    "FinalizeModelVersion": lambda n: pb.FinalizeModelVersionRequest(name=f"models/{n}/versions/1"),
    "GetModelVersion": lambda n: pb.GetModelVersionRequest(name=f"{M}/versions/{n}"),
    "ListModelVersions": lambda n: pb.ListModelVersionsRequest(parent=f"models/{n}"),
    "UpdateModelVersion": lambda n: pb.UpdateModelVersionRequest(
        version=model_pb2.ModelVersion(name=f"models/{n}/versions/1")
    ),
    "DeleteModelVersion": lambda n: pb.DeleteModelVersionRequest(name=f"{M}/versions/{n}"),
    "SetAlias": lambda n: pb.SetAliasRequest(
        alias=alias_pb2.Alias(name=f"{M}/aliases/{n}", version=1)
    ),
    "GetAlias": lambda n: pb.GetAliasRequest(name=f"{M}/aliases/{n}"),
    "ListAliases": lambda n: pb.ListAliasesRequest(parent=f"models/{n}"),
    "DeleteAlias": lambda n: pb.DeleteAliasRequest(name=f"models/{n}/aliases/live"),
    "ResolveModel": lambda n: pb.ResolveModelRequest(model=model_pb2.ModelRef(model=n)),
    "GetModelHistory": lambda n: pb.GetModelHistoryRequest(name=f"models/{n}"),
    "DownloadArtifact": lambda n: pb.DownloadArtifactRequest(
        version=f"models/{n}/versions/1", path="a"
    ),
    "Watch": lambda n: pb.WatchRequest(names=[f"models/{n}"]),
}


async def test_a_hostile_name_is_refused_wherever_it_stands(here: Here) -> None:
    await here.model()
    before = sorted(here.parts.root.parent.rglob("*"))
    for method, make in NAMED.items():
        for name in HOSTILE:
            call = getattr(here.stub, method)(make(name))
            streams = SERVICE.methods_by_name[method].server_streaming
            await refused(
                collect(call) if streams else call, Code.INVALID_ARGUMENT, "INVALID_FIELD"
            )
    assert await here.revision() == 1
    assert sorted(here.parts.root.parent.rglob("*")) == before


async def test_a_hostile_file_is_refused_when_it_is_declared(here: Here) -> None:
    await here.model()
    good = artifacts({"model.yaml": MANIFEST})
    for path in (
        "../a",
        "/a",
        "a/../b",
        "a//b",
        "a/",
        ".a",
        "a\0b",
        "a\nb",
        "a\\b",
        "é",
        "x" * 513,
    ):
        bad = artifact_pb2.Artifact(path=path, sha256=sha(b""))
        version = model_pb2.ModelVersion(artifacts=[*good, bad])
        call = here.stub.CreateModelVersion(pb.CreateModelVersionRequest(parent=M, version=version))
        assert await fields_refused(call) == ["version.artifacts[1].path"]
    for digest in ("../../etc/passwd", "A" * 64, "a" * 63, "a" * 65, "a" * 63 + "\n", "٣" * 64):
        bad = artifact_pb2.Artifact(path="a", sha256=digest)
        version = model_pb2.ModelVersion(artifacts=[*good, bad])
        call = here.stub.CreateModelVersion(pb.CreateModelVersionRequest(parent=M, version=version))
        assert await fields_refused(call) == ["version.artifacts[1].sha256"]
    await here.version(FILES)
    for path in ("../model.onnx", "/etc/passwd", "model.onnx\0"):
        sending = Sending(here.stub)
        start = pb.UploadStart(version=V1, path=path)
        await soon(sending.call.write(pb.UploadArtifactRequest(start=start)))
        assert reason(await sending.failure()) == "ARTIFACT_NOT_FOUND"


async def test_every_method_of_the_contract_is_built(here: Here) -> None:
    """Each is asked for nothing at all: what needs something says so, and names the field."""
    for method in SERVICE.methods:
        empty = message_factory.GetMessageClass(method.input_type)()
        call = getattr(here.stub, method.name)(iter([empty]) if method.client_streaming else empty)
        if method.name == "Watch":
            assert (await soon(call.read())).bookmark.snapshot_complete
            call.cancel()
        elif method.name in ("ListModels", "ListSources", "GetServerInfo"):
            await soon(call)
        else:
            ending = collect(call) if method.server_streaming else call
            await refused(ending, Code.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_callers_at_once_each_get_a_version_of_their_own(here: Here) -> None:
    await here.model()
    made = await asyncio.gather(*(here.ready(f"{n % 3}".encode()) for n in range(9)))
    assert sorted(one.version for one in made) == list(range(1, 10))
    assert len({one.digest for one in made}) == 3
    for one in made:
        assert sha(await here.download(one.name, "model.onnx")) == one.artifacts[1].sha256

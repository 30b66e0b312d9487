"""Bytes come in from anywhere and at any time, or they are refused; nothing else."""

import asyncio
import hashlib
import os
import random
import threading
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.registry.storage.blobs import Blobs, Upload, open_blobs
from services.registry.storage.hashing import INLINE_BYTES
from services.registry.storage.receiving import Receiving
from services.runtime.errors import Conflict, DataLoss, GristmillError, InvalidRequest
from tests import s3
from tests.unit.registry_storage.place import EVERY, Place, begin, begun, get, put, sha

DATA = random.Random(1).randbytes(300_000)
HOSTILE = (
    *("", ".", "..", "../../etc/passwd", "/etc/passwd", "a" * 63, "a" * 65, "A" * 64, "g" * 64),
    *("a" * 64 + "\n", "a" * 63 + "\0", "../" + "a" * 61, "a" * 62 + "/a", "٣" * 64),
)


@pytest.mark.parametrize("size", [0, 1, EVERY - 1, EVERY, EVERY + 1, 300_000, (1 << 20) + 1])
async def test_bytes_come_back_as_they_went_in(blobs: Blobs, place: Place, size: int) -> None:
    data = (DATA * 4)[:size]
    assert not await blobs.has(sha(data), size)
    await put(blobs, data)
    assert await blobs.has(sha(data), size)
    assert await get(blobs, data) == data
    assert await blobs.open_upload(sha(data), size) is None
    assert place.files("uploads") == []


@pytest.mark.parametrize("chunk", [1, INLINE_BYTES - 1, INLINE_BYTES, 100_000, 1 << 20])
async def test_chunks_of_any_size_make_the_same_blob(blobs: Blobs, chunk: int) -> None:
    """Large ones are hashed in a thread beside the next; all are, before the digest is taken."""
    data = DATA[: 500 if chunk == 1 else None] * (1 if chunk == 1 else 6)
    await put(blobs, data, chunk=chunk)
    assert await get(blobs, data) == data
    wrong = await begun(blobs, DATA, 0)
    for at in range(0, len(DATA), INLINE_BYTES):
        await wrong.write(at, bytes(len(DATA[at : at + INLINE_BYTES])))
    with pytest.raises(DataLoss):
        await wrong.complete()


async def test_bytes_are_here_only_with_the_size_declared(blobs: Blobs) -> None:
    await put(blobs, DATA)
    assert not await blobs.has(sha(DATA), len(DATA) - 1)
    assert not await blobs.has(sha(DATA), len(DATA) + 1)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32), cuts=st.integers(1, 4))
def test_an_upload_goes_on_after_any_cut(place: Place, seed: int, cuts: int) -> None:
    """Closed or not, in the same process or another: what was acknowledged is there."""
    rng = random.Random(seed)
    data = rng.randbytes(rng.randrange(1, 400_000))

    here = place.another(uuid4().hex)

    async def attempt(until: int, known: int) -> int:
        upload = await begin(here.open(), data)
        assert upload.durable_bytes >= known, "what was acknowledged is gone"
        at = upload.durable_bytes
        while at < until:
            run = data[at : at + rng.randrange(1, 90_000)]
            due = await upload.write(at, run)
            at += len(run)
            assert due == (upload.durable_bytes == at)
        acknowledged = upload.durable_bytes
        if rng.random() < 0.5:
            await upload.close()
        elif place.kind == "local":
            # The machine lost its power: the lock is let go, and what was not durable may be gone.
            upload._sink._file.close()
            (part,) = here.files("uploads")
            os.truncate(part, rng.randrange(acknowledged, part.stat().st_size + 1))
        return acknowledged

    async def run() -> None:
        known = 0
        for _ in range(cuts):
            known = await attempt(rng.randrange(len(data)), known)
        await put(here.open(), data)
        assert await get(here.open(), data) == data
        assert here.files("uploads") == []

    asyncio.run(run())


@pytest.mark.parametrize("offset", [0, 999, 1001, 2**63, 2**64 - 1])
async def test_a_chunk_that_does_not_follow_is_refused_and_changes_nothing(
    blobs: Blobs, offset: int
) -> None:
    upload = await begun(blobs, DATA, 1000)
    with pytest.raises(InvalidRequest) as caught:
        await upload.write(offset, b"x")
    (violation,) = caught.value.violations
    assert violation.field == "chunk.offset"
    assert "1000" in violation.description
    await upload.write(1000, DATA[1000:])
    await upload.complete()
    assert await get(blobs, DATA) == DATA


async def test_a_chunk_past_the_declared_size_is_refused_and_changes_nothing(
    blobs: Blobs,
) -> None:
    upload = await begun(blobs, DATA, len(DATA) - 1)
    with pytest.raises(InvalidRequest) as caught:
        await upload.write(len(DATA) - 1, DATA[-1:] + b"x")
    assert [v.field for v in caught.value.violations] == ["chunk.data"]
    assert not upload.whole
    await upload.write(len(DATA) - 1, DATA[-1:])
    assert upload.whole
    await upload.complete()
    assert await get(blobs, DATA) == DATA


@pytest.mark.parametrize("cut", [0, 1, 200_000])
async def test_bytes_that_are_not_those_declared_are_thrown_away(
    place: Place, blobs: Blobs, cut: int
) -> None:
    """Whether they came in one go or were gone on with: then the hash begins with old bytes."""
    wrong = bytes([DATA[0] ^ 1]) + DATA[1:]
    upload = await begin(blobs, DATA)
    if cut:
        await upload.write(0, wrong[:cut])
        await upload.close()
        upload = await begin(place.open(), DATA)
        assert upload.durable_bytes == cut
    await upload.write(cut, wrong[cut:])
    with pytest.raises(DataLoss) as caught:
        await upload.complete()
    await upload.close()
    assert caught.value.metadata == {"declared": sha(DATA), "received": sha(wrong)}
    assert not await blobs.has(sha(DATA), len(DATA))
    assert place.files("blobs") == [], "kept under a digest that nobody declared"

    again = await begin(blobs, DATA)
    assert again.durable_bytes == 0
    await again.close()
    await put(blobs, DATA)
    assert await get(blobs, DATA) == DATA


async def test_an_attempt_longer_than_the_size_declared_now_begins_anew(blobs: Blobs) -> None:
    """Someone declared these bytes with a wrong size, sent some and left."""
    wrong = await begin(blobs, DATA, 2 * len(DATA))
    await wrong.write(0, DATA + b"more")
    await wrong.close()

    upload = await begin(blobs, DATA)
    assert upload.durable_bytes == 0
    await upload.close()
    await put(blobs, DATA)
    assert await get(blobs, DATA) == DATA


async def test_a_newer_upload_goes_on_where_the_older_was_and_shuts_it_out(blobs: Blobs) -> None:
    older = await begun(blobs, DATA, 100_001)
    newer = await begin(blobs, DATA)
    assert newer.durable_bytes == 100_001
    for attempt in (older.write(100_001, b"x"), older.complete()):
        with pytest.raises(Conflict) as caught:
            await attempt
        assert caught.value.reason_given == "CONCURRENT_CHANGE"
    await older.close()  # the call that was shut out ends: the newer one must not notice
    await newer.write(100_001, DATA[100_001:])
    await newer.complete()
    assert await get(blobs, DATA) == DATA


async def test_of_uploads_that_open_at_once_one_writes_and_the_bytes_stay_whole(
    blobs: Blobs,
) -> None:
    uploads = await asyncio.gather(*(begin(blobs, DATA) for _ in range(8)))

    async def send(upload: Upload) -> str:
        try:
            for at in range(0, len(DATA), 50_000):
                await upload.write(at, DATA[at : at + 50_000])
            await upload.complete()
        except Conflict:
            return "shut out"
        return "whole"

    ends = await asyncio.gather(*map(send, uploads))
    assert sorted(ends) == ["shut out"] * 7 + ["whole"]
    assert await get(blobs, DATA) == DATA


@pytest.mark.parametrize("replicas", [1, 3])
async def test_callers_who_all_insist_end_with_the_bytes_whole(place: Place, replicas: int) -> None:
    """On one replica they supersede each other; of several, one has the bytes or all do."""
    stores = [place.open() for _ in range(replicas)]

    async def insist(seed: int) -> None:
        rng = random.Random(seed)
        blobs = stores[seed % replicas]
        while not await blobs.has(sha(DATA), len(DATA)):
            try:
                await put(blobs, DATA, chunk=rng.randrange(10_000, 100_000))
            except Conflict:
                await asyncio.sleep(rng.random() * 0.01)

    await asyncio.gather(*map(insist, range(6)))
    assert await get(stores[0], DATA) == DATA
    assert len(place.files("blobs")) == 1


@pytest.mark.parametrize("at", [0, 1, 2, 3, 5, 8])
async def test_a_caller_who_leaves_at_any_time_harms_nobody(blobs: Blobs, at: int) -> None:
    leaving = asyncio.create_task(put(blobs, DATA, chunk=30_000))
    for _ in range(at):
        await asyncio.sleep(0.001)
    leaving.cancel()
    second = asyncio.create_task(put(blobs, DATA))
    ended = await asyncio.gather(leaving, second, return_exceptions=True)
    assert ended[0] is None or isinstance(ended[0], asyncio.CancelledError)
    assert ended[1] is None
    assert await get(blobs, DATA) == DATA


class Slow:
    """A step of the disk that waits until it is let go on."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self._real = getattr(os, name)
        patch.setattr(os, name, self)

    def __call__(self, *arguments: Any) -> Any:
        """The step itself."""
        self.reached.set()
        assert self.go.wait(20)
        return self._real(*arguments)


@pytest.mark.parametrize("step", ["rename", "fsync"])
async def test_a_caller_who_leaves_while_the_disk_works_harms_nobody(
    local: Place, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    blobs = local.open()
    first = await begun(blobs, DATA, len(DATA))
    slow = Slow(monkeypatch, step)
    completing = asyncio.create_task(first.complete())
    await asyncio.to_thread(slow.reached.wait, 20)
    completing.cancel()
    await asyncio.sleep(0)
    completing.cancel()
    closing = asyncio.create_task(first.close())
    second = asyncio.create_task(put(blobs, DATA))
    third = asyncio.create_task(blobs.open_upload(sha(DATA), 10))  # declared too short
    await asyncio.sleep(0.05)
    assert not local.blob(DATA).exists()
    slow.go.set()
    ended = await asyncio.gather(completing, closing, second, third, return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError)
    assert ended[1] is None
    assert ended[2] is None or isinstance(ended[2], Conflict)
    assert isinstance(ended[3], Receiving)
    await ended[3].close()
    await put(blobs, DATA)
    assert await get(blobs, DATA) == DATA


async def test_whoever_comes_while_another_call_ends_has_nothing_left_to_send(
    local: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = local.open()
    first = await begun(blobs, DATA, len(DATA))
    slow = Slow(monkeypatch, "rename")
    completing = asyncio.create_task(first.complete())
    await asyncio.to_thread(slow.reached.wait, 20)
    coming = [asyncio.create_task(blobs.open_upload(sha(DATA), len(DATA))) for _ in range(3)]
    await asyncio.sleep(0.02)
    slow.go.set()
    assert await asyncio.gather(completing, *coming) == [None] * 4
    assert local.files("uploads") == []
    assert await get(blobs, DATA) == DATA


async def test_what_is_no_digest_is_never_part_of_a_name(place: Place, blobs: Blobs) -> None:
    before = sorted(place.root.parent.rglob("*"))
    source = place.root.parent / "source"
    for attempt in (
        lambda digest: blobs.open_upload(digest, 1),
        lambda digest: blobs.has(digest, 1),
        lambda digest: _drained(blobs.read(digest, 1, 0, 0)),
        lambda digest: blobs.adopt(source, digest, 1),
        lambda digest: blobs.fetch(digest, 1, source),
        lambda digest: blobs.set_aside(digest),
        lambda digest: blobs.delete(digest),
        lambda digest: blobs.forget_unfinished(digest),
    ):
        for digest in HOSTILE:
            with pytest.raises(InvalidRequest):
                await attempt(digest)
    assert sorted(place.root.parent.rglob("*")) == before


async def _drained(reading: AsyncIterator[tuple[int, bytes]]) -> None:
    async for _ in reading:
        raise AssertionError("something was read")


async def test_a_digest_is_taken_literally(blobs: Blobs) -> None:
    """Upper case is another text; it must not become another name of the same bytes."""
    await put(blobs, DATA)
    with pytest.raises(InvalidRequest):
        await blobs.has(hashlib.sha256(DATA).hexdigest().upper(), len(DATA))


async def test_a_blob_of_the_real_sizes_goes_through_parts_and_a_multipart_put(
    server: s3.S3,
) -> None:
    """The other tests make the runs small; here they are those of a real bucket."""
    data = random.Random(3).randbytes(21 << 20)
    first = open_blobs(server.url("large"), 1, server.options)
    assert first.fsync_every_bytes == 5 << 20
    upload = await begun(first, data, 6 << 20)
    assert upload.durable_bytes == 6 << 20
    await upload.write(6 << 20, data[6 << 20 : 9 << 20])
    assert upload.durable_bytes == 6 << 20
    await first.close()

    second = open_blobs(server.url("large"), 1, server.options)
    upload = await begin(second, data)
    assert upload.durable_bytes == 9 << 20, "what was in memory went up as the store closed"
    await upload.close()
    await put(second, data, chunk=1 << 20)
    assert await get(second, data) == data
    await second.close()


async def test_what_an_upload_in_one_request_declares_wrongly_is_kept_nowhere(
    server: s3.S3,
) -> None:
    data = b"tiny"
    blobs = open_blobs(server.url("tiny"), 1, server.options)
    upload = await begun(blobs, data, 3)
    await upload.write(3, b"Y")
    with pytest.raises(GristmillError):
        await upload.complete()
    assert not [path for path in (server.folder / "tiny").rglob("*") if path.is_file()]
    await blobs.close()

"""Bytes by digest: resumed from anywhere, checked up and down, and never outside their folder."""

import asyncio
import hashlib
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.registry.blobs import READ_BYTES, Blobs, Upload
from services.runtime.errors import Conflict, DataLoss, InvalidRequest, NotFound, OutOfRange
from tests.unit.registry.parts import begin, below, get, put, sha

DATA = bytes(random.Random(1).randbytes(300_000))
HOSTILE = (
    "",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a" * 63,
    "a" * 65,
    "A" * 64,
    "g" * 64,
    "a" * 64 + "\n",
    "a" * 63 + "\0",
    "../" + "a" * 61,
    "a" * 62 + "/a",
    "٣" * 64,
)


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    """An empty store that makes bytes durable every 64 KiB."""
    return Blobs(tmp_path / "artifacts", 65536)


async def begun(blobs: Blobs, data: bytes, sent: int) -> Upload:
    """An upload of which `sent` bytes have come."""
    upload = await begin(blobs, data)
    await upload.write(0, data[:sent])
    return upload


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 300_000, READ_BYTES + 1])
async def test_bytes_come_back_as_they_went_in(blobs: Blobs, size: int) -> None:
    data = (DATA * 4)[:size]
    assert not blobs.has(sha(data), size)
    await put(blobs, data)
    assert blobs.has(sha(data), size)
    assert await get(blobs, data) == data
    assert await blobs.head(sha(data), 4) == data[:4]


async def test_bytes_are_here_only_with_the_size_declared(blobs: Blobs) -> None:
    await put(blobs, DATA)
    assert not blobs.has(sha(DATA), len(DATA) - 1)
    assert not blobs.has(sha(DATA), len(DATA) + 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 100_000))
def test_an_upload_goes_on_after_any_cut_and_any_loss_of_what_was_not_durable(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cuts: int, every: int
) -> None:
    rng = random.Random(seed)
    data = rng.randbytes(rng.randrange(1, 250_000))
    root = tmp_path_factory.mktemp("cut")

    async def attempt(blobs: Blobs, until: int, known: int) -> int:
        """Send up to `until`; gives what was acknowledged."""
        upload = await begin(blobs, data)
        assert upload.durable_bytes >= known, "what was acknowledged is gone"
        at = upload.durable_bytes
        while at < until:
            run = data[at : at + rng.randrange(1, 70_000)]
            due = await upload.write(at, run)
            at += len(run)
            assert due == (upload.durable_bytes == at)
        acknowledged = upload.durable_bytes
        assert acknowledged > at - every
        if rng.random() < 0.5:
            await upload.close()  # else the process is gone, and nobody closed anything
        part = root / "uploads" / sha(data)
        keep = rng.randrange(acknowledged, max(acknowledged, part.stat().st_size) + 1)
        with part.open("r+b") as file:
            file.truncate(keep)  # what a power cut may do
        await upload.close()
        with part.open("r+b") as file:
            file.truncate(keep)
        return acknowledged

    async def run() -> None:
        known = 0
        for _ in range(cuts):
            known = await attempt(Blobs(root, every), rng.randrange(len(data)), known)
        last = Blobs(root, every)
        await put(last, data)
        assert await get(last, data) == data
        assert list(below(root / "uploads")) == []

    asyncio.run(run())
    shutil.rmtree(root)


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


async def test_bytes_that_are_not_those_declared_are_thrown_away(blobs: Blobs) -> None:
    wrong = bytes([DATA[0] ^ 1]) + DATA[1:]
    upload = await begun(blobs, DATA, 0)
    await upload.write(0, wrong)
    with pytest.raises(DataLoss) as caught:
        await upload.complete()
    await upload.close()
    assert caught.value.metadata == {"declared": sha(DATA), "received": sha(wrong)}
    assert not blobs.has(sha(DATA), len(DATA))
    assert not blobs.has(sha(wrong), len(wrong)), "kept under a digest that nobody declared"

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


async def test_callers_who_all_insist_end_with_the_bytes_whole(blobs: Blobs) -> None:
    async def insist(seed: int) -> None:
        rng = random.Random(seed)
        while not blobs.has(sha(DATA), len(DATA)):
            try:
                await put(blobs, DATA, chunk=rng.randrange(10_000, 100_000))
            except Conflict:
                await asyncio.sleep(rng.random() * 0.01)

    await asyncio.gather(*map(insist, range(6)))
    assert await get(blobs, DATA) == DATA


@pytest.mark.parametrize("step", ["rename", "fsync"])
async def test_a_caller_who_leaves_while_the_disk_works_harms_nobody(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    reached, go = threading.Event(), threading.Event()
    name = f"services.registry.blobs.os.{step}"
    before = shutil.os.rename if step == "rename" else shutil.os.fsync

    def slow(*arguments: Any) -> Any:
        reached.set()
        assert go.wait(20)
        return before(*arguments)

    first = await begun(blobs, DATA, 1000)
    await first.write(1000, DATA[1000:-1])
    await first.write(len(DATA) - 1, DATA[-1:])
    monkeypatch.setattr(name, slow)
    completing = asyncio.create_task(first.complete())
    await asyncio.to_thread(reached.wait, 20)
    completing.cancel()
    await asyncio.sleep(0)
    closing = asyncio.create_task(first.close())
    second = asyncio.create_task(put(blobs, DATA))
    third = asyncio.create_task(blobs.open_upload(sha(DATA), 10))  # declared too short
    await asyncio.sleep(0.05)
    go.set()
    ended = await asyncio.gather(completing, closing, second, third, return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError)
    assert ended[1] is None
    assert ended[2] is None or isinstance(ended[2], Conflict)
    assert isinstance(ended[3], Upload)
    await ended[3].close()
    if blobs.has(sha(DATA), len(DATA)):
        assert await get(blobs, DATA) == DATA
    await put(blobs, DATA)
    assert await get(blobs, DATA) == DATA


async def test_whoever_comes_while_another_call_ends_has_nothing_left_to_send(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go = threading.Event(), threading.Event()
    real = shutil.os.rename

    def slow(*arguments: Any) -> Any:
        reached.set()
        assert go.wait(20)
        return real(*arguments)

    first = await begun(blobs, DATA, len(DATA))
    monkeypatch.setattr("services.registry.blobs.os.rename", slow)
    completing = asyncio.create_task(first.complete())
    await asyncio.to_thread(reached.wait, 20)
    coming = [asyncio.create_task(blobs.open_upload(sha(DATA), len(DATA))) for _ in range(3)]
    await asyncio.sleep(0.02)
    go.set()
    assert await asyncio.gather(completing, *coming) == [None] * 4
    assert list(below(tmp_path / "artifacts" / "uploads")) == []
    assert await get(blobs, DATA) == DATA


@pytest.mark.parametrize("position", [0, 1, READ_BYTES - 1, READ_BYTES, 2 * READ_BYTES])
async def test_one_flipped_bit_is_data_loss_before_the_last_bytes_are_given(
    blobs: Blobs, tmp_path: Path, position: int
) -> None:
    data = random.Random(2).randbytes(2 * READ_BYTES + 1)
    await put(blobs, data)
    (path,) = below(tmp_path / "artifacts" / "blobs")
    stored = bytearray(path.read_bytes())
    stored[position] ^= 0x10
    path.write_bytes(stored)

    given = 0
    with pytest.raises(DataLoss) as caught:
        async for _, run in blobs.read(sha(data), len(data), 0, 0):
            given += len(run)
    assert caught.value.metadata == {"sha256": sha(data)}
    assert given < len(data), "whoever counts bytes believes it has them all"
    assert path.exists(), "evidence is kept, never repaired by deletion"


async def test_stored_bytes_that_end_early_are_data_loss(blobs: Blobs, tmp_path: Path) -> None:
    await put(blobs, DATA)
    (path,) = below(tmp_path / "artifacts" / "blobs")
    path.write_bytes(DATA[:-1])
    assert not blobs.has(sha(DATA), len(DATA))
    for offset in (0, 1, len(DATA) - 1):
        with pytest.raises(DataLoss):
            await get(blobs, DATA, offset)


async def test_bytes_that_were_never_sent_are_not_found(blobs: Blobs) -> None:
    upload = await begun(blobs, DATA, len(DATA))
    with pytest.raises(NotFound) as caught:
        await get(blobs, DATA)
    assert caught.value.reason_given == "ARTIFACT_NOT_FOUND"
    await upload.close()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 300_000), st.integers(0, 2**64 - 1) | st.integers(0, 300_000))
def test_any_run_of_bytes_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, offset: int, length: int
) -> None:
    root = tmp_path_factory.getbasetemp() / "ranges"

    async def run() -> bytes:
        blobs = Blobs(root, 65536)
        if not blobs.has(sha(DATA), len(DATA)):
            await put(blobs, DATA)
        return await get(blobs, DATA, offset, length)

    assert asyncio.run(run()) == (DATA[offset : offset + length] if length else DATA[offset:])


@pytest.mark.parametrize("offset", [len(DATA) + 1, 2**64 - 1])
async def test_an_offset_past_the_end_is_out_of_range(blobs: Blobs, offset: int) -> None:
    await put(blobs, DATA)
    with pytest.raises(OutOfRange) as caught:
        await get(blobs, DATA, offset)
    assert caught.value.reason_given == "OFFSET_OUT_OF_RANGE"


@pytest.mark.parametrize("digest", HOSTILE)
async def test_what_is_no_digest_is_never_part_of_a_path(tmp_path: Path, digest: str) -> None:
    blobs = Blobs(tmp_path / "in" / "artifacts", 65536)
    before = sorted(tmp_path.rglob("*"))
    for attempt in (blobs.open_upload(digest, 1), blobs.head(digest, 1), _read(blobs, digest)):
        with pytest.raises(InvalidRequest):
            await attempt
    with pytest.raises(InvalidRequest):
        blobs.has(digest, 1)
    assert sorted(tmp_path.rglob("*")) == before


async def _read(blobs: Blobs, digest: str) -> None:
    async for _ in blobs.read(digest, 1, 0, 0):
        raise AssertionError("something was read")


async def test_a_digest_is_taken_literally(blobs: Blobs) -> None:
    """Upper case is another text; it must not become another name of the same bytes."""
    await put(blobs, DATA)
    with pytest.raises(InvalidRequest):
        blobs.has(hashlib.sha256(DATA).hexdigest().upper(), len(DATA))

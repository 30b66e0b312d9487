"""Several processes over one place: none loses what another acknowledged."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from services.registry.storage.blobs import Blobs
from services.registry.storage.bucket import Entry
from services.registry.storage.part_objects import joined
from services.runtime.errors import Conflict, StorageFailed
from tests.unit.registry_storage.place import EVERY, Place, begin, begun, get, put, sha

DATA = bytes(range(256)) * 1200
ROOT = Path(__file__).parents[3]


async def test_what_one_stores_another_has(place: Place) -> None:
    one, other = place.open(), place.open()
    await put(one, DATA)
    assert await other.has(sha(DATA), len(DATA))
    assert await other.open_upload(sha(DATA), len(DATA)) is None
    assert await get(other, DATA, 5, 100) == DATA[5:105]


async def test_one_goes_on_with_what_another_left(place: Place) -> None:
    one, other = place.open(), place.open()
    upload = await begun(one, DATA, 2 * EVERY)
    await upload.close()
    upload = await begin(other, DATA)
    assert upload.durable_bytes == 2 * EVERY
    await upload.close()
    await put(other, DATA)
    assert await get(one, DATA) == DATA


async def test_in_a_folder_only_one_process_receives_the_same_bytes(local: Place) -> None:
    one, other = local.open(), local.open()
    upload = await begun(one, DATA, 100_000)
    with pytest.raises(Conflict) as caught:
        await other.open_upload(sha(DATA), len(DATA))
    assert caught.value.reason_given == "CONCURRENT_CHANGE"
    await upload.write(100_000, DATA[100_000:])
    await upload.complete()
    assert await get(other, DATA) == DATA


HOLDING = """
import asyncio, sys, time
from services.registry.storage.blobs import open_blobs
from tests.unit.registry_storage.place import begun
DATA = bytes(range(256)) * 1200

async def main(root):
    upload = await begun(open_blobs(root, 65536, {}), DATA, 100_000)
    print(upload.durable_bytes, flush=True)
    time.sleep(60)

asyncio.run(main(sys.argv[1]))
"""


def holding(root: Path) -> subprocess.Popen[bytes]:
    """A process that has begun an upload and does nothing more."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(root)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )


async def test_a_process_that_dies_lets_go_of_the_bytes(local: Place) -> None:
    blobs = local.open()
    with holding(local.root) as process:
        assert process.stdout is not None
        durable = int(process.stdout.readline())
        with pytest.raises(Conflict):
            await blobs.open_upload(sha(DATA), len(DATA))
        assert not await blobs.forget_unfinished(sha(DATA))
        process.kill()
    upload = await begin(blobs, DATA)
    assert upload.durable_bytes >= durable == 100_000
    await upload.close()
    await put(blobs, DATA)
    assert await get(blobs, DATA) == DATA


async def test_replicas_that_receive_the_same_bytes_at_once_both_end_well(bucket: Place) -> None:
    """Each sends its own runs: what overlaps is the same, and the second finds the first's work."""
    one, other = bucket.open(), bucket.open()
    uploads = await begin(one, DATA), await begin(other, DATA)
    for n, upload in enumerate(uploads):
        for at in range(0, len(DATA), step := 40_000 + 7_000 * n):
            await upload.write(at, DATA[at : at + step])
    for upload in uploads:
        await upload.complete()
    for blobs in (one, other):
        assert await get(blobs, DATA) == DATA
        await blobs.close()
    assert bucket.files("uploads") == []


async def test_a_replica_goes_on_with_runs_that_overlap(bucket: Place) -> None:
    one, other = bucket.open(), bucket.open()
    first, second = await begin(one, DATA), await begin(other, DATA)
    await first.write(0, DATA[:70_000])
    await second.write(0, DATA[:100_000])
    await first.write(70_000, DATA[70_000:150_000])
    await one.close()
    third = await begin(other, DATA)
    assert third.durable_bytes == 150_000
    await third.write(150_000, DATA[150_000:])
    await third.complete()
    assert await get(other, DATA) == DATA
    await other.close()


async def test_parts_that_another_replica_took_away_are_a_conflict_and_no_loss(
    bucket: Place,
) -> None:
    one, other = bucket.open(), bucket.open()
    upload = await begun(one, DATA, 200_000)
    assert await other.forget_unfinished(sha(DATA))
    await upload.write(200_000, DATA[200_000:])
    with pytest.raises(Conflict):
        await upload.complete()
    assert bucket.files("blobs") == []
    await put(one, DATA)
    assert await get(other, DATA) == DATA
    for blobs in (one, other):
        await blobs.close()


@pytest.mark.parametrize("sent", [0, 1, 100_000])
async def test_parts_of_an_upload_that_is_open_stay(blobs: Blobs, place: Place, sent: int) -> None:
    upload = await begun(blobs, DATA, sent)
    assert not await blobs.forget_unfinished(sha(DATA))
    await upload.write(sent, DATA[sent:])
    await upload.complete()
    assert await get(blobs, DATA) == DATA
    assert await blobs.forget_unfinished(sha(DATA)), "there is none to keep"
    assert await get(blobs, DATA) == DATA


async def test_what_is_unfinished_is_listed_with_its_newest_time(place: Place) -> None:
    blobs = place.open()
    upload = await begun(blobs, DATA, 70_000)
    await upload.write(70_000, DATA[70_000:140_000])
    await upload.close()
    for path in place.files("uploads"):
        place.age(path, 3600)
    (old,) = [found async for found in blobs.unfinished()]
    assert (old.digest, old.size_bytes) == (sha(DATA), 140_000)

    other = place.open()
    upload = await begin(other, DATA)
    await upload.write(140_000, DATA[140_000:210_000])
    await upload.close()
    (new,) = [found async for found in blobs.unfinished()]
    assert (new.modified - old.modified).total_seconds() > 3000
    assert new.size_bytes == 210_000
    assert [found async for found in blobs.stored()] == []
    assert await blobs.forget_unfinished(sha(DATA))
    assert [found async for found in blobs.unfinished()] == []
    assert place.files("uploads") == []


async def test_going_on_with_an_upload_in_a_bucket_makes_its_parts_young(bucket: Place) -> None:
    """A lock cannot be had there, so whoever collects old parts goes by their age."""
    one, other = bucket.open(), bucket.open()
    await (await begun(one, DATA, 70_000)).close()
    for path in bucket.files("uploads"):
        bucket.age(path, 3600)
    (old,) = [found async for found in one.unfinished()]
    await begin(other, DATA)
    (new,) = [found async for found in one.unfinished()]
    assert (new.modified - old.modified).total_seconds() > 3000
    for blobs in (one, other):
        await blobs.close()


def test_runs_are_joined_as_far_as_they_follow() -> None:
    def entry(start: int, end: int, name: str = "") -> Entry:
        return Entry(f"u/{name or f'{start:020d}-{end:020d}'}", end - start, None, None)

    def ranges(*entries: Entry) -> list[tuple[int, int]]:
        return [(start, end) for _, start, end in joined(list(entries), 100)[0]]

    assert ranges() == []
    assert ranges(entry(10, 20)) == []
    assert ranges(entry(0, 10), entry(20, 30)) == [(0, 10)]
    assert ranges(entry(10, 30), entry(0, 10), entry(0, 10)) == [(0, 10), (0, 20)]
    assert ranges(entry(0, 20), entry(10, 30), entry(5, 15)) == [(0, 20), (10, 20)]
    assert ranges(entry(0, 40), entry(0, 60), entry(40, 100)) == [(0, 40), (40, 60), (20, 60)]
    assert ranges(entry(0, 101), entry(0, 100)) == [(0, 100)]
    assert ranges(entry(0, 0, "opened"), entry(0, 7, "what")) == []


async def test_a_folder_that_is_gone_fails_and_says_no_path(local: Place) -> None:
    blobs = local.open()
    (local.root / "uploads").rmdir()
    with pytest.raises(StorageFailed) as caught:
        await blobs.open_upload(sha(DATA), len(DATA))
    assert str(local.root) not in caught.value.message


async def test_a_part_that_was_given_its_name_while_it_was_opened_is_not_written_to(
    local: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between open and lock another process may have made a blob of the file."""
    blobs = local.open()
    await (await begun(blobs, DATA, 70_000)).close()
    (part,) = local.files("uploads")
    kept = local.root / "renamed-by-another"
    real = fcntl.flock

    def late(handle: int, flags: int) -> None:
        if not kept.exists():
            part.rename(kept)
        real(handle, flags)

    monkeypatch.setattr(fcntl, "flock", late)
    upload = await begin(blobs, DATA)
    assert upload.durable_bytes == 0
    await upload.write(0, DATA)
    await upload.complete()
    assert kept.read_bytes() == DATA[:70_000]
    assert await get(blobs, DATA) == DATA


async def test_a_store_of_many_blobs_is_listed_whole(place: Place) -> None:
    blobs = place.open()
    digests = {sha(b"%d" % n) for n in range(1100)}
    for digest in digests:
        path = place.root / "blobs" / digest[:2] / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (place.root / "blobs" / "aa").mkdir(exist_ok=True)
    (place.root / "blobs" / "aa" / "stray").write_bytes(b"not ours")
    assert {found.digest async for found in blobs.stored()} == digests

"""Bytes come out whole or in runs, and never corrupt ones in silence."""

import asyncio
import os
import random
from collections.abc import Hashable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.registry.storage.blobs import Blobs
from services.registry.storage.contents import READ_BYTES, Remembered
from services.runtime.errors import DataLoss, NotFound, OutOfRange
from tests.unit.registry_storage.place import Place, begun, get, put, sha

DATA = random.Random(1).randbytes(300_000)
LARGE = random.Random(2).randbytes(2 * READ_BYTES + 1)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 300_000), st.integers(0, 2**64 - 1) | st.integers(0, 300_000))
def test_any_run_of_bytes_can_be_read(place: Place, offset: int, length: int) -> None:
    async def run() -> bytes:
        blobs = place.open()
        if not await blobs.has(sha(DATA), len(DATA)):
            await put(blobs, DATA)
        return await get(blobs, DATA, offset, length)

    assert asyncio.run(run()) == (DATA[offset : offset + length] if length else DATA[offset:])


@pytest.mark.parametrize("offset", [len(DATA) + 1, 2**64 - 1])
async def test_an_offset_past_the_end_is_out_of_range(blobs: Blobs, offset: int) -> None:
    await put(blobs, DATA)
    with pytest.raises(OutOfRange) as caught:
        await get(blobs, DATA, offset)
    assert caught.value.reason_given == "OFFSET_OUT_OF_RANGE"


async def test_bytes_that_were_never_sent_are_not_found(blobs: Blobs, tmp_path: Path) -> None:
    upload = await begun(blobs, DATA, len(DATA))
    for attempt in (get(blobs, DATA), blobs.fetch(sha(DATA), len(DATA), tmp_path / "copy")):
        with pytest.raises(NotFound) as caught:
            await attempt
        assert caught.value.reason_given == "ARTIFACT_NOT_FOUND"
    assert not (tmp_path / "copy").exists()
    await upload.close()


@pytest.mark.parametrize("position", [0, READ_BYTES - 1, READ_BYTES, 2 * READ_BYTES])
async def test_one_flipped_bit_is_data_loss_before_the_last_bytes_are_given(
    blobs: Blobs, place: Place, position: int
) -> None:
    await put(blobs, LARGE)
    place.flip(LARGE, position)
    given = 0
    with pytest.raises(DataLoss) as caught:
        async for _, run in blobs.read(sha(LARGE), len(LARGE), 0, 0):
            given += len(run)
    assert caught.value.metadata == {"sha256": sha(LARGE)}
    assert given < len(LARGE), "whoever counts bytes believes it has them all"
    assert place.blob(LARGE).exists(), "evidence is kept, never repaired by deletion"


@pytest.mark.parametrize(("offset", "length"), [(1, 0), (0, 1), (2 * READ_BYTES, 1), (5, 10)])
@pytest.mark.parametrize("checked_before", [False, True])
async def test_one_flipped_bit_anywhere_is_data_loss_before_any_byte_of_a_range_is_given(
    blobs: Blobs, place: Place, offset: int, length: int, checked_before: bool
) -> None:
    """Also where the blob was whole when this process read it last."""
    await put(blobs, LARGE)
    if checked_before:
        end = offset + length if length else None
        assert await get(blobs, LARGE, offset, length) == LARGE[offset:end]
    place.flip(LARGE, READ_BYTES)
    for _ in range(2):
        with pytest.raises(DataLoss):
            async for _ in blobs.read(sha(LARGE), len(LARGE), offset, length):
                raise AssertionError("a byte was given")
    unchecked = blobs.read(sha(LARGE), len(LARGE), 0, 0, check=False)
    assert sum([len(run) async for _, run in unchecked]) == len(LARGE)


@pytest.mark.parametrize("whole_first", [False, True])
async def test_of_many_ranges_the_first_pays_for_the_check(blobs: Blobs, whole_first: bool) -> None:
    """Unless someone read it whole before: whoever resumes a download begins at once."""

    class Counting(Remembered):
        found = 0

        def add(self, digest: str, state: Hashable) -> None:
            self.found += 1
            super().add(digest, state)

    await put(blobs, LARGE)
    blobs._verified = Counting()
    if whole_first:
        assert await get(blobs, LARGE) == LARGE
        assert blobs._verified.found == 1
    await asyncio.gather(*(get(blobs, LARGE, at, 1000) for at in range(1, 200_000, 40_000)))
    assert blobs._verified.found == 1


async def test_stored_bytes_that_end_early_are_data_loss(blobs: Blobs, place: Place) -> None:
    await put(blobs, DATA)
    place.blob(DATA).write_bytes(DATA[:-1])
    assert not await blobs.has(sha(DATA), len(DATA))
    for offset in (0, 1, len(DATA) - 1):
        with pytest.raises(DataLoss):
            await get(blobs, DATA, offset)


@pytest.mark.parametrize("size", [0, 1, 100_000, len(LARGE)])
async def test_a_blob_becomes_a_file(blobs: Blobs, tmp_path: Path, size: int) -> None:
    data = LARGE[:size]
    await put(blobs, data)
    await blobs.fetch(sha(data), size, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert (tmp_path / "copy").is_file()
    with pytest.raises(FileExistsError):
        await blobs.fetch(sha(data), size, tmp_path / "copy")
    (tmp_path / "copy").unlink()
    assert await get(blobs, data) == data


async def test_on_another_file_system_a_blob_is_copied(
    local: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = local.open()
    await put(blobs, LARGE)
    await blobs.fetch(sha(LARGE), len(LARGE), tmp_path / "link")
    assert (tmp_path / "link").stat().st_ino == local.blob(LARGE).stat().st_ino

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    await blobs.fetch(sha(LARGE), len(LARGE), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == LARGE
    assert (tmp_path / "copy").stat().st_ino != local.blob(LARGE).stat().st_ino


@pytest.mark.parametrize("position", [0, len(LARGE) - 1])
async def test_no_file_is_made_of_a_corrupt_blob(
    blobs: Blobs, place: Place, tmp_path: Path, position: int
) -> None:
    await put(blobs, LARGE)
    place.flip(LARGE, position)
    with pytest.raises(DataLoss):
        await blobs.fetch(sha(LARGE), len(LARGE), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("data", [DATA, LARGE])
async def test_a_corrupt_blob_is_set_aside_and_sent_again(
    blobs: Blobs, place: Place, data: bytes
) -> None:
    await put(blobs, data)
    assert not await blobs.set_aside(sha(data)), "it is whole"
    assert await blobs.has(sha(data), len(data))

    place.flip(data)
    damaged = place.blob(data).read_bytes()
    assert await blobs.set_aside(sha(data))
    assert not await blobs.has(sha(data), len(data))
    assert [path.read_bytes() for path in place.files("quarantine")] == [damaged]
    assert not await blobs.set_aside(sha(data)), "it is gone already"

    other = place.open()
    await put(other, data)
    assert await get(blobs, data) == data
    assert await get(blobs, data, 7, 9) == data[7:16]
    assert not await other.set_aside(sha(data)), "whoever saw the damage late harms nobody"
    assert len(place.files("quarantine")) == 1


@pytest.mark.parametrize("size", [0, 1, 100_000, len(LARGE), 9 << 20])
async def test_a_finished_file_is_taken_in(
    blobs: Blobs, place: Place, tmp_path: Path, size: int
) -> None:
    data = (LARGE * 5)[:size]
    for _ in range(2):
        (tmp_path / "made").write_bytes(data)
        await blobs.adopt(tmp_path / "made", sha(data), size)
        assert not (tmp_path / "made").exists()
        assert await place.open().has(sha(data), size)
        assert await get(blobs, data) == data


async def test_what_is_taken_in_again_counts_as_new(
    blobs: Blobs, place: Place, tmp_path: Path
) -> None:
    await put(blobs, DATA)
    place.age(place.blob(DATA), 3600)
    (before,) = [one.modified async for one in blobs.stored()]
    (tmp_path / "made").write_bytes(DATA)
    await blobs.adopt(tmp_path / "made", sha(DATA), len(DATA))
    (after,) = [one.modified async for one in blobs.stored()]
    assert (after - before).total_seconds() > 3000


@pytest.mark.parametrize("wrong", [DATA[:-1], DATA + b"x", b"", bytes(len(DATA))])
async def test_a_file_of_other_bytes_is_not_taken_in_and_stays(
    blobs: Blobs, place: Place, tmp_path: Path, wrong: bytes
) -> None:
    (tmp_path / "made").write_bytes(wrong)
    with pytest.raises(DataLoss):
        await blobs.adopt(tmp_path / "made", sha(DATA), len(DATA))
    assert (tmp_path / "made").read_bytes() == wrong
    assert place.files("blobs") == []
    assert not await blobs.has(sha(DATA), len(DATA))


async def test_a_file_from_another_file_system_is_copied_in(
    local: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = local.open()
    (tmp_path / "made").write_bytes(LARGE)
    real = os.rename

    def across(source: Path, target: Path) -> None:
        if Path(source).name == "made":
            raise OSError(18, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr(os, "rename", across)
    await blobs.adopt(tmp_path / "made", sha(LARGE), len(LARGE))
    assert not (tmp_path / "made").exists()
    assert await get(blobs, LARGE) == LARGE
    assert local.files("uploads") == []

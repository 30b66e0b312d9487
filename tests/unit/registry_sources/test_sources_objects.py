"""Models below a prefix of a real S3 server."""

from pathlib import Path

import pytest

from services.registry.sources import objects
from services.registry.sources.objects import ObjectSource
from services.registry.storage.bucket import Bucket
from services.runtime.errors import FailedPrecondition, NotFound, UpstreamUnavailable
from tests import s3
from tests.unit.registry_sources.fetched import fetched, nothing

WEIGHTS = bytes(range(256)) * 1024


@pytest.fixture
def store(bucket: s3.S3, request: pytest.FixtureRequest) -> Bucket:
    """A prefix for each test, with a model and something beside it."""
    found = Bucket(bucket.url(f"models/{request.node.name}"), bucket.options)
    found.put("team/iris/model.onnx", WEIGHTS)
    found.put("team/iris/sub/empty.json", b"")
    found.put("team/iris-2/model.onnx", b"another")
    return found


@pytest.fixture
def source(store: Bucket, bucket: s3.S3, request: pytest.FixtureRequest) -> ObjectSource:
    """The source over the prefix."""
    return ObjectSource(bucket.url(f"models/{request.node.name}"), bucket.options)


async def test_the_objects_below_a_prefix_come(source: ObjectSource, tmp_path: Path) -> None:
    listing = await source.list("team/iris", "")
    assert [(f.path, f.size_bytes) for f in listing.files] == [
        ("model.onnx", len(WEIGHTS)),
        ("sub/empty.json", 0),
    ]
    assert await fetched(source, listing, tmp_path / "got") == {
        "model.onnx": WEIGHTS,
        "sub/empty.json": b"",
    }


async def test_its_etags_are_on_record(source: ObjectSource, store: Bucket) -> None:
    before = (await source.list("team/iris", "")).facts
    assert before == (await source.list("team/iris", "")).facts
    store.put("team/iris/model.onnx", WEIGHTS[::-1])
    after = (await source.list("team/iris", "")).facts
    assert set(after) == {"etags_sha256"}
    assert after != before


async def test_it_goes_on_where_the_target_ends_in_ranges(
    source: ObjectSource, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "GET_BYTES", 100_000)
    listing, told = await source.list("team/iris", ""), []
    target.write_bytes(WEIGHTS[:50_000])
    await source.fetch(listing, listing.files[0], target, told.append)
    assert target.read_bytes() == WEIGHTS
    assert told == [50_000, 150_000, 250_000, 262_144]


async def test_a_target_that_is_too_long_begins_anew(source: ObjectSource, target: Path) -> None:
    listing = await source.list("team/iris", "")
    target.write_bytes(b"x" * (len(WEIGHTS) + 1))
    await source.fetch(listing, listing.files[0], target, nothing)
    assert target.read_bytes() == WEIGHTS


async def test_an_object_that_was_replaced_is_refused(
    source: ObjectSource, store: Bucket, target: Path
) -> None:
    listing = await source.list("team/iris", "")
    store.put("team/iris/model.onnx", WEIGHTS[::-1])
    with pytest.raises(FailedPrecondition, match=r"model\.onnx changed"):
        await source.fetch(listing, listing.files[0], target, nothing)


async def test_an_object_that_is_gone_is_refused(
    source: ObjectSource, store: Bucket, target: Path
) -> None:
    listing = await source.list("team/iris", "")
    store.delete(["team/iris/model.onnx"])
    with pytest.raises(FailedPrecondition, match=r"model\.onnx changed"):
        await source.fetch(listing, listing.files[0], target, nothing)


@pytest.mark.parametrize("path", ["nothing", "team/iri", "team/iris/model.onnx"])
async def test_a_prefix_with_nothing_below_it_is_not_found(source: ObjectSource, path: str) -> None:
    with pytest.raises(NotFound, match=path):
        await source.list(path, "")


def test_an_object_that_marks_a_folder_is_no_file() -> None:
    found = objects.SourceFile
    listed = [found(path="sub", size_bytes=0), found(path="sub/a", size_bytes=1)]
    assert [file.path for file in objects.without_markers(listed)] == ["sub/a"]


async def test_a_store_that_does_not_answer_is_unavailable(
    bucket: s3.S3,
) -> None:
    options = {**bucket.options, "secret_access_key": "wrong"}
    with pytest.raises(UpstreamUnavailable) as refused:
        await ObjectSource(bucket.url("models"), options).list("a", "")
    assert "wrong" not in refused.value.message
    assert str(bucket.port) not in refused.value.message


def test_a_url_that_is_no_store_stops_the_start() -> None:
    for url in ("https://host/path", "/folder", "file:///folder", "s3:/bucket"):
        with pytest.raises(ValueError, match="no object store"):
            ObjectSource(url, {})

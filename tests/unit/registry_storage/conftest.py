"""Every store in turn: a folder, and a bucket of a real S3 server."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.registry.storage import objects, part_objects
from services.registry.storage.blobs import Blobs, open_blobs
from tests import s3
from tests.unit.registry_storage.place import EVERY, Place


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3]:
    """One S3 server for all tests; each has a prefix of its own."""
    with s3.running(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def local(tmp_path: Path) -> Place:
    """A folder, made durable every 64 KiB."""
    return Place("local", tmp_path / "artifacts", lambda root: open_blobs(str(root), EVERY, {}))


@pytest.fixture
def bucket(server: s3.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A prefix of a bucket; its runs are as small as those of the folder."""
    monkeypatch.setattr(objects, "MIN_RUN_BYTES", EVERY)
    monkeypatch.setattr(part_objects, "SMALL_BYTES", EVERY)

    def make(root: Path) -> Blobs:
        prefix = str(root.relative_to(server.folder))
        return open_blobs(server.url(prefix), EVERY, server.options)

    return Place("bucket", server.folder / "/".join(tmp_path.parts[-2:]), make)


@pytest.fixture(params=["local", "bucket"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """Each in turn: what a test says must hold of both."""
    found: Place = request.getfixturevalue(request.param)
    yield found
    for blobs in found.opened:
        await blobs.close()


@pytest.fixture
def blobs(place: Place) -> Blobs:
    """An empty store."""
    return place.open()

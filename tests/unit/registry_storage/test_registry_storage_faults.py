"""Acknowledged is durable: the order of what reaches the disk, and each step failing in turn."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from services.registry.storage import bucket as bucket_module
from services.registry.storage.blobs import Blobs, open_blobs
from services.registry.storage.disk import failures
from services.runtime.errors import Conflict, GristmillError, StorageFailed, StorageFull
from tests import s3
from tests.unit.registry_storage.faults import Disk, Wire
from tests.unit.registry_storage.place import EVERY, Place, begin, begun, get, put, sha

DATA = bytes(range(256)) * 1000
ROOT = Path(__file__).parents[3]


async def test_bytes_reach_the_disk_before_their_name_and_the_name_before_the_answer(
    local: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = Disk(monkeypatch, tmp_path)
    blobs = local.open()
    assert ("fsync", "artifacts") in disk.names()
    assert ("fsync", ".") in disk.names()

    part, shard = f"artifacts/uploads/{sha(DATA)}", f"artifacts/blobs/{sha(DATA)[:2]}"
    upload = await begin(blobs, DATA)
    assert ("fsync", "artifacts/uploads") in disk.names(), "the part's own name"
    for at in range(0, len(DATA), 50_000):
        disk.steps.clear()
        if await upload.write(at, DATA[at : at + 50_000]):
            assert disk.steps == [("write", part, 0), ("fsync", part, upload.durable_bytes)]
            assert upload.durable_bytes == min(at + 50_000, len(DATA))
        else:
            assert disk.names() == []
            assert upload.durable_bytes <= at
    disk.steps.clear()
    await upload.complete()

    assert disk.steps[0] == ("fsync", part, len(DATA))
    order = [
        disk.names().index(step)
        for step in (
            ("mkdir", shard),
            ("fsync", "artifacts/blobs"),
            ("rename", part),
            ("fsync", shard),
        )
    ]
    assert order == sorted(order)
    assert order[-1] == len(disk.steps) - 1, "nothing is left to do when it answers"


async def test_a_shard_that_another_upload_left_behind_is_made_durable_all_the_same(
    local: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The folder may be there because a process made it and died before it was durable."""
    blobs = local.open()
    local.blob(DATA).parent.mkdir()
    disk = Disk(monkeypatch, tmp_path)
    await put(blobs, DATA)
    renamed = [name for name, _ in disk.names()].index("rename")
    assert ("fsync", "artifacts/blobs") in disk.names()[:renamed]


async def test_a_name_that_another_process_gave_is_made_durable_before_it_counts(
    local: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The other may be between its rename and its fsync; once is enough."""
    one, other = local.open(), local.open()
    await put(one, DATA)
    disk = Disk(monkeypatch, tmp_path)
    assert await other.has(sha(DATA), len(DATA))
    assert ("fsync", f"artifacts/blobs/{sha(DATA)[:2]}") in disk.names()
    assert ("fsync", "artifacts/blobs") in disk.names()
    disk.steps.clear()
    assert await other.has(sha(DATA), len(DATA))
    assert disk.steps == []


async def test_a_name_whose_fsync_failed_does_not_count_and_is_given_again(
    local: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blobs = local.open()
    upload = await begun(blobs, DATA, len(DATA))
    with monkeypatch.context() as patch:
        disk = Disk(patch, tmp_path)
        disk.fails_at = 5  # part, shard made, blobs, rename, and then the shard
        with pytest.raises(StorageFailed):
            await upload.complete()
        assert disk.steps[-1][:2] == ("fsync", f"artifacts/blobs/{sha(DATA)[:2]}")
    assert local.blob(DATA).exists()
    assert not await blobs.has(sha(DATA), len(DATA))
    again = await begin(blobs, DATA)
    assert again.durable_bytes == len(DATA), "only the name is given once more"
    await again.complete()
    assert await blobs.has(sha(DATA), len(DATA))


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_each_step_of_the_disk_failing_in_turn_leaves_the_old_state_or_the_new(
    local: Place, monkeypatch: pytest.MonkeyPatch, code: int, restarted: bool
) -> None:
    failed = 0
    for nth in range(1, 100):
        here = local.another(str(nth))
        blobs = here.open()
        with monkeypatch.context() as patch:
            disk = Disk(patch, here.root)
            disk.fails_at, disk.errno = nth, code
            acknowledged = await _sent(blobs)
        await _nothing_is_lost(here.open() if restarted else blobs, here, acknowledged)
        if len(disk.steps) < nth:
            break
        failed += len(DATA) not in acknowledged
    assert failed >= 12


@pytest.mark.parametrize("restarted", [False, True])
async def test_each_request_failing_in_turn_leaves_the_old_state_or_the_new(
    bucket: Place, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    failed = 0
    for nth in range(1, 100):
        here = bucket.another(str(nth))
        blobs = here.open()
        with monkeypatch.context() as patch:
            wire = Wire(patch)
            wire.fails_at = nth
            acknowledged = await _sent(blobs)
        await _nothing_is_lost(here.open() if restarted else blobs, here, acknowledged)
        if len(wire.steps) < nth:
            break
        failed += len(DATA) not in acknowledged
    assert failed >= 8
    for blobs in bucket.opened:
        await blobs.close()


async def _sent(blobs: Blobs) -> list[int]:
    """Send until a step fails; what was acknowledged, the whole size only once it is complete."""
    acknowledged = [0]
    with suppress(StorageFailed, StorageFull):
        upload = await begin(blobs, DATA)
        try:
            for at in range(0, len(DATA), 50_000):
                await upload.write(at, DATA[at : at + 50_000])
                acknowledged.append(upload.durable_bytes)
            await upload.complete()
            acknowledged.append(len(DATA))
        finally:
            await upload.close()
    return acknowledged


async def _nothing_is_lost(blobs: Blobs, here: Place, acknowledged: list[int]) -> None:
    """The blob is there whole, or can be gone on with from what was acknowledged."""
    if await blobs.has(sha(DATA), len(DATA)):
        assert await get(blobs, DATA) == DATA
    else:
        assert len(DATA) not in acknowledged
        again = await begin(blobs, DATA)
        assert again.durable_bytes >= max(acknowledged), "what was acknowledged is gone"
        await again.close()
    await put(blobs, DATA)
    assert await get(blobs, DATA) == DATA
    assert len(here.files("blobs")) == 1


async def test_bytes_whose_fsync_failed_are_sent_again(
    local: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fsync the kernel may forget dirty pages: asking again proves nothing."""
    blobs = local.open()
    upload = await begin(blobs, DATA)
    assert await upload.write(0, DATA[:EVERY])
    with monkeypatch.context() as patch:
        disk = Disk(patch, tmp_path)
        disk.fails_at = 2
        with pytest.raises(StorageFailed):
            await upload.write(EVERY, DATA[EVERY : 2 * EVERY])
        assert disk.steps[1][0] == "fsync"
    with pytest.raises(Conflict):
        await upload.write(EVERY, DATA[EVERY : 2 * EVERY])
    again = await begin(blobs, DATA)
    assert again.durable_bytes == EVERY
    await again.close()


async def test_a_disk_that_takes_little_at_a_time_gets_it_all(
    local: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda to, data: real(to, data[: max(1, len(data) // 3)]))
    blobs = local.open()
    await put(blobs, DATA)
    assert await get(blobs, DATA) == DATA


LIMITED = """
import asyncio, resource, sys
from services.registry.storage.blobs import open_blobs
from services.runtime.errors import StorageFull
from tests.unit.registry_storage.place import begin, get, put
DATA = bytes(range(256)) * 1000

async def main(root):
    blobs = open_blobs(root, 65536, {})
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    upload = await begin(blobs, DATA)
    try:
        for at in range(0, len(DATA), 40_000):
            await upload.write(at, DATA[at:at + 40_000])
        raise AssertionError("the limit did not hold")
    except StorageFull as error:
        durable = upload.durable_bytes
        assert 65536 <= durable <= 150_000, durable
        assert root not in error.message
    again = await begin(blobs, DATA)
    assert again.durable_bytes == durable
    await again.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await put(blobs, DATA)
    assert await get(blobs, DATA) == DATA

asyncio.run(main(sys.argv[1]))
"""


def test_a_full_disk_keeps_what_is_durable_and_goes_on_once_there_is_room(tmp_path: Path) -> None:
    """The kernel itself refuses: the process may write no file above 150,000 bytes for a while."""
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "artifacts")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EFBIG, StorageFull),
        (errno.EIO, StorageFailed),
        (errno.EROFS, StorageFailed),
        (errno.EACCES, StorageFailed),
    ],
)
def test_what_an_error_of_the_disk_means(code: int, kind: type[GristmillError]) -> None:
    with pytest.raises(kind) as caught, failures("bytes were read"):
        raise OSError(code, os.strerror(code), "/var/secret")
    assert "/var" not in caught.value.message
    assert isinstance(caught.value.__cause__, OSError), "the log has the cause"


async def test_a_blob_that_cannot_be_read_is_no_loss_of_data(local: Place) -> None:
    blobs = local.open()
    local.blob(DATA).mkdir(parents=True)
    with pytest.raises(StorageFailed):
        await get(blobs, DATA)


async def test_a_store_that_is_away_fails_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bucket_module.RETRY, "max_retries", 1)
    data = os.urandom(12 << 20)
    with s3.running(tmp_path) as server:
        blobs = open_blobs(server.url("away"), 1, server.options)
        upload = await begun(blobs, data, 6 << 20)
        assert upload.durable_bytes == 6 << 20
    for attempt in (upload.write(6 << 20, data[6 << 20 :]), blobs.has(sha(data), len(data))):
        with pytest.raises(StorageFailed) as caught:
            await attempt
        assert "127.0.0.1" not in caught.value.message
    await blobs.close()
    with s3.running(tmp_path) as server:
        blobs = open_blobs(server.url("away"), 1, server.options)
        upload = await begin(blobs, data)
        assert upload.durable_bytes == 6 << 20
        await upload.close()
        await put(blobs, data)
        assert await get(blobs, data) == data
        await blobs.close()


@contextmanager
def answering(status: int, body: str) -> Iterator[dict[str, str]]:
    """A server that answers every PUT with one error; gives the options to reach it."""

    class Answer(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_HEAD(self) -> None:
            self.send_response(404)
            self.end_headers()

        def do_GET(self) -> None:
            found = b'<?xml version="1.0"?><ListBucketResult></ListBucketResult>'
            self.send_response(200)
            self.send_header("content-length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield s3.S3(server.server_port, Path()).options
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (507, "InsufficientStorage", StorageFull),
        (403, "QuotaExceeded", StorageFull),
        (507, "XMinioStorageFull", StorageFull),
        (403, "AccessDenied", StorageFailed),
        (404, "NoSuchBucket", StorageFailed),
    ],
)
async def test_what_an_error_of_the_store_means(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, kind: type[GristmillError]
) -> None:
    monkeypatch.setitem(bucket_module.RETRY, "max_retries", 0)
    with answering(status, f"<Error><Code>{code}</Code></Error>") as options:
        blobs = open_blobs("s3://gristmill/x", 1, options)
        with pytest.raises(kind) as caught:
            await put(blobs, DATA)
        assert "127.0.0.1" not in caught.value.message
        await blobs.close()


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("ftp://host/path", {}),
        ("http://host/path", {}),
        ("s3://bucket/x", {"no_such_option": "1"}),
    ],
)
def test_a_place_that_is_none_is_refused_at_the_start(url: str, options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"no storage that is known|no_such_option"):
        open_blobs(url, 1, options)


async def test_a_url_may_be_a_file_url_or_a_path(tmp_path: Path) -> None:
    await put(open_blobs(f"file://{tmp_path}/some%20where", 1, {}), DATA)
    assert await open_blobs(f"{tmp_path}/some where", 1, {}).has(sha(DATA), len(DATA))


async def test_a_store_in_memory_is_a_store() -> None:
    blobs = open_blobs("memory://", 1, {})
    await put(blobs, DATA)
    assert await get(blobs, DATA, 5, 10) == DATA[5:15]
    await blobs.close()

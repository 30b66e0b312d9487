"""What tests of the registry share below the wire: a registry in parts, its files, its callers."""

import hashlib
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.registry.blobs import Blobs, Upload
from services.registry.database import Database
from services.registry.models import Models
from services.registry.resources import ArtifactRecord, ModelRecord, Task, VersionRecord
from services.registry.store import Author, Store
from services.registry.watch import Watch

MANIFEST = b"""schema: gristmill.dev/model/v1
name: sentiment
task: classification
backend: onnxruntime
files: {model: model.onnx}
input: {kind: text, max_tokens: 128}
output: {labels: [negative, positive]}
"""
MANIFEST_LLM = b"""schema: gristmill.dev/model/v1
name: smollm2
task: generation
engine: openvino-genai
files: {model: model.gguf}
limits: {max_context_tokens: 2048}
"""
CHUNK = 64 * 1024


class Ticking:
    """A clock that moves one second each time it is read."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def sha(data: bytes) -> str:
    """The digest of bytes as the contract writes it."""
    return hashlib.sha256(data).hexdigest()


def artifact(path: str, data: bytes) -> ArtifactRecord:
    """What a version declares of one file."""
    return ArtifactRecord(path=path, size_bytes=len(data), sha256=sha(data))


def by(
    request_id: str = "", *, identity: str = "ann", digest: str = "d", call: str = "c"
) -> Author:
    """Who makes a change."""
    return Author(identity, call, request_id, "/registry/Method", digest if request_id else "")


@dataclass
class Parts:
    """A registry without a wire, over one folder."""

    root: Path
    database: Database
    store: Store
    blobs: Blobs
    models: Models
    watch: Watch

    async def model(self, model: str = "m", task: Task = "classification") -> ModelRecord:
        """A new model."""
        return await self.models.create_model(by(), model, task, "", {}, dry=False)

    async def version(
        self,
        files: dict[str, bytes],
        model: str = "m",
        metrics: dict[str, float] | None = None,
    ) -> VersionRecord:
        """A new version, in state uploading."""
        artifacts = [artifact(path, data) for path, data in files.items()]
        return await self.models.create_version(
            by(), model, artifacts, "", {}, metrics or {}, None, dry=False
        )

    async def put(self, *data: bytes) -> None:
        """Store bytes."""
        for one in data:
            await put(self.blobs, one)

    async def ready(
        self, model: str = "m", weights: bytes = b"w", metrics: dict[str, float] | None = None
    ) -> VersionRecord:
        """A version that may be served."""
        files = {"model.yaml": MANIFEST, "model.onnx": weights}
        version = await self.version(files, model, metrics)
        await self.put(*files.values())
        found = await self.models.finalize_version(by(), version.name)
        assert found.state == "ready", found.rejections
        return found


@asynccontextmanager
async def opened(
    root: Path, *, fsync_every_bytes: int = 1 << 20, page: int = 500, template: Path | None = None
) -> AsyncIterator[Parts]:
    """A registry over `root`, as its process puts it together; again over the same is a restart."""
    root.mkdir(parents=True, exist_ok=True)
    file = root / "registry.db"
    if template is not None and not file.exists():
        shutil.copy(template, file)
    database = Database(file)
    if template is None:
        await database.migrate()
    store = Store(database, Ticking())
    blobs = Blobs(root / "artifacts", fsync_every_bytes)
    try:
        yield Parts(root, database, store, blobs, Models(store, blobs), Watch(store, page))
    finally:
        await database.close()


async def begin(blobs: Blobs, data: bytes, size: int | None = None) -> Upload:
    """An upload of bytes that are not here yet."""
    upload = await blobs.open_upload(sha(data), len(data) if size is None else size)
    assert upload is not None, "the bytes are here"
    return upload


async def put(blobs: Blobs, data: bytes, *, chunk: int = CHUNK) -> None:
    """Upload bytes in chunks, from where an earlier upload ended."""
    upload = await blobs.open_upload(sha(data), len(data))
    if upload is None:
        return
    at = upload.durable_bytes
    try:
        while not upload.whole:
            run = data[at : at + chunk]
            assert run, "the upload wants more than there is"
            await upload.write(at, run)
            at += len(run)
        await upload.complete()
    finally:
        await upload.close()


async def get(blobs: Blobs, data: bytes, offset: int = 0, length: int = 0) -> bytes:
    """Read bytes back, checking that the runs follow on each other."""
    found, at = b"", offset
    async for position, run in blobs.read(sha(data), len(data), offset, length):
        assert position == at
        found += run
        at += len(run)
    return found


def below(folder: Path) -> Iterable[Path]:
    """All files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())

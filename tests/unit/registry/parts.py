"""What tests of the registry share below the wire: a registry in parts, its files, its callers."""

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, cast

from onnx import TensorProto, helper

from services.registry.config import RegistryConfig
from services.registry.registry import Registry
from services.registry.resources import (
    ArtifactRecord,
    ModelRecord,
    Task,
    VersionRecord,
    version_key,
)
from services.registry.storage.blobs import Blobs, Upload
from services.registry.store import Author
from services.registry.worker import child
from services.registry.worker.runner import Runner
from services.registry.worker.sandbox import OnProgress, Sandbox
from tests.harness import SOON_S

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


@cache
def weights(seed: bytes) -> bytes:
    """A small ONNX model that differs with its seed, and is as long as that."""
    held = helper.make_tensor("held", TensorProto.UINT8, [len(seed)], seed, raw=True)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "small", [value], [result], [held])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString(deterministic=True))


def artifact(path: str, data: bytes) -> ArtifactRecord:
    """What a version declares of one file."""
    return ArtifactRecord(path=path, size_bytes=len(data), sha256=sha(data))


def by(
    request_id: str = "", *, identity: str = "ann", digest: str = "d", call: str = "c"
) -> Author:
    """Who makes a change."""
    return Author(identity, call, request_id, "/registry/Method", digest if request_id else "")


class Direct:
    """Does jobs in this process: what the sandbox adds has tests of its own."""

    async def run(self, job: dict[str, Any], folder: Path, on_progress: OnProgress) -> Any:
        """The result of a job."""
        spec = job | {"folder": str(folder)}
        return await asyncio.to_thread(child.do, spec, lambda progress, message: None)


class Parts(Registry):
    """A registry without a wire, over one folder."""

    @property
    def root(self) -> Path:
        """Its folder."""
        return self.config.data_dir

    def runner(self) -> Runner:
        """A worker whose jobs run in this process."""
        return Runner(
            self.desk, cast(Sandbox, Direct()), model_work=False, scratch=self.root / "scratch"
        )

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

    async def finalize(self, name: str, author: Author | None = None) -> VersionRecord:
        """Finalize a version and wait for the end of its check."""
        found = await self.lifecycle.finalize(author or by(), name)
        if isinstance(found, VersionRecord):
            return found
        ended = await self.jobs.wait(found.name, SOON_S)
        assert ended.state == "done", ended
        assert ended.failure is None, ended.failure
        return await self.store.version(*version_key(name))

    async def ready(
        self, model: str = "m", seed: bytes = b"w", metrics: dict[str, float] | None = None
    ) -> VersionRecord:
        """A version that may be served."""
        files = {"model.yaml": MANIFEST, "model.onnx": weights(seed)}
        version = await self.version(files, model, metrics)
        await self.put(*files.values())
        found = await self.finalize(version.name)
        assert found.state == "ready", found.rejections
        return found


@asynccontextmanager
async def opened(
    root: Path,
    *,
    fsync_every_bytes: int = 1 << 20,
    page: int = 500,
    template: Path | None = None,
    **settings: Any,
) -> AsyncIterator[Parts]:
    """A registry over `root`, as its process puts it together; again over the same is a restart."""
    root.mkdir(parents=True, exist_ok=True)
    if template is not None and not (root / "registry.db").exists():
        shutil.copy(template, root / "registry.db")
    config = RegistryConfig(
        data_dir=root,
        worker="headers",
        fsync_every_bytes=fsync_every_bytes,
        watch_page=page,
        **settings,
    )
    parts = Parts(config, Ticking())
    await parts.open()
    try:
        yield parts
    finally:
        await parts.close()


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

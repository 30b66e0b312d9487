"""The registry as its followers use it: a catalog kept up to date, and versions on local disk."""

import asyncio
import hashlib
import json
import os
import random
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from gristmill.registry.v1 import history_pb2, model_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb
from gristmill.registry.v1 import registry_service_pb2_grpc as rpc

from services.runtime import logs, metrics
from services.runtime.catalog import ArtifactEntry, Catalog, PolicyEntry, ProfileEntry, VersionEntry
from services.runtime.errors import DataLoss, UpstreamUnavailable
from services.runtime.traffic import Split

RETRY_S = (0.1, 2.0)
"""First and longest pause between attempts to watch."""
PROFILES_S = 2.0
OPTIONS = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
_DIGEST = re.compile(r"[0-9a-f]{64}")
# As the contract has it: plain names joined by "/".
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
Changed = Callable[[Catalog], Awaitable[None]]


def channel(address: str, ca: Path | None, token_file: Path | None) -> grpc.aio.Channel:
    """A channel to the registry, with TLS and a token where they are configured."""
    token = token_file.read_text(encoding="utf-8").strip() if token_file else ""
    interceptors: list[grpc.aio.ClientInterceptor] = (
        [_UnaryToken(token), _StreamToken(token), _BidiToken(token)] if token else []
    )
    if ca is None:
        return grpc.aio.insecure_channel(address, OPTIONS, interceptors=interceptors)
    credentials = grpc.ssl_channel_credentials(ca.read_bytes())
    return grpc.aio.secure_channel(address, credentials, OPTIONS, interceptors=interceptors)


class _Token:
    """Puts the token on a call."""

    def __init__(self, token: str) -> None:
        self._header = ("authorization", f"Bearer {token}")

    def _with_token(self, details: Any) -> Any:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), self._header)
        return details._replace(metadata=metadata)


# Several, since a channel takes an interceptor for the first kind of call that it finds in it.
class _UnaryToken(_Token, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self._with_token(details), request)


class _StreamToken(_Token, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self._with_token(details), request)


class _BidiToken(_Token, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(self._with_token(details), requests)


class RegistryClient:
    """Follows a registry, and keeps what it fetched in a cache folder."""

    def __init__(self, connection: grpc.aio.Channel, cache: Path) -> None:
        self._stub = rpc.RegistryServiceStub(connection)
        self._channel = connection
        self._cache = cache
        self._log = logs.get_logger()
        self.catalog = self._remembered()
        for name in ("blobs", "versions"):
            (cache / name).mkdir(parents=True, exist_ok=True)

    async def follow(self, changed: Changed) -> None:
        """Tell `changed` of every new state of the catalog, for ever; survives the registry."""
        if self.catalog.revision is not None:
            await changed(self.catalog)
        pause = RETRY_S[0]
        while True:
            try:
                async for catalog in self._states():
                    pause = RETRY_S[0]
                    metrics.REGISTRY_UP.set(1)
                    self._remember()
                    await changed(catalog)
            except grpc.aio.AioRpcError as error:
                metrics.REGISTRY_UP.set(0)
                if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                    self.catalog = Catalog()
                self._log.warning("registry away", status=error.code().name, pause_s=pause)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, RETRY_S[1])

    async def fetch(self, version: VersionEntry) -> Path:
        """A folder with the version's files, each checked against its digest."""
        folder = self._cache / "versions" / _digest(version.digest)
        places = [
            (artifact, self._cache / "blobs" / _digest(artifact.sha256), _within(artifact.path))
            for artifact in version.artifacts
        ]
        for artifact, blob, path in places:
            if not await asyncio.to_thread(_matches, blob, artifact):
                await self._download(version, artifact, blob)
            link = folder / path
            link.parent.mkdir(parents=True, exist_ok=True)
            if not (link.exists() and link.samefile(blob)):
                _replace_by_link(blob, link)
        return folder

    async def profiles(self, model: str, version: int) -> list[ProfileEntry]:
        """The curves measured of a version, newest first; none where the registry has no answer."""
        request = pb.GetModelVersionProfileRequest(name=f"models/{model}/versions/{version}")
        try:
            response = await self._stub.GetModelVersionProfile(request, timeout=PROFILES_S)
        except grpc.aio.AioRpcError as error:
            # They only spare the first batches some guessing.
            self._log.info("no profiles", model=model, status=error.code().name)
            return []
        return [
            ProfileEntry(
                profile.fingerprint,
                tuple((p.batch_size * p.length, p.p50_us / 1e6) for p in profile.points),
            )
            for profile in response.profiles
        ]

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def _states(self) -> AsyncIterator[Catalog]:
        """The catalog after the snapshot, and after each change."""
        fresh = Catalog()
        snapshot = self.catalog.revision is None
        catalog = fresh if snapshot else self.catalog
        async for response in self._stub.Watch(pb.WatchRequest(after_revision=catalog.revision)):
            event = response.WhichOneof("event")
            if event == "snapshot":
                _apply(catalog, response.snapshot)
                continue
            if event == "change":
                change = response.change
                if change.HasField("after"):
                    _apply(catalog, change.after)
                else:
                    _forget(catalog, change.before)
            catalog.revision = response.revision
            self.catalog = catalog
            yield catalog

    async def _download(self, version: VersionEntry, artifact: ArtifactEntry, blob: Path) -> None:
        part = blob.with_name(f"{blob.name}.{secrets.token_hex(4)}.part")
        request = pb.DownloadArtifactRequest(
            version=f"models/{version.model}/versions/{version.version}", path=artifact.path
        )
        call = self._stub.DownloadArtifact(request)
        try:
            with part.open("wb") as file:
                async for response in call:
                    await asyncio.to_thread(file.write, response.chunk.data)
                    if file.tell() > artifact.size_bytes:
                        raise DataLoss(f"{artifact.path} is longer than the registry said")
            if not await asyncio.to_thread(_matches, part, artifact):
                raise DataLoss(f"{artifact.path} does not match its SHA-256")
            part.replace(blob)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DATA_LOSS:
                raise DataLoss(f"{artifact.path}: {error.details()}") from error
            raise UpstreamUnavailable(f"the registry did not send {artifact.path}") from error
        finally:
            call.cancel()
            part.unlink(missing_ok=True)

    def _remembered(self) -> Catalog:
        try:
            return Catalog.from_json(json.loads((self._cache / "catalog.json").read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return Catalog()

    def _remember(self) -> None:
        part = self._cache / "catalog.json.part"
        try:
            part.write_text(json.dumps(self.catalog.to_json()))
            part.replace(self._cache / "catalog.json")
        except OSError as error:
            # It serves the next start; what is served now does not depend on it.
            self._log.warning("catalog not written", error=str(error))


def _apply(catalog: Catalog, resource: history_pb2.Resource) -> None:
    kind = resource.WhichOneof("resource")
    if kind == "model":
        model = resource.model
        task = model_pb2.Task.Name(model.task).removeprefix("TASK_").lower()
        catalog.set_model(_ids(model.name)[0], task, archived=model.HasField("archive_time"))
    elif kind == "version":
        version = resource.version
        artifacts = tuple(ArtifactEntry(a.path, a.size_bytes, a.sha256) for a in version.artifacts)
        entry = VersionEntry(_ids(version.name)[0], version.version, version.digest, artifacts)
        catalog.set_version(entry, servable=version.state == model_pb2.VERSION_STATE_READY)
    elif kind == "alias":
        model_id, alias = _ids(resource.alias.name)
        catalog.set_alias(model_id, alias, resource.alias.version)
    elif kind == "traffic_policy":
        policy = resource.traffic_policy
        splits = tuple(Split(s.version, s.alias, s.weight) for s in policy.splits)
        found = PolicyEntry(splits, policy.sticky_key, policy.shadow_version)
        catalog.set_policy(_policy_model(policy.name), found)


def _forget(catalog: Catalog, resource: history_pb2.Resource) -> None:
    kind = resource.WhichOneof("resource")
    if kind == "model":
        catalog.remove_model(_ids(resource.model.name)[0])
    elif kind == "version":
        model, version = _ids(resource.version.name)
        catalog.set_version(VersionEntry(model, int(version), "", ()), servable=False)
    elif kind == "alias":
        model, alias = _ids(resource.alias.name)
        catalog.set_alias(model, alias, None)
    elif kind == "traffic_policy":
        catalog.set_policy(_policy_model(resource.traffic_policy.name), None)


def _policy_model(name: str) -> str:
    """The model in "models/{model}/trafficPolicy"."""
    return name.split("/")[1]


def _ids(name: str) -> list[str]:
    """The ids in a resource name: every second part."""
    return name.split("/")[1::2]


def _matches(path: Path, artifact: ArtifactEntry) -> bool:
    """Whether the file is there with the right length and digest: read on each load."""
    try:
        if path.stat().st_size != artifact.size_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == artifact.sha256
    except FileNotFoundError:
        return False


def _within(path: str) -> str:
    """A path below the version's folder; the registry refuses others, and so does this side."""
    if not _PATH.fullmatch(path):
        raise DataLoss(f"the registry sent a path outside the version: {path!r}")
    return path


def _digest(value: str) -> str:
    """A digest that may name a file: nothing that the registry sends is a path by itself."""
    if not _DIGEST.fullmatch(value):
        raise DataLoss(f"the registry sent a digest that is none: {value!r}")
    return value


def _replace_by_link(blob: Path, link: Path) -> None:
    part = link.with_name(f"{link.name}.{secrets.token_hex(4)}.part")
    os.link(blob, part)
    part.replace(link)

"""The registry as the client sees it: in memory, with faults on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.longrunning import operations_pb2
from gristmill.registry.v1 import alias_pb2, artifact_pb2, model_pb2
from gristmill.registry.v1 import registry_service_pb2 as registry_pb

from tests.unit.client.fakes import add_service, cut, error_info, refuse


@dataclass
class FakeBlob:
    """What is durable of one artifact, and what it should become."""

    size: int
    sha256: str
    data: bytes = b""

    @property
    def complete(self) -> bool:
        return len(self.data) == self.size


@dataclass
class Faults:
    """What goes wrong, each as often as it says."""

    upload_cuts: int = 0
    upload_failures: int = 0
    download_cuts: int = 0
    flip_bytes: bool = False
    finalize_polls: int = 0
    reject: bool = False


@dataclass
class FakeRegistry:
    """Models, versions, aliases and bytes, with faults on demand."""

    models: dict[str, model_pb2.Model] = field(default_factory=dict)
    all_versions: dict[str, model_pb2.ModelVersion] = field(default_factory=dict)
    aliases: dict[str, alias_pb2.Alias] = field(default_factory=dict)
    blobs: dict[str, FakeBlob] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    calls: list[str] = field(default_factory=list)
    upload_offsets: list[int] = field(default_factory=list)
    download_offsets: list[int] = field(default_factory=list)
    watches: list[Any] = field(default_factory=list)
    watch_scripts: list[Callable[[Any], Iterator[Any]]] = field(default_factory=list)
    chunk_bytes: int = 1000

    def register(self, server: grpc.Server) -> None:
        add_service(server, registry_pb.DESCRIPTOR, self)
        add_service(server, operations_pb2.Operation.DESCRIPTOR.file, _FakeOperations(self))

    def versions_of(self, name: str) -> list[model_pb2.ModelVersion]:
        found = [v for n, v in self.all_versions.items() if n.startswith(f"{name}/versions/")]
        return sorted(found, key=lambda version: -version.version)

    def add_version(self, model: str, files: dict[str, bytes]) -> model_pb2.ModelVersion:
        """A READY version with those files, and the alias `live` on it."""
        name = f"models/{model}"
        self.models.setdefault(name, model_pb2.Model(name=name, task=model_pb2.TASK_CLASSIFICATION))
        number = len(self.versions_of(name)) + 1
        version = model_pb2.ModelVersion(
            name=f"{name}/versions/{number}",
            version=number,
            state=model_pb2.VERSION_STATE_READY,
        )
        for path, data in files.items():
            digest = hashlib.sha256(data).hexdigest()
            self.blobs[digest] = FakeBlob(len(data), digest, data)
            version.artifacts.append(
                artifact_pb2.Artifact(path=path, size_bytes=len(data), sha256=digest, stored=True)
            )
        version.create_time.FromSeconds(1_700_000_000)
        self.all_versions[version.name] = version
        self.aliases[f"{name}/aliases/live"] = alias_pb2.Alias(
            name=f"{name}/aliases/live", version=number
        )
        return version

    def CreateModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls.append("CreateModel")
        name = f"models/{request.model_id}"
        request.model.name = name
        self.models[name] = request.model
        return registry_pb.CreateModelResponse(model=request.model)

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name not in self.models:
            refuse(
                context,
                grpc.StatusCode.NOT_FOUND,
                f"there is no {request.name}",
                error_info("MODEL_NOT_FOUND"),
            )
        return registry_pb.GetModelResponse(model=self.models[request.name])

    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        names = sorted(self.models)
        begin = int(request.page_token or 0)
        more = begin + 1 < len(names)  # pages of one
        return registry_pb.ListModelsResponse(
            models=[self.models[name] for name in names[begin : begin + 1]],
            next_page_token=str(begin + 1) if more else "",
        )

    def CreateModelVersion(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls.append("CreateModelVersion")
        version = request.version
        version.version = len(self.versions_of(request.parent)) + 1
        version.name = f"{request.parent}/versions/{version.version}"
        version.state = model_pb2.VERSION_STATE_UPLOADING
        for artifact in version.artifacts:
            blob = self.blobs.setdefault(
                artifact.sha256, FakeBlob(artifact.size_bytes, artifact.sha256)
            )
            artifact.stored = blob.complete and blob.size > 0
        self.all_versions[version.name] = version
        return registry_pb.CreateModelVersionResponse(version=version)

    def ListModelVersions(self, request: Any, context: Any) -> Any:  # noqa: N802
        return registry_pb.ListModelVersionsResponse(versions=self.versions_of(request.parent))

    def FinalizeModelVersion(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls.append("FinalizeModelVersion")
        return registry_pb.FinalizeModelVersionResponse(operation=self.operation(request.name))

    def operation(self, name: str) -> operations_pb2.Operation:
        operation = operations_pb2.Operation(name=f"operations/{name}")
        if self.faults.finalize_polls > 0:
            self.faults.finalize_polls -= 1
            return operation
        version = self.all_versions[name]
        version.state = model_pb2.VERSION_STATE_READY
        if self.faults.reject:
            version.state = model_pb2.VERSION_STATE_REJECTED
            version.rejections.add(path="model.onnx", rule="not-onnx", message="export it anew")
        operation.done = True
        operation.response.Pack(version)
        return operation

    def ResolveModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        ref = request.model
        number, chosen_by = ref.version, "version"
        if not number:
            alias = self.aliases.get(f"models/{ref.model}/aliases/{ref.alias or 'live'}")
            number, chosen_by = (alias.version if alias else 0), ref.alias or "live"
        version = self.all_versions.get(f"models/{ref.model}/versions/{number}")
        if version is None:
            refuse(context, grpc.StatusCode.NOT_FOUND, "no such", error_info("ALIAS_NOT_FOUND"))
        return registry_pb.ResolveModelResponse(version=version, chosen_by=chosen_by)

    def SetAlias(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.aliases[request.alias.name] = request.alias
        return registry_pb.SetAliasResponse(alias=request.alias)

    def ListAliases(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = [a for n, a in sorted(self.aliases.items()) if n.startswith(f"{request.parent}/")]
        return registry_pb.ListAliasesResponse(aliases=found)

    def GetTrafficPolicy(self, request: Any, context: Any) -> Any:  # noqa: N802
        refuse(
            context,
            grpc.StatusCode.NOT_FOUND,
            "there is none",
            error_info("TRAFFIC_POLICY_NOT_FOUND"),
        )

    def DeleteModelVersion(self, request: Any, context: Any) -> Any:  # noqa: N802
        del self.all_versions[request.name]
        return registry_pb.DeleteModelVersionResponse()

    def DeleteModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        if not request.force and self.versions_of(request.name):
            refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                "it has versions",
                error_info("WRONG_STATE"),
            )
        del self.models[request.name]
        return registry_pb.DeleteModelResponse()

    def UploadArtifact(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        start = next(requests).start
        blob = self._blob(start.version, start.path)
        self.upload_offsets.append(len(blob.data))
        if self.faults.upload_failures > 0:
            self.faults.upload_failures -= 1
            refuse(context, grpc.StatusCode.INTERNAL, "the disk is full", error_info("INTERNAL"))
        if blob.complete:
            yield registry_pb.UploadArtifactResponse(durable_bytes=blob.size, complete=True)
            return
        yield registry_pb.UploadArtifactResponse(durable_bytes=len(blob.data))
        for request in requests:
            if request.chunk.offset != len(blob.data):
                refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "a gap")
            if self.faults.upload_cuts > 0:
                self.faults.upload_cuts -= 1
                blob.data += request.chunk.data[: self.chunk_bytes]
                cut(context)
            blob.data += request.chunk.data
            yield registry_pb.UploadArtifactResponse(
                durable_bytes=len(blob.data), complete=blob.complete
            )
            if blob.complete:
                return

    def DownloadArtifact(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        blob = self._blob(request.version, request.path)
        self.download_offsets.append(request.offset)
        data = bytes(b ^ 1 for b in blob.data) if self.faults.flip_bytes else blob.data
        for offset in range(request.offset, blob.size, self.chunk_bytes):
            chunk = registry_pb.Chunk(offset=offset, data=data[offset : offset + self.chunk_bytes])
            yield registry_pb.DownloadArtifactResponse(
                chunk=chunk, size_bytes=blob.size, sha256=blob.sha256
            )
            if self.faults.download_cuts > 0:
                self.faults.download_cuts -= 1
                cut(context)

    def Watch(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.watches.append(request)
        yield from self.watch_scripts.pop(0)(context)

    def _blob(self, version: str, path: str) -> FakeBlob:
        artifacts = self.all_versions[version].artifacts
        return self.blobs[next(a.sha256 for a in artifacts if a.path == path)]


class _FakeOperations:
    def __init__(self, registry: FakeRegistry) -> None:
        self._registry = registry

    def GetOperation(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._registry.operation(request.name.removeprefix("operations/"))

    def WaitOperation(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._registry.calls.append("WaitOperation")
        return self._registry.operation(request.name.removeprefix("operations/"))

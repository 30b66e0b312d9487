"""Pushes a model folder into the registry, as a flow; blocks on nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from google.longrunning import operations_pb2, operations_pb2_grpc
from gristmill.registry.v1 import artifact_pb2, model_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb

from gristmill_client import _errors, errors
from gristmill_client import _registry_flows as registry
from gristmill_client import _registry_messages as messages
from gristmill_client._files import LocalFile, local_files
from gristmill_client._manifest import Manifest, read_manifest
from gristmill_client._steps import Flow, Patience, Pause, Upload, call, work
from gristmill_client._tally import OnProgress, Tally
from gristmill_client.resources import Model, Version

# How long the registry may check a version before the push stops waiting for it.
FINALIZE_TIMEOUT_S = 900.0
FINALIZE_CALL_TIMEOUT_S = 120.0
# Among how many of the newest versions one of the same content is looked for.
_RECENT = 50


def push(
    path: str | Path, name: str | None, alias: str | None, on_progress: OnProgress | None
) -> Flow[Version]:
    """The whole push: see Models.push."""
    folder = Path(path)
    manifest = yield from work(lambda: read_manifest(folder, name))
    files = yield from work(lambda: local_files(folder))
    yield from _ensure_model(manifest)
    version = yield from _matching_version(manifest, files)
    if version is None:
        version = yield from _create_version(manifest, files)
    if version.state != "READY":
        yield from _upload_missing(version, files, on_progress)
        version = yield from _finalize(version)
    if alias is not None:
        yield from registry.promote(manifest.name, version.version, alias)
    return version


def _ensure_model(manifest: Manifest) -> Flow[None]:
    try:
        found = yield from registry.get_model(manifest.name)
    except errors.NotFound:
        found = yield from _create_model(manifest)
    if found.task != manifest.task:
        raise errors.FailedPrecondition(
            f"the model {manifest.name} is for {found.task}, this folder for {manifest.task}: "
            "push it under another name"
        )


def _create_model(manifest: Manifest) -> Flow[Model]:
    request = pb.CreateModelRequest(
        model_id=manifest.name,
        model=model_pb2.Model(task=messages.TASKS[manifest.task], description=manifest.description),
        request_id=registry.request_id(),
    )
    try:
        response = yield from registry.ask(lambda stub: stub.CreateModel, request)
    except errors.AlreadyExists:  # another push came first
        return (yield from registry.get_model(manifest.name))
    return messages.model(response.model)


def _matching_version(manifest: Manifest, files: list[LocalFile]) -> Flow[Version | None]:
    """The newest READY version if it has this content, else an unfinished push of it."""
    request = pb.ListModelVersionsRequest(
        parent=registry.model_name(manifest.name), page_size=_RECENT
    )
    page = yield from registry.ask(lambda stub: stub.ListModelVersions, request)
    recent = [messages.version(message) for message in page.versions]
    content = {(file.artifact.path, file.artifact.sha256) for file in files}
    newest_ready = [version for version in recent if version.state == "READY"][:1]
    unfinished = [version for version in recent if version.state == "UPLOADING"]
    for version in newest_ready + unfinished:
        if {(artifact.path, artifact.sha256) for artifact in version.artifacts} == content:
            return version
    return None


def _create_version(manifest: Manifest, files: list[LocalFile]) -> Flow[Version]:
    lineage = manifest.lineage
    request = pb.CreateModelVersionRequest(
        parent=registry.model_name(manifest.name),
        version=model_pb2.ModelVersion(
            artifacts=[
                artifact_pb2.Artifact(path=a.path, size_bytes=a.size_bytes, sha256=a.sha256)
                for a in (file.artifact for file in files)
            ],
            description=manifest.description,
            metrics=manifest.metrics,
            lineage=model_pb2.Lineage(
                source=lineage.source,
                revision=lineage.revision,
                parent_version=lineage.parent_version,
                conversion=lineage.conversion,
                facts=lineage.facts,
            ),
        ),
        request_id=registry.request_id(),
    )
    response = yield from registry.ask(lambda stub: stub.CreateModelVersion, request)
    return messages.version(response.version)


def _upload_missing(
    version: Version, files: list[LocalFile], on_progress: OnProgress | None
) -> Flow[None]:
    stored = {artifact.path for artifact in version.artifacts if artifact.stored}
    missing = [file for file in files if file.artifact.path not in stored]
    tally = Tally([file.artifact for file in missing], on_progress)
    name = registry.version_name(version.model, version.version)
    for file in missing:
        yield from _upload(name, file, tally.of(file.artifact))


def _upload(version: str, file: LocalFile, report: Callable[[int], None]) -> Flow[None]:
    patience = Patience()
    durable = 0

    def on_durable(offset: int) -> None:
        nonlocal durable
        if offset > durable:
            patience.progressed()
        durable = offset
        report(offset)

    while True:
        try:
            yield Upload(version, file, on_durable)
        except errors.GristmillError as error:
            yield Pause(patience.pause(error))
        else:
            return


def _finalize(version: Version) -> Flow[Version]:
    name = registry.version_name(version.model, version.version)
    response = yield from registry.ask(
        lambda stub: stub.FinalizeModelVersion,
        pb.FinalizeModelVersionRequest(name=name, request_id=registry.request_id()),
        timeout=FINALIZE_CALL_TIMEOUT_S,
    )
    operation = yield from _wait_for(response.operation, version.model)
    if operation.HasField("error"):
        raise _errors.from_status(operation.error)
    answer = model_pb2.ModelVersion()
    operation.response.Unpack(answer)
    final = messages.version(answer)
    if final.state != "READY":
        why = "; ".join(f"{r.path or 'version'}: {r.rule}: {r.message}" for r in final.rejections)
        raise errors.FailedPrecondition(
            f"version {final.version} of {final.model} is {final.state}: {why}"
        )
    return final


def _wait_for(operation: operations_pb2.Operation, model_id: str) -> Flow[operations_pb2.Operation]:
    waited, pause = 0.0, 0.1
    while not operation.done:
        if waited > FINALIZE_TIMEOUT_S:
            raise errors.DeadlineExceeded(
                f"the registry is still checking after {waited:.0f} s ({operation.name}): "
                f"`gristmill show {model_id}` tells when it is done"
            )
        yield Pause(pause)
        waited, pause = waited + pause, min(2.0, pause * 1.5)
        operation = yield from call(
            "registry",
            operations_pb2_grpc.OperationsStub,
            lambda stub: stub.GetOperation,
            operations_pb2.GetOperationRequest(name=operation.name),
        )
    return operation

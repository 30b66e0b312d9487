"""Pushes a model folder into the registry, as a flow; blocks on nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from gristmill.registry.v1 import artifact_pb2, model_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb

from gristmill_client import _operation_flows as operations
from gristmill_client import _pointer_flows as pointers
from gristmill_client import _registry_flows as registry
from gristmill_client import _registry_messages as messages
from gristmill_client import _work_messages as work_messages
from gristmill_client import errors
from gristmill_client._files import LocalFile, local_files
from gristmill_client._manifest import MANIFEST, Manifest, read_manifest
from gristmill_client._operation_state import OperationState
from gristmill_client._steps import Flow, Patience, Pause, Upload, work
from gristmill_client._tally import OnProgress, Tally
from gristmill_client.resources import Task, Version

# How long the registry may check a version before a push stops waiting for it.
CHECK_TIMEOUT_S = 900.0
FINALIZE_CALL_TIMEOUT_S = 120.0
# Among how many of the newest versions one of the same content is looked for.
_RECENT = 50

OnCheck: TypeAlias = Callable[[OperationState[Any]], None]


@dataclass(frozen=True, slots=True)
class Told:
    """Who hears of a push, and how long its check may take, in seconds."""

    on_progress: OnProgress | None = None
    on_check: OnCheck | None = None
    timeout: float = CHECK_TIMEOUT_S


def push(
    path: str | Path, name: str | None, task: Task | None, alias: str | None, told: Told
) -> Flow[Version]:
    """The whole push: see Models.push."""
    folder = Path(path)
    manifest = yield from work(lambda: read_manifest(folder, name, task))
    files = yield from work(lambda: local_files(folder))
    model = yield from registry.ensure_model(manifest.name, manifest.task, manifest.description)
    if model.task != manifest.task:
        raise errors.FailedPrecondition(
            f"the model {manifest.name} is for {model.task}, this folder for {manifest.task}: "
            "push it under another name"
        )
    version = yield from _matching_version(manifest, files)
    if version is None:
        version = yield from _create_version(manifest, files)
    if version.state != "READY":
        version = yield from _complete(version, files, told)
    if alias is not None:
        yield from pointers.promote(manifest.name, version.version, alias)
    return version


def repair(path: str | Path, name: str, version: int, told: Told) -> Flow[Version]:
    """The whole repair: see Models.repair."""
    files = yield from work(lambda: local_files(Path(path)))
    broken = yield from registry.get_version(name, version)
    if broken.state == "READY":
        return broken
    here = {(file.artifact.path, file.artifact.sha256) for file in files}
    lost = [a.path for a in broken.artifacts if not a.stored and (a.path, a.sha256) not in here]
    if lost:
        raise errors.InvalidRequest(
            f"{path} lacks the very content of {', '.join(lost)} in version {version} of {name}"
        )
    return (yield from _complete(broken, files, told))


def _complete(version: Version, files: list[LocalFile], told: Told) -> Flow[Version]:
    """Brings the bytes that are missing, and has the version checked."""
    yield from _upload_missing(version, files, told.on_progress)
    return (yield from _finalize(version, told))


def _matching_version(manifest: Manifest, files: list[LocalFile]) -> Flow[Version | None]:
    """The newest READY version if it has this content, else an unfinished push of it."""
    request = pb.ListModelVersionsRequest(
        parent=registry.model_name(manifest.name), page_size=_RECENT
    )
    page = yield from registry.ask(lambda stub: stub.ListModelVersions, request)
    recent = [messages.version(message) for message in page.versions]
    content = {(file.artifact.path, file.artifact.sha256) for file in files}
    # The registry adds the manifest that it inferred.
    added = {MANIFEST} if manifest.inferred else set[str]()
    newest_ready = [version for version in recent if version.state == "READY"][:1]
    unfinished = [version for version in recent if version.state in ("UPLOADING", "VALIDATING")]
    for version in newest_ready + unfinished:
        if {(a.path, a.sha256) for a in version.artifacts if a.path not in added} == content:
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
    wanted = {artifact.path for artifact in version.artifacts} - stored
    missing = [file for file in files if file.artifact.path in wanted]
    tally = Tally([file.artifact for file in missing], on_progress)
    name = registry.version_name(version.model, version.version)
    for file in missing:
        yield from _upload(name, file, tally.of(file.artifact))


def _upload(version: str, file: LocalFile, report: Callable[[int], None]) -> Flow[None]:
    # ABORTED: somebody else, or another replica, has the same bytes in hand.
    patience = Patience(also=(errors.Conflict,))
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


def _finalize(version: Version, told: Told) -> Flow[Version]:
    name = registry.version_name(version.model, version.version)
    response = yield from registry.ask(
        lambda stub: stub.FinalizeModelVersion,
        pb.FinalizeModelVersionRequest(name=name, request_id=registry.request_id()),
        timeout=min(FINALIZE_CALL_TIMEOUT_S, told.timeout),
    )
    begun = work_messages.operation(response.operation)
    ended = yield from operations.wait(begun, told.timeout, told.on_check)
    final: Version = operations.result_of(ended)
    if final.state != "READY":
        why = "; ".join(f"{r.path or 'version'}: {r.rule}: {r.message}" for r in final.rejections)
        raise errors.FailedPrecondition(
            f"version {final.version} of {final.model} is {final.state}: {why}"
        )
    return final

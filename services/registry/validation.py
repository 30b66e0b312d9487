"""What a version is checked for before it may be served. Runs nothing of what it checks."""

import asyncio
from dataclasses import dataclass

import yaml

from services.inference.manifest import FILE_NAME, Manifest
from services.registry.blobs import Blobs
from services.registry.resources import (
    RejectionRecord,
    SignatureRecord,
    Task,
    VersionRecord,
)
from services.runtime.errors import InvalidRequest

# Formats whose loaders execute what they read.
PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".dill", ".ckpt")
MAGIC = {".gguf": b"GGUF"}
MAX_MANIFEST_BYTES = 1 << 20
MAX_MANIFEST_DEPTH, MAX_MANIFEST_NODES = 16, 50_000


@dataclass(frozen=True, slots=True)
class Findings:
    """What the checks found: reasons against the version, and its signature."""

    rejections: tuple[RejectionRecord, ...]
    signature: SignatureRecord | None


async def validate(version: VersionRecord, task: Task, blobs: Blobs) -> Findings:
    """Check names, manifest and file headers."""
    found = [
        RejectionRecord(
            path=artifact.path,
            rule="pickle-refused",
            message="formats that execute code when they are read are not served; "
            "convert the weights to safetensors or ONNX",
        )
        for artifact in version.artifacts
        if artifact.path.lower().endswith(PICKLED)
    ]
    manifest: Manifest | None = None
    try:
        text = await _manifest_text(version, blobs)
        manifest = await asyncio.to_thread(_parsed, text)
        found += _against(manifest, version, task)
    except InvalidRequest as error:
        found.append(RejectionRecord(path=FILE_NAME, rule="manifest", message=error.message))
    found += [r for a in version.artifacts if (r := await _header(a.path, a.sha256, blobs))]
    return Findings(tuple(found), _signature(manifest) if manifest else None)


async def _manifest_text(version: VersionRecord, blobs: Blobs) -> str:
    for artifact in version.artifacts:
        if artifact.path == FILE_NAME:
            if artifact.size_bytes > MAX_MANIFEST_BYTES:
                raise InvalidRequest.field(FILE_NAME, "is larger than 1 MiB")
            read = blobs.read(artifact.sha256, artifact.size_bytes, 0, 0)
            data = b"".join([part async for _, part in read])
            try:
                return data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InvalidRequest.field(FILE_NAME, "is not UTF-8") from error
    raise InvalidRequest.field(FILE_NAME, "is missing; add it to the version's artifacts")


def _parsed(text: str) -> Manifest:
    """The manifest in a text from anyone: checked for size once its aliases would be resolved."""
    try:
        depth = 0
        for count, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent):
                raise InvalidRequest.field(FILE_NAME, "uses YAML aliases; write the values out")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_MANIFEST_DEPTH or count > MAX_MANIFEST_NODES:
                raise InvalidRequest.field(FILE_NAME, "is nested too deeply, or too long")
        return Manifest.parse(text)
    except (yaml.YAMLError, ValueError) as error:
        # A date or a number that only looks like one is no YAMLError.
        raise InvalidRequest.field(FILE_NAME, str(error)) from error


def _against(manifest: Manifest, version: VersionRecord, task: Task) -> list[RejectionRecord]:
    """What the manifest says that the version does not bear out."""
    paths = {artifact.path for artifact in version.artifacts}
    found = [
        RejectionRecord(
            path=FILE_NAME, rule="file-missing", message=f"{role}: {name} is not an artifact"
        )
        for role, name in manifest.files.items()
        if name not in paths
    ]
    if manifest.task != task:
        said = f"says task {manifest.task}, the model's is {task}"
        found.append(RejectionRecord(path=FILE_NAME, rule="task", message=said))
    if task == "classification" and not (manifest.backend and manifest.input):
        said = "a classifier needs backend and input"
        found.append(RejectionRecord(path=FILE_NAME, rule="manifest", message=said))
    if task == "generation" and not manifest.engine:
        said = "a language model needs engine"
        found.append(RejectionRecord(path=FILE_NAME, rule="manifest", message=said))
    return found


async def _header(path: str, sha256: str, blobs: Blobs) -> RejectionRecord | None:
    for ending, magic in MAGIC.items():
        if path.lower().endswith(ending):
            head = await blobs.head(sha256, len(magic))
            if head != magic:
                said = f"does not begin as a {ending[1:].upper()} file does"
                return RejectionRecord(path=path, rule="header", message=said)
    return None


def _signature(manifest: Manifest) -> SignatureRecord:
    if manifest.task == "generation":
        return SignatureRecord(max_tokens=manifest.limits.max_context_tokens)
    taken = manifest.input
    return SignatureRecord(
        input_kinds=(taken.kind,) if taken else (),
        labels=manifest.output.labels,
        multi_label=manifest.output.multi_label,
        max_tokens=taken.max_tokens if taken and taken.kind != "float_features" else 0,
    )

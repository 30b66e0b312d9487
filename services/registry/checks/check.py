"""All checks of a version's files, one after the other. Runs, unpacks and loads none of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.inference.manifest import FILE_NAME, Manifest
from services.registry.checks import (
    configs,
    contents,
    gguf,
    inferring,
    manifests,
    onnx_model,
    safetensors,
    templates,
)
from services.registry.checks.files import Files, admitted
from services.registry.checks.findings import RefusedError, rejection
from services.registry.checks.inferring import Found
from services.registry.resources import RejectionRecord, SignatureRecord, Task

JINJA = (".jinja", ".jinja2", ".j2")
INDEX_ENDING = ".safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator of the registry allows."""

    allow_pickle: bool = False
    """Formats that execute what they read."""
    max_header_bytes: int = 100 * 2**20


@dataclass(frozen=True, slots=True)
class Report:
    """What the checks found."""

    rejections: tuple[RejectionRecord, ...]
    manifest: Manifest | None
    manifest_text: str | None
    """YAML of an inferred manifest; None where the version brought its own."""
    signature: SignatureRecord | None


def check(folder: Path, paths: Sequence[str], model: str, task: Task, policy: Policy) -> Report:
    """Check the files at these paths in the folder, which holds exactly them.

    Raises nothing for what the files hold; OSError where they cannot be read.
    """
    files, rejections = admitted(folder, paths)
    found = Found()
    for path in files.paths:
        try:
            _check_file(files, path, policy, found)
        except RefusedError as refused:
            rejections.append(refused.record(path))
    manifest, text = None, None
    try:
        if FILE_NAME in paths:
            manifest = manifests.read(files) if FILE_NAME in files.paths else None
            rejections += manifests.against(manifest, files.paths, task) if manifest else []
        elif not rejections:
            # What one file lacks would only be said again, as what the manifest lacks.
            path, said, manifest = inferring.infer(files, found, model)
            text = manifests.text_of(said)
            rejections += _task_mismatch(path, manifest, task)
    except RefusedError as refused:
        rejections.append(refused.record(FILE_NAME))
    signature = _signature(manifest, found) if manifest else None
    return Report(tuple(rejections), manifest, text, signature)


def _check_file(files: Files, path: str, policy: Policy, found: Found) -> None:
    """Its name, then its format, then what it is in truth."""
    lowered = path.lower()
    contents.by_name(path, allow_pickle=policy.allow_pickle)
    if lowered.endswith(".safetensors"):
        _check_safetensors(files, path, policy)
        found.safetensors.append(path)
        return
    torch = contents.by_content(files, path, allow_pickle=policy.allow_pickle)
    if torch is not None:
        found.torch[path] = torch
    elif lowered.endswith(".gguf"):
        header = gguf.check(files, path, policy.max_header_bytes)
        _check_gguf_templates(header)
        found.ggufs[path] = header
    elif lowered.endswith(".onnx"):
        found.onnx[path] = onnx_model.check(files, path, policy.max_header_bytes)
    elif lowered.endswith(".json"):
        configs.check(files, path)
        if lowered.endswith(INDEX_ENDING):
            inferring.check_index(files, path)
    elif lowered.endswith(JINJA):
        _check_jinja(files, path)


def _check_safetensors(files: Files, path: str, policy: Policy) -> None:
    """One that is in order is no pickle: its header's length may only begin like one."""
    try:
        safetensors.check(files, path, policy.max_header_bytes)
    except RefusedError:
        contents.by_content(files, path, allow_pickle=False)
        raise


def _check_gguf_templates(header: gguf.Header) -> None:
    for key, value in header.metadata.items():
        if key == "tokenizer.chat_template" and isinstance(value, str):
            templates.check(value)
        elif key.startswith("tokenizer.chat_template.") and isinstance(value, str):
            templates.check(value, key.rpartition(".")[2])


def _check_jinja(files: Files, path: str) -> None:
    data = files.read(path, templates.MAX_BYTES, templates.RULE)
    try:
        source = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefusedError(templates.RULE, "is not UTF-8") from error
    whole = path.rpartition("/")[2].startswith("chat_template.")
    templates.check(source, templates.DEFAULT if whole else path)


def _task_mismatch(path: str, manifest: Manifest, task: Task) -> list[RejectionRecord]:
    if manifest.task == task:
        return []
    said = f"is a model for {manifest.task}, the model's task is {task}"
    return [rejection(path, "task", said)]


def _signature(manifest: Manifest, found: Found) -> SignatureRecord:
    header = found.onnx.get(manifest.files.get("model", ""), onnx_model.Header())
    return manifests.signature(manifest, tuple(header.inputs), tuple(header.outputs))

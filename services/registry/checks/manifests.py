"""A version's manifest: read within bounds, held against the files, written if inferred."""

from collections.abc import Container, Mapping
from typing import Any

import yaml

from services.inference.manifest import FILE_NAME, Manifest
from services.registry.checks.files import Files
from services.registry.checks.findings import RefusedError, rejection
from services.registry.resources import RejectionRecord, SignatureRecord, Task, TensorRecord
from services.runtime.errors import InvalidRequest

RULE = "manifest"
MAX_BYTES = 1 << 20
MAX_DEPTH, MAX_NODES = 16, 50_000
_SAFETENSORS = (".safetensors", ".safetensors.index.json")
ENDINGS = {
    "onnxruntime": (".onnx",),
    "openvino-genai": (".gguf", ".xml"),
    "pytorch": (*_SAFETENSORS, ".pt", ".pt2"),
    "vllm": (*_SAFETENSORS, ".gguf"),
}
"""By backend or engine: the model files that it is given, which are checked as what they are."""


def read(files: Files) -> Manifest:
    """The manifest that the version brings."""
    data = files.read(FILE_NAME, MAX_BYTES, RULE)
    try:
        return _parsed(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RefusedError(RULE, f"{FILE_NAME}: is not UTF-8") from error
    except InvalidRequest as error:
        raise RefusedError(RULE, error.message) from error


def _parsed(text: str) -> Manifest:
    """The manifest in a text from anyone: checked for size once its aliases would be resolved."""
    try:
        depth = 0
        for count, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent):
                raise InvalidRequest.field(FILE_NAME, "uses YAML aliases; write the values out")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH or count > MAX_NODES:
                raise InvalidRequest.field(FILE_NAME, "is nested too deeply, or too long")
        return Manifest.parse(text)
    except (yaml.YAMLError, ValueError) as error:
        # A date or a number that only looks like one is no YAMLError.
        raise InvalidRequest.field(FILE_NAME, str(error)) from error


def against(manifest: Manifest, paths: Container[str], task: Task) -> list[RejectionRecord]:
    """What the manifest says that the version does not bear out."""
    found = [
        rejection(FILE_NAME, "file-missing", f"{role}: {name} is not an artifact")
        for role, name in manifest.files.items()
        if name not in paths
    ]
    if manifest.task != task:
        said = f"says task {manifest.task}, the model's is {task}"
        found.append(rejection(FILE_NAME, "task", said))
    if task == "classification" and not (manifest.backend and manifest.input):
        found.append(rejection(FILE_NAME, RULE, "a classifier needs backend and input"))
    if task == "generation" and not manifest.engine:
        found.append(rejection(FILE_NAME, RULE, "a language model needs engine"))
    return found + _unchecked(manifest)


def _unchecked(manifest: Manifest) -> list[RejectionRecord]:
    """Loaders take a model whatever it is called; the checks go by its name."""
    model = manifest.files.get("model", "")
    for executor in (manifest.backend, manifest.engine):
        endings = ENDINGS.get(executor or "")
        if endings and not model.endswith(endings):
            said = f"{executor} needs files.model, named *{' or *'.join(endings)}"
            return [rejection(FILE_NAME, RULE, said)]
    return []


def text_of(said: Mapping[str, Any]) -> str:
    """The YAML of a manifest that says this, in this order."""
    text = yaml.safe_dump(dict(said), sort_keys=False, allow_unicode=True, width=100)
    if yaml.safe_load(text) == said:
        return text
    # A few letters that end lines do not come back unless they are escaped, as all are then.
    return yaml.safe_dump(dict(said), sort_keys=False, width=100)


def signature(
    manifest: Manifest, inputs: tuple[TensorRecord, ...], outputs: tuple[TensorRecord, ...]
) -> SignatureRecord:
    """What the version takes and gives."""
    if manifest.task == "generation":
        return SignatureRecord(max_tokens=manifest.limits.max_context_tokens)
    taken = manifest.input
    return SignatureRecord(
        input_kinds=(taken.kind,) if taken else (),
        labels=manifest.output.labels,
        multi_label=manifest.output.multi_label,
        max_tokens=taken.max_tokens if taken and taken.has_tokens else 0,
        inputs=inputs,
        outputs=outputs,
    )

"""Loads a model once as serving would and asks it once; knows no file's inside.

Every library is imported where it is needed: a worker checks what it has the libraries for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.inference.manifest import Manifest
from services.runtime.errors import WORKER_MISSING, FailedPrecondition, InvalidRequest

if TYPE_CHECKING:
    from services.inference.backend import Instance, TensorSpec

# Enough for a few tokens, whatever the model: the serving engine's own cache is many times that.
KV_BLOCKS = 8
TOKENS = 2
MAX_STEPS = 64


@dataclass(frozen=True, slots=True)
class SignatureParts:
    """What a model that ran takes and gives; the width of its answer, where it has one."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    labels_width: int | None


def need(*packages: str) -> None:
    """Raise FailedPrecondition where this worker lacks one of these packages."""
    for package in packages:
        if find_spec(package) is None:
            said = f"this needs the package {package}, which this worker does not have"
            raise FailedPrecondition(said, reason=WORKER_MISSING)


def warm(folder: Path, manifest: Manifest) -> SignatureParts:
    """Load the model and run it once.

    Raises InvalidRequest where it answers with something else than the manifest says,
    FailedPrecondition where this worker lacks a library for it, and whatever the library raises on
    a model that it cannot load.
    """
    if manifest.task == "generation":
        if manifest.engine != "openvino-genai":
            need("vllm")
            said = "this worker cannot run a model for vLLM"
            raise FailedPrecondition(said, reason=WORKER_MISSING)
        return _generates(folder, manifest)
    if manifest.backend == "pytorch":
        return _pytorch(folder, manifest)
    return _onnxruntime(folder, manifest)


def _onnxruntime(folder: Path, manifest: Manifest) -> SignatureParts:
    need("onnxruntime", "tokenizers", "PIL")
    return _classifier(folder, manifest)


def _pytorch(folder: Path, manifest: Manifest) -> SignatureParts:
    whole = manifest.files.get("model", "").endswith((".pt", ".pt2"))
    packages = () if whole else ("transformers", "safetensors")
    need("torch", *packages, "tokenizers", "PIL")
    return _classifier(folder, manifest)


def _classifier(folder: Path, manifest: Manifest) -> SignatureParts:
    """Loaded and run as serving would, whatever the backend."""
    from services.inference import loading

    loaded = loading.load(manifest, folder, instances=1)
    try:
        backend = loaded.backend
        batch = loading.warm_up_inputs(manifest, backend.inputs, loaded.preprocessor)
        width = _width(loaded.instances[0].run(batch), manifest)
        longest(loaded.instances[0], batch, manifest)
        return SignatureParts(list(backend.inputs), list(backend.outputs), width)
    finally:
        loaded.backend.close()


def longest(instance: Instance, batch: Mapping[str, Any], manifest: Manifest) -> None:
    """Run the one item of a batch at the length of `max_tokens`, as a caller may send it.

    Raises InvalidRequest where the model cannot: it has fewer positions than the manifest says.
    """
    import numpy as np

    if manifest.input is None or not manifest.input.has_tokens:
        return
    most = manifest.input.max_tokens
    stretched = {name: np.resize(rows[0], (1, most)) for name, rows in batch.items()}
    try:
        instance.run(stretched)
    except Exception as error:
        said = f"the model does not run on {most} tokens: {error}"
        raise InvalidRequest.field("model.yaml: input.max_tokens", said) from error


def _width(outputs: Mapping[str, Any], manifest: Manifest) -> int:
    """How many labels one item's answer has; InvalidRequest where the manifest names another."""
    from services.inference.scoring import probabilities

    rows = {name: values[0] for name, values in outputs.items()}
    width = int(probabilities(rows, multi_label=manifest.output.multi_label).size)
    named = len(manifest.output.labels)
    if named and named != width:
        said = f"names {named} labels, but the model gives {width}"
        raise InvalidRequest.field("model.yaml: output.labels", said)
    return width


def _generates(folder: Path, manifest: Manifest) -> SignatureParts:
    """Two tokens, as the engine's own process would make them."""
    need("openvino_genai", "openvino_tokenizers")
    import openvino_genai as genai

    if "model" not in manifest.files:
        raise InvalidRequest.field("model.yaml: files.model", "is required")
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = KV_BLOCKS
    scheduler.max_num_batched_tokens = 64
    path = str(folder / manifest.files["model"])
    pipeline = genai.ContinuousBatchingPipeline(path, scheduler, "CPU")
    config = genai.GenerationConfig()
    config.max_new_tokens = TOKENS
    config.do_sample = False
    config.ignore_eos = True
    handle = pipeline.add_request(0, "Hello", config)
    for _ in range(MAX_STEPS):
        if not pipeline.has_non_finished_requests():
            break
        pipeline.step()
    ids = _tokens(handle)
    if len(ids) != TOKENS:
        raise InvalidRequest(f"asked for {TOKENS} tokens, the model gave {len(ids)}")
    return SignatureParts([], [], None)


def _tokens(handle: Any) -> Sequence[int]:
    found: list[int] = []
    while handle.can_read():
        for output in handle.read().values():
            found += output.generated_ids
    return found

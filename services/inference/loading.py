"""Makes a model folder run: backend, preprocessor, warm instances. Knows no queue and no wire."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference import golden, preprocessing
from services.inference.backend import Backend, Instance, TensorSpec
from services.inference.items import (
    FeaturesItem,
    ImageItem,
    Item,
    TensorsItem,
    TextItem,
    TextPairItem,
)
from services.inference.manifest import Manifest
from services.inference.preprocessing import Preprocessor
from services.inference.preprocessing.preprocessor import dtype_of
from services.runtime.errors import (
    FailedPrecondition,
    GristmillError,
    InvalidRequest,
    UnsupportedField,
)

WARM_RUNS = 3
ONE_PIXEL = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
"""The smallest image file: a black GIF."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory, with as many warm executors as it is to have."""

    backend: Backend
    preprocessor: Preprocessor
    instances: tuple[Instance, ...]
    warm_s: float = math.inf
    """What the warm-up batch of one item takes once the model is warm."""


def load(
    manifest: Manifest,
    folder: Path,
    instances: int = 0,
    providers: tuple[str, ...] = (),
    *,
    device: str = "",
) -> Loaded:
    """Load a classifier and warm it up; blocks for as long as that takes.

    `instances` is how many executors, 0 as the manifest says; `providers` are those of ONNX
    Runtime, best first; `device` is that of PyTorch, "cpu" or "cuda:0", empty: a GPU if there is
    one. Raises InvalidRequest where the manifest cannot be obeyed, FailedPrecondition where this
    process lacks the packages for it, and whatever the backend raises on a file that is no model.
    """
    if "model" not in manifest.files:
        raise InvalidRequest.field("model.yaml: files.model", "is required")
    count = instances or manifest.batching.instances
    count, backend = _backend(manifest, folder, count, providers, device)
    try:
        return _warmed(manifest, folder, backend, count)
    except BaseException:
        # Nobody else has it; what is on a GPU would stay there.
        backend.close()
        raise


def _backend(
    manifest: Manifest, folder: Path, count: int, providers: tuple[str, ...], device: str
) -> tuple[int, Backend]:
    """The backend that the manifest asks for, and how many executors it is to have.

    No image has the libraries of all of them.
    """
    try:
        if manifest.backend == "onnxruntime":
            from services.inference.backends.onnx import OnnxBackend, instances_for

            options, path = manifest.onnxruntime, folder / manifest.files["model"]
            count = count or instances_for(providers, options)
            return count, OnnxBackend(path, count, providers, options)
        if manifest.backend == "pytorch":
            from services.inference.backends.pytorch import PyTorchBackend

            return max(1, count), PyTorchBackend(manifest, folder, max(1, count), device)
    except ModuleNotFoundError as error:
        said = f"the backend {manifest.backend} needs the package {error.name}, which is not here"
        raise FailedPrecondition(said) from error
    raise InvalidRequest.field("model.yaml: backend", f"{manifest.backend} is not known")


def _warmed(manifest: Manifest, folder: Path, backend: Backend, count: int) -> Loaded:
    preprocessor = preprocessing.build(manifest, folder, backend.inputs)
    made = tuple(backend.instance() for _ in range(count))
    warm = warm_up_inputs(manifest, backend.inputs, preprocessor)
    for instance in made:
        instance.run(warm)
    golden.check(manifest, folder, preprocessor, made[0])
    return Loaded(backend, preprocessor, made, _shortest_s(made[0], warm))


def _shortest_s(instance: Instance, batch: Mapping[str, NDArray[Any]]) -> float:
    """The shortest of a few runs: the others waited for something."""
    times = []
    for _ in range(WARM_RUNS):
        started = time.perf_counter()
        instance.run(batch)
        times.append(time.perf_counter() - started)
    return min(times)


def warm_up_inputs(
    manifest: Manifest, inputs: Sequence[TensorSpec], preprocessor: Preprocessor
) -> Mapping[str, NDArray[Any]]:
    """A batch of one, of the kind that the model takes; lengths that it leaves open are 1."""
    kind = manifest.input.kind if manifest.input else "text"
    item: Item
    if kind == "float_features":
        names = manifest.input.names if manifest.input else ()
        width = max(1, inputs[0].shape[-1])
        item = FeaturesItem(np.zeros(len(names) or width, dtype=np.float32))
    elif kind == "image":
        item = ImageItem(ONE_PIXEL)
    elif kind == "tensors":
        item = TensorsItem({spec.name: _zeros(spec, manifest) for spec in inputs})
    elif kind == "text_pair":
        item = TextPairItem("warm", "up")
    else:
        item = TextItem("warm up")
    encoded = preprocessor.encode([item])[0]
    if isinstance(encoded, GristmillError):
        raise encoded
    return {name: array[None] for name, array in encoded.inputs.items()}


def _zeros(spec: TensorSpec, manifest: Manifest) -> NDArray[Any]:
    """One item's tensor of zeros, or of empty strings."""
    if spec.datatype == "BF16" and manifest.backend == "onnxruntime":
        said = "is of type BF16, which is not handed to ONNX Runtime"
        raise UnsupportedField.field(f"model input {spec.name}", said)
    shape = [1 if length < 0 else length for length in spec.shape[1:]]
    if spec.datatype == "BYTES":
        return np.full(shape, b"", dtype=np.object_)
    return np.zeros(shape, dtype=dtype_of(spec))

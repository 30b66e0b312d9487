"""Makes a model folder run: backend, preprocessor, warm instances. Knows no queue and no wire."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference import preprocessing
from services.inference.backend import Backend, Instance, TensorSpec
from services.inference.backends.onnx import OnnxBackend
from services.inference.items import FeaturesItem, Item, TextItem, TextPairItem
from services.inference.manifest import Manifest
from services.inference.preprocessing import Preprocessor
from services.runtime.errors import GristmillError, InvalidRequest


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory, with as many warm executors as it is to have."""

    backend: Backend
    preprocessor: Preprocessor
    instances: tuple[Instance, ...]


def load(
    manifest: Manifest, folder: Path, instances: int = 0, providers: tuple[str, ...] = ()
) -> Loaded:
    """Load a classifier and warm it up; blocks for as long as that takes.

    `instances` is how many executors, 0 as the manifest says; `providers` are those of ONNX
    Runtime, best first. Raises InvalidRequest where the manifest cannot be obeyed, and whatever
    the backend raises on a file that is no model.
    """
    if manifest.backend != "onnxruntime":
        raise InvalidRequest.field("model.yaml: backend", f"{manifest.backend} is not known")
    if "model" not in manifest.files:
        raise InvalidRequest.field("model.yaml: files.model", "is required")
    count = instances or manifest.batching.instances
    backend = OnnxBackend(folder / manifest.files["model"], count, providers)
    preprocessor = preprocessing.build(manifest, folder, backend.inputs)
    made = tuple(backend.instance() for _ in range(count))
    warm = warm_up_inputs(manifest, backend.inputs, preprocessor)
    for instance in made:
        instance.run(warm)
    return Loaded(backend, preprocessor, made)


def warm_up_inputs(
    manifest: Manifest, inputs: Sequence[TensorSpec], preprocessor: Preprocessor
) -> Mapping[str, NDArray[Any]]:
    """A batch of one, of the kind that the model takes."""
    kind = manifest.input.kind if manifest.input else "text"
    width = max(1, inputs[0].shape[-1])
    item: Item
    if kind == "float_features":
        names = manifest.input.names if manifest.input else ()
        item = FeaturesItem(np.zeros(len(names) or width, dtype=np.float32))
    elif kind == "text_pair":
        item = TextPairItem("warm", "up")
    else:
        item = TextItem("warm up")
    encoded = preprocessor.encode([item])[0]
    if isinstance(encoded, GristmillError):
        raise encoded
    return {name: array[None] for name, array in encoded.inputs.items()}

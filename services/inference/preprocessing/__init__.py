"""What callers send, made into what a model takes: on arrival, so that an item's cost is known.

One module for each kind of item; `build` chooses by the manifest. Knows no wire and no queue.
"""

from collections.abc import Sequence
from pathlib import Path

from services.inference.backend import TensorSpec
from services.inference.manifest import Manifest
from services.inference.preprocessing.features import FeaturesPreprocessor
from services.inference.preprocessing.images import ImagePreprocessor
from services.inference.preprocessing.preprocessor import Preprocessor
from services.inference.preprocessing.tensors import TensorsPreprocessor
from services.inference.preprocessing.text import TextPreprocessor
from services.runtime.errors import InvalidRequest

__all__ = [
    "FeaturesPreprocessor",
    "ImagePreprocessor",
    "Preprocessor",
    "TensorsPreprocessor",
    "TextPreprocessor",
    "build",
]


def build(manifest: Manifest, folder: Path, inputs: Sequence[TensorSpec]) -> Preprocessor:
    """The preprocessor that the manifest asks for, feeding the model's own inputs."""
    declared = manifest.input
    if declared is None:
        raise InvalidRequest.field("model.yaml: input", "a classifier must say what it takes")
    if declared.kind == "float_features":
        return FeaturesPreprocessor(declared, inputs)
    if declared.kind == "image":
        return ImagePreprocessor(declared, inputs)
    if declared.kind == "tensors":
        return TensorsPreprocessor(inputs)
    if "tokenizer" not in manifest.files:
        raise InvalidRequest.field("model.yaml: files.tokenizer", "a text model needs one")
    return TextPreprocessor(declared, folder / manifest.files["tokenizer"], inputs)

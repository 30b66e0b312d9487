"""Encoded images as the tensors that a model takes: scaled, normalised and laid out as the manifest
says. Raw tensors of the model's own input pass through. Knows no file format.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference.backend import TensorSpec
from services.inference.items import Array, Encoded, ImageItem, Item
from services.inference.manifest import Image, Input
from services.inference.preprocessing import image_decoding
from services.inference.preprocessing.preprocessor import dtype_of
from services.inference.preprocessing.tensors import TensorsPreprocessor
from services.runtime.errors import GristmillError, InvalidRequest

MANIFEST = "model.yaml: input"
_AXES = {"NCHW": ("channels", "height", "width"), "NHWC": ("height", "width", "channels")}


class ImagePreprocessor:
    """Files of PNG, JPEG, WebP, GIF (the first frame) or BMP."""

    def __init__(self, declared: Input, inputs: Sequence[TensorSpec]) -> None:
        how = declared.image
        if how is None:
            raise InvalidRequest.field(f"{MANIFEST}.image", "an image model needs it")
        if len(inputs) != 1:
            raise InvalidRequest.field("model inputs", "an image model has exactly one")
        (spec,) = inputs
        dtype = dtype_of(spec, "FP32", "FP16", "UINT8")
        self._how = how
        self._name = spec.name
        self._shape = _shape(how, spec)
        self._tables = _tables(how, dtype)
        fixed = TensorSpec(spec.name, spec.datatype, (-1, *self._shape))
        self._tensors = TensorsPreprocessor([fixed], instead="image")
        self.fill: dict[str, int] = {}

    def is_cheap(self, items: Sequence[Item]) -> bool:
        """Not where anything is to be decoded."""
        return not any(isinstance(item, ImageItem) for item in items)

    def encode(
        self, items: Sequence[Item], *, refuse_longer: bool = False
    ) -> list[Encoded | GristmillError]:
        """The images as tensors."""
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Encoded | GristmillError:
        if not isinstance(item, ImageItem):
            return self._tensors.one(item)
        try:
            pixels = image_decoding.pixels(item.data, self._how)
        except ValueError as error:
            return InvalidRequest.field("image.data", str(error))
        return Encoded({self._name: self._tensor(pixels)}, 1)

    def _tensor(self, pixels: NDArray[np.uint8]) -> Array:
        found = np.empty(self._shape, self._tables.dtype)
        planes = found if self._how.layout == "NCHW" else np.moveaxis(found, -1, 0)
        ordered = pixels[..., ::-1] if self._how.channels == "bgr" else pixels
        for index, (plane, table) in enumerate(zip(planes, self._tables, strict=True)):
            # Every index is in the table; without a mode NumPy checks that, into a copy.
            np.take(table, ordered[..., index], out=plane, mode="clip")
        return found


def _shape(how: Image, spec: TensorSpec) -> tuple[int, ...]:
    """What one image becomes; InvalidRequest names what the model takes otherwise."""
    taken = spec.shape[1:]
    lengths = {"channels": how.depth, "height": how.height, "width": how.width}
    if len(taken) != len(lengths):
        said = f"{spec.name} has shape {list(spec.shape)}, images need {how.layout}"
        raise InvalidRequest.field(f"{MANIFEST}.kind", said)

    def differing(layout: str) -> list[str]:
        return [
            axis
            for axis, length in zip(_AXES[layout], taken, strict=True)
            if length not in (-1, lengths[axis])
        ]

    if wrong := differing(how.layout):
        other = "NHWC" if how.layout == "NCHW" else "NCHW"
        axis = wrong[0] if differing(other) else "layout"
        said = f"{getattr(how, axis)} does not fit the model, which takes {list(spec.shape)}"
        raise InvalidRequest.field(f"{MANIFEST}.image.{axis}", said)
    return tuple(lengths[axis] for axis in _AXES[how.layout])


def _tables(how: Image, dtype: Any) -> Array:
    """What each of the 256 levels becomes, for each channel: rounded once."""
    if dtype is np.uint8:
        for name, given in (("scale", how.scale), ("mean", how.mean), ("std", how.std)):
            if name in how.model_fields_set and given not in (1, ()):
                said = "the model takes UINT8, which is neither scaled nor normalised"
                raise InvalidRequest.field(f"{MANIFEST}.image.{name}", said)
        return np.tile(np.arange(256, dtype=np.uint8), (how.depth, 1))
    mean, std = how.mean or (0.0,) * how.depth, how.std or (1.0,) * how.depth
    levels = np.arange(256) * how.scale
    with np.errstate(over="ignore"):
        tables = np.stack([(levels - m) / s for m, s in zip(mean, std, strict=True)])
        found: Array = tables.astype(dtype)
    if not np.isfinite(found).all():
        said = f"with mean and std it leads beyond what {np.dtype(dtype).name} holds"
        raise InvalidRequest.field(f"{MANIFEST}.image.scale", said)
    return found

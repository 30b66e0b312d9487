"""Images to decode, and what they should become: computed with NumPy, not with what is tested."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image as Pillow

from services.inference.backend import TensorSpec
from services.inference.items import Encoded, ImageItem
from services.inference.manifest import FILE_NAME, SCHEMA, Input
from services.inference.preprocessing import ImagePreprocessor
from services.runtime.errors import GristmillError, InvalidRequest

Pixels = NDArray[np.uint8]
PNG = b"\x89PNG\r\n\x1a\n"


def coloured(width: int, height: int, channels: int = 3, seed: int = 0) -> Pixels:
    """Noise, so that no pixel stands for another."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)


def file(pixels: Pixels | Pillow.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    image = pixels if isinstance(pixels, Pillow.Image) else Pillow.fromarray(pixels)
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def turned(orientation: int) -> bytes:
    """EXIF that says so."""
    exif = Pillow.Exif()
    exif[274] = orientation
    return exif.tobytes()


def images(
    width: int, height: int, *, datatype: str = "UINT8", shape: Any = None, **how: Any
) -> ImagePreprocessor:
    """For a model that takes height x width x channels unless told otherwise."""
    how = {"width": width, "height": height, "layout": "NHWC", **how}
    declared = Input.model_validate({"kind": "image", "image": how})
    shape = shape or (-1, -1, -1, -1)
    return ImagePreprocessor(declared, [TensorSpec("x", datatype, shape)])


def encoded(preprocessor: ImagePreprocessor, data: bytes) -> NDArray[Any]:
    """What a file becomes."""
    (found,) = preprocessor.encode([ImageItem(data)])
    assert isinstance(found, Encoded), found
    assert (found.length, found.tokens, found.group) == (1, 0, None)
    assert found.inputs["x"].flags.c_contiguous
    return found.inputs["x"]


def as_it_is(data: bytes, width: int, height: int, **how: Any) -> NDArray[Any]:
    """What a file of this very size becomes."""
    return encoded(images(width, height, **how), data)


def refused(data: bytes, preprocessor: ImagePreprocessor | None = None) -> str:
    """Why a file is not taken."""
    (found,) = (preprocessor or images(4, 4)).encode([ImageItem(data)])
    assert isinstance(found, InvalidRequest), found
    (violation,) = found.violations
    assert violation.field == "image.data"
    assert "0x" not in found.message
    return violation.description


def outcome(data: bytes) -> Encoded | GristmillError:
    """Whatever becomes of a file."""
    return images(4, 4).encode([ImageItem(data)])[0]


def chunk(name: bytes, data: bytes = b"") -> bytes:
    """A chunk of PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *more: bytes, rows: bytes = b"") -> bytes:
    """A PNG that says that it is so large, gray, whatever its rows are."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return PNG + header + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


KERNELS: dict[str, tuple[float, Callable[[NDArray[np.float64]], NDArray[np.float64]]]] = {
    "bilinear": (1, lambda x: np.maximum(0, 1 - x)),
    "bicubic": (2, _cubic),
    "lanczos": (3, lambda x: np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0)),
}


def _weights(kernel: str, own: int, start: float, length: float, size: int) -> NDArray[np.float64]:
    """How much of each of `own` pixels is in each of `size`."""
    ratio = length / size
    if kernel == "nearest":
        return np.eye(own)[np.floor(start + (np.arange(size) + 0.5) * ratio).astype(int)]
    support, function = KERNELS[kernel]
    wide = max(1.0, ratio)
    centres = start + (np.arange(size) + 0.5) * ratio
    away = np.abs(np.arange(own) + 0.5 - centres[:, None]) / wide
    found = np.where(away < support, function(away), 0)
    return found / found.sum(axis=1, keepdims=True)


def away(
    found: NDArray[Any],
    pixels: Pixels,
    size: tuple[int, int],
    kernel: str,
    box: tuple[float, ...] | None = None,
) -> NDArray[np.float64]:
    """How far off an image, or the part (left, top, width, height) of it, is in another size.

    Colours are whole numbers between the two directions too, whichever comes first.
    """
    height, width = pixels.shape[:2]
    left, top, wide, high = box or (0, 0, width, height)
    across = _weights(kernel, width, left, wide, size[0])
    down = _weights(kernel, height, top, high, size[1])
    rows = across @ pixels.astype(np.float64)
    columns = np.tensordot(down, pixels.astype(np.float64), axes=1)
    both = np.tensordot(down, _whole(rows), axes=1), across @ _whole(columns)
    return min((np.abs(found - _whole(one)) for one in both), key=np.max)


def _whole(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.clip(np.floor(levels + 0.5), 0, 255))


def by_channel(folder: Path, *, fixed: bool = True) -> Path:
    """A folder whose model says which channel is the brightest on average."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = (20, 30) if fixed else ("height", "width")
    weights = numpy_helper.from_array(np.eye(3, dtype=np.float32) * 10, "weights")
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["pixels"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["sharp"]),
            helper.make_node("Softmax", ["sharp"], ["probabilities"]),
        ],
        "by_channel",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, *sides])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "model.onnx"))
    said = {
        "schema": SCHEMA,
        "name": "by-channel",
        "task": "classification",
        "backend": "onnxruntime",
        "files": {"model": "model.onnx"},
        "input": {"kind": "image", "image": {"width": 30, "height": 20}},
        "output": {"labels": ["red", "green", "blue"]},
    }
    (folder / FILE_NAME).write_text(yaml.safe_dump(said))
    return folder

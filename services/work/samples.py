"""Inputs for measuring a model: its own `samples.jsonl`, else sentences, or what is made here.

Numbers, tensors and pictures are drawn with a seed. Knows no figure that is measured with them.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from services.inference.backend import TensorSpec
from services.inference.examples import MAX_LINE_BYTES
from services.inference.items import (
    Array,
    Encoded,
    FeaturesItem,
    ImageItem,
    Item,
    TensorsItem,
    TextItem,
    TextPairItem,
)
from services.inference.json_items import item_in, object_in
from services.inference.manifest import Input, Manifest
from services.inference.preprocessing import Preprocessor
from services.inference.preprocessing.preprocessor import dtype_of
from services.runtime.errors import GristmillError, InvalidRequest

FILE_NAME = "samples.jsonl"
SENTENCES = Path(__file__).with_name("samples.jsonl")
"""64 English texts of 3 to 120 words, written for this purpose."""
MAX_SAMPLES = 256
MADE = 64
"""How many are made, and fewer where together they would have more than MAX_NUMBERS."""
MAX_NUMBERS = 2**24
MAX_SIDE = 2048


def items(folder: Path, manifest: Manifest, inputs: Sequence[TensorSpec]) -> list[Item]:
    """Items of the kind that the model takes.

    Raises InvalidRequest, naming the line, where the folder's own samples are malformed.
    """
    own = folder / FILE_NAME
    if own.is_file():
        return _read(own)
    declared = manifest.input or Input(kind="text")
    if not declared.has_tokens:
        return _made(declared, inputs)
    texts = [item.text for item in _read(SENTENCES) if isinstance(item, TextItem)]
    if declared.kind == "text_pair":
        return [TextPairItem(*pair) for pair in zip(texts, reversed(texts), strict=True)]
    return [TextItem(text) for text in texts]


def _made(declared: Input, inputs: Sequence[TensorSpec]) -> list[Item]:
    """The same ones every time."""
    rng = np.random.default_rng(0)
    if declared.image:
        # Mostly larger than the model takes them, as pictures are.
        width, height = (
            min(2 * side, MAX_SIDE) for side in (declared.image.width, declared.image.height)
        )
        count = _count(declared.image.width * declared.image.height * declared.image.depth)
        return [ImageItem(_picture(rng, width, height)) for _ in range(count)]
    if declared.kind == "tensors":
        count = _count(sum(math.prod(_lengths(spec)) for spec in inputs))
        return [
            TensorsItem({spec.name: _tensor(rng, spec) for spec in inputs}) for _ in range(count)
        ]
    width = len(declared.names) or max(1, inputs[0].shape[-1])
    rows = rng.normal(size=(MADE, width)).astype(np.float32)
    return [FeaturesItem(row) for row in rows]


def _count(numbers: int) -> int:
    return max(1, min(MADE, MAX_NUMBERS // max(1, numbers)))


def _picture(rng: np.random.Generator, width: int, height: int) -> bytes:
    """A JPEG of soft colours with some grain, as a camera gives."""
    blots = rng.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    soft = Pillow.fromarray(blots).resize((width, height), Pillow.Resampling.BICUBIC)
    grain = rng.normal(scale=6, size=(height, width, 1))
    file = io.BytesIO()
    picture = Pillow.fromarray(np.clip(np.asarray(soft) + grain, 0, 255).astype(np.uint8))
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def _lengths(spec: TensorSpec) -> list[int]:
    """Of one item; what the model leaves open is 1."""
    return [1 if length < 0 else length for length in spec.shape[1:]]


def _tensor(rng: np.random.Generator, spec: TensorSpec) -> Array:
    """Numbers around 0, or 0 and 1 where they are whole: those are indices of something."""
    shape = _lengths(spec)
    if spec.datatype == "BYTES":
        return np.full(shape, b"sample", dtype=np.object_)
    if spec.datatype.startswith("FP"):
        return rng.normal(size=shape).astype(dtype_of(spec))
    return rng.integers(0, 2, size=shape).astype(dtype_of(spec))


def encoded(preprocessor: Preprocessor, wanted: Sequence[Item]) -> list[Encoded]:
    """Each item encoded; raises the error of the first that the model does not take."""
    found = []
    for number, outcome in enumerate(preprocessor.encode(wanted), 1):
        if isinstance(outcome, GristmillError):
            raise InvalidRequest.field(f"{FILE_NAME}: line {number}", outcome.message)
        found.append(outcome)
    return found


def _read(path: Path) -> list[Item]:
    found: list[Item] = []
    with path.open("rb") as file:
        while len(found) < MAX_SAMPLES and (raw := file.readline(MAX_LINE_BYTES)):
            try:
                found.append(item_in(object_in(raw)))
            except ValueError as error:
                line = f"{FILE_NAME}: line {len(found) + 1}"
                raise InvalidRequest.field(line, str(error)) from error
    if not found:
        raise InvalidRequest.field(FILE_NAME, "is empty")
    return found

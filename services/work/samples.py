"""Real inputs for measuring a model: its own `samples.jsonl`, else sentences or seeded numbers.

Knows no figure that is measured with them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from services.inference.backend import TensorSpec
from services.inference.items import Encoded, FeaturesItem, Item, TextItem, TextPairItem
from services.inference.manifest import Manifest
from services.inference.preprocessing import Preprocessor
from services.runtime.errors import GristmillError, InvalidRequest
from services.work.examples import MAX_LINE_BYTES, item_in, object_in

FILE_NAME = "samples.jsonl"
SENTENCES = Path(__file__).with_name("samples.jsonl")
"""64 English texts of 3 to 120 words, written for this purpose."""
MAX_SAMPLES = 256
VECTORS = 64


def items(folder: Path, manifest: Manifest, inputs: Sequence[TensorSpec]) -> list[Item]:
    """Items of the kind that the model takes.

    Raises InvalidRequest, naming the line, where the folder's own samples are malformed.
    """
    own = folder / FILE_NAME
    if own.is_file():
        return _read(own)
    kind = manifest.input.kind if manifest.input else "text"
    if kind == "float_features":
        names = manifest.input.names if manifest.input else ()
        width = len(names) or max(1, inputs[0].shape[-1])
        rows = np.random.default_rng(0).normal(size=(VECTORS, width)).astype(np.float32)
        return [FeaturesItem(row) for row in rows]
    texts = [item.text for item in _read(SENTENCES) if isinstance(item, TextItem)]
    if kind == "text_pair":
        return [TextPairItem(*pair) for pair in zip(texts, reversed(texts), strict=True)]
    return [TextItem(text) for text in texts]


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

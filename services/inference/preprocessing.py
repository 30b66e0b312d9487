"""Text to token ids, numbers to arrays: done on arrival, so that an item's cost is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Encoding, Tokenizer

from services.inference.backend import TensorSpec
from services.inference.items import Array, Encoded, FeaturesItem, Item, TextItem, TextPairItem
from services.inference.manifest import Input, Manifest
from services.runtime.errors import GristmillError, InvalidRequest, UnsupportedField

# Handing work to a thread and back costs as much as tokenising a few sentences.
CHEAP_CHARACTERS = 512

KINDS: dict[str, type[Any]] = {
    "text": TextItem,
    "text_pair": TextPairItem,
    "float_features": FeaturesItem,
}


class Preprocessor(Protocol):
    """Encodes items for one model."""

    fill: dict[str, int]

    def is_cheap(self, items: Sequence[Item]) -> bool:
        """Whether encoding them takes less than handing them to a thread would."""
        ...

    def encode(
        self, items: Sequence[Item], *, refuse_longer: bool = False
    ) -> list[Encoded | GristmillError]:
        """Each item encoded, or the error that is its own."""
        ...


def build(manifest: Manifest, folder: Path, inputs: Sequence[TensorSpec]) -> Preprocessor:
    """The preprocessor that the manifest asks for, feeding the model's own inputs."""
    if manifest.input is None:
        raise InvalidRequest.field("model.yaml: input", "a classifier must say what it takes")
    if manifest.input.kind == "float_features":
        return FeaturesPreprocessor(manifest.input, inputs)
    if "tokenizer" not in manifest.files:
        raise InvalidRequest.field("model.yaml: files.tokenizer", "a text model needs one")
    return TextPreprocessor(manifest.input, folder / manifest.files["tokenizer"], inputs)


class TextPreprocessor:
    """A `tokenizer.json`; the model's inputs tell which arrays it wants."""

    def __init__(self, declared: Input, tokenizer: Path, inputs: Sequence[TensorSpec]) -> None:
        self._kind = KINDS[declared.kind]
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(declared.max_tokens)
        self._max_tokens = declared.max_tokens
        self._types = {spec.name: _dtype(spec) for spec in inputs}
        unknown = set(self._types) - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown:
            raise InvalidRequest.field("model inputs", f"not from a tokenizer: {sorted(unknown)}")
        pad_id = self._tokenizer.token_to_id("[PAD]") or self._tokenizer.token_to_id("<pad>") or 0
        self.fill = {"input_ids": pad_id}

    def is_cheap(self, items: Sequence[Item]) -> bool:
        """A few short sentences."""
        return sum(_characters(item) for item in items) <= CHEAP_CHARACTERS

    def encode(
        self, items: Sequence[Item], *, refuse_longer: bool = False
    ) -> list[Encoded | GristmillError]:
        """Token ids of each item; longer ones are cut, or refused where asked."""
        outcomes: list[Encoded | GristmillError] = [self._mismatch(item) for item in items]
        fitting = [i for i, item in enumerate(items) if isinstance(item, self._kind)]
        encodings = self._tokenizer.encode_batch([_words(items[i]) for i in fitting])
        for index, encoding in zip(fitting, encodings, strict=True):
            outcomes[index] = self._encoded(encoding, refuse_longer=refuse_longer)
        return outcomes

    def _mismatch(self, item: Item) -> GristmillError:
        wanted = next(name for name, kind in KINDS.items() if kind is self._kind)
        return UnsupportedField.field("content", f"this model takes {wanted}")

    def _encoded(self, encoding: Encoding, *, refuse_longer: bool) -> Encoded | GristmillError:
        truncated = bool(encoding.overflowing)
        if truncated and refuse_longer:
            return InvalidRequest.field("text", f"is longer than {self._max_tokens} tokens")
        arrays = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
        arrays["token_type_ids"] = encoding.type_ids
        inputs: dict[str, Array] = {
            name: np.asarray(arrays[name], dtype=kind) for name, kind in self._types.items()
        }
        length = len(encoding.ids)
        return Encoded(inputs, length, tokens=length, truncated=truncated)


class FeaturesPreprocessor:
    """Vectors of finite numbers, all of one length."""

    def __init__(self, declared: Input, inputs: Sequence[TensorSpec]) -> None:
        if len(inputs) != 1:
            raise InvalidRequest.field("model inputs", "a float_features model has exactly one")
        self._name = inputs[0].name
        self._dtype = _dtype(inputs[0])
        width = inputs[0].shape[-1]
        self._width = len(declared.names) or width
        if self._width < 1:
            # Vectors of several lengths in a batch would be padded: neighbours changed answers.
            raise InvalidRequest.field("model.yaml: input.names", "the model does not fix how many")
        self.fill: dict[str, int] = {}

    def is_cheap(self, items: Sequence[Item]) -> bool:
        """Up to a few hundred vectors: they are only checked."""
        return len(items) <= 256

    def encode(
        self, items: Sequence[Item], *, refuse_longer: bool = False
    ) -> list[Encoded | GristmillError]:
        """The vectors, checked."""
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Encoded | GristmillError:
        if not isinstance(item, FeaturesItem):
            return UnsupportedField.field("content", "this model takes float_features")
        if len(item.values) != self._width:
            return InvalidRequest.field(
                "float_features.values", f"needs {self._width} numbers, has {len(item.values)}"
            )
        if not np.isfinite(item.values).all():
            return InvalidRequest.field("float_features.values", "must be finite numbers")
        return Encoded({self._name: item.values.astype(self._dtype, copy=False)}, 1)


def _words(item: Item) -> str | tuple[str, str]:
    if isinstance(item, TextPairItem):
        return item.first, item.second
    return item.text if isinstance(item, TextItem) else ""


def _characters(item: Item) -> int:
    words = _words(item)
    return len(words) if isinstance(words, str) else len(words[0]) + len(words[1])


def _dtype(spec: TensorSpec) -> Any:
    types: dict[str, Any] = {"INT64": np.int64, "INT32": np.int32}
    types |= {"FP32": np.float32, "FP64": np.float64, "FP16": np.float16}
    if spec.datatype not in types:
        raise InvalidRequest.field(f"model input {spec.name}", f"of type {spec.datatype}")
    return types[spec.datatype]

"""Text to token ids. Raw tensors of token ids pass through."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from services.inference.backend import TensorSpec
from services.inference.items import Array, Encoded, Item, TensorsItem, TextItem, TextPairItem
from services.inference.manifest import Input
from services.inference.preprocessing.preprocessor import dtype_of
from services.inference.preprocessing.tensors import TensorsPreprocessor
from services.runtime.errors import GristmillError, InvalidRequest

# Handing work to a thread and back costs as much as tokenising a few sentences.
CHEAP_CHARACTERS = 512


class TextPreprocessor:
    """A `tokenizer.json`; the model's inputs tell which arrays it wants."""

    def __init__(self, declared: Input, tokenizer: Path, inputs: Sequence[TensorSpec]) -> None:
        self._kind = TextPairItem if declared.kind == "text_pair" else TextItem
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(declared.max_tokens)
        special = self._tokenizer.num_special_tokens_to_add(declared.kind == "text_pair")
        if declared.max_tokens <= special:
            # The tokenizer would not cut at all then.
            said = f"must be above {special}, which the tokenizer adds by itself"
            raise InvalidRequest.field("model.yaml: input.max_tokens", said)
        self._max_tokens = declared.max_tokens
        self._types = {spec.name: dtype_of(spec, "INT64", "INT32") for spec in inputs}
        unknown = set(self._types) - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown:
            raise InvalidRequest.field("model inputs", f"not from a tokenizer: {sorted(unknown)}")
        pad_id = self._tokenizer.token_to_id("[PAD]") or self._tokenizer.token_to_id("<pad>") or 0
        self.fill = {"input_ids": pad_id}
        self._tensors = TensorsPreprocessor(inputs, instead=declared.kind)

    def is_cheap(self, items: Sequence[Item]) -> bool:
        """A few short sentences."""
        return sum(_characters(item) for item in items) <= CHEAP_CHARACTERS

    def encode(
        self, items: Sequence[Item], *, refuse_longer: bool = False
    ) -> list[Encoded | GristmillError]:
        """Token ids of each item; longer ones are cut, or refused where asked."""
        texts = [_words(item) for item in items if isinstance(item, self._kind)]
        encodings = iter(self._encodings(texts))
        return [
            self._encoded(next(encodings), refuse_longer=refuse_longer)
            if isinstance(item, self._kind)
            else self._other(item)
            for item in items
        ]

    def _encodings(self, texts: list[str | tuple[str, str]]) -> Iterable[Encoding | Exception]:
        """Each text tokenised; where one cannot be, it fails alone."""
        try:
            return self._tokenizer.encode_batch(texts)
        except BaseException as error:
            _only_a_failed_text(error)
            return [self._alone(text) for text in texts]

    def _alone(self, text: str | tuple[str, str]) -> Encoding | Exception:
        try:
            return self._tokenizer.encode_batch([text])[0]
        except BaseException as error:
            _only_a_failed_text(error)
            return ValueError(str(error))

    def _other(self, item: Item) -> Encoded | GristmillError:
        """Token ids that the caller made itself; anything else is not for this model."""
        found = self._tensors.one(item)
        if not isinstance(item, TensorsItem) or not isinstance(found, Encoded):
            return found
        lengths = {array.shape[0] for array in found.inputs.values()}
        if len(lengths) != 1 or not 0 < (length := lengths.pop()) <= self._max_tokens:
            said = f"must all have one length, from 1 to {self._max_tokens}"
            return InvalidRequest.field("tensors", said)
        return Encoded(found.inputs, length, tokens=length)

    def _encoded(
        self, encoding: Encoding | Exception, *, refuse_longer: bool
    ) -> Encoded | GristmillError:
        if isinstance(encoding, Exception):
            return InvalidRequest.field("text", f"the tokenizer does not take it: {encoding}")
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


def _words(item: Item) -> str | tuple[str, str]:
    if isinstance(item, TextPairItem):
        return item.first, item.second
    return item.text if isinstance(item, TextItem) else ""


def _characters(item: Item) -> int:
    words = _words(item)
    return len(words) if isinstance(words, str) else len(words[0]) + len(words[1])


def _only_a_failed_text(error: BaseException) -> None:
    """Raise again what is no failure of the tokenizer; its panics are no Exception."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error

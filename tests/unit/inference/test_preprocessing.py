"""Texts to token ids, numbers to vectors; an item that does not fit is its own error."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference import preprocessing
from services.inference.backend import TensorSpec
from services.inference.items import Encoded, FeaturesItem, Item, TextItem, TextPairItem
from services.inference.manifest import SCHEMA, Input, Manifest
from services.inference.preprocessing import (
    FeaturesPreprocessor,
    ImagePreprocessor,
    Preprocessor,
    TensorsPreprocessor,
    TextPreprocessor,
)
from services.runtime.errors import GristmillError, InvalidRequest, UnsupportedField
from tests.unit.inference.texts import END, PAD, START, UNKNOWN, write_tokenizer

IDS = TensorSpec("input_ids", "INT64", (-1, -1))
MASK = TensorSpec("attention_mask", "INT32", (-1, -1))
TYPES = TensorSpec("token_type_ids", "INT64", (-1, -1))
GOOD, BAD, FILM = 4, 5, 6


def text(folder: Path, *specs: TensorSpec, kind: str = "text", most: int = 8) -> TextPreprocessor:
    """A preprocessor of texts."""
    declared = Input.model_validate({"kind": kind, "max_tokens": most})
    return TextPreprocessor(declared, write_tokenizer(folder), specs or (IDS, MASK))


def features(width: int = 3, names: tuple[str, ...] = (), kind: str = "FP32") -> Preprocessor:
    """A preprocessor of vectors."""
    spec = TensorSpec("x", kind, (-1, width))
    return FeaturesPreprocessor(Input(kind="float_features", names=names), [spec])


def vector(*values: float) -> FeaturesItem:
    """An item of numbers."""
    return FeaturesItem(np.array(values, dtype=np.float32))


def good(outcome: Encoded | GristmillError) -> Encoded:
    """What must have been encoded."""
    assert isinstance(outcome, Encoded), outcome
    return outcome


def bad(outcome: Encoded | GristmillError) -> InvalidRequest:
    """What must have been refused as the caller's own error."""
    assert isinstance(outcome, InvalidRequest), outcome
    return outcome


def test_a_text_becomes_the_arrays_that_the_model_takes(tmp_path: Path) -> None:
    (one,) = text(tmp_path, IDS, MASK, TYPES).encode([TextItem("good film")])
    one = good(one)
    assert set(one.inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    assert one.inputs["input_ids"].tolist() == [START, GOOD, FILM, END]
    assert one.inputs["attention_mask"].tolist() == [1, 1, 1, 1]
    assert one.inputs["token_type_ids"].tolist() == [0, 0, 0, 0]
    assert [one.inputs[spec.name].dtype for spec in (IDS, MASK)] == [np.int64, np.int32]
    assert (one.length, one.tokens, one.truncated) == (4, 4, False)
    only_ids = good(text(tmp_path, IDS).encode([TextItem("good")])[0])
    assert list(only_ids.inputs) == ["input_ids"]


def test_the_empty_text_is_a_text(tmp_path: Path) -> None:
    one = good(text(tmp_path).encode([TextItem("")])[0])
    assert one.inputs["input_ids"].tolist() == [START, END]


def test_an_unknown_word_is_a_token_too(tmp_path: Path) -> None:
    one = good(text(tmp_path).encode([TextItem("\N{SNOWMAN} good")])[0])
    assert one.inputs["input_ids"].tolist() == [START, UNKNOWN, GOOD, END]


def test_a_pair_says_which_text_a_token_is_of(tmp_path: Path) -> None:
    pairs = text(tmp_path, IDS, TYPES, kind="text_pair")
    one = good(pairs.encode([TextPairItem("good film", "bad")])[0])
    assert one.inputs["input_ids"].tolist() == [START, GOOD, FILM, END, BAD, END]
    assert one.inputs["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["text", "text_pair"])
def test_what_is_too_long_is_cut_and_says_so(tmp_path: Path, kind: str) -> None:
    words = " ".join(["good"] * 20)
    item: Item = TextItem(words) if kind == "text" else TextPairItem(words, "bad film")
    one = good(text(tmp_path, kind=kind).encode([item])[0])
    assert one.truncated
    assert one.length == one.tokens == len(one.inputs["input_ids"]) == 8
    assert one.inputs["input_ids"][0] == START
    assert one.inputs["input_ids"][-1] == END


def test_what_is_too_long_is_refused_where_asked(tmp_path: Path) -> None:
    fits, long = TextItem("good " * 6), TextItem("good " * 7)
    first, second = text(tmp_path).encode([fits, long], refuse_longer=True)
    assert not good(first).truncated
    assert bad(second).violations[0].field == "text"


def test_wrong_kinds_fail_alone(tmp_path: Path) -> None:
    items = [TextItem("good"), vector(1.0), TextPairItem("a", "b"), TextItem("bad")]
    outcomes = text(tmp_path).encode(items)
    assert good(outcomes[0]).inputs["input_ids"].tolist() == [START, GOOD, END]
    assert good(outcomes[3]).inputs["input_ids"].tolist() == [START, BAD, END]
    for outcome in outcomes[1:3]:
        assert isinstance(outcome, UnsupportedField)
        assert "takes text" in outcome.message


def test_nothing_to_encode_is_no_error(tmp_path: Path) -> None:
    assert text(tmp_path).encode([]) == []


def test_rows_are_filled_with_the_tokenizers_own_padding(tmp_path: Path) -> None:
    assert text(tmp_path).fill == {"input_ids": PAD}


def test_a_model_with_inputs_that_no_tokenizer_makes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="pixels"):
        text(tmp_path, IDS, TensorSpec("pixels", "FP32", (-1, 3)))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=3, max_size=3))
@settings(deadline=None)
def test_a_vector_stays_what_it_is(values: list[float]) -> None:
    one = good(features().encode([vector(*values)])[0])
    assert one.inputs["x"].dtype == np.float32
    assert one.inputs["x"].tolist() == values
    assert (one.length, one.tokens, one.truncated) == (1, 0, False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    outcomes = features().encode([vector(1, 2, 3), vector(1, value, 3)])
    good(outcomes[0])
    assert bad(outcomes[1]).violations[0].field == "float_features.values"


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_vector_of_another_length_is_refused(count: int) -> None:
    assert "needs 3 numbers" in bad(features().encode([vector(*range(count))])[0]).message


def test_the_names_of_the_features_fix_their_number() -> None:
    named = features(width=-1, names=("a", "b"))
    good(named.encode([vector(1, 2)])[0])
    bad(named.encode([vector(1, 2, 3)])[0])


def test_a_vector_model_takes_no_text() -> None:
    assert isinstance(features().encode([TextItem("x")])[0], UnsupportedField)


def test_vectors_are_cast_to_the_models_type() -> None:
    one = good(features(kind="FP64").encode([vector(0.5, 1, 2)])[0])
    assert one.inputs["x"].dtype == np.float64


def test_a_model_of_vectors_of_any_length_is_refused() -> None:
    """Vectors of several lengths in one batch would be padded: neighbours would change answers."""
    with pytest.raises(InvalidRequest, match="names"):
        features(width=-1)


def test_a_model_with_an_unusable_type_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="BYTES"):
        features(kind="BYTES")


def test_the_manifest_chooses_the_preprocessor(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)

    def build(spec: TensorSpec, **fields: object) -> Preprocessor:
        least = {"schema": SCHEMA, "name": "m", "task": "classification", **fields}
        return preprocessing.build(Manifest.model_validate(least), tmp_path, [spec])

    files = {"model": "m.onnx", "tokenizer": "tokenizer.json"}
    assert isinstance(build(IDS, files=files, input={"kind": "text"}), TextPreprocessor)
    wide = TensorSpec("x", "FP32", (-1, 3))
    found = build(wide, files=files, input={"kind": "float_features"})
    assert isinstance(found, FeaturesPreprocessor)
    pixels = TensorSpec("x", "FP32", (-1, 3, -1, -1))
    how = {"kind": "image", "image": {"width": 4, "height": 4}}
    assert isinstance(build(pixels, files=files, input=how), ImagePreprocessor)
    assert isinstance(build(pixels, files=files, input={"kind": "tensors"}), TensorsPreprocessor)
    with pytest.raises(InvalidRequest, match="must say what it takes"):
        build(IDS, files=files)
    with pytest.raises(InvalidRequest, match=r"files\.tokenizer"):
        build(IDS, files={"model": "m.onnx"}, input={"kind": "text"})
    with pytest.raises(InvalidRequest, match="exactly one"):
        FeaturesPreprocessor(Input(kind="float_features"), [wide, wide])


def test_a_text_model_must_have_room_for_more_than_special_tokens(tmp_path: Path) -> None:
    text(tmp_path, most=3)
    with pytest.raises(InvalidRequest, match="max_tokens: must be above 2"):
        text(tmp_path, most=2)

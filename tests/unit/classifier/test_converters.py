"""Messages to items, answers to messages: every kind, every field, nothing invented."""

import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from google.rpc import code_pb2, error_details_pb2
from gristmill.classifier.v1 import (
    classifier_service_pb2,
    item_pb2,
    loaded_model_pb2,
    options_pb2,
    result_pb2,
)
from gristmill.registry.v1 import model_pb2, signature_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from services.classifier import converters as to
from services.classifier.answers import Answer
from services.classifier.classifier import Classifier
from services.inference.backend import TensorSpec
from services.inference.backends.fake import FakeBackend
from services.inference.items import (
    Array,
    FeaturesItem,
    ImageItem,
    TensorsItem,
    TextItem,
    TextPairItem,
)
from services.inference.loaded import Loaded, Wanted
from services.inference.manifest import SCHEMA, Manifest
from services.inference.outcomes import Timings
from services.inference.preprocessing.preprocessor import DTYPES
from services.inference.scoring import Choice, Label
from services.runtime.catalog import VersionEntry
from services.runtime.errors import BackendFailed, DeadlineExpired, InvalidRequest, Overloaded
from tests.harness import details

FLOATS = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30)


def result_out(answer: Answer, request_id: str) -> result_pb2.ItemResult:
    """The answer on the wire."""
    result = result_pb2.ItemResult()
    to.result_into(result, answer, request_id)
    return result


def options(**fields: Any) -> options_pb2.ClassifyOptions:
    """Options with these fields set."""
    return options_pb2.ClassifyOptions(**fields)


@given(st.text(st.characters(codec="utf-8")))
@settings(deadline=None)
def test_a_text_is_its_text(text: str) -> None:
    assert to.item_in(item_pb2.Item(text=item_pb2.Text(text=text))) == TextItem(text)


def test_a_pair_keeps_its_order() -> None:
    pair = item_pb2.TextPair(first="one", second="two")
    assert to.item_in(item_pb2.Item(text_pair=pair)) == TextPairItem("one", "two")


@given(FLOATS)
@settings(deadline=None)
def test_numbers_keep_their_values_and_order(values: list[float]) -> None:
    features = item_pb2.FloatFeatures(values=values)
    item = to.item_in(item_pb2.Item(float_features=features))
    assert isinstance(item, FeaturesItem)
    assert list(item.values) == values


def test_an_item_without_content_is_its_own_error() -> None:
    error = to.item_in(item_pb2.Item())
    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == "content"


@given(st.binary(max_size=50))
@settings(deadline=None)
def test_an_image_is_its_bytes(data: bytes) -> None:
    """Whether it is one is not decided here."""
    assert to.item_in(item_pb2.Item(image=item_pb2.Image(data=data))) == ImageItem(data)


@given(*[st.text(st.characters(codec="utf-8"))] * 2)
@settings(deadline=None)
def test_a_pair_is_its_two_texts(first: str, second: str) -> None:
    pair = item_pb2.TextPair(first=first, second=second)
    assert to.item_in(item_pb2.Item(text_pair=pair)) == TextPairItem(first, second)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 0.1])
def test_numbers_are_what_a_float_holds_and_judged_elsewhere(value: float) -> None:
    item = to.item_in(item_pb2.Item(float_features=item_pb2.FloatFeatures(values=[value])))
    assert isinstance(item, FeaturesItem)
    assert np.array_equal(np.array(item.values), [np.float32(value)], equal_nan=True)


@pytest.mark.parametrize("kind", ["text", "text_pair", "image"])
def test_content_that_is_empty_is_content(kind: str) -> None:
    """The contract takes the empty text, and its bounds refuse what else is empty."""
    message = item_pb2.Item()
    getattr(message, kind).SetInParent()
    found = {"text": TextItem(""), "text_pair": TextPairItem("", ""), "image": ImageItem(b"")}
    assert to.item_in(message) == found[kind]


# Tensors.

DATATYPES = {
    name.removeprefix("DATATYPE_"): number for name, number in item_pb2.Datatype.items() if number
}
NUMBERS = [name for name in DATATYPES if name != "BYTES"]


def tensor(name: str, datatype: int, shape: Sequence[int], data: bytes) -> item_pb2.Tensor:
    """A tensor on the wire."""
    return item_pb2.Tensor(name=name, datatype=datatype, shape=shape, data=data)


def tensors_in(*given_: item_pb2.Tensor) -> dict[str, Array]:
    """The tensors of an item that must be one."""
    message = item_pb2.Item(tensors=item_pb2.NamedTensors(tensors=given_))
    item = to.item_in(item_pb2.Item.FromString(message.SerializeToString()))
    assert isinstance(item, TensorsItem), item
    return dict(item.tensors)


def refused(*given_: item_pb2.Tensor) -> tuple[str, str]:
    """Which field of an item is wrong, and how: the item's own error, which is not raised."""
    error = to.item_in(item_pb2.Item(tensors=item_pb2.NamedTensors(tensors=given_)))
    assert isinstance(error, InvalidRequest)
    (violation,) = error.violations
    return violation.field, violation.description


def test_every_type_of_the_contract_is_one_here() -> None:
    assert DATATYPES.keys() == DTYPES.keys()


@pytest.mark.parametrize("datatype", NUMBERS)
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_a_tensor_is_its_elements(datatype: str, data: st.DataObject) -> None:
    array = data.draw(npst.arrays(DTYPES[datatype], npst.array_shapes(min_dims=0, min_side=0)))
    found = tensors_in(tensor("x", DATATYPES[datatype], array.shape, array.tobytes()))
    assert found.keys() == {"x"}
    assert (found["x"].dtype, found["x"].shape) == (array.dtype, array.shape)
    assert found["x"].tobytes() == array.tobytes()


def test_strings_are_bytes() -> None:
    data = struct.pack("<I", 2) + "ä".encode() + struct.pack("<I", 0)
    (found,) = tensors_in(tensor("x", item_pb2.DATATYPE_BYTES, [1, 2], data)).values()
    assert found.tolist() == [["ä".encode(), b""]]


def test_tensors_keep_their_names_and_are_not_copied() -> None:
    one = np.arange(4, dtype=np.int64)
    two = np.arange(4, dtype=np.float32).reshape(2, 2)
    found = tensors_in(
        tensor("input_ids", item_pb2.DATATYPE_INT64, [4], one.tobytes()),
        tensor("", item_pb2.DATATYPE_FP32, [2, 2], two.tobytes()),
    )
    assert list(found) == ["input_ids", ""]
    assert found["input_ids"].tolist() == one.tolist()
    assert found[""].tolist() == two.tolist()
    assert not any(array.flags.owndata or array.flags.writeable for array in found.values())


@pytest.mark.parametrize("name", ["x", ""])
def test_a_name_that_is_there_twice_is_the_items_error(name: str) -> None:
    once = tensor(name, item_pb2.DATATYPE_UINT8, [1], b"a")
    other = tensor("other", item_pb2.DATATYPE_UINT8, [1], b"a")
    assert refused(once, other, once) == (f"tensors[{name}]", "is there twice")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (tensor("x", 11, [2], b"\0" * 7), "has 7 bytes, FP32 of shape [2] needs 8"),
        (tensor("x", 11, [], b""), "has 0 bytes, FP32 of shape [] needs 4"),
        (tensor("x", 1, [1], b"\2"), "neither 0 nor 1"),
        (tensor("x", 14, [1], b"\xff\xff\xff\xff"), "longer than the rest"),
        (tensor("x", 0, [1], b"\0"), "type 'UNSPECIFIED' is not known"),
        (tensor("x", 99, [1], b"\0"), "type '99' is not known"),
        (tensor("x", 11, [2**32 - 1] * 16, b""), "too many elements"),
        (tensor("x", 11, [2**31, 2**31], b""), "too many elements"),
        (tensor("x", 11, [0, 2**32 - 1, 2**32 - 1], b""), "too many elements"),
        (tensor("x", 14, [2**32 - 1, 2**32 - 1, 0], b""), "too many elements"),
    ],
)
def test_what_is_no_tensor_is_the_items_own_error(bad: item_pb2.Tensor, said: str) -> None:
    field, description = refused(tensor("fine", 2, [1], b"a"), bad)
    assert field == "tensors[x]"
    assert said in description


@given(
    st.sampled_from([*DATATYPES.values(), 0, 99]),
    st.lists(st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1)), max_size=16),
    st.binary(max_size=40),
)
@settings(deadline=None, max_examples=200)
def test_no_tensor_on_the_wire_breaks_the_call(
    datatype: int, shape: list[int], data: bytes
) -> None:
    message = item_pb2.NamedTensors(tensors=[tensor("x", datatype, shape, data)])
    assert isinstance(to.item_in(item_pb2.Item(tensors=message)), TensorsItem | InvalidRequest)


def test_a_reference_is_model_version_alias() -> None:
    assert to.wanted(model_pb2.ModelRef()) == Wanted()
    assert to.wanted(model_pb2.ModelRef(model="m")) == Wanted("m")
    assert to.wanted(model_pb2.ModelRef(model="m", version=3)) == Wanted("m", 3)
    assert to.wanted(model_pb2.ModelRef(model="m", alias="canary")) == Wanted("m", alias="canary")
    assert to.wanted(model_pb2.ModelRef(), {"x-user": "a"}).metadata == {"x-user": "a"}


def test_absent_options_mean_one_label() -> None:
    assert to.choice_in(options()) == to.choice_in(options(top_k=1)) == Choice(1, None)
    assert to.choice_in(options(top_k=7)) == Choice(7, None)


def test_a_threshold_of_zero_is_a_threshold() -> None:
    assert to.choice_in(options(threshold=0.0)) == Choice(1, 0.0)
    assert to.choice_in(options(top_k=2, threshold=0.5)) == Choice(2, 0.5)


def test_an_answer_is_labels_and_timings() -> None:
    answer = Answer(
        (Label("yes", 1, 0.75), Label("no", 0, 0.25)),
        np.array([0.25, 0.75]),
        truncated=True,
        tokens=12,
        preprocess_s=0.000001,
        timings=Timings(0.002, 0.0000031, 0.5, 4),
    )
    result = result_out(answer, "id")
    found = result.classification
    assert [(x.label, x.index, x.score) for x in found.labels] == [
        ("yes", 1, 0.75),
        ("no", 0, 0.25),
    ]
    assert list(found.probabilities) == [0.25, 0.75]
    assert (found.truncated, found.tokens, found.cached) == (True, 12, False)
    timings = result.timings
    assert (timings.preprocess_us, timings.queue_us, timings.batch_us) == (1, 2000, 3)
    assert (timings.compute_us, timings.batch_size) == (500_000, 4)


def test_what_was_not_asked_for_is_not_there() -> None:
    result = result_out(Answer((Label("yes", 1, 1.0),)), "id")
    assert list(result.classification.probabilities) == []
    assert not result.HasField("timings")


@given(st.floats(-1e9, 1e12))
@settings(deadline=None)
def test_times_fit_their_field(seconds: float) -> None:
    result = result_out(Answer(timings=Timings(seconds, seconds, seconds, 1)), "id")
    assert 0 <= result.timings.queue_us < 2**32


@pytest.mark.parametrize(
    ("seconds", "microseconds"),
    [
        (0.0, 0),
        (-1e-9, 0),
        (-5.0, 0),
        (4e-7, 0),
        (5e-7, 1),
        (1.4e-6, 1),
        (1.6e-6, 2),
        (4294.967295, 2**32 - 1),
        (4294.967296, 2**32 - 1),
        (1e12, 2**32 - 1),
    ],
)
def test_a_time_is_rounded_and_kept_within_its_field(seconds: float, microseconds: int) -> None:
    answer = Answer(timings=Timings(seconds, seconds, seconds, 7), preprocess_s=seconds)
    timings = result_out(answer, "id").timings
    for name in ("preprocess_us", "queue_us", "batch_us", "compute_us"):
        assert getattr(timings, name) == microseconds, name
    assert timings.batch_size == 7


def test_an_answer_from_the_cache_says_so() -> None:
    answer = Answer((Label("yes", 1, 1.0),), cached=True, timings=Timings(0.0, 0.0, 0.0, 0))
    result = result_out(answer, "id")
    assert result.classification.cached
    assert result.timings.batch_size == 0


def test_an_item_that_failed_after_it_was_queued_has_its_times() -> None:
    timings = Timings(0.002, 0.0, 0.5, 4)
    result = result_out(Answer(error=BackendFailed("bad"), timings=timings), "id")
    assert result.WhichOneof("outcome") == "error"
    assert (result.timings.queue_us, result.timings.batch_size) == (2000, 4)


def test_an_answer_without_labels_is_an_answer() -> None:
    """As one of a multi-label model that gives none."""
    result = result_out(Answer(()), "id")
    assert result.WhichOneof("outcome") == "classification"
    assert list(result.classification.labels) == []


@given(npst.arrays(np.float64, st.integers(0, 200), elements=st.floats(0, 1)))
@settings(deadline=None)
def test_probabilities_are_all_there_in_the_models_order(probabilities: Array) -> None:
    found = result_out(Answer(probabilities=probabilities), "id").classification.probabilities
    assert list(found) == probabilities.astype(np.float32).tolist()


def test_a_result_is_written_where_it_goes() -> None:
    """Into a message that is part of another, as the servicer has it."""
    response = classifier_service_pb2.ClassifyResponse()
    for index in range(3):
        to.result_into(response.results.add(), Answer((Label(str(index), index, 0.5),)), "id")
    assert [r.classification.labels[0].index for r in response.results] == [0, 1, 2]


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (Overloaded("full", retry_after_s=2.0), code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
        (DeadlineExpired("late"), code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED"),
        (BackendFailed("bad"), code_pb2.INTERNAL, "BACKEND_FAILED"),
    ],
)
def test_every_error_has_its_own_status(error: Any, code: int, reason: str) -> None:
    result = result_out(Answer((Label("yes", 1, 1.0),), error=error), "id")
    assert not result.HasField("classification")
    assert result.error.code == code
    (info,) = details(result.error, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (reason, "gristmill")
    retries = details(result.error, error_details_pb2.RetryInfo)
    assert [retry.retry_delay.seconds for retry in retries] == ([2] if error.retry_after_s else [])


def test_an_error_is_a_status_with_its_reason() -> None:
    error = InvalidRequest.field("text", "is longer than 8 tokens")
    result = result_out(Answer(error=error), "id")
    assert result.WhichOneof("outcome") == "error"
    assert result.error.code == code_pb2.INVALID_ARGUMENT
    (info,) = details(result.error, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("INVALID_FIELD", "gristmill")
    (bad,) = details(result.error, error_details_pb2.BadRequest)
    assert bad.field_violations[0].field == "text"
    assert not result.HasField("timings")


def test_the_text_of_a_backends_failure_is_withheld() -> None:
    result = result_out(Answer(error=BackendFailed("secret tensor names")), "call-7")
    assert result.error.code == code_pb2.INTERNAL
    assert b"secret" not in result.SerializeToString()
    (info,) = details(result.error, error_details_pb2.ErrorInfo)
    assert info.metadata["request_id"] == "call-7"


class Runner:
    """As much of a classifier as the listing of loaded models reads."""

    def __init__(self, manifest: Manifest) -> None:
        self.backend = FakeBackend()
        self.manifest = manifest

    async def close(self) -> None:
        """Nothing to do."""


def loaded(**fields: Any) -> Loaded[Classifier]:
    """A version in this process."""
    entry = VersionEntry("m", 3, "abc", ())
    return Loaded(entry, **fields)


def test_a_version_on_its_way_says_no_more_than_is_known() -> None:
    message = to.loaded_out(loaded(), [])
    assert (message.model, message.version, message.digest) == ("m", 3, "abc")
    assert message.state == loaded_model_pb2.LOAD_STATE_LOADING
    assert not message.HasField("ready_time")
    assert not message.HasField("signature")
    failed = to.loaded_out(loaded(state="failed", reason="no such operator"), [])
    assert failed.state == loaded_model_pb2.LOAD_STATE_FAILED
    assert failed.reason == "no such operator"


@pytest.mark.parametrize(
    ("declared", "kind", "max_tokens"),
    [
        ({"kind": "text", "max_tokens": 256}, signature_pb2.INPUT_KIND_TEXT, 256),
        ({"kind": "text_pair", "max_tokens": 9}, signature_pb2.INPUT_KIND_TEXT_PAIR, 9),
        ({"kind": "float_features"}, signature_pb2.INPUT_KIND_FLOAT_FEATURES, 0),
        ({"kind": "tensors"}, signature_pb2.INPUT_KIND_TENSORS, 0),
        (
            {"kind": "image", "image": {"width": 8, "height": 8}},
            signature_pb2.INPUT_KIND_IMAGE,
            0,
        ),
    ],
)
def test_a_ready_version_says_what_it_takes_and_gives(
    declared: dict[str, Any], kind: int, max_tokens: int
) -> None:
    manifest = Manifest.model_validate(
        {
            "schema": SCHEMA,
            "name": "m",
            "task": "classification",
            "files": {"model": "m.onnx"},
            "input": declared,
            "output": {"labels": ["no", "yes"], "multi_label": True},
        }
    )
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    runner: Any = Runner(manifest)
    message = to.loaded_out(loaded(state="ready", runner=runner, ready_time=now), ["canary"])
    assert message.state == loaded_model_pb2.LOAD_STATE_READY
    assert (message.backend, message.device, list(message.aliases)) == ("fake", "cpu", ["canary"])
    assert message.ready_time.ToDatetime(tzinfo=UTC) == now
    signature = message.signature
    assert (list(signature.labels), signature.multi_label) == (["no", "yes"], True)
    assert (list(signature.input_kinds), signature.max_tokens) == ([kind], max_tokens)
    found = [TensorSpec(s.name, s.datatype, tuple(s.shape)) for s in signature.inputs]
    assert found == list(runner.backend.inputs)
    assert [s.name for s in signature.outputs] == ["echo", "probabilities"]


@pytest.mark.parametrize("state", ["loading", "ready", "draining", "failed", "unloaded"])
def test_every_state_has_its_word_in_the_contract(state: Any) -> None:
    name = loaded_model_pb2.LoadState.Name(to.loaded_out(loaded(state=state), []).state)
    assert name == f"LOAD_STATE_{state.upper()}"


def test_a_version_that_says_nothing_of_its_input_has_no_kind_of_it() -> None:
    manifest = Manifest.model_validate(
        {"schema": SCHEMA, "name": "m", "task": "classification", "files": {"model": "m.onnx"}}
    )
    runner: Any = Runner(manifest)
    signature = to.loaded_out(loaded(state="ready", runner=runner), []).signature
    assert list(signature.input_kinds) == []
    assert signature.inputs

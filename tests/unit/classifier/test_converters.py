"""Messages to items, answers to messages: every kind, every field, nothing invented."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from google.rpc import code_pb2, error_details_pb2
from gristmill.classifier.v1 import item_pb2, loaded_model_pb2, options_pb2, result_pb2
from gristmill.registry.v1 import model_pb2, signature_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from services.classifier import converters as to
from services.classifier.answers import Answer
from services.classifier.classifier import Classifier
from services.inference.backend import TensorSpec
from services.inference.backends.fake import FakeBackend
from services.inference.items import FeaturesItem, ImageItem, TextItem, TextPairItem
from services.inference.loaded import Loaded, Wanted
from services.inference.manifest import SCHEMA, Manifest
from services.inference.outcomes import Timings
from services.inference.scoring import Choice, Label
from services.runtime.catalog import VersionEntry
from services.runtime.errors import BackendFailed, InvalidRequest
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


def test_an_image_is_its_bytes() -> None:
    assert to.item_in(item_pb2.Item(image=item_pb2.Image(data=b"x"))) == ImageItem(b"x")


def test_a_reference_is_model_version_alias() -> None:
    assert to.wanted(model_pb2.ModelRef()) == Wanted()
    assert to.wanted(model_pb2.ModelRef(model="m")) == Wanted("m")
    assert to.wanted(model_pb2.ModelRef(model="m", version=3)) == Wanted("m", 3)
    assert to.wanted(model_pb2.ModelRef(model="m", alias="canary")) == Wanted("m", alias="canary")


def test_absent_options_mean_one_label() -> None:
    assert to.choice_in(options()) == Choice(1, None)
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

"""What becomes of items, options and answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import item_pb2, options_pb2
from gristmill_client import InvalidRequest
from gristmill_client._classify_messages import request

from tests.unit.client.conftest import Twin
from tests.unit.client.fakes import FakeClassifier, serving

TENSORS = item_pb2.Item(tensors=item_pb2.NamedTensors(tensors=[item_pb2.Tensor(name="x")]))


class NumpyLike(list[Any]):
    """A row that says it has dimensions, as an array does."""

    ndim = 1


@pytest.mark.parametrize(
    ("items", "kinds"),
    [
        ("a text", ["text"]),
        (["a", "b"], ["text", "text"]),
        ((text for text in ("a", "b")), ["text", "text"]),
        (("premise", "hypothesis"), ["text_pair"]),
        ([("a", "b"), ("c", "d")], ["text_pair", "text_pair"]),
        ([5.1, 3.5, 1], ["float_features"]),
        ([[5.1, 3.5], [4.9, 3.0]], ["float_features", "float_features"]),
        ((NumpyLike([1.0]), NumpyLike([2.0])), ["float_features", "float_features"]),
        (b"\x89PNG", ["image"]),
        ([b"\x89PNG", "mixed"], ["image", "text"]),
        (TENSORS, ["tensors"]),
        ([], []),
    ],
)
def test_items_are_told_apart(items: Any, kinds: list[str]) -> None:
    message = request(pb.ClassifyRequest, items, None, {})
    assert [item.WhichOneof("content") for item in message.items] == kinds


@pytest.mark.parametrize("items", [None, 3, [None], [object()], [["a", 1.0]]])
def test_what_is_no_item_is_refused(items: Any) -> None:
    with pytest.raises(TypeError):
        request(pb.ClassifyRequest, items, None, {})


def test_options_reach_the_request() -> None:
    message = request(
        pb.ClassifyRequest,
        "x",
        "models/sentiment",
        {
            "version": 3,
            "top_k": 2,
            "probabilities": True,
            "threshold": 0.5,
            "truncation": "refuse",
            "no_cache": True,
            "priority": 1,
        },
    )
    assert message.model.model == "sentiment"
    assert message.model.version == 3
    assert message.priority == 1
    assert message.options == options_pb2.ClassifyOptions(
        top_k=2,
        return_probabilities=True,
        threshold=0.5,
        truncation=options_pb2.TRUNCATION_REFUSE,
        no_cache=True,
    )


def test_what_is_not_given_stays_absent() -> None:
    message = request(pb.ClassifyRequest, "x", None, {})
    assert not message.HasField("model")
    assert not message.options.HasField("top_k")
    assert not message.options.HasField("threshold")


def test_version_and_alias_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="not both"):
        request(pb.ClassifyRequest, "x", "m", {"version": 1, "alias": "live"})


def test_an_option_that_does_not_exist_is_refused() -> None:
    options: Any = {"topk": 2}
    with pytest.raises(TypeError, match="topk"):
        request(pb.ClassifyRequest, "x", "m", options)


def test_predictions_come_in_the_order_of_the_items(twin: Callable[..., Twin]) -> None:
    with serving(FakeClassifier().register) as address:
        client = twin(classifier=address)
        good, bad = client.run(client.client.classify(["good", "bad"], "sentiment"))
    assert (good.label, good.score, good.model, good.version) == ("positive", 0.75, "sentiment", 3)
    assert [entry.label for entry in good.labels] == ["positive", "negative"]
    assert good.probabilities == (0.25, 0.75)
    assert (good.timings.compute_us, good.timings.batch_size) == (200, 8)
    assert good.raise_for_error() is good
    assert (bad.label, bad.labels, bad.timings) == ("", (), None)
    with pytest.raises(InvalidRequest) as caught:
        bad.raise_for_error()
    assert caught.value is bad.error
    assert bad.error.field_violations[0].description == "is bad"


def test_a_stream_gives_each_item_as_it_is_done(twin: Callable[..., Twin]) -> None:
    with serving(FakeClassifier().register) as address:
        client = twin(classifier=address)
        stream = client.open(lambda: client.client.classify_stream(["a", "bad", "c"]))
        found = client.collect(stream)
    assert [index for index, _ in found] == [2, 1, 0]
    assert [prediction.error is None for _, prediction in found] == [True, False, True]

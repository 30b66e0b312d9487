"""Answers as outputs: stacked in the order of the items, or as their best classes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from services.classifier.answers import Answer
from services.classifier.oip import answers
from services.classifier.oip.signature import Output
from services.inference.items import Array
from services.inference.outcomes import Scored, Timings
from services.inference.scoring import Outputs
from services.oip.contract import pb
from services.runtime.errors import BackendFailed, GristmillError, InvalidRequest, Overloaded
from services.runtime.status import to_status

LOGITS = Output("logits", "FP32")


def answered(index: int = 0, **arrays: Any) -> Answer:
    """The answer for one row of a batch."""
    batch = Outputs({name: np.asarray(array) for name, array in arrays.items()})
    return Answer(scored=Scored(batch, index, Timings(0, 0, 0, 1)))


def written(*given: Answer, wanted: Any = (LOGITS,), labels: Any = ()) -> pb.ModelInferResponse:
    """The response."""
    response = pb.ModelInferResponse()
    answers.write(response, given, wanted, labels)
    return response


def texts(array: Array) -> list[list[str]]:
    """The elements of a tensor of BYTES as text."""
    return [[element.decode() for element in row] for row in array.tolist()]


def test_outputs_are_stacked_in_the_order_of_items_and_of_names() -> None:
    one = np.array([[1, 2], [3, 4]], dtype=np.float32)
    two = np.array([[5, 6]], dtype=np.float32)
    given = [
        answered(1, logits=one, label=["a", "b"], n=[1, 2]),
        answered(0, logits=two, label=["c"], n=[3]),
        answered(0, logits=one, label=["a", "b"], n=[1, 2]),
    ]
    wanted = [Output("n", "INT64"), LOGITS, Output("label", "BYTES")]
    response = written(*given, wanted=wanted)
    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [
        ("n", "INT64", [3]),
        ("logits", "FP32", [3, 2]),
        ("label", "BYTES", [3]),
    ]
    numbers, logits, labels = response.raw_output_contents
    assert np.frombuffer(numbers, "<i8").tolist() == [2, 3, 1]
    assert np.frombuffer(logits, "<f4").tolist() == [3, 4, 5, 6, 1, 2]
    assert labels == b"\1\0\0\0b\1\0\0\0c\1\0\0\0a"


def test_texts_of_a_vector_are_whole() -> None:
    array = np.empty(1, dtype=np.object_)
    array[0] = b"ends in zero\0"
    response = written(answered(0, label=array), wanted=[Output("label", "BYTES")])
    assert list(response.outputs[0].shape) == [1]
    assert response.raw_output_contents[0] == b"\x0d\0\0\0ends in zero\0"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=20))
@settings(deadline=None)
def test_rows_of_any_batches_are_told_apart(picked: list[tuple[int, int]]) -> None:
    batches = [Outputs({"n": np.arange(5) + 10 * batch}) for batch in range(3)]
    given = [
        Answer(scored=Scored(batches[batch], row, Timings(0, 0, 0, 5))) for batch, row in picked
    ]
    response = written(*given, wanted=[Output("n", "INT64")])
    found = np.frombuffer(response.raw_output_contents[0], "<i8").tolist()
    assert found == [10 * batch + row for batch, row in picked]


def test_neighbours_of_a_batch_are_not_copied_apart() -> None:
    batch = Outputs({"logits": np.zeros((4, 3), np.float32)})
    given = [Answer(scored=Scored(batch, row, Timings(0, 0, 0, 4))) for row in (1, 2, 3)]
    ((found, rows),) = answers._runs(given)
    assert (found, rows) == (batch, slice(1, 4))
    part = batch.arrays["logits"][rows]
    assert answers.stacked([part]) is part


def test_rows_of_several_lengths_end_in_zeros() -> None:
    parts = [np.ones((1, 2, 3), np.float32), np.full((2, 4, 3), 2, np.float32)]
    array = answers.stacked(parts)
    assert array.shape == (3, 4, 3)
    assert array[0].sum() == 6
    assert array[0, 2:].sum() == 0
    assert (array[1:] == 2).all()
    words = [np.full((1, 1), b"a", dtype=np.object_), np.full((1, 2), b"b", dtype=np.object_)]
    assert answers.stacked(words).tolist() == [[b"a", b""], [b"b", b"b"]]
    with pytest.raises(BackendFailed):
        answers.stacked([np.ones((1, 2)), np.ones((1, 2, 2))])


def test_an_output_that_was_promised_and_not_given_is_the_backends_fault() -> None:
    with pytest.raises(BackendFailed, match="logits"):
        written(answered(0, other=[[1.0]]))


def test_the_first_failure_is_that_of_the_request_and_says_whose_it_is() -> None:
    good = answered(0, logits=[[1.0]])
    full = Overloaded("full", retry_after_s=2.0, metadata={"a": "b"}, resource=("model", "m"))
    failed = [good, Answer(error=full), Answer(error=BackendFailed("x")), good]
    with pytest.raises(Overloaded) as caught:
        written(*failed)
    error: GristmillError = caught.value
    assert error.message == "item 1: full"
    assert error.metadata == {"a": "b", "item": "1"}
    assert (error.retry_after_s, error.resource) == (2.0, ("model", "m"))
    with pytest.raises(BackendFailed) as withheld:
        written(good, Answer(error=BackendFailed("secret")))
    status = to_status(withheld.value)
    assert "secret" not in status.message
    assert b"item" in status.details[0].value


def test_the_failure_of_an_only_item_is_as_it_was() -> None:
    error = InvalidRequest.field("text", "too long")
    with pytest.raises(InvalidRequest) as caught:
        written(Answer(error=error))
    assert caught.value is error


def test_texts_that_were_cut_are_told_of() -> None:
    whole, cut = answered(0, logits=[[1.0]]), answered(0, logits=[[1.0]])
    assert "truncated" not in written(whole, whole).parameters
    cut.truncated = True
    assert written(whole, cut).parameters["truncated"].bool_param


@given(
    npst.arrays(
        np.float32,
        npst.array_shapes(min_dims=2, max_dims=3, max_side=5),
        elements=st.floats(-1e6, 1e6, width=32),
    ),
    st.integers(1, 9),
)
@settings(deadline=None)
def test_the_best_are_the_highest_and_the_first_of_equals(array: Array, classes: int) -> None:
    flat = array.reshape(len(array), -1)
    found = texts(answers.best(array, classes, ()))
    for row, said in zip(flat.tolist(), found, strict=True):
        wanted = sorted(range(len(row)), key=lambda i: (-row[i], i))[:classes]
        assert said == [f"{row[i]:f}:{i}" for i in wanted]


def test_classes_have_their_labels_where_there_is_one_for_each() -> None:
    array = np.array([[0.25, 0.75], [1.0, 0.0]], dtype=np.float32)
    response = written(
        answered(0, logits=array),
        answered(1, logits=array),
        wanted=[Output("logits", "FP32", 2)],
        labels=("bad", "göod"),
    )
    (output,) = response.outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [2, 2])
    assert texts(answers.best(array, 1, ("bad", "göod"))) == [
        ["0.750000:1:göod"],
        ["1.000000:0:bad"],
    ]
    assert texts(answers.best(array, 1, ("bad",))) == [["0.750000:1"], ["1.000000:0"]]
    whole = np.array([[3, 10, 7]], dtype=np.int64)
    assert texts(answers.best(whole, 2, ())) == [["10:1", "7:2"]]


def test_what_is_not_a_number_is_never_the_best() -> None:
    array = np.array([[np.nan, 1.0, -np.inf]], dtype=np.float32)
    assert texts(answers.best(array, 3, ())) == [["1.000000:1", "-inf:2", "nan:0"]]
    with pytest.raises(BackendFailed):
        answers.best(np.array([["a"]], dtype=np.object_), 1, ())

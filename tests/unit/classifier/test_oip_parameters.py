"""What the parameters of a request mean, and which are refused."""

from typing import Any

import pytest

from services.classifier.oip import parameters
from services.classifier.oip.inference import version_in
from services.classifier.oip.parameters import Asked
from services.oip.contract import pb
from services.runtime.deadline import Deadline
from services.runtime.errors import InvalidRequest, UnsupportedField

GIVEN: list[tuple[dict[str, dict[str, Any]], Asked]] = [
    ({}, Asked()),
    ({"priority": {"uint64_param": 1}}, Asked(priority=1)),
    ({"priority": {"int64_param": 9}}, Asked(priority=9)),
    ({"priority": {"uint64_param": 0}}, Asked()),
    ({"timeout": {"int64_param": 1500}}, Asked(timeout_us=1500)),
    ({"timeout": {"uint64_param": 2**64 - 1}}, Asked(timeout_us=2**64 - 1)),
    ({"no_cache": {"bool_param": True}}, Asked(no_cache=True)),
    ({"sequence_id": {"int64_param": 0}, "sequence_start": {"bool_param": False}}, Asked()),
    ({"sequence_id": {"string_param": ""}, "sequence_end": {}}, Asked()),
    ({"triton_enable_empty_final_response": {"bool_param": True}}, Asked()),
    ({"mine": {"double_param": 0.5}, "yours": {"string_param": "x"}, "none": {}}, Asked()),
]
REFUSED: list[tuple[dict[str, dict[str, Any]], type[InvalidRequest]]] = [
    ({"priority": {"uint64_param": 10}}, InvalidRequest),
    ({"priority": {"int64_param": -1}}, InvalidRequest),
    ({"priority": {"string_param": "1"}}, InvalidRequest),
    ({"priority": {}}, InvalidRequest),
    ({"timeout": {"int64_param": -1}}, InvalidRequest),
    ({"timeout": {"double_param": 0.5}}, InvalidRequest),
    ({"no_cache": {"int64_param": 1}}, InvalidRequest),
    ({"triton_enable_empty_final_response": {"int64_param": 1}}, InvalidRequest),
    ({"triton_something": {"bool_param": True}}, InvalidRequest),
    ({"sequence_id": {"int64_param": 7}}, UnsupportedField),
    ({"sequence_id": {"string_param": "a"}}, UnsupportedField),
    ({"sequence_start": {"bool_param": True}}, UnsupportedField),
    ({"sequence_end": {"bool_param": True}}, UnsupportedField),
]


def asked(given: dict[str, dict[str, Any]]) -> Any:
    """The parameters as a request holds them."""
    request = pb.ModelInferRequest()
    for name, value in given.items():
        request.parameters[name].CopyFrom(pb.InferParameter(**value))
    return request.parameters


@pytest.mark.parametrize(("given", "means"), GIVEN)
def test_what_is_asked_for(given: dict[str, dict[str, Any]], means: Asked) -> None:
    assert parameters.read(asked(given)) == means


@pytest.mark.parametrize(("given", "kind"), REFUSED)
def test_what_is_refused(given: dict[str, dict[str, Any]], kind: type[InvalidRequest]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parameters.read(asked(given))
    assert type(caught.value) is kind
    assert caught.value.violations[0].field == f"parameters[{next(iter(given))}]"


def test_a_timeout_only_shortens() -> None:
    soon, late = Deadline.after(1.0), Deadline.after(100.0)
    assert Asked().until(late) == late
    assert Asked(timeout_us=50_000_000).until(soon) == soon
    assert soon < Asked(timeout_us=50_000_000).until(late) < late


@pytest.mark.parametrize(
    ("text", "version"), [("", 0), ("1", 1), ("0042", 42), ("9" * 18, 10**18 - 1)]
)
def test_versions(text: str, version: int) -> None:
    assert version_in("version", text) == version


@pytest.mark.parametrize("text", ["0", "-1", "1.0", "live", " 1", "١", "9" * 19])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(InvalidRequest, match="version"):
        version_in("version", text)

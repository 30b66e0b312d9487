"""Every status becomes the exception of its meaning, with all that the server said."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from gristmill.errors.v1.error_reason_pb2 import ErrorReason
from gristmill_client import _errors, errors

from tests.unit.client.conftest import Twin
from tests.unit.client.fakes import FakeClassifier, cut, error_info, refuse, rich_status, serving

MEANINGS = [
    ("INVALID_ARGUMENT", "INVALID_FIELD", errors.InvalidRequest),
    ("OUT_OF_RANGE", "REVISION_COMPACTED", errors.OutOfRange),
    ("UNAUTHENTICATED", "CREDENTIALS_MISSING", errors.Unauthenticated),
    ("PERMISSION_DENIED", "SCOPE_MISSING", errors.PermissionDenied),
    ("NOT_FOUND", "MODEL_NOT_FOUND", errors.NotFound),
    ("ALREADY_EXISTS", "ALREADY_EXISTS", errors.AlreadyExists),
    ("ABORTED", "ETAG_MISMATCH", errors.Conflict),
    ("FAILED_PRECONDITION", "GATE_UNMET", errors.FailedPrecondition),
    ("RESOURCE_EXHAUSTED", "QUEUE_FULL", errors.Overloaded),
    ("RESOURCE_EXHAUSTED", "SLOW_CONSUMER", errors.Overloaded),
    ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", errors.QuotaExceeded),
    ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", errors.InvalidRequest),
    ("RESOURCE_EXHAUSTED", "", errors.ResourceExhausted),
    ("DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT", errors.DeadlineExceeded),
    ("DATA_LOSS", "ARTIFACT_CORRUPT", errors.DataLoss),
    ("UNIMPLEMENTED", "NOT_IMPLEMENTED", errors.Unimplemented),
    ("CANCELLED", "CANCELLED", errors.Cancelled),
    ("INTERNAL", "BACKEND_FAILED", errors.ServerError),
    ("UNKNOWN", "", errors.ServerError),
    ("UNAVAILABLE", "MODEL_NOT_READY", errors.Unavailable),
]


@pytest.mark.parametrize(("status", "reason", "kind"), MEANINGS)
def test_each_status_has_its_class(status: str, reason: str, kind: type[Exception]) -> None:
    details = [error_info(reason)] if reason else []
    error = _errors.from_status(rich_status(grpc.StatusCode[status], "so it is", *details))
    assert type(error) is kind
    assert (error.status, error.reason, error.message) == (status, reason, "so it is")


def test_every_reason_of_the_contract_is_carried_over() -> None:
    for name in ErrorReason.DESCRIPTOR.values_by_name:
        reason = name.removeprefix("ERROR_REASON_")
        status = rich_status(grpc.StatusCode.INTERNAL, "m", error_info(reason))
        assert _errors.from_status(status).reason == reason


def test_all_that_the_server_said_arrives(twin: Callable[..., Twin]) -> None:
    def behaviour(context: Any) -> None:
        refuse(
            context,
            grpc.StatusCode.FAILED_PRECONDITION,
            "the gates do not hold",
            error_info("GATE_UNMET", alias="live"),
            error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
            error_details_pb2.BadRequest(field_violations=[{"field": "a.b", "description": "no"}]),
            error_details_pb2.PreconditionFailure(violations=[{"description": "accuracy is 0.8"}]),
        )

    with serving(FakeClassifier(behaviour).register) as address:
        client = twin(classifier=address)
        with pytest.raises(errors.FailedPrecondition) as caught:
            client.run(client.client.classify("x"))
    error = caught.value
    assert error.retry_after == 1.5
    assert error.request_id == "request-1"
    assert error.field_violations == (errors.FieldViolation("a.b", "no"),)
    assert error.preconditions == ("accuracy is 0.8",)
    assert error.metadata == {"alias": "live"}
    assert str(error) == (
        "FAILED_PRECONDITION (GATE_UNMET): the gates do not hold; a.b: no; accuracy is 0.8 "
        "[request request-1]"
    )


def test_without_a_gristmill_server_the_message_says_whom_we_tried(
    twin: Callable[..., Twin],
) -> None:
    with serving(FakeClassifier(cut).register) as address:
        client = twin(classifier=address)
        with pytest.raises(errors.Unavailable) as caught:
            client.run(client.client.classify("x"))
    assert caught.value.message == f"classifier at {address}: Socket closed"
    assert caught.value.reason == ""


def test_a_broken_detail_does_not_hide_the_error(twin: Callable[..., Twin]) -> None:
    def behaviour(context: Any) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "gone")

    with serving(FakeClassifier(behaviour).register) as address:
        client = twin(classifier=address)
        with pytest.raises(errors.NotFound, match="gone"):
            client.run(client.client.classify("x"))


def test_details_of_another_domain_are_not_ours() -> None:
    status = rich_status(
        grpc.StatusCode.NOT_FOUND, "m", error_info("SERVICE_DISABLED", domain="googleapis.com")
    )
    error = _errors.from_status(status)
    assert error.reason == ""
    assert error.metadata == {}


def test_an_error_survives_pickling() -> None:
    error = errors.NotFound("gone", errors.ErrorDetails(reason="MODEL_NOT_FOUND"))
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    assert type(again) is errors.NotFound
    assert str(again) == str(error) == "NOT_FOUND (MODEL_NOT_FOUND): gone"


def test_a_deadline_that_passes_is_said_so(twin: Callable[..., Twin]) -> None:
    classifier = FakeClassifier()
    classifier.hold = True
    with serving(classifier.register) as address:
        client = twin(classifier=address, timeout=0.2)
        stream = client.open(lambda: client.client.classify_stream(["a", "b"]))
        with pytest.raises(errors.DeadlineExceeded):
            client.collect(stream)

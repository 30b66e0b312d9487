"""The table of errors, from DESIGN.md section 3: status, reason, details, and what is withheld."""

from itertools import count

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import (
    BadRequest,
    ErrorInfo,
    PreconditionFailure,
    ResourceInfo,
    RetryInfo,
)
from hypothesis import given
from hypothesis import strategies as st

from services.runtime import errors, status
from services.runtime.errors import GristmillError, Violation
from tests.harness import details

Code = grpc.StatusCode
# Java clients refuse trailing metadata above 8 KiB, and details travel in base64.
MAX_TRAILERS = 8192

TABLE = [
    (errors.InvalidRequest, Code.INVALID_ARGUMENT, "INVALID_FIELD", BadRequest),
    (errors.UnsupportedField, Code.INVALID_ARGUMENT, "UNSUPPORTED_FIELD", BadRequest),
    (errors.ModelAmbiguous, Code.INVALID_ARGUMENT, "MODEL_AMBIGUOUS", BadRequest),
    (errors.MessageTooLarge, Code.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE", None),
    (errors.Unauthenticated, Code.UNAUTHENTICATED, "CREDENTIALS_MISSING", None),
    (errors.PermissionDenied, Code.PERMISSION_DENIED, "SCOPE_MISSING", None),
    (errors.NotFound, Code.NOT_FOUND, "MODEL_NOT_FOUND", ResourceInfo),
    (errors.AlreadyExists, Code.ALREADY_EXISTS, "ALREADY_EXISTS", ResourceInfo),
    (errors.Conflict, Code.ABORTED, "CONCURRENT_CHANGE", None),
    (errors.FailedPrecondition, Code.FAILED_PRECONDITION, "WRONG_STATE", PreconditionFailure),
    (errors.OutOfRange, Code.OUT_OF_RANGE, "OFFSET_OUT_OF_RANGE", None),
    (errors.NotImplementedYet, Code.UNIMPLEMENTED, "NOT_IMPLEMENTED", None),
    (errors.Overloaded, Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", RetryInfo),
    (errors.QuotaExceeded, Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", RetryInfo),
    (errors.SlowConsumer, Code.RESOURCE_EXHAUSTED, "SLOW_CONSUMER", None),
    (errors.StorageFull, Code.RESOURCE_EXHAUSTED, "STORAGE_FULL", None),
    (errors.DeadlineTooShort, Code.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT", None),
    (errors.DeadlineExpired, Code.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED", None),
    (errors.ModelNotReady, Code.UNAVAILABLE, "MODEL_NOT_READY", RetryInfo),
    (errors.EngineRestarting, Code.UNAVAILABLE, "ENGINE_RESTARTING", RetryInfo),
    (errors.Draining, Code.UNAVAILABLE, "DRAINING", RetryInfo),
    (errors.UpstreamUnavailable, Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE", RetryInfo),
    (errors.StorageFailed, Code.UNAVAILABLE, "STORAGE_FAILED", RetryInfo),
    (errors.DataLoss, Code.DATA_LOSS, "ARTIFACT_CORRUPT", None),
    (errors.BackendFailed, Code.INTERNAL, "BACKEND_FAILED", None),
]


def full(cls: type[GristmillError]) -> GristmillError:
    """An error that carries everything that an error may."""
    return cls(
        "what went wrong",
        metadata={"key": "value"},
        violations=[Violation("a.b[3]", "is wrong")],
        retry_after_s=2.5,
        resource=("model", "models/m"),
    )


@pytest.mark.parametrize(("cls", "code", "reason", "detail"), TABLE)
def test_the_table(
    cls: type[GristmillError], code: grpc.StatusCode, reason: str, detail: type[Message] | None
) -> None:
    error = full(cls)
    answer = status.to_status(error, "id-7")
    assert status.code_of(error) is code
    assert code_pb2.Code.Name(answer.code) == code.name
    (info,) = details(answer, ErrorInfo)
    assert (info.reason, info.domain) == (reason, "gristmill")
    assert info.metadata["key"] == "value"
    given = {kind for kind in (BadRequest, RetryInfo, PreconditionFailure) if details(answer, kind)}
    assert given == ({detail} - {ResourceInfo} if detail else set())
    if detail is ResourceInfo:
        (resource,) = details(answer, ResourceInfo)
        assert (resource.resource_type, resource.resource_name) == ("model", "models/m")


def test_the_table_is_whole() -> None:
    """Every domain error has a row, here and there."""
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, GristmillError)
        and kind is not GristmillError
    }
    assert {row[0] for row in TABLE} == kinds == set(status.TABLE)


def test_a_reason_that_is_given_replaces_the_usual_one() -> None:
    error = errors.NotFound("no such alias", reason=errors.ALIAS_NOT_FOUND)
    (info,) = details(status.to_status(error), ErrorInfo)
    assert info.reason == "ALIAS_NOT_FOUND"


def test_a_subclass_maps_as_its_parent() -> None:
    class Narrower(errors.Overloaded):
        """An error of some service."""

    answer = status.to_status(Narrower("full"))
    assert answer.code == code_pb2.RESOURCE_EXHAUSTED
    assert details(answer, RetryInfo)


def test_violations_name_field_and_subject() -> None:
    (bad,) = details(status.to_status(full(errors.InvalidRequest)), BadRequest)
    (violation,) = bad.field_violations
    assert (violation.field, violation.description) == ("a.b[3]", "is wrong")
    assert violation.reason == "INVALID_FIELD"
    (unmet,) = details(status.to_status(full(errors.FailedPrecondition)), PreconditionFailure)
    assert (unmet.violations[0].subject, unmet.violations[0].type) == ("a.b[3]", "WRONG_STATE")


def test_one_bad_field_in_short() -> None:
    error = errors.InvalidRequest.field("items[0]", "has no content")
    assert error.violations == (Violation("items[0]", "has no content"),)
    assert error.message == "items[0]: has no content"
    assert isinstance(errors.UnsupportedField.field("a", "b"), errors.UnsupportedField)


FOREIGN = [ValueError, RuntimeError, KeyError, OSError, MemoryError, AssertionError, TypeError]


@pytest.mark.parametrize("cls", FOREIGN)
def test_foreign_exceptions_withhold_their_text_and_give_the_request_id(
    cls: type[Exception],
) -> None:
    answer = status.to_status(cls("password=hunter2"), "id-7")
    assert answer.code == code_pb2.INTERNAL
    assert b"hunter2" not in answer.SerializeToString()
    (info,) = details(answer, ErrorInfo)
    assert (info.reason, info.metadata["request_id"]) == ("INTERNAL", "id-7")


def test_backend_failures_withhold_their_text_too() -> None:
    answer = status.to_status(errors.BackendFailed("CUDA error at /home/me/x.cu"), "id-7")
    assert b"CUDA" not in answer.SerializeToString()
    (info,) = details(answer, ErrorInfo)
    assert (info.reason, info.metadata["request_id"]) == ("BACKEND_FAILED", "id-7")


def test_what_the_caller_can_act_on_is_not_withheld() -> None:
    assert status.to_status(errors.NotFound("no model m")).message == "no model m"


@pytest.mark.parametrize("given_s", [0.25, 2.5, 3600.0, 1e-9, 0.0, None])
def test_retry_info_is_the_hint_never_zero(given_s: float | None) -> None:
    error = errors.Overloaded("full", retry_after_s=given_s)
    (retry,) = details(status.to_status(error), RetryInfo)
    delay = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    assert delay > 0
    assert delay >= (given_s or 0)
    assert status.retry_after_s(error) == pytest.approx(delay)


@given(seconds=st.floats(0.001, 1e6))
def test_retry_info_never_says_earlier_than_the_error(seconds: float) -> None:
    (retry,) = details(status.to_status(errors.QuotaExceeded("", retry_after_s=seconds)), RetryInfo)
    assert 0 <= retry.retry_delay.nanos < 10**9
    delay = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    assert delay == pytest.approx(seconds, abs=2e-9)


@pytest.mark.parametrize("text", ["x" * 10**6, "\U0001f600" * 10**5, "line\n" * 10**5])
def test_an_error_of_any_size_fits_what_clients_take(text: str) -> None:
    """A status too large for a client would reach it as another status, without details."""
    numbers = count()
    error = errors.InvalidRequest(
        text,
        metadata={"models": text},
        violations=[Violation(f"{next(numbers)}{text}", text) for _ in range(32)],
        resource=("model", text),
    )
    answer = status.to_status(error, "id-7")
    percent_encoded = 3 * len(answer.message.encode())
    base64 = 4 * answer.ByteSize() / 3
    assert percent_encoded + base64 < MAX_TRAILERS
    assert answer.message.startswith(text[:50])
    (info,) = details(answer, ErrorInfo)
    assert info.reason == "INVALID_FIELD"
    (bad,) = details(answer, BadRequest)
    assert bad.field_violations[0].field.startswith("0")


def test_an_ordinary_list_of_violations_stays_whole() -> None:
    found = [Violation(f"items[{n}].tensors.tensors[0].datatype", "is required") for n in range(32)]
    answer = status.to_status(errors.InvalidRequest("32 wrong", violations=found))
    (bad,) = details(answer, BadRequest)
    assert [v.field for v in bad.field_violations] == [v.field for v in found]

"""The table of statuses and the shape of errors."""

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from gateway import errors
from gateway.errors import REFUSALS, CallFailedError, ClientGoneError, RefusalError
from services.runtime.errors import MessageTooLarge, Overloaded
from services.runtime.status import to_status

# DESIGN.md section 3.
DESIGN = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "CANCELLED": 499,
    "RESOURCE_EXHAUSTED": 429,
    "DEADLINE_EXCEEDED": 504,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "INTERNAL": 500,
}


def test_the_table_is_the_designs_and_complete() -> None:
    assert {**errors.HTTP, **DESIGN} == errors.HTTP
    assert set(errors.HTTP) == {code.name for code in grpc.StatusCode}


@pytest.mark.parametrize("http", sorted(REFUSALS))
def test_what_http_refuses_has_a_domain_of_its_own(http: int) -> None:
    found = errors.answer(RefusalError(http, headers={"allow": "GET"}), "id-1")
    error = found.body["error"]
    assert (found.http, error["code"], error["requestId"]) == (http, http, "id-1")
    assert error["details"][0]["domain"] == "http.gristmill"
    assert found.headers["allow"] == "GET"


def test_a_client_that_is_gone_is_499() -> None:
    assert errors.answer(ClientGoneError(), "").http == 499


def test_an_unknown_exception_says_nothing_of_itself() -> None:
    found = errors.answer(KeyError("secret"), "id-2")
    assert found.http == 500
    assert b"secret" not in found.encoded()
    assert b"id-2" in found.encoded()


def test_too_large_is_not_worth_repeating() -> None:
    found = errors.answer(MessageTooLarge("m"), "")
    assert found.http == 413
    assert "retry-after" not in found.headers


@pytest.mark.parametrize(("seconds", "header"), [(0.01, "1"), (1.0, "1"), (1.2, "2"), (90, "90")])
def test_retry_after_is_whole_seconds_never_too_early(seconds: float, header: str) -> None:
    found = errors.answer(Overloaded("full", retry_after_s=seconds), "")
    assert found.headers["retry-after"] == header


class TestOfCall:
    def test_details_of_ours_are_kept(self) -> None:
        sent = to_status(Overloaded("full", retry_after_s=2.0))
        got = errors.of_call("RESOURCE_EXHAUSTED", "full", sent.SerializeToString())
        assert got == sent

    @pytest.mark.parametrize(
        ("code", "http", "reason"),
        [
            ("UNAVAILABLE", 503, "UPSTREAM_UNAVAILABLE"),
            ("DEADLINE_EXCEEDED", 504, "DEADLINE_EXPIRED"),
            ("UNIMPLEMENTED", 501, "NOT_IMPLEMENTED"),
            ("RESOURCE_EXHAUSTED", 413, "MESSAGE_TOO_LARGE"),
            ("CANCELLED", 499, "CANCELLED"),
            ("UNKNOWN", 500, "INTERNAL"),
            ("INTERNAL", 500, "INTERNAL"),
            ("DATA_LOSS", 500, "INTERNAL"),
        ],
    )
    def test_a_status_of_grpc_itself_gets_a_reason(self, code: str, http: int, reason: str) -> None:
        status = errors.of_call(code, "ipv4:10.0.0.1:50052: secret", None)
        found = errors.answer(CallFailedError(status), "")
        assert (found.http, found.reason) == (http, reason)
        if http >= 500 and http != 501:
            assert "10.0.0.1" not in status.message

    def test_details_that_contradict_the_status_are_not_believed(self) -> None:
        sent = to_status(Overloaded("full")).SerializeToString()
        assert errors.of_call("NOT_FOUND", "m", sent).code == grpc.StatusCode.NOT_FOUND.value[0]
        bare = status_pb2.Status(code=8).SerializeToString()
        assert errors.reason_of(errors.of_call("RESOURCE_EXHAUSTED", "m", bare))

    def test_broken_details_are_not_believed(self) -> None:
        status = errors.of_call("NOT_FOUND", "gone", b"\xff\xff\xff")
        assert status.message == "gone"


def test_a_detail_that_nobody_here_knows_still_reaches_the_caller() -> None:
    status = status_pb2.Status(code=9, message="m")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="WRONG_STATE", domain="gristmill"))
    status.details.append(any_pb2.Any(type_url="type.googleapis.com/x.Y", value=b"\x01"))
    known, unknown = errors.from_status(status, "").body["error"]["details"]
    assert known["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert unknown == {"@type": "type.googleapis.com/x.Y", "value": "AQ=="}

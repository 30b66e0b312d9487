"""The one table from statuses to HTTP, and the JSON shape of every error. Sends nothing.

    {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "reason": "QUEUE_FULL",
               "message": "...", "details": [{"@type": "...", ...}], "requestId": "..."}}

What only HTTP knows (a path without a route, a foreign origin) has reasons of its own under the
domain "http.gristmill"; all others are those of errors/v1, under "gristmill".
"""

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import any_pb2, json_format
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.runtime import errors
from services.runtime.status import DEFAULT_RETRY_S, DOMAIN, WITHHELD, to_status

HTTP_DOMAIN = "http.gristmill"
STATUS_DETAILS = "grpc-status-details-bin"

HTTP: dict[str, int] = {
    "OK": 200,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
}
# A message too large will be too large again: not 429, which invites to repeat it.
HTTP_BY_REASON = {errors.MESSAGE_TOO_LARGE: 413}

# Status, reason and text where HTTP itself refuses.
REFUSALS: dict[int, tuple[str, str, str]] = {
    400: ("INVALID_ARGUMENT", "MALFORMED_REQUEST", "the request is malformed"),
    403: ("PERMISSION_DENIED", "ORIGIN_REFUSED", "the origin may not call this server"),
    404: ("NOT_FOUND", "ROUTE_NOT_FOUND", "no such path; /openapi.json lists those that are"),
    405: ("UNIMPLEMENTED", "METHOD_NOT_ALLOWED", "the path does not have this method"),
    415: ("INVALID_ARGUMENT", "MEDIA_TYPE_REFUSED", "the media type is not taken"),
    421: ("PERMISSION_DENIED", "HOST_REFUSED", "this server is not called by that name"),
    426: ("FAILED_PRECONDITION", "UPGRADE_REQUIRED", "this is called as a WebSocket"),
    431: ("INVALID_ARGUMENT", "HEADERS_TOO_LARGE", "the headers are too large"),
}

# Where the status came from gRPC itself, without details: the reason, and a text in place of one
# that would name our addresses.
_BARE: dict[str, tuple[str, str]] = {
    "CANCELLED": (errors.CANCELLED, ""),
    "DEADLINE_EXCEEDED": (errors.DEADLINE_EXPIRED, "the deadline passed"),
    "UNIMPLEMENTED": (errors.NOT_IMPLEMENTED, ""),
    "RESOURCE_EXHAUSTED": (errors.MESSAGE_TOO_LARGE, "the message is larger than is taken"),
    "UNAVAILABLE": (errors.UPSTREAM_UNAVAILABLE, "the service behind this gateway did not answer"),
    "UNAUTHENTICATED": (errors.CREDENTIALS_INVALID, ""),
    "PERMISSION_DENIED": (errors.SCOPE_MISSING, ""),
    "INVALID_ARGUMENT": (errors.INVALID_FIELD, ""),
    "NOT_FOUND": (errors.MODEL_NOT_FOUND, ""),
    "ALREADY_EXISTS": (errors.ALREADY_EXISTS, ""),
    "ABORTED": (errors.CONCURRENT_CHANGE, ""),
    "FAILED_PRECONDITION": (errors.WRONG_STATE, ""),
    "OUT_OF_RANGE": (errors.OFFSET_OUT_OF_RANGE, ""),
}


class RefusalError(Exception):
    """A request that HTTP itself refuses, before any method is known."""

    def __init__(
        self, http: int, message: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        status, reason, default = REFUSALS[http if http in REFUSALS else 400]
        super().__init__(message or default)
        self.http = http
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})


class ClientGoneError(Exception):
    """The client closed the connection before its answer."""


class CallFailedError(Exception):
    """The service behind the gateway answered with a status other than OK."""

    def __init__(
        self, status: status_pb2.Status, *, reached: bool = True, explained: bool = True
    ) -> None:
        super().__init__(status.message)
        self.status = status
        self.reached = reached
        """Whether the service itself has answered, and not only the way to it failed."""
        self.explained = explained
        """Whether the service has said why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An error as HTTP sends it."""

    http: int
    status: str
    reason: str
    headers: dict[str, str]
    body: dict[str, Any]

    def encoded(self) -> bytes:
        """The body as JSON."""
        return json.dumps(self.body, separators=(",", ":"), ensure_ascii=False).encode()


def answer(error: BaseException, request_id: str) -> Answer:
    """The answer to any exception; what is not a known error becomes a 500 without its text."""
    if isinstance(error, RefusalError):
        status = _status(error.status, str(error), error.reason, HTTP_DOMAIN)
        return from_status(status, request_id, error.http, error.headers)
    if isinstance(error, ClientGoneError):
        status = _status("CANCELLED", "the client went away", errors.CANCELLED, DOMAIN)
        return from_status(status, request_id)
    if isinstance(error, CallFailedError):
        return from_status(error.status, request_id)
    return from_status(to_status(error, request_id), request_id)


def from_status(
    status: status_pb2.Status,
    request_id: str,
    http: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """The answer for a google.rpc.Status."""
    name = _name(status.code)
    reason = reason_of(status)
    code = http or HTTP_BY_REASON.get(reason) or HTTP[name]
    extra = dict(headers or {})
    retry_s = retry_delay_s(status)
    if code == 503 and retry_s is None:
        retry_s = DEFAULT_RETRY_S
    if retry_s is not None and code in (429, 503):
        extra["retry-after"] = str(max(1, math.ceil(retry_s)))
    if code == 401:
        extra["www-authenticate"] = "Bearer"
    body = {
        "code": code,
        "status": name,
        "reason": reason,
        "message": status.message,
        "details": [_detail(detail) for detail in status.details],
        "requestId": request_id,
    }
    return Answer(code, name, reason, extra, {"error": body})


def of_call(code: str, message: str, details: bytes | None) -> status_pb2.Status:
    """The google.rpc.Status of a failed upstream call, with an ErrorInfo in every case."""
    status = _parsed(details)
    if status.code == code_pb2.Code.Value(code) and reason_of(status):
        return status
    reason, text = _BARE.get(code, (errors.INTERNAL, WITHHELD))
    status = _status(code, text or message, reason, DOMAIN)
    if code == "UNAVAILABLE":
        packed = status.details.add()
        hint = error_details_pb2.RetryInfo()
        hint.retry_delay.FromMilliseconds(round(DEFAULT_RETRY_S * 1000))
        packed.Pack(hint)
    return status


def _parsed(details: bytes | None) -> status_pb2.Status:
    try:
        return status_pb2.Status.FromString(details or b"")
    except DecodeError:
        return status_pb2.Status()


def reason_of(status: status_pb2.Status) -> str:
    """The reason in the ErrorInfo of a status; "" where it has none."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return str(info.reason)
    return ""


def is_unavailable(error: CallFailedError) -> bool:
    """Whether it may succeed elsewhere or later."""
    return bool(error.status.code == code_pb2.UNAVAILABLE)


def _status(code: str, message: str, reason: str, domain: str) -> status_pb2.Status:
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
    return status


def _name(code: int) -> str:
    return code_pb2.Code.Name(code) if code in code_pb2.Code.values() else "UNKNOWN"


def retry_delay_s(status: status_pb2.Status) -> float | None:
    """When to try again, where a status says it."""
    info = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return float(info.retry_delay.ToTimedelta().total_seconds())
    return None


def _detail(detail: any_pb2.Any) -> dict[str, Any]:
    try:
        return json_format.MessageToDict(detail)
    except (TypeError, ValueError):
        # A detail that this process does not know, or a broken one, still reaches the caller.
        value = base64.b64encode(detail.value).decode()
        return {"@type": detail.type_url, "value": value}

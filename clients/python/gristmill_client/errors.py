"""The exceptions that the client raises, one class for each meaning; knows nothing of the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FieldViolation:
    """A field that the server refused: its path in the request, and why."""

    field: str
    description: str


@dataclass(frozen=True)
class ErrorDetails:
    """What came with an error besides its message; every part may be missing."""

    status: str = ""
    reason: str = ""
    retry_after: float | None = None
    request_id: str | None = None
    field_violations: tuple[FieldViolation, ...] = ()
    preconditions: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


class GristmillError(Exception):
    """Any failure of a call, or of one item of a call.

    `message` is for people. `status` is the gRPC status by name ("NOT_FOUND"). `reason` is the
    stable reason of gristmill.errors.v1.ErrorReason without its prefix ("MODEL_NOT_FOUND"), empty
    where the failure did not come from a Gristmill server. `retry_after` is in seconds, None where
    the server gave no hint. `request_id` finds the call in the server's log. `field_violations`
    names refused fields, `preconditions` says which conditions do not hold (of an alias's gates
    "accuracy: 0.8 is not >= 0.9"), `metadata` holds the rest, such as the names of the models that
    could have been meant.
    """

    default_status = "UNKNOWN"

    def __init__(self, message: str, details: ErrorDetails | None = None) -> None:
        super().__init__(message, details)
        details = details or ErrorDetails()
        self.message = message
        self.status = details.status or self.default_status
        self.reason = details.reason
        self.retry_after = details.retry_after
        self.request_id = details.request_id
        self.field_violations = details.field_violations
        self.preconditions = details.preconditions
        self.metadata = details.metadata

    def __str__(self) -> str:
        code = f"{self.status} ({self.reason})" if self.reason else self.status
        more = [f"{v.field}: {v.description}" for v in self.field_violations]
        more += self.preconditions
        news = [part for part in more if part not in self.message]
        request = f" [request {self.request_id}]" if self.request_id else ""
        return "; ".join([f"{code}: {self.message}", *news]) + request


class InvalidRequest(GristmillError):
    """The request cannot be served as it is; `field_violations` says where."""

    default_status = "INVALID_ARGUMENT"


class OutOfRange(InvalidRequest):
    """A revision that has been compacted, or an offset past the end."""

    default_status = "OUT_OF_RANGE"


class Unauthenticated(GristmillError):
    """No token was sent, or one that is not known there."""

    default_status = "UNAUTHENTICATED"


class PermissionDenied(GristmillError):
    """The token's identity lacks the scope that `metadata["scope"]` names."""

    default_status = "PERMISSION_DENIED"


class NotFound(GristmillError):
    """No such model, version, alias, artifact or operation, or not served by that process."""

    default_status = "NOT_FOUND"


class AlreadyExists(GristmillError):
    """A resource of this name exists and differs."""

    default_status = "ALREADY_EXISTS"


class Conflict(GristmillError):
    """Another change came first: read again, then decide again."""

    default_status = "ABORTED"


class FailedPrecondition(GristmillError):
    """A gate is unmet, or the resource is in a state that does not allow this."""

    default_status = "FAILED_PRECONDITION"


class ResourceExhausted(GristmillError):
    """Something is used up; nothing was done. Try again after `retry_after` seconds."""

    default_status = "RESOURCE_EXHAUSTED"


class QuotaExceeded(ResourceExhausted):
    """This caller has used its quota."""


class Overloaded(ResourceExhausted):
    """A queue of the server is full, or this consumer read too slowly."""


class DeadlineExceeded(GristmillError):
    """The deadline has passed, or could not have been met."""

    default_status = "DEADLINE_EXCEEDED"


class Unavailable(GristmillError):
    """The server cannot be reached, is starting or is shutting down."""

    default_status = "UNAVAILABLE"


class DataLoss(GristmillError):
    """Bytes do not match their digest."""

    default_status = "DATA_LOSS"


class Unimplemented(GristmillError):
    """That server has no such call."""

    default_status = "UNIMPLEMENTED"


class Cancelled(GristmillError):
    """The call was given up, by this process or on the way."""

    default_status = "CANCELLED"


class ServerError(GristmillError):
    """The server failed; its log has the text under `request_id`."""

    default_status = "INTERNAL"

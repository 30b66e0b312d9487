"""The domain errors, and the reasons they carry. Knows no status code and no transport.

    GristmillError
    ├── InvalidRequest, UnsupportedField, ModelAmbiguous      the caller must change the request
    ├── Unauthenticated, PermissionDenied                     the caller must change who it is
    ├── NotFound, AlreadyExists, Conflict, FailedPrecondition, OutOfRange, NotImplementedYet
    ├── Overloaded, QuotaExceeded, SlowConsumer, StorageFull  the same request later
    ├── DeadlineTooShort, DeadlineExpired                     the same request with more time
    ├── ModelNotReady, EngineRestarting, Draining, UpstreamUnavailable, StorageFailed
    │                                                         elsewhere, or later
    └── DataLoss, BackendFailed                               our fault

Any other exception is a bug: the edge answers INTERNAL and withholds its text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

# The reasons on the wire; a contract test holds them against the enum in errors/v1.
INVALID_FIELD = "INVALID_FIELD"
UNSUPPORTED_FIELD = "UNSUPPORTED_FIELD"
MODEL_AMBIGUOUS = "MODEL_AMBIGUOUS"
MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
CREDENTIALS_MISSING = "CREDENTIALS_MISSING"
CREDENTIALS_INVALID = "CREDENTIALS_INVALID"
SCOPE_MISSING = "SCOPE_MISSING"
MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
VERSION_NOT_FOUND = "VERSION_NOT_FOUND"
ALIAS_NOT_FOUND = "ALIAS_NOT_FOUND"
ARTIFACT_NOT_FOUND = "ARTIFACT_NOT_FOUND"
OPERATION_NOT_FOUND = "OPERATION_NOT_FOUND"
SOURCE_NOT_FOUND = "SOURCE_NOT_FOUND"
TRAFFIC_POLICY_NOT_FOUND = "TRAFFIC_POLICY_NOT_FOUND"
MODEL_NOT_LOADED = "MODEL_NOT_LOADED"
ALREADY_EXISTS = "ALREADY_EXISTS"
ETAG_MISMATCH = "ETAG_MISMATCH"
CONCURRENT_CHANGE = "CONCURRENT_CHANGE"
LEASE_LOST = "LEASE_LOST"
GATE_UNMET = "GATE_UNMET"
WRONG_STATE = "WRONG_STATE"
WRONG_TASK = "WRONG_TASK"
WORKER_MISSING = "WORKER_MISSING"
REVISION_COMPACTED = "REVISION_COMPACTED"
OFFSET_OUT_OF_RANGE = "OFFSET_OUT_OF_RANGE"
NOT_IMPLEMENTED = "NOT_IMPLEMENTED"
CANCELLED = "CANCELLED"
QUEUE_FULL = "QUEUE_FULL"
QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
SLOW_CONSUMER = "SLOW_CONSUMER"
STORAGE_FULL = "STORAGE_FULL"
DEADLINE_TOO_SHORT = "DEADLINE_TOO_SHORT"
DEADLINE_EXPIRED = "DEADLINE_EXPIRED"
MODEL_NOT_READY = "MODEL_NOT_READY"
ENGINE_RESTARTING = "ENGINE_RESTARTING"
DRAINING = "DRAINING"
UPSTREAM_UNAVAILABLE = "UPSTREAM_UNAVAILABLE"
STORAGE_FAILED = "STORAGE_FAILED"
ARTIFACT_CORRUPT = "ARTIFACT_CORRUPT"
BACKEND_FAILED = "BACKEND_FAILED"
INTERNAL = "INTERNAL"

# The message goes to the caller's trailing metadata, twice, and to the log; clients refuse more
# than 8 KiB of the one, and the other should not be filled by whoever sends a long name.
MAX_MESSAGE_BYTES = 500


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong: a field path or a subject, and what a person can do about it."""

    field: str
    description: str


def shortened(text: str, most_bytes: int) -> str:
    """The text cut to so many bytes of UTF-8, and without what UTF-8 cannot say."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= most_bytes:
        return encoded.decode()
    return encoded[: most_bytes - 3].decode(errors="ignore") + "..."


class GristmillError(Exception):
    """An expected failure: what the caller is told, in words and in a reason a machine can read."""

    reason: ClassVar[str] = INTERNAL

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
        resource: tuple[str, str] | None = None,
    ) -> None:
        self.message = shortened(message, MAX_MESSAGE_BYTES)
        super().__init__(self.message)
        self.reason_given = reason or self.reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s
        self.resource = resource


class InvalidRequest(GristmillError):
    """A field is missing, malformed or outside its bounds."""

    reason = INVALID_FIELD

    @classmethod
    def field(cls, path: str, description: str) -> "InvalidRequest":
        """The error for one bad field."""
        return cls(f"{path}: {description}", violations=[Violation(path, description)])


class UnsupportedField(InvalidRequest):
    """A field is well formed, but this model or engine cannot honour it."""

    reason = UNSUPPORTED_FIELD


class ModelAmbiguous(InvalidRequest):
    """No model was named and several are served."""

    reason = MODEL_AMBIGUOUS


class MessageTooLarge(GristmillError):
    """A message is larger than the listener takes."""

    reason = MESSAGE_TOO_LARGE


class Unauthenticated(GristmillError):
    """There is no token, or it is not known."""

    reason = CREDENTIALS_MISSING


class PermissionDenied(GristmillError):
    """The identity lacks the scope of the method."""

    reason = SCOPE_MISSING


class NotFound(GristmillError):
    """A named resource does not exist."""

    reason = MODEL_NOT_FOUND


class AlreadyExists(GristmillError):
    """A resource of this name exists and differs."""

    reason = ALREADY_EXISTS


class Conflict(GristmillError):
    """Another change came first: read again and repeat."""

    reason = CONCURRENT_CHANGE


class FailedPrecondition(GristmillError):
    """The state of the system does not allow this."""

    reason = WRONG_STATE


class OutOfRange(GristmillError):
    """A revision or an offset lies outside what is there."""

    reason = OFFSET_OUT_OF_RANGE


class NotImplementedYet(GristmillError):
    """The contract has this RPC and this server does not."""

    reason = NOT_IMPLEMENTED


class Overloaded(GristmillError):
    """A queue is full."""

    reason = QUEUE_FULL


class QuotaExceeded(GristmillError):
    """The identity has used its quota."""

    reason = QUOTA_EXCEEDED


class SlowConsumer(GristmillError):
    """A consumer read too slowly and was cut off."""

    reason = SLOW_CONSUMER


class StorageFull(GristmillError):
    """The storage has no room left; what is durable stays, and an upload can go on later."""

    reason = STORAGE_FULL


class DeadlineTooShort(GristmillError):
    """Refused at admission: the predicted wait is longer than the time left."""

    reason = DEADLINE_TOO_SHORT


class DeadlineExpired(GristmillError):
    """The deadline passed while the work waited or ran."""

    reason = DEADLINE_EXPIRED


class ModelNotReady(GristmillError):
    """The model is loading, or none of its versions could be loaded."""

    reason = MODEL_NOT_READY


class EngineRestarting(GristmillError):
    """The engine failed and is being started again."""

    reason = ENGINE_RESTARTING


class Draining(GristmillError):
    """This process is shutting down."""

    reason = DRAINING


class UpstreamUnavailable(GristmillError):
    """A service behind this one did not answer."""

    reason = UPSTREAM_UNAVAILABLE


class StorageFailed(GristmillError):
    """The storage refused a read or a write; nothing that was acknowledged is lost.

    UNAVAILABLE rather than INTERNAL: a call that stores or reads bytes by their digest may be
    repeated as it is, another replica may have a disk that works, and the caller is told why.
    """

    reason = STORAGE_FAILED


class DataLoss(GristmillError):
    """Stored bytes do not match their digest."""

    reason = ARTIFACT_CORRUPT


class BackendFailed(GristmillError):
    """The model failed on this input; the cause is for the log, not for the caller."""

    reason = BACKEND_FAILED

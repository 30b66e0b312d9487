"""What a request's headers say: who calls, until when, under which id, with which metadata.

Reads headers only, never the path: what a method needs is decided by its full name.
"""

import itertools
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import Scope

from gateway.ratelimit import Limiter, refusal
from services.runtime.auth import ALL_SCOPES, PUBLIC, Authenticator, Credentials
from services.runtime.auth import SCOPES as AUTH_SCOPES
from services.runtime.call import Identity
from services.runtime.errors import InvalidRequest

REQUEST_ID = "x-request-id"
TIMEOUT = "x-gristmill-timeout-ms"
GRPC_TIMEOUT = "grpc-timeout"
IDENTITY = "x-gristmill-identity"
SCOPES = "x-gristmill-scopes"
METADATA_PREFIX = "grpc-metadata-"
MAX_TIMEOUT_S = 86400.0

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_GRPC_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_KEY = re.compile(r"[a-z0-9_.-]{1,64}")
_TRACE = ("traceparent", "tracestate")
# Keys that a caller must not set on the gateway's own calls.
_RESERVED = ("grpc-", "x-gristmill-", "authorization", REQUEST_ID, *_TRACE)
# Those that HTTP/2 keeps for itself.
_OF_HTTP = (
    *("connection", "content-length", "content-type", "host", "keep-alive", "proxy-connection"),
    *("te", "trailer", "transfer-encoding", "upgrade", "user-agent"),
)

Metadata = tuple[tuple[str, str], ...]


class RequestIds:
    """Gives each request an id: the caller's own where it is well formed, else a fresh one."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._count = itertools.count(1)

    def of(self, given: str) -> str:
        """The id for a request whose header says `given`."""
        return given if _REQUEST_ID.fullmatch(given) else f"{self._prefix}-{next(self._count):x}"


@dataclass(frozen=True, slots=True)
class Delegation:
    """How the gateway presents itself upstream: with its own token, or with the caller's."""

    token: str = ""

    def metadata(self, identity: Identity, headers: Mapping[str, str]) -> Metadata:
        """The credentials to send upstream for a caller."""
        if not self.token:
            passed = ((key, headers.get(key, "")) for key in ("authorization", IDENTITY, SCOPES))
            return tuple((key, _carried(key, value)) for key, value in passed if value)
        scopes = ",".join(sorted((identity.scopes & ALL_SCOPES) - {"delegate"}))
        return (
            ("authorization", f"Bearer {self.token}"),
            (IDENTITY, identity.name),
            (SCOPES, scopes),
        )


class Callers:
    """Lets callers in: who they are, whether they may, and whether not too often."""

    def __init__(
        self, authenticator: Authenticator, delegation: Delegation, limiter: Limiter, rate: float
    ) -> None:
        self._authenticator = authenticator
        self._delegation = delegation
        self._limiter = limiter
        self._rate = rate

    async def admit(self, method: str, scope: Scope, headers: Mapping[str, str]) -> Metadata:
        """Metadata for a call of `method`; Unauthenticated, PermissionDenied or QuotaExceeded."""
        identity = self._authenticator.authorize(
            method,
            Credentials(
                headers.get("authorization", ""), headers.get(IDENTITY, ""), headers.get(SCOPES, "")
            ),
        )
        scope["gristmill.identity"] = identity.name
        name = identity.name if self._authenticator.enabled else _address(scope)
        wait_s = await self._limiter.wait_s(name)
        if wait_s > 0:
            raise refusal(name, self._rate, wait_s)
        # Who is let in without being known gets no word of ours for what it may do.
        known = () if _public(method) else self._delegation.metadata(identity, headers)
        return (
            *known,
            *passed_on(headers),
            (REQUEST_ID, scope["gristmill.request_id"]),
        )

    async def close(self) -> None:
        """Let go of what the limits hold."""
        await self._limiter.close()


def _public(method: str) -> bool:
    return AUTH_SCOPES.get(method) == PUBLIC


def _address(scope: Scope) -> str:
    """The client's address."""
    client = scope.get("client")
    return str(client[0]) if client else "local"


def timeout_s(headers: Mapping[str, str], default_s: float) -> float:
    """The time that the caller gives, from either header; `default_s` where it gives none."""
    given = headers.get(TIMEOUT)
    if given is not None:
        if not (given.isascii() and given.isdigit() and len(given) <= 9):
            raise InvalidRequest.field(TIMEOUT, "must be milliseconds, such as 2500")
        return _bounded(TIMEOUT, int(given) / 1000)
    given = headers.get(GRPC_TIMEOUT)
    if given is None:
        return default_s
    found = _GRPC_TIMEOUT.fullmatch(given)
    if not found:
        raise InvalidRequest.field(GRPC_TIMEOUT, "must be a number and a unit, such as 2500m")
    return _bounded(GRPC_TIMEOUT, int(found[1]) * _UNITS[found[2]])


def _bounded(header: str, seconds: float) -> float:
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise InvalidRequest.field(header, "must be more than 0 and at most a day")
    return seconds


def passed_on(headers: Mapping[str, str]) -> Metadata:
    """The trace of the caller, and what it sends as `grpc-metadata-<key>`."""
    found = [(key, headers[key]) for key in _TRACE if key in headers]
    for header, value in headers.items():
        if not header.startswith(METADATA_PREFIX):
            continue
        key = header.removeprefix(METADATA_PREFIX)
        taken = key.startswith(_RESERVED) or key in _OF_HTTP or key.endswith("-bin")
        if taken or not _KEY.fullmatch(key):
            raise InvalidRequest.field(header, "this metadata key cannot be set")
        found.append((key, value))
    return tuple((key, _carried(key, value)) for key, value in found)


def _carried(key: str, value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise InvalidRequest.field(key, "has characters that metadata cannot carry")
    return value

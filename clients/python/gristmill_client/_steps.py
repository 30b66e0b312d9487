"""The steps that an operation is made of; whether they block or await is their performer's.

An operation is a generator that yields steps and is sent their results, so the sync and the async
client run the very same operation, each performing its steps in its own way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

import grpc

from gristmill_client import errors
from gristmill_client._config import Service
from gristmill_client._files import LocalFile, PartialFile

Stub = TypeVar("Stub")
Request = TypeVar("Request")
Response = TypeVar("Response")
T = TypeVar("T")

# One call that moves bytes is cut after this long and resumed: so even a stalled one ends.
TRANSFER_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Call:
    """A unary call on the stub of a service; `timeout` in seconds, None for the client's own."""

    service: Service
    stub: Callable[[grpc.Channel], Any]
    method: Callable[[Any], Any]
    request: object
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """Work on local files, which must not hold up an event loop."""

    run: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing for that many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Upload:
    """One UploadArtifact call; `on_durable` hears of every durable offset."""

    version: str
    file: LocalFile
    on_durable: Callable[[int], None]
    service: Service = "registry"


@dataclass(frozen=True, slots=True)
class Download:
    """One DownloadArtifact call from where the file ends; `on_written` hears of each new length."""

    version: str
    path: str
    file: PartialFile
    on_written: Callable[[int], None]
    service: Service = "registry"


Step: TypeAlias = Call | Work | Pause | Upload | Download
Flow: TypeAlias = Generator[Step, Any, T]


def call(
    service: Service,
    stub: Callable[[grpc.Channel], Stub],
    method: Callable[[Stub], grpc.UnaryUnaryMultiCallable[Request, Response]],
    request: Request,
    timeout: float | None = None,
) -> Flow[Response]:
    """A call as a step of a flow: `response = yield from call(...)`."""
    return cast(Response, (yield Call(service, stub, method, request, timeout)))


def work(run: Callable[[], T]) -> Flow[T]:
    """Work as a step of a flow: `result = yield from work(...)`."""
    return cast(T, (yield Work(run)))


class Patience:
    """Decides how long to wait before the next try of something that was cut.

    0.1 s doubling to 5 s, each drawn between half and the whole so that many clients do not come
    back at once. After `limit` failures without progress in between it gives up. `also` names
    errors that are worth another try besides those that cut the work off.
    """

    def __init__(
        self,
        limit: int = 8,
        rng: Callable[[], float] = random.random,
        also: tuple[type[errors.GristmillError], ...] = (),
    ) -> None:
        self._limit = limit
        self._also = also
        self._rng = rng
        self._failures = 0

    def progressed(self) -> None:
        self._failures = 0

    def pause(self, error: errors.GristmillError) -> float:
        """The seconds to wait. Raises the error itself where trying again is no use."""
        self._failures += 1
        worth_it = is_cut(error) or isinstance(error, self._also)
        if not worth_it or self._failures > self._limit:
            raise error
        whole = min(5.0, 0.1 * (1 << (self._failures - 1)))
        return max(min(error.retry_after or 0.0, 60.0), whole * (0.5 + self._rng() / 2))


def is_cut(error: errors.GristmillError) -> bool:
    """Whether the work may go on where the error cut it off."""
    return (
        isinstance(error, (errors.Unavailable, errors.DeadlineExceeded))
        or error.reason == "SLOW_CONSUMER"
    )

"""What is known of the call in hand: who, until when, under which request id."""

from contextvars import ContextVar
from dataclasses import dataclass, field

from services.runtime.deadline import Deadline


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls, and what it may do."""

    name: str
    scopes: frozenset[str]


@dataclass(slots=True)
class Call:
    """One call. `deadline` is always set: a call without one gets the server's default."""

    method: str
    request_id: str
    identity: Identity
    deadline: Deadline
    metadata: dict[str, str] = field(default_factory=dict)
    bounded: bool = True
    """The caller gave the deadline; an open stream without one is not ended by the default."""


_CURRENT: ContextVar[Call] = ContextVar("gristmill_call")


def current_call() -> Call:
    """The call that this task serves."""
    return _CURRENT.get()


def enter(call: Call) -> None:
    """Make `call` the one in hand for the rest of this task."""
    _CURRENT.set(call)

"""What is known of one piece of long work; knows no wire."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from gristmill_client.errors import GristmillError

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class OperationState(Generic[R]):
    """Long work as it stood at one moment.

    `kind` is "finalize", "import", "convert", "evaluate" or "profile", `subject` the full name of
    the model or version that it is on, `progress` from 0 to 1, `message` what is being done, for
    people. Once it is `done` either `result` (a Version, of a profile a Profile) or `error` is set.
    """

    name: str
    kind: str
    subject: str
    progress: float
    message: str
    done: bool
    error: GristmillError | None
    result: R | None
    create_time: datetime | None
    end_time: datetime | None
    cancel_requested: bool

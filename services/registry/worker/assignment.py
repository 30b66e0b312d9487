"""What a worker is given to do, and what may come of it. Knows no wire, no model, no database."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from services.registry.jobs import FailureRecord, JobKind
from services.registry.resources import (
    LineageRecord,
    ProfileRecord,
    RejectionRecord,
    SignatureRecord,
    Task,
    VersionRecord,
)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A leased job."""

    operation: str
    lease: str
    lease_s: float
    kind: JobKind
    version: VersionRecord
    task: Task
    request: dict[str, Any] = field(default_factory=dict)
    dataset: VersionRecord | None = None


@dataclass(frozen=True, slots=True)
class Validated:
    """What was found out about a version; no rejections: it can be served."""

    rejections: tuple[RejectionRecord, ...]
    signature: SignatureRecord | None
    manifest: str = ""
    """The text of a manifest that was inferred; empty where the version brought one."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion made: a version that is uploaded and not yet finalized."""

    version: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluation measured."""

    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Profiled:
    """What a profile measured."""

    profile: ProfileRecord
    metrics: dict[str, float]


Outcome = Validated | Converted | Evaluated | Profiled | FailureRecord


class Desk(Protocol):
    """Where a worker gets its jobs, and leaves what came of them."""

    async def lease(
        self, worker: str, kinds: Sequence[JobKind], wait_s: float
    ) -> Assignment | None:
        """The next job; None when there was none for so long."""
        ...

    async def renew(self, job: Assignment, progress: float, message: str) -> bool:
        """Keep the lease; True when the work should stop. Conflict where the lease is lost."""
        ...

    async def release(self, job: Assignment) -> None:
        """Give a job back that was not done."""
        ...

    async def fetch(self, version: VersionRecord, path: str, target: Path) -> None:
        """Bring one artifact into a file that is not there yet, checked against its digest."""
        ...

    async def publish(
        self,
        job: Assignment,
        folder: Path,
        files: Sequence[str],
        metrics: dict[str, float],
        lineage: LineageRecord,
    ) -> str:
        """Make files a new version of the job's model, uploaded, not finalized; gives its name."""
        ...

    async def complete(self, job: Assignment, outcome: Outcome) -> None:
        """End the job. Conflict where the lease is lost."""
        ...

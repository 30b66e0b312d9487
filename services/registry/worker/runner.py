"""The worker's loop: lease a job, bring its files, run it confined, leave what came of it.

Knows neither the wire nor any model. The lease is kept while the work goes on; when it is lost, or
the operation is cancelled, the child is ended.
"""

import asyncio
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.registry.jobs import FailureRecord, JobKind
from services.registry.resources import (
    LineageRecord,
    ProfileRecord,
    RejectionRecord,
    SignatureRecord,
    VersionRecord,
)
from services.registry.worker.assignment import (
    Assignment,
    Converted,
    Desk,
    Evaluated,
    Outcome,
    Profiled,
    Validated,
)
from services.registry.worker.folders import DATA, DATA_FILE, MODEL, OUT
from services.registry.worker.sandbox import ChildLost, Sandbox
from services.runtime import logs
from services.runtime.errors import (
    Conflict,
    DataLoss,
    Draining,
    GristmillError,
    NotFound,
    StorageFailed,
    UpstreamUnavailable,
)

KINDS: tuple[JobKind, ...] = ("finalize", "convert", "evaluate", "profile")
LEASE_WAIT_S = 30.0
RETRY_S = 2.0


@dataclass(slots=True)
class _Told:
    """How far the work is, as its child last said."""

    progress: float = 0.0
    message: str = ""

    def hear(self, progress: float, message: str) -> None:
        self.progress, self.message = min(1.0, max(0.0, progress)), message


@dataclass(frozen=True, slots=True)
class Runner:
    """Does jobs from one desk, one after the other."""

    desk: Desk
    sandbox: Sandbox = field(default_factory=Sandbox)
    model_work: bool = True
    """Load models too; without, files are checked and no more."""
    allow_pickle: bool = False
    scratch: Path | None = None
    """Folder for the files of jobs in hand; None: the system's."""
    kinds: Sequence[JobKind] = KINDS

    async def run(self) -> None:
        """Work until the registry in this process drains."""
        name = f"{os.uname().nodename}-{os.getpid()}"
        while True:
            try:
                job = await self.desk.lease(name, self.kinds, LEASE_WAIT_S)
                if job is not None:
                    await self.do(job)
            except Draining:
                return
            except GristmillError as error:
                logs.get_logger().warning("worker pauses", error=error.message, pause_s=RETRY_S)
                await asyncio.sleep(RETRY_S)
            except Exception:
                # One job must not take the worker with it.
                logs.get_logger().exception("worker pauses", pause_s=RETRY_S)
                await asyncio.sleep(RETRY_S)

    async def once(self) -> bool:
        """Do the next job, if there is one now."""
        job = await self.desk.lease("once", self.kinds, 0)
        if job is None:
            return False
        await self.do(job)
        return True

    async def do(self, job: Assignment) -> None:
        """Do one job to its end, whatever that is."""
        told = _Told()
        working = asyncio.ensure_future(self._outcome(job, told))
        keeping = asyncio.ensure_future(self._keep(job, told))
        try:
            await asyncio.wait((working, keeping), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                if not keeping.result():
                    return
                outcome: Outcome = FailureRecord(
                    status="CANCELLED", reason="CANCELLED", message="the operation was cancelled"
                )
            else:
                outcome = working.result()
            with suppress(Conflict):  # somebody else has it: what was done here does not count
                await self.desk.complete(job, outcome)
        except (asyncio.CancelledError, UpstreamUnavailable, StorageFailed):
            # Nothing was found out about the work: somebody may begin it anew.
            await _ended(working, keeping)
            with suppress(GristmillError):
                await self.desk.release(job)
            raise
        finally:
            await _ended(working, keeping)

    async def _keep(self, job: Assignment, told: _Told) -> bool:
        """Renew until the operation is cancelled (True) or the lease is lost (False)."""
        while True:
            await asyncio.sleep(job.lease_s / 4)
            try:
                if await self.desk.renew(job, told.progress, told.message):
                    return True
            except (Conflict, NotFound):
                logs.get_logger().warning("lease lost", operation=job.operation)
                return False
            except GristmillError as error:
                # The lease outlives several of these.
                logs.get_logger().warning("lease not renewed", error=error.message)

    async def _outcome(self, job: Assignment, told: _Told) -> Outcome:
        try:
            with tempfile.TemporaryDirectory(dir=self.scratch, prefix="job-") as folder:
                return await self._work(job, Path(folder), told)
        except ChildLost as error:
            if job.kind == "finalize":
                lost = RejectionRecord(path="", rule="check-lost", message=str(error))
                return Validated((lost,), None)
            return _failure(error, "INTERNAL", "BACKEND_FAILED")
        except DataLoss as error:
            if job.kind == "finalize":
                lost = RejectionRecord(path="", rule="digest", message=error.message)
                return Validated((lost,), None)
            return _failure(error, "DATA_LOSS", error.reason_given)
        except (UpstreamUnavailable, StorageFailed):
            raise
        except GristmillError as error:
            return _failure(error, "FAILED_PRECONDITION", error.reason_given)
        except Exception:
            logs.get_logger().exception("a job failed", operation=job.operation)
            said = "the worker failed; its log has the cause under this operation"
            return FailureRecord(status="INTERNAL", reason="INTERNAL", message=said)

    async def _work(self, job: Assignment, folder: Path, told: _Told) -> Outcome:
        await self._bring(job.version, folder / MODEL)
        if job.dataset is not None:
            await self._bring(job.dataset, folder / DATA, only=DATA_FILE)
        spec = {
            "kind": job.kind,
            "model": job.version.model,
            "task": job.task,
            "paths": [artifact.path for artifact in job.version.artifacts],
            "request": job.request,
            "model_work": self.model_work,
            "allow_pickle": self.allow_pickle,
        }
        found = await self.sandbox.run(spec, folder, told.hear)
        return await self._read(job, folder, found)

    async def _bring(self, version: VersionRecord, folder: Path, only: str = "") -> None:
        for artifact in version.artifacts:
            if not only or artifact.path == only:
                target = folder / artifact.path
                target.parent.mkdir(parents=True, exist_ok=True)
                await self.desk.fetch(version, artifact.path, target)

    async def _read(self, job: Assignment, folder: Path, found: dict[str, Any]) -> Outcome:
        """The child's words as an outcome."""
        if job.kind == "finalize":
            signature = found["signature"]
            return Validated(
                tuple(RejectionRecord(**r) for r in found["rejections"][:1000]),
                SignatureRecord(**signature) if signature else None,
                found["manifest"] or "",
            )
        if job.kind == "evaluate":
            return Evaluated(found)
        if job.kind == "profile":
            return Profiled(ProfileRecord.model_validate(found["profile"]), found["metrics"])
        lineage = LineageRecord(
            parent_version=job.version.version,
            conversion=found["conversion"],
            facts=found["facts"],
        )
        name = await self.desk.publish(job, folder / OUT, found["files"], found["metrics"], lineage)
        return Converted(name)


async def _ended(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _failure(error: Exception, status: str, reason: str) -> FailureRecord:
    return FailureRecord(status=status, reason=reason, message=str(error))

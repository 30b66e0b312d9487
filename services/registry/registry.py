"""The registry put together: stores, use cases, calls, and what runs beside the calls."""

import asyncio
import fcntl
import shutil
from collections.abc import Coroutine
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import IO, Any

from gristmill.registry.v1 import registry_service_pb2_grpc as rpc
from gristmill.registry.v1 import worker_service_pb2_grpc as worker_rpc

from services.registry import operations
from services.registry.config import RegistryConfig
from services.registry.database import Database
from services.registry.desk import LocalDesk
from services.registry.importer import Importer
from services.registry.jobs import Jobs
from services.registry.lifecycle import Lifecycle
from services.registry.models import Models
from services.registry.pointers import Pointers
from services.registry.servicer import RegistryServicer
from services.registry.sources import Sources
from services.registry.storage.blobs import Blobs, open_blobs
from services.registry.storage.collect import Collector
from services.registry.store import Store, utc_now
from services.registry.watch import Watch
from services.registry.worker.confine import Limits, keep_from_children
from services.registry.worker.runner import Runner
from services.registry.worker.sandbox import Sandbox
from services.registry.worker_calls import WorkerServicer
from services.registry.write import Clock
from services.runtime import logs, metrics
from services.runtime.errors import GristmillError
from services.runtime.server import CannotStart, Service

HOUSEKEEPING_S = 600.0


class Registry:
    """One registry process below its wire."""

    def __init__(self, config: RegistryConfig, clock: Clock = utc_now) -> None:
        self.config = config
        self._scratch = config.data_dir / "scratch"
        self._lock = _only_one(config)
        try:
            self.database = Database(config.database or config.data_dir / "registry.db")
            self.blobs: Blobs = open_blobs(
                config.artifacts or str(config.data_dir / "artifacts"),
                config.fsync_every_bytes,
                config.artifact_options,
            )
            self.sources = Sources(config.sources, config.import_max_bytes)
        except (ValueError, OSError) as error:
            raise CannotStart(str(error)) from error
        self.store = Store(self.database, clock)
        self.models = Models(self.store)
        self.pointers = Pointers(self.store)
        self.jobs = Jobs(self.store, config.lease)
        self.lifecycle = Lifecycle(self.store, self.blobs, self.jobs, self._scratch)
        self.desk = LocalDesk(self.store, self.blobs, self.models, self.lifecycle)
        self.watch = Watch(self.store, config.watch_page)
        self._beside: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Bring the schema up to date, and begin what runs beside the calls."""
        # What a killed process left of jobs in hand.
        with suppress(FileNotFoundError):
            await asyncio.to_thread(shutil.rmtree, self._scratch)
        self._scratch.mkdir(parents=True)
        await self.database.migrate()
        if self.database.dialect == "sqlite":
            await self.jobs.release_all()
        self.database.listen(self.store.changed)
        metrics.REVISION.set(await self.store.revision())
        if self.config.worker != "external":
            keep_from_children()
            self._run(self.runner().run())
        self._run(self.importer().run())
        self._run(self._keep_house())

    def runner(self) -> Runner:
        """A worker in this process, whose children do the work."""
        config = self.config
        limits = Limits(config.worker_memory_bytes, round(config.worker_time_s))
        python = {"python": config.worker_python} if config.worker_python else {}
        return Runner(
            self.desk,
            Sandbox(limits, config.worker_time_s, **python),
            model_work=config.worker != "headers",
            allow_pickle=config.allow_pickle,
            scratch=self._scratch,
        )

    def importer(self) -> Importer:
        """What brings models from the sources that are configured."""
        staging = self.config.data_dir / "imports"
        return Importer(self.jobs, self.lifecycle, self.models, self.blobs, self.sources, staging)

    def service(self) -> Service:
        """What a server serves of it."""
        # What the servicer lacks, the generated base answers with UNIMPLEMENTED.
        servicer = RegistryServicer(self)
        jobs = WorkerServicer(self.desk, self.jobs, self.store)
        return Service(
            "registry",
            servicers=[
                (rpc.add_RegistryServiceServicer_to_server, servicer),
                (worker_rpc.add_WorkerServiceServicer_to_server, jobs),
            ],
            handlers={operations.SERVICE.full_name: operations.handlers(self.jobs, self.lifecycle)},
            on_drain=[self.watch.drain, self.jobs.drain, servicer.draining.set],
            on_close=[self.close],
        )

    async def close(self) -> None:
        """End what runs beside, and let go of everything."""
        self.jobs.drain()
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        await self.watch.close()
        await self.blobs.close()
        await self.database.close()
        if self._lock is not None:
            self._lock.close()

    async def keep_house(self) -> None:
        """Drop what nobody needs any more: request ids, ended operations, old revisions."""
        await self.store.forget_requests()
        await self.jobs.forget()
        await self.store.compact(self.config.watch_keep_changes)

    async def collect(self) -> None:
        """Remove bytes that no version holds."""
        age = timedelta(seconds=self.config.collect_min_age_s)
        collector = Collector(self.blobs, self.store.unreferenced, age, lambda: datetime.now(UTC))
        found = await collector.collect()
        if found.blobs or found.parts:
            logs.get_logger().info(
                "collected", blobs=found.blobs, parts=found.parts, bytes=found.bytes
            )

    async def _keep_house(self) -> None:
        loop = asyncio.get_running_loop()
        collect_at = loop.time() + self.config.collect_every_s
        while True:
            try:
                await self.keep_house()
                if self.config.collect_every_s and loop.time() >= collect_at:
                    collect_at = loop.time() + self.config.collect_every_s
                    await self.collect()
            except GristmillError as error:
                logs.get_logger().warning("housekeeping failed", error=error.message)
            await asyncio.sleep(min(HOUSEKEEPING_S, self.config.collect_every_s or HOUSEKEEPING_S))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(_complain)
        self._beside.append(task)


def _complain(task: asyncio.Task[None]) -> None:
    """What runs beside never ends by itself."""
    if not task.cancelled() and (error := task.exception()):
        logs.get_logger().error("a part of the registry ended", exc_info=error)


def _only_one(config: RegistryConfig) -> IO[str] | None:
    """The lock of an embedded database: changes are announced within one process only."""
    config.data_dir.mkdir(parents=True, exist_ok=True)
    if config.database:
        return None
    lock = (config.data_dir / "registry.lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        said = f"another registry runs over {config.data_dir}; replicas need PostgreSQL (database)"
        raise CannotStart(said) from error
    return lock

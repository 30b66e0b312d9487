"""The connection to the database: SQLite in a file or PostgreSQL. Knows no resource.

On both there is one writer at a time: SQLite has one lock for all of it, and on PostgreSQL every
writing transaction begins by locking the row of `registry`. So revisions are given in the order of
commits, on all replicas, and nothing has to be tried again for a conflict.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.registry.tables import REGISTRY
from services.runtime import logs
from services.runtime.errors import (
    InvalidRequest,
    StorageFailed,
    StorageFull,
    UpstreamUnavailable,
)

Dialect = Literal["sqlite", "postgresql"]
CHANNEL = "gristmill_registry"
RELISTEN_S = 1.0
_DISK_FULL = "53100"
_NO_VALUE = "22"
"""The class of values that PostgreSQL does not take, such as a text with a NUL."""
_MIGRATING = 7_203_114
"""The number of the lock that one replica holds while it migrates."""


class Database:
    """One database: writers in turn, readers beside them."""

    def __init__(self, where: Path | str, pool_size: int = 8) -> None:
        """`where` is the file of an embedded database, or a URL postgresql://user@host/name."""
        options: dict[str, Any] = {}
        if isinstance(where, Path):
            where.parent.mkdir(parents=True, exist_ok=True)
            self.dialect: Dialect = "sqlite"
            url = make_url(f"sqlite+aiosqlite:///{where}")
        else:
            self.dialect = "postgresql"
            url = _postgresql(where)
            options = {"pool_size": pool_size, "max_overflow": 0, "pool_pre_ping": True}
        self._url = url
        self._engine: AsyncEngine = create_async_engine(url, **options)
        self._writer = asyncio.Lock()
        self._listening: asyncio.Task[None] | None = None
        if self.dialect == "sqlite":
            event.listen(self._engine.sync_engine, "connect", _configure)
            event.listen(self._engine.sync_engine, "begin", _begin)

    async def migrate(self) -> None:
        """Bring the schema up to date, with the data in it; replicas take turns."""
        with _translated():
            async with self._engine.execution_options(write=True).begin() as connection:
                if self.dialect == "postgresql":
                    await connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATING})"))
                await connection.run_sync(_upgrade)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes; durable once left without an exception."""
        with _translated():
            async with self._writer, self._engine.execution_options(write=True).begin() as opened:
                if self.dialect == "postgresql":
                    await opened.execute(select(REGISTRY.c.id).with_for_update())
                yield opened

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one state of the database throughout."""
        with _translated():
            async with self._engine.connect() as connection:
                if self.dialect == "postgresql":
                    await connection.execution_options(isolation_level="REPEATABLE READ")
                async with connection.begin():
                    yield connection

    async def announce(self, connection: AsyncConnection, revision: int) -> None:
        """Tell the other replicas of a revision, at the moment it is committed."""
        if self.dialect == "postgresql":
            said = text("SELECT pg_notify(:channel, :revision)")
            await connection.execute(said, {"channel": CHANNEL, "revision": str(revision)})

    def listen(self, heard: Callable[[int], None]) -> None:
        """Call `heard` with each revision announced; with 0 when some may have been missed."""
        if self.dialect == "postgresql":
            self._listening = asyncio.create_task(self._listen(heard))

    async def _listen(self, heard: Callable[[int], None]) -> None:
        import asyncpg  # only where it is the database

        while True:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                ended = asyncio.Event()
                plain = self._url.set(drivername="postgresql")
                connection = await asyncpg.connect(plain.render_as_string(hide_password=False))
                try:
                    connection.add_termination_listener(lambda _, ended=ended: ended.set())
                    await connection.add_listener(
                        CHANNEL, lambda _c, _p, _n, payload: heard(int(payload))
                    )
                    heard(0)
                    await ended.wait()
                finally:
                    await connection.close(timeout=1)
            logs.get_logger().warning("announcements of the database are cut", pause_s=RELISTEN_S)
            await asyncio.sleep(RELISTEN_S)

    async def close(self) -> None:
        """Close all connections."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        await self._engine.dispose()


def _postgresql(where: str) -> Any:
    try:
        url = make_url(where)
    except ArgumentError as error:
        raise ValueError("database: is no URL such as postgresql://user@host/name") from error
    if url.get_backend_name() != "postgresql":
        raise ValueError(f"database: {url.get_backend_name()} is not one of: postgresql")
    return url.set(drivername="postgresql+asyncpg")


@contextmanager
def _translated() -> Any:
    """A database that is full, broken or away, in the words of the callers."""
    try:
        yield
    except DBAPIError as error:
        said = str(error.orig).lower()
        if "disk is full" in said or getattr(error.orig, "sqlstate", "") == _DISK_FULL:
            raise StorageFull("the disk of the database is full; nothing was changed") from error
        if "disk i/o error" in said or "readonly database" in said:
            raise StorageFailed("the disk of the database failed") from error
        if str(getattr(error.orig, "sqlstate", "") or "").startswith(_NO_VALUE):
            raise InvalidRequest("a value is none that the database can hold") from error
        if error.connection_invalidated or "database is locked" in said or _away(error.orig):
            raise UpstreamUnavailable("the database did not answer") from error
        raise
    except (OSError, PoolTimeout) as error:
        raise UpstreamUnavailable("the database did not answer") from error


def _away(error: BaseException | None) -> bool:
    """Whether PostgreSQL says that it goes, or that it takes no more connections."""
    state = str(getattr(error, "sqlstate", "") or "")
    return state[:2] in ("08", "53", "57")


def _configure(connection: Any, record: Any) -> None:
    # The driver must not begin transactions of its own: `_begin` says which kind.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "busy_timeout=10000",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")

"""A database of the first schema is brought up to date with all that is in it."""

import asyncio
import json
import math
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import MetaData, Table, select
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from services.registry import database as present
from services.registry.database import Database
from services.registry.resources import VersionRecord
from services.registry.tables import ARTIFACTS, METADATA
from services.registry.watch import Selection
from tests.postgres import Postgres
from tests.unit.registry.parts import MANIFEST, artifact, by, opened, sha, weights

MOMENT = "2026-01-02T03:04:05.678901Z"
ROW_TIME = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
FILES = {"model.yaml": MANIFEST, "model.onnx": weights(b"1")}
OTHER = {"model.yaml": MANIFEST, "model.onnx": weights(b"2")}
MODEL: dict[str, Any] = {
    "id": "m",
    "task": "classification",
    "description": "old",
    "labels": {"team": "nlp"},
    "etag": "m1",
    "create_time": MOMENT,
    "update_time": MOMENT,
    "archive_time": None,
    "latest_version": 2,
}


def version(number: int, files: dict[str, bytes], state: str) -> dict[str, Any]:
    """A version as the old code wrote it: its signature knew no tensors."""
    return {
        "model": "m",
        "version": number,
        "state": state,
        "artifacts": [artifact(path, data).model_dump() for path, data in files.items()],
        "description": "",
        "labels": {},
        "metrics": {"accuracy": 0.9, "loss": "NaN"},
        "signature": {
            "input_kinds": ["text"],
            "labels": ["negative", "positive"],
            "multi_label": False,
            "max_tokens": 128,
        },
        "lineage": None,
        "rejections": [],
        "etag": f"v{number}",
        "create_time": MOMENT,
        "ready_time": MOMENT if state == "ready" else None,
        "creator": "ann",
    }


VERSIONS = [version(1, FILES, "ready"), version(2, OTHER, "uploading")]
ALIAS: dict[str, Any] = {
    "model": "m",
    "alias": "live",
    "version": 1,
    "gates": [{"metric": "accuracy", "comparison": "at_least", "value": 0.5, "holder_plus": None}],
    "etag": "a1",
    "update_time": MOMENT,
}


def rows() -> list[tuple[str, dict[str, Any]]]:
    """What the old code had in its tables after it had made these resources."""
    found: list[tuple[str, dict[str, Any]]] = [
        (
            "models",
            {
                "model": "m",
                "task": "classification",
                "latest_version": 2,
                "body": json.dumps(MODEL),
            },
        ),
        ("aliases", {"model": "m", "alias": "live", "version": 1, "body": json.dumps(ALIAS)}),
        (
            "requests",
            {
                "identity": "ann",
                "request_id": "old",
                "method": "/registry/Method",
                "digest": "d",
                "resource": "models/m",
                "commit_time": ROW_TIME,
            },
        ),
    ]
    for body in VERSIONS:
        key = {"model": "m", "version": body["version"], "state": body["state"]}
        found.append(("versions", {**key, "body": json.dumps(body)}))
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("models/m", "model", MODEL),
        ("models/m/versions/1", "version", VERSIONS[0]),
        ("models/m/versions/2", "version", VERSIONS[1]),
        ("models/m/aliases/live", "alias", ALIAS),
    ]
    # One change was rolled back: its number is used by nobody.
    for revision, (name, resource, body) in zip((1, 2, 4, 5), steps, strict=True):
        change = {"revision": revision, "commit_time": ROW_TIME, "actor": "ann", "model": "m"}
        change |= {"name": name, "kind": "created", "resource": resource, "before": None}
        found.append(("changes", {**change, "after": json.dumps(body), "request_id": "c"}))
    return found


@dataclass(frozen=True)
class Old:
    """Where a database of the first schema is."""

    root: Path
    database: str

    @property
    def url(self) -> str:
        """For a connection of the test's own."""
        if self.database:
            return self.database.replace("postgresql:", "postgresql+asyncpg:")
        return f"sqlite+aiosqlite:///{self.root / 'registry.db'}"

    def run(self, work: Callable[[Connection], None]) -> None:
        """Do something in a transaction."""

        async def within() -> None:
            engine = create_async_engine(self.url)
            async with engine.begin() as connection:
                await connection.run_sync(work)
            await engine.dispose()

        asyncio.run(within())


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Old:
    """An empty database of the first schema."""
    root = tmp_path / "registry"
    root.mkdir()
    url = ""
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("server")
        url = server.database()
    found = Old(root, url)
    found.run(_first_schema)
    return found


@pytest.fixture
def old(empty: Old) -> Old:
    """A database as the old code left it."""
    empty.run(_fill)
    return empty


def _first_schema(connection: Connection) -> None:
    config = Config()
    folder = Path(present.__file__).with_name("migrations")
    config.set_main_option("script_location", str(folder))
    config.attributes["connection"] = connection
    command.upgrade(config, "0001")


def _fill(connection: Connection) -> None:
    for table, values in rows():
        known = Table(table, MetaData(), autoload_with=connection)
        connection.execute(known.insert().values(**values))


async def test_all_that_was_there_is_there(old: Old) -> None:
    async with opened(old.root, database=old.database) as parts:
        model = await parts.store.model("m")
        assert (model.description, model.labels, model.etag) == ("old", {"team": "nlp"}, "m1")
        assert model.create_time == ROW_TIME
        for body in VERSIONS:
            found = await parts.store.version("m", body["version"])
            known = VersionRecord.model_validate_json(json.dumps(body))
            assert found.model_dump(exclude={"metrics"}) == known.model_dump(exclude={"metrics"})
            assert found.metrics["accuracy"] == 0.9
            assert math.isnan(found.metrics["loss"])
            assert found.signature is not None
            assert (found.signature.max_tokens, found.signature.inputs) == (128, ())
        alias = await parts.store.alias("m", "live")
        assert (alias.version, alias.gates[0].value, alias.etag) == (1, 0.5, "a1")
        resolved, why = await parts.store.resolve("m", 0, "")
        assert (resolved.version, why) == (1, "live")


async def test_revisions_go_on_where_the_old_history_ends(old: Old) -> None:
    async with opened(old.root, database=old.database) as parts:
        assert await parts.store.revisions() == (0, 5)
        await parts.model("n")
        await parts.pointers.set_alias(by(), "models/m/aliases/next", 1, None, "", dry=False)
        changes = await parts.store.changes(0, 100)
        assert [change.revision for change in changes] == [1, 2, 4, 5, 6, 7]
        times = [change.commit_time for change in changes]
        assert times == sorted(times)
        assert changes[0].commit_time == ROW_TIME
        was = await parts.store.at("models/m/aliases/live", times[3])
        assert was == await parts.store.alias("m", "live")
    async with opened(old.root, database=old.database) as parts:
        assert await parts.store.revisions() == (0, 7)


async def test_a_watch_goes_on_from_an_old_revision(old: Old) -> None:
    async with opened(old.root, database=old.database) as parts:
        seen = []
        async with aclosing(parts.watch.events(2, Selection(), 30)) as events:
            async for event in events:
                seen.append(event.revision)
                if len(seen) == 2:
                    await parts.model("n")
                if len(seen) == 3:
                    break
        assert seen == [4, 5, 6]


async def test_what_old_versions_hold_is_not_collected(old: Old) -> None:
    async with opened(old.root, database=old.database, collect_min_age_s=0) as parts:
        kept = [*FILES.values(), *OTHER.values()]
        await parts.put(*kept, b"orphan")
        await parts.collect()
        for data in kept:
            assert await parts.blobs.has(sha(data), len(data))
        assert not await parts.blobs.has(sha(b"orphan"), 6)
        query = select(ARTIFACTS.c.sha256, ARTIFACTS.c.version)
        async with parts.store.database.read() as connection:
            found = {tuple(row) for row in (await connection.execute(query)).all()}
        expected = {(sha(data), 1) for data in FILES.values()}
        assert found == expected | {(sha(data), 2) for data in OTHER.values()}


async def test_an_old_upload_is_brought_to_its_end(old: Old) -> None:
    async with opened(old.root, database=old.database) as parts:
        await parts.put(*OTHER.values())
        found = await parts.finalize("models/m/versions/2")
        assert found.state == "ready"
        assert (await parts.version(FILES)).version == 3


async def test_a_request_id_without_an_answer_is_free_again(old: Old) -> None:
    author = by("old")
    async with opened(old.root, database=old.database) as parts:
        args = ("n", "classification", "", {})
        made = await parts.models.create_model(author, *args, dry=False)  # type: ignore[arg-type]  # the task is one
        again = await parts.models.create_model(author, *args, dry=False)  # type: ignore[arg-type]  # the task is one
        assert made == again
        assert await parts.store.revision() == 6


async def test_an_empty_database_of_the_first_schema(empty: Old) -> None:
    async with opened(empty.root, database=empty.database) as parts:
        assert await parts.store.revisions() == (0, 0)
        await parts.model()
        await parts.ready()
        assert await parts.store.revision() > 0


def test_the_schema_is_that_of_a_new_database(old: Old) -> None:

    def compare(connection: Connection) -> None:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, METADATA) == []

    asyncio.run(_migrated(old))
    old.run(compare)


async def _migrated(old: Old) -> None:
    database = Database(old.database or old.root / "registry.db")
    await database.migrate()
    await database.migrate()
    await database.close()

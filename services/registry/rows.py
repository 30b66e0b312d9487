"""Rows and records: which table holds what, read by key. Knows no wire and decides nothing."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Table, and_, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from services.registry import resources
from services.registry.resources import (
    KINDS,
    AliasRecord,
    ChangeRecord,
    ModelRecord,
    Resource,
    TrafficPolicyRecord,
    VersionRecord,
)
from services.registry.tables import ALIASES, ARTIFACTS, MODELS, POLICIES, VERSIONS

TABLES: tuple[tuple[Table, type[Resource]], ...] = (
    (MODELS, ModelRecord),
    (VERSIONS, VersionRecord),
    (ALIASES, AliasRecord),
    (POLICIES, TrafficPolicyRecord),
)
"""In an order in which nothing comes before what it points to."""


async def get_model(connection: AsyncConnection, model: str) -> ModelRecord:
    """The model, or NotFound."""
    query = select(MODELS.c.body).where(MODELS.c.model == model)
    body = (await connection.execute(query)).scalar()
    if body is None:
        raise resources.model_missing(model)
    return ModelRecord.model_validate_json(body)


async def get_version(connection: AsyncConnection, model: str, version: int) -> VersionRecord:
    """The version, or NotFound."""
    # Callers may name numbers beyond the column's type.
    number = literal(version, BigInteger)
    query = select(VERSIONS.c.body).where(VERSIONS.c.model == model, VERSIONS.c.version == number)
    body = (await connection.execute(query)).scalar()
    if body is None:
        await get_model(connection, model)
        raise resources.version_missing(model, version)
    return VersionRecord.model_validate_json(body)


async def find_alias(connection: AsyncConnection, model: str, alias: str) -> AliasRecord | None:
    """The alias, or None."""
    query = select(ALIASES.c.body).where(ALIASES.c.model == model, ALIASES.c.alias == alias)
    body = (await connection.execute(query)).scalar()
    return AliasRecord.model_validate_json(body) if body is not None else None


async def get_alias(connection: AsyncConnection, model: str, alias: str) -> AliasRecord:
    """The alias, or NotFound."""
    found = await find_alias(connection, model, alias)
    if found is None:
        await get_model(connection, model)
        raise resources.alias_missing(model, alias)
    return found


async def find_policy(connection: AsyncConnection, model: str) -> TrafficPolicyRecord | None:
    """The traffic policy of a model, or None."""
    query = select(POLICIES.c.body).where(POLICIES.c.model == model)
    body = (await connection.execute(query)).scalar()
    return TrafficPolicyRecord.model_validate_json(body) if body is not None else None


async def get_policy(connection: AsyncConnection, model: str) -> TrafficPolicyRecord:
    """The traffic policy of a model, or NotFound."""
    found = await find_policy(connection, model)
    if found is None:
        await get_model(connection, model)
        raise resources.policy_missing(model)
    return found


async def pointing_at(connection: AsyncConnection, model: str, version: int) -> list[str]:
    """The aliases and the policy of a model that name a version."""
    query = select(ALIASES.c.alias).where(ALIASES.c.model == model, ALIASES.c.version == version)
    found = [f"alias {alias}" for alias in (await connection.execute(query)).scalars()]
    policy = await find_policy(connection, model)
    if policy and version in {policy.shadow_version, *(s.version for s in policy.splits)}:
        found.append("the traffic policy")
    return found


async def belonging(connection: AsyncConnection, model: str) -> list[Resource]:
    """All that belongs to a model, what points before what is pointed to."""
    found: list[Resource] = []
    for table, cls in reversed(TABLES[1:]):
        found += await bodies(connection, table, cls, table.c.model == model)
    return found


async def bodies(
    connection: AsyncConnection,
    table: Table,
    cls: type[Resource],
    where: ColumnElement[bool] | None = None,
) -> list[Resource]:
    """All records of a table, by key."""
    query = select(table.c.body).order_by(*table.primary_key)
    if where is not None:
        query = query.where(where)
    rows = (await connection.execute(query)).scalars()
    return [cls.model_validate_json(body) for body in rows]


async def referred(connection: AsyncConnection, digests: Sequence[str]) -> set[str]:
    """Those of the digests that a version holds."""
    query = select(ARTIFACTS.c.sha256).where(ARTIFACTS.c.sha256.in_(digests)).distinct()
    return set((await connection.execute(query)).scalars())


def place(resource: Resource) -> tuple[Table, dict[str, object], dict[str, object]]:
    """Table, key and further columns of a resource."""
    if isinstance(resource, ModelRecord):
        columns: dict[str, object] = {
            "task": resource.task,
            "latest_version": resource.latest_version,
        }
        return MODELS, {"model": resource.id}, columns
    if isinstance(resource, VersionRecord):
        key: dict[str, object] = {"model": resource.model, "version": resource.version}
        return VERSIONS, key, {"state": resource.state}
    if isinstance(resource, AliasRecord):
        key = {"model": resource.model, "alias": resource.alias}
        return ALIASES, key, {"version": resource.version}
    return POLICIES, {"model": resource.model}, {}


def equals(table: Table, key: Mapping[str, object]) -> ColumnElement[bool]:
    """The condition that a row has this key."""
    return and_(*(table.c[name] == value for name, value in key.items()))


def changes(rows: Iterable[Any]) -> list[ChangeRecord]:
    """Rows of the history."""
    return [_change(dict(row)) for row in rows]


def _change(values: dict[str, Any]) -> ChangeRecord:
    cls = KINDS[values["resource"]]
    return ChangeRecord(
        revision=values["revision"],
        commit_time=in_utc(values["commit_time"]),
        actor=values["actor"],
        name=values["name"],
        kind=values["kind"],
        before=cls.model_validate_json(values["before"]) if values["before"] else None,
        after=cls.model_validate_json(values["after"]) if values["after"] else None,
        request_id=values["request_id"],
    )


def in_utc(moment: datetime) -> datetime:
    """A moment as the database gives it: SQLite knows no zones, and only UTC is stored."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def packed(values: Mapping[str, object]) -> str:
    """Values as JSON text."""
    return json.dumps(values, separators=(",", ":"), sort_keys=True)

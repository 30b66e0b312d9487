"""Pages of resources out of the database: filters, orders and tokens as SQL. Knows no wire.

A token holds where the page ended: the values that it is ordered by and the key. So a page never
repeats or skips what stays in place, whatever is written meanwhile, and no count is kept.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, Float, Table, and_, case, cast, func, or_, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.filtering import Condition, Field, Kind, Order, conditions, orders
from services.registry.resources import ModelRecord, VersionRecord
from services.runtime.errors import InvalidRequest

RecordT = TypeVar("RecordT", ModelRecord, VersionRecord)
MODEL_FIELDS: Mapping[str, Kind] = {
    "name": "text",
    "task": "word",
    "description": "text",
    "labels": "text",
    "create_time": "time",
    "update_time": "time",
    "archive_time": "time",
    "latest_version": "number",
}
VERSION_FIELDS: Mapping[str, Kind] = {
    "version": "number",
    "state": "word",
    "description": "text",
    "labels": "text",
    "metrics": "number",
    "create_time": "time",
    "ready_time": "time",
    "creator": "text",
}
_COLUMNS = {
    ("models", "name"): "model",
    ("models", "task"): "task",
    ("models", "latest_version"): "latest_version",
    ("versions", "version"): "version",
    ("versions", "state"): "state",
}
Value = str | float | int | None
_HELD: Mapping[Kind, tuple[type, ...]] = {
    "text": (str,),
    "word": (str,),
    "time": (str,),
    "number": (int, float),
}


@dataclass(frozen=True, slots=True)
class Listing:
    """What a caller wants to see of a list, and from where on."""

    size: int
    filters: tuple[Condition, ...] = ()
    order: tuple[Order, ...] = ()
    after: tuple[Value, ...] = ()
    """Values of `order` and the key of the last entry shown; empty for the first page."""
    digest: str = ""
    """Of filter and order: a token is good only for the list that it came from."""


@dataclass(frozen=True, slots=True)
class Page(Generic[RecordT]):
    """Some entries of a list, and the token of the next page; empty at the end."""

    entries: list[RecordT]
    next_page_token: str


def asked(
    kind: Literal["models", "versions"], size: int, token: str, filter_: str, order_by: str
) -> Listing:
    """The listing that a request asks for."""
    fields = MODEL_FIELDS if kind == "models" else VERSION_FIELDS
    filters, order = conditions(filter_, fields), orders(order_by, fields)
    if kind == "models" and all(c.field.name != "archive_time" for c in filters):
        filters = (*filters, Condition(Field("archive_time", "", "time"), "!=", None))
    digest = hashlib.sha256(f"{kind}\0{filter_}\0{order_by}".encode()).hexdigest()[:16]
    held = [(*_HELD[one.field.kind], type(None)) for one in order]
    held.append((str,) if kind == "models" else (int,))
    return Listing(size, filters, order, _read_token(token, digest, held), digest)


async def listed(
    connection: AsyncConnection,
    table: Table,
    cls: type[RecordT],
    listing: Listing,
    where: ColumnElement[bool] | None = None,
) -> Page[RecordT]:
    """One page of a table."""
    sql = _Sql(table, connection.dialect.name)
    keys = [(sql.value(order.field), order.descending) for order in listing.order]
    if table.name == "models":
        keys.append((sql.column("model", number=False), False))
    else:
        keys.append((table.c.version, True))
    query = select(table.c.body, *(column.label(f"k{n}") for n, (column, _) in enumerate(keys)))
    query = query.where(*(sql.holds(condition) for condition in listing.filters))
    if where is not None:
        query = query.where(where)
    if listing.after:
        query = query.where(_beyond(keys, listing.after))
    for column, descending in keys[:-1]:
        query = query.order_by(column.is_(None), column.desc() if descending else column.asc())
    # The last is the key itself, never NULL: said so plainly, the index can give the order.
    column, descending = keys[-1]
    query = query.order_by(column.desc() if descending else column.asc())
    found = (await connection.execute(query.limit(listing.size + 1))).all()
    shown = found[: listing.size]
    token = _token(tuple(shown[-1][1:]), listing.digest) if len(found) > len(shown) else ""
    return Page([cls.model_validate_json(row[0]) for row in shown], token)


class _Sql:
    """Fields of one table as expressions: columns, or parts of the JSON body."""

    def __init__(self, table: Table, dialect: str) -> None:
        self._table = table
        self._postgresql = dialect == "postgresql"

    def value(self, field: Field) -> ColumnElement[Any]:
        """What a field holds; NULL where there is nothing, or nothing comparable."""
        name = _COLUMNS.get((self._table.name, field.name))
        if name is not None:
            return self.column(name, number=field.kind == "number")
        path = (field.name, field.key) if field.key else (field.name,)
        number = field.kind == "number"
        return self._in_json(path, number=number)

    def column(self, name: str, *, number: bool) -> ColumnElement[Any]:
        """A column, to be compared and ordered as the other database would."""
        column = self._table.c[name]
        if not self._postgresql:
            return column
        return cast(column, Float) if number else column.collate("C")

    def _in_json(self, path: tuple[str, ...], *, number: bool) -> ColumnElement[Any]:
        body = self._table.c.body
        if self._postgresql:
            document = cast(body, JSONB)
            text: ColumnElement[Any] = func.jsonb_extract_path_text(document, *path)
            if not number:
                # Compared byte by byte, as SQLite does.
                return text.collate("C")
            kind = func.jsonb_typeof(func.jsonb_extract_path(document, *path))
            return case((kind == "number", cast(text, Float)))
        where = "$" + "".join(f'."{part}"' for part in path)
        found = func.json_extract(body, where)
        if not number:
            return found
        return case((func.json_type(body, where).in_(("integer", "real")), found))

    def holds(self, condition: Condition) -> ColumnElement[bool]:
        """A condition as SQL."""
        column, value = self.value(condition.field), condition.value
        if value is None:
            return column.is_not(None) if condition.operator == ":" else column.is_(None)
        if condition.field.name == "name":
            value = str(value).removeprefix("models/")
        if condition.operator == ":":
            # LIKE would tell capitals apart on one database only.
            find = func.strpos if self._postgresql else func.instr
            return find(column, value) > 0
        if condition.operator == "!=":
            return or_(column.is_(None), column != value)
        return _compare(column, condition.operator, value)


def _compare(column: ColumnElement[Any], operator: str, value: Value) -> ColumnElement[bool]:
    found: ColumnElement[bool] = column.op(operator, is_comparison=True)(value)
    return found


def _beyond(
    keys: Sequence[tuple[ColumnElement[Any], bool]], after: Sequence[Value]
) -> ColumnElement[bool]:
    """The rows that come after the one whose keys are `after`; NULL comes last in each."""
    ways = []
    for index, (column, descending) in enumerate(keys):
        value = after[index]
        if value is None:
            continue  # nothing comes after NULL in this key
        same = [
            c.is_(None) if v is None else c == v
            for (c, _), v in zip(keys[:index], after[:index], strict=True)
        ]
        later = column < value if descending else column > value
        # The last key is never NULL.
        last = index == len(keys) - 1
        ways.append(and_(*same, later if last else or_(later, column.is_(None))))
    return or_(*ways)


def _token(values: tuple[Value, ...], digest: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([digest, *values]).encode()).decode("ascii")


def _read_token(token: str, digest: str, held: Sequence[tuple[type, ...]]) -> tuple[Value, ...]:
    """What a token holds: the digest of its list, then values of the types in `held`."""
    if not token:
        return ()
    try:
        # Strict: what lies outside the alphabet would be dropped, and the list begin anew.
        found = json.loads(base64.b64decode(token.encode("ascii"), b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or len(found) != len(held) + 1:
        raise InvalidRequest.field("page_token", "is not one that this server gave")
    if found[0] != digest:
        raise InvalidRequest.field("page_token", "belongs to a list with other filter or order")
    for value, types in zip(found[1:], held, strict=True):
        if type(value) not in types or not _storable(value):
            raise InvalidRequest.field("page_token", "is not one that this server gave")
    return tuple(found[1:])


def _storable(value: Value) -> bool:
    """Whether a database takes a value: what it gave itself is always so."""
    if isinstance(value, str):
        return not re.search(r"[\0\ud800-\udfff]", value)
    return not isinstance(value, int) or abs(value) < 2**31

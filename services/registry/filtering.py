"""Filters and orders of lists (AIP-160 and AIP-132): text to conditions. Knows no database.

A filter is conditions joined by AND: `field operator value`, where the operator is one of
= != < <= > >= : and the value a word, a number or a text in double quotes. `labels.team:*` asks
whether there is such a label; `:` on a text asks whether it contains the value.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

from services.registry.resources import State, Task, stored_moment
from services.runtime.errors import InvalidRequest

Kind = Literal["text", "number", "time", "word"]
Operator = Literal["=", "!=", "<", "<=", ">", ">=", ":"]
MOST_CONDITIONS, MOST_ORDERS = 32, 3
MAPS: Mapping[str, Kind] = {"labels": "text", "metrics": "number"}
"""Fields whose keys are the callers'."""
WORDS: Mapping[str, tuple[str, ...]] = {"task": get_args(Task), "state": get_args(State)}
"""Fields that hold one of a few words."""

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<operator><=|>=|!=|=|<|>|:)"""
    r"""|(?P<word>[^\s"<>=!:()]+))"""
)
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}")


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a resource: its name, the key in it where it is a map, and what it holds."""

    name: str
    key: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold of a field; no value asks only whether the field is there."""

    field: Field
    operator: Operator
    value: str | float | None


@dataclass(frozen=True, slots=True)
class Order:
    """A field to order by."""

    field: Field
    descending: bool


def conditions(text: str, fields: Mapping[str, Kind]) -> tuple[Condition, ...]:
    """The conditions in a filter over `fields`, or InvalidRequest that says what is wrong."""
    if "\0" in text:
        raise _wrong("has a NUL in it")
    tokens = _tokens(text)
    found: list[Condition] = []
    at = 0
    while at < len(tokens):
        if found:
            if tokens[at] != ("word", "AND"):
                raise _wrong(f"expected AND, not {tokens[at][1]!r}")
            at += 1
        found.append(_condition(tokens[at : at + 3], fields))
        at += 3
    if len(found) > MOST_CONDITIONS:
        raise _wrong(f"has more than {MOST_CONDITIONS} conditions")
    return tuple(found)


def orders(text: str, fields: Mapping[str, Kind]) -> tuple[Order, ...]:
    """The fields in an order_by such as "create_time desc, version"."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, way = part.partition(" ")
        if way.strip() not in ("", "asc", "desc"):
            raise InvalidRequest.field("order_by", f"{way.strip()!r} is neither asc nor desc")
        found.append(Order(_field(name, fields, "order_by"), way.strip() == "desc"))
    if len(found) > MOST_ORDERS:
        raise InvalidRequest.field("order_by", f"has more than {MOST_ORDERS} fields")
    return tuple(found)


def moment(text: str, field: str = "filter") -> str:
    """A moment in the one form in which moments are stored, so that they compare as texts."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        said = f"{text!r} is no moment such as 2026-01-31T12:00:00Z"
        raise InvalidRequest.field(field, said) from None
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=UTC)
    try:
        return stored_moment(parsed.astimezone(UTC))
    except OverflowError:
        raise InvalidRequest.field(field, f"{text!r} is too far away") from None


def _tokens(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    at = 0
    while text[at:].strip():
        token = _TOKEN.match(text, at)
        if token is None:
            raise _wrong(f"cannot be read from {text[at:].strip()[:20]!r} on")
        at = token.end()
        kind = token.lastgroup or ""
        value = token[kind]
        found.append((kind, re.sub(r"\\(.)", r"\1", value[1:-1]) if kind == "text" else value))
    return found


def _condition(tokens: list[tuple[str, str]], fields: Mapping[str, Kind]) -> Condition:
    if len(tokens) < 3 or (tokens[0][0], tokens[1][0]) != ("word", "operator"):
        said = " ".join(value for _, value in tokens) or "nothing"
        raise _wrong(f"expected a field, an operator and a value, not {said!r}")
    (_, name), (_, operator), (kind, value) = tokens
    field = _field(name, fields, "filter")
    if kind == "operator":
        raise _wrong(f"{name} {operator} needs a value")
    if operator == ":" and (kind, value) == ("word", "*"):
        return Condition(field, ":", None)
    if operator == ":" and field.kind != "text":
        raise _wrong(f"{name} is no text: `:` only asks whether it is there, with {name}:*")
    if field.kind == "word" and operator not in ("=", "!="):
        raise _wrong(f"{name} has no order")
    return Condition(field, operator, _value(field, value))  # type: ignore[arg-type]


def _field(name: str, fields: Mapping[str, Kind], where: str) -> Field:
    head, dot, key = name.partition(".")
    if dot and head in fields and head in MAPS and _KEY.fullmatch(key):
        return Field(head, key, MAPS[head])
    if dot or head not in fields or head in MAPS:
        known = ", ".join(f"{f}.KEY" if f in MAPS else f for f in fields)
        raise InvalidRequest.field(where, f"{name!r} is not one of: {known}")
    return Field(head, "", fields[head])


def _value(field: Field, text: str) -> str | float:
    if field.kind == "number":
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise _wrong(f"{field.name} is compared with numbers, not with {text!r}")
        return number
    if field.kind == "time":
        return moment(text)
    if field.kind == "word" and text.lower() not in WORDS[field.name]:
        raise _wrong(f"{text!r} is not one of: {', '.join(WORDS[field.name]).upper()}")
    return text.lower() if field.kind == "word" else text


def _wrong(said: str) -> InvalidRequest:
    return InvalidRequest.field("filter", said)

"""Filters, orders and pages against plain Python, on both databases: they must not differ."""

import base64
import hashlib
import itertools
import json
import math
import operator
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cmp_to_key
from typing import Any, Literal, get_args

import pytest

from services.registry.filtering import Condition, Field, Order
from services.registry.listing import MODEL_FIELDS, VERSION_FIELDS, Page, asked
from services.registry.resources import (
    ModelRecord,
    State,
    Task,
    VersionRecord,
    stored_moment,
)
from services.runtime.errors import InvalidRequest, NotFound
from tests.unit.registry.parts import MANIFEST, Parts, artifact, by

Kind = Literal["models", "versions"]
Record = ModelRecord | VersionRecord
START = datetime(2026, 1, 1, tzinfo=UTC)
TEXTS = (
    *("", "a", "A", "b", "nlp", "NLP", "nlp-2", "é", "ß", "日本", "\U0001f600", "\uffff"),
    *("%", "_", "a%", "a_b", "a/b", "\\", '"', "'", "null", "1", "true", "READY"),
    *("'; DROP TABLE models; --", "' OR '1'='1", '" OR 1=1 --', "$1", ":x", "?", "{}", "[]"),
)
FIGURES = (0.0, -0.0, 1.0, -1.5, 0.1, 0.30000000000000004, 1e-9, 1e300, -1e300, 5e-324)
STRANGE = (math.nan, math.inf, -math.inf)
LABELS, METRICS = ("team", "a.b", "x-y/z", "0"), ("accuracy", "f1.macro", "p95_ms")


def labels(rng: random.Random) -> dict[str, str]:
    """Some labels."""
    return {key: rng.choice(TEXTS) for key in LABELS if rng.random() < 0.6}


def time(rng: random.Random) -> datetime:
    """A moment; few enough that there are ties, some without a fraction."""
    return START + timedelta(hours=rng.randrange(5), microseconds=rng.choice((0, 0, 1, 500_000)))


def some_models(rng: random.Random, count: int) -> list[ModelRecord]:
    """Models that differ in all that can be asked for."""
    names = rng.sample([f"{a}{b}{c}" for a in "aBz9" for b in "-._x" for c in "0Qy"], count)
    return [
        ModelRecord(
            id=name,
            task=rng.choice(get_args(Task)),
            description=rng.choice(TEXTS),
            labels=labels(rng),
            create_time=time(rng),
            update_time=time(rng),
            archive_time=time(rng) if rng.random() < 0.3 else None,
            latest_version=rng.randrange(4),
        )
        for name in names
    ]


def some_versions(rng: random.Random, count: int) -> list[VersionRecord]:
    """Versions of the model "m" that differ in all that can be asked for."""
    return [
        VersionRecord(
            model="m",
            version=number,
            state=rng.choice(get_args(State)),
            artifacts=(artifact("a", b"x"),),
            description=rng.choice(TEXTS),
            labels=labels(rng),
            metrics={
                key: rng.choice((*FIGURES, *STRANGE, rng.random(), rng.uniform(-1e6, 1e6)))
                for key in METRICS
                if rng.random() < 0.7
            },
            create_time=time(rng),
            ready_time=time(rng) if rng.random() < 0.5 else None,
            creator=rng.choice(("", "ann", "bea")),
        )
        for number in rng.sample(range(1, 4 * count), count)
    ]


async def stored(parts: Parts, records: Sequence[Record]) -> None:
    """Put records where they are listed from, in an order of its own."""
    async with parts.store.write(by()) as write:
        for record in records:
            await write.save(None, record)


# The reference.


def held(record: Record, field: Field) -> Any:
    """What a field holds; None where there is nothing, or nothing that compares."""
    value = getattr(record, field.name)
    if field.key:
        value = value.get(field.key)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime):
        return stored_moment(value)
    if field.name == "name":
        return value.removeprefix("models/")
    return value


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    ":": lambda found, value: value in found,
}


def holds(record: Record, condition: Condition) -> bool:
    """Whether a record is wanted."""
    found, value = held(record, condition.field), condition.value
    if value is None:
        return (found is None) == (condition.operator == "!=")
    if condition.field.name == "name":
        value = str(value).removeprefix("models/")
    if condition.operator == "!=":
        return bool(found != value)
    return found is not None and COMPARE[condition.operator](found, value)


def compared(order: Sequence[Order], one: Record, other: Record) -> int:
    """Which of two comes first: without a value last, ties by the key."""
    for part in order:
        a, b = held(one, part.field), held(other, part.field)
        if a != b:
            if a is None or b is None:
                return 1 if a is None else -1
            return (1 if a > b else -1) * (-1 if part.descending else 1)
    if isinstance(one, ModelRecord) and isinstance(other, ModelRecord):
        return -1 if one.id < other.id else 1
    assert isinstance(one, VersionRecord)
    assert isinstance(other, VersionRecord)
    return -1 if one.version > other.version else 1


def expected(records: Sequence[Record], kind: Kind, filter_: str, order_by: str) -> list[str]:
    """The names that a list must show, in order."""
    wanted = asked(kind, 1, "", filter_, order_by)
    found = [one for one in records if all(holds(one, c) for c in wanted.filters)]
    first = cmp_to_key(lambda a, b: compared(wanted.order, a, b))
    return [record.name for record in sorted(found, key=first)]


# Asking.


async def page(
    parts: Parts, kind: Kind, size: int, token: str = "", filter_: str = "", order_by: str = ""
) -> Page[Any]:
    """One page."""
    wanted = asked(kind, size, token, filter_, order_by)
    if kind == "models":
        return await parts.store.models(wanted)
    return await parts.store.versions("m", wanted)


async def names(
    parts: Parts, kind: Kind, filter_: str = "", order_by: str = "", size: int = 1000
) -> list[str]:
    """The names in all pages together."""
    found: list[str] = []
    token = ""
    while True:
        one = await page(parts, kind, size, token, filter_, order_by)
        assert len(one.entries) <= size
        found += [record.name for record in one.entries]
        token = one.next_page_token
        if not token:
            return found
        assert len(one.entries) == size


def quoted(value: str) -> str:
    """A value as a filter writes it."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def some_condition(rng: random.Random, kind: Kind) -> str:
    """A condition on any field."""
    fields = MODEL_FIELDS if kind == "models" else VERSION_FIELDS
    name = rng.choice(list(fields))
    field = {"labels": f"labels.{rng.choice(LABELS)}", "metrics": f"metrics.{rng.choice(METRICS)}"}
    what, way = fields[name], rng.choice(("=", "!=", "<", "<=", ">", ">="))
    if name == "name":
        return f"name {way} {quoted(rng.choice(('models/', '')) + rng.choice('aBz9') + '.x0')}"
    if rng.random() < 0.2:
        return f"{field.get(name, name)}:*"
    if what == "word":
        words = get_args(Task) if name == "task" else get_args(State)
        return f"{name} {rng.choice(('=', '!='))} {rng.choice(words).upper()}"
    if what == "time":
        return f"{name} {way} {quoted(time(rng).isoformat())}"
    if what == "number":
        value = rng.choice(FIGURES) if name == "metrics" else rng.randrange(12)
        return f"{field.get(name, name)} {way} {value!r}"
    return f"{field.get(name, name)} {rng.choice((way, ':'))} {quoted(rng.choice(TEXTS))}"


def some_order(rng: random.Random, kind: Kind) -> str:
    """An order over up to three fields."""
    fields = list(MODEL_FIELDS if kind == "models" else VERSION_FIELDS)
    parts = []
    for name in rng.sample(fields, rng.randrange(4)):
        key = {"labels": f".{rng.choice(LABELS)}", "metrics": f".{rng.choice(METRICS)}"}
        parts.append(f"{name}{key.get(name, '')}{rng.choice(('', ' asc', ' desc', ' desc'))}")
    return ", ".join(parts)


async def filled(parts: Parts, kind: Kind, rng: random.Random) -> list[Record]:
    """Thirty records, and the model that versions belong to."""
    if kind == "models":
        found: list[Record] = [*some_models(rng, 30)]
    else:
        await parts.model("m")
        found = [*some_versions(rng, 30)]
    await stored(parts, found)
    return found


each_kind = pytest.mark.parametrize("kind", ["models", "versions"])


@each_kind
async def test_filter_and_order_are_those_of_plain_python(parts: Parts, kind: Kind) -> None:
    rng = random.Random(kind)
    records = await filled(parts, kind, rng)
    shown = 0
    for _ in range(60):
        conditions = [some_condition(rng, kind) for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))]
        filter_, order_by = " AND ".join(conditions), some_order(rng, kind)
        wanted = expected(records, kind, filter_, order_by)
        assert await names(parts, kind, filter_, order_by) == wanted, (filter_, order_by)
        shown += len(wanted)
    assert shown > 300, "the filters left hardly anything"


@each_kind
async def test_pages_together_are_the_whole_list_under_each_order(parts: Parts, kind: Kind) -> None:
    rng = random.Random(5)
    records = await filled(parts, kind, rng)
    fields = MODEL_FIELDS if kind == "models" else VERSION_FIELDS
    keys = {"labels": [f"labels.{key}" for key in LABELS]}
    keys["metrics"] = [f"metrics.{key}" for key in METRICS]
    named = [one for field in fields for one in keys.get(field, [field])]
    orders = [f"{one}{way}" for one in named for way in ("", " desc")]
    orders = rng.sample(orders, 14) + [some_order(rng, kind) for _ in range(6)]
    for order_by in orders:
        wanted = expected(records, kind, "", order_by)
        assert await names(parts, kind, "", order_by, size=4) == wanted, order_by
    for size in (1, 2, len(wanted) - 1, len(wanted), len(wanted) + 1):
        assert await names(parts, kind, "", order_by, size=size) == wanted


@pytest.mark.parametrize("order_by", ["labels.team", "create_time desc, labels.a.b"])
async def test_what_stays_is_shown_once_while_others_come_and_go(
    parts: Parts, order_by: str
) -> None:
    rng = random.Random(9)
    pool = [one.model_copy(update={"archive_time": None}) for one in some_models(rng, 40)]
    stay, passing = pool[:15], pool[15:]
    await stored(parts, stay)
    there: list[ModelRecord] = []
    found: list[str] = []
    token = ""
    while True:
        one = await page(parts, "models", 2, token, "", order_by)
        found += [record.name for record in one.entries]
        token = one.next_page_token
        if not token:
            break
        for _ in range(rng.randrange(4)):
            if there and rng.random() < 0.4:
                gone = there.pop(rng.randrange(len(there)))
                await parts.models.delete_model(by(), gone.name, "", force=True, dry=False)
            elif passing:
                there.append(passing.pop())
                await stored(parts, there[-1:])
    assert len(set(found)) == len(found)
    kept = {record.name for record in stay}
    assert [name for name in found if name in kept] == expected(stay, "models", "", order_by)


async def test_a_page_goes_on_though_the_entry_that_it_ended_with_is_gone(parts: Parts) -> None:
    records = [
        one.model_copy(update={"archive_time": None}) for one in some_models(random.Random(3), 8)
    ]
    await stored(parts, records)
    for order_by in ("", "labels.team desc", "description, create_time"):
        wanted = expected(records, "models", "", order_by)
        first = await page(parts, "models", 3, "", "", order_by)
        gone = next(one for one in records if one.name == wanted[2])
        await parts.models.delete_model(by(), gone.name, "", force=True, dry=False)
        rest = await page(parts, "models", 9, first.next_page_token, "", order_by)
        assert [record.name for record in rest.entries] == wanted[3:]
        await stored(parts, [gone])


# Special values.


async def test_a_figure_that_does_not_compare_is_as_none(parts: Parts) -> None:
    await parts.model("m")
    made: dict[int, dict[str, float]] = {
        1: {"a": 0.5},
        2: {"a": math.nan},
        3: {"a": math.inf},
        4: {"a": -math.inf},
        5: {},
        6: {"a": 0.1 + 0.2},
    }
    for number in sorted(made):
        await parts.version({"a": b"x"}, metrics=made[number])

    async def numbers(filter_: str = "", order_by: str = "") -> list[int]:
        found = await names(parts, "versions", filter_, order_by, size=2)
        return [int(name.rpartition("/")[2]) for name in found]

    assert await numbers("metrics.a > 0") == [6, 1]
    assert await numbers("metrics.a = 0.30000000000000004") == [6]
    assert await numbers("metrics.a = 0.3") == []
    assert await numbers("metrics.a != 0.5") == [6, 5, 4, 3, 2]
    assert await numbers("", "metrics.a") == [6, 1, 5, 4, 3, 2]
    assert await numbers("", "metrics.a desc, version") == [1, 6, 2, 3, 4, 5]
    assert await numbers("metrics.b:*") == []
    page_ = await page(parts, "versions", 9, "", "version = 2")
    assert math.isnan(page_.entries[0].metrics["a"])


async def test_capitals_are_told_apart(parts: Parts) -> None:
    for model, team in (("a", "NLP"), ("b", "nlp"), ("c", "vision nlp")):
        await parts.models.create_model(by(), model, "dataset", team, {"team": team}, dry=False)
    for field in ("labels.team", "description"):
        assert await names(parts, "models", f"{field}:nlp") == ["models/b", "models/c"]
        assert await names(parts, "models", f"{field}:NLP") == ["models/a"]
        assert await names(parts, "models", f"{field} = nlp") == ["models/b"]
        assert await names(parts, "models", f'{field}:""') == ["models/a", "models/b", "models/c"]


async def test_a_value_is_only_a_value(parts: Parts) -> None:
    records = [one.model_copy(update={"archive_time": None}) for one in _each_text()]
    await stored(parts, records)
    for record in records:
        value = record.description
        for filter_ in (f"labels.k = {quoted(value)}", f"description = {quoted(value)}"):
            assert await names(parts, "models", filter_) == [record.name]
        inside = [one.name for one in records if value in one.description]
        assert await names(parts, "models", f"labels.k:{quoted(value)}") == inside
    for order_by in ("labels.k, description", "description desc"):
        wanted = expected(records, "models", "", order_by)
        assert await names(parts, "models", "", order_by, size=5) == wanted


def _each_text() -> list[ModelRecord]:
    return [
        ModelRecord(
            id=f"m{number:02}",
            task="dataset",
            description=text,
            labels={"k": text},
            create_time=START,
            update_time=START,
        )
        for number, text in enumerate(TEXTS)
    ]


async def test_archived_models_are_shown_only_where_the_filter_names_the_time(
    parts: Parts,
) -> None:
    for model in "abc":
        await parts.model(model)
    await parts.models.archive_model(by(), "models/b", "", restore=False)
    assert await names(parts, "models") == ["models/a", "models/c"]
    assert await names(parts, "models", "", "archive_time desc") == ["models/a", "models/c"]
    assert await names(parts, "models", "name = models/b") == []
    assert await names(parts, "models", "archive_time:*") == ["models/b"]
    assert await names(parts, "models", "archive_time > 2020-01-01") == ["models/b"]
    both = await names(parts, "models", "archive_time != 2020-01-01", "archive_time")
    assert both == ["models/b", "models/a", "models/c"]
    await parts.models.archive_model(by(), "models/b", "", restore=True)
    assert await names(parts, "models") == ["models/a", "models/b", "models/c"]


async def test_the_versions_of_a_model_that_is_not_there(parts: Parts) -> None:
    with pytest.raises(NotFound):
        await parts.store.versions("x", asked("versions", 5, "", "version = 1", ""))


# Tokens.


def forged(kind: Kind, filter_: str, order_by: str, *values: Any) -> str:
    """A token as the server writes it, with values of somebody else's choice."""
    digest = hashlib.sha256(f"{kind}\0{filter_}\0{order_by}".encode()).hexdigest()[:16]
    return base64.urlsafe_b64encode(json.dumps([digest, *values]).encode()).decode()


@each_kind
async def test_a_token_of_another_list_is_refused(parts: Parts, kind: Kind) -> None:
    await filled(parts, kind, random.Random(1))
    token = (await page(parts, kind, 2)).next_page_token
    by_time = (await page(parts, kind, 2, "", "", "create_time")).next_page_token
    other: Kind = "versions" if kind == "models" else "models"
    for one, list_, filter_, order_by in (
        (token, kind, "", "create_time"),
        (token, kind, "create_time:*", ""),
        (by_time, kind, "", ""),
        (by_time, kind, "", "create_time desc"),
        (token, other, "", ""),
    ):
        with pytest.raises(InvalidRequest, match="page_token"):
            asked(list_, 2, one, filter_, order_by)


NO_KEYS: list[Any] = [None, True, 1.0, [], {}, ["a"], "a\0", "\ud800", 2**31, 2**52, 2**63, 10**30]
NO_KEYS += [-(2**31), -(2**63), math.nan, math.inf]


@each_kind
def test_a_forged_key_is_refused(kind: Kind) -> None:
    for value in NO_KEYS:
        with pytest.raises(InvalidRequest, match="page_token"):
            asked(kind, 2, forged(kind, "", "", value), "", "")


async def test_a_forged_value_of_an_order_is_refused_or_harmless(parts: Parts) -> None:
    await parts.model("m")
    values = (*NO_KEYS, 0, -5, 1e300, -1e300, "", "'", "x" * 100, "9999", "é")
    for order_by, value in itertools.product(
        ("latest_version", "create_time", "description", "task desc"), values
    ):
        token = forged("models", "", order_by, value, "m")
        try:
            found = await page(parts, "models", 2, token, "", order_by)
        except InvalidRequest as error:
            assert [violation.field for violation in error.violations] == ["page_token"]
        else:
            assert len(found.entries) <= 1


@each_kind
def test_a_token_of_another_form_is_refused(kind: Kind) -> None:
    good = forged(kind, "", "", "m" if kind == "models" else 1)
    asked(kind, 5, good, "", "")
    texts = [good[:-1], good + "A", good[:-4], " " + good, good + "\n", "=", "é", "A" * 512]
    bodies = [b"", b"null", b"1", b"[]", b"{}", b"[[]]", b"[1]", b'"x"', b"[" * 300, b"\xff", b"["]
    bodies += [json.dumps(["0" * 16, "m"]).encode(), json.dumps([None, 1]).encode()]
    bodies += [json.dumps([json.loads(base64.urlsafe_b64decode(good))[0]]).encode()]
    bodies += [json.dumps([*json.loads(base64.urlsafe_b64decode(good)), 1]).encode()]
    bodies += [b"[" + b"9" * 5000 + b"]"]
    for token in (*texts, *(base64.urlsafe_b64encode(body).decode() for body in bodies if body)):
        with pytest.raises(InvalidRequest, match="page_token"):
            asked(kind, 5, token, "", "")


# What PostgreSQL takes no part of.


async def test_numbers_beyond_the_column_are_of_no_version(parts: Parts) -> None:
    await parts.model("m")
    for number in (2**31, 2**32 - 1, 9_999_999_999):
        with pytest.raises(NotFound):
            await parts.store.version("m", number)
        with pytest.raises(NotFound):
            await parts.pointers.set_alias(
                by(), "models/m/aliases/live", number, None, "", dry=False
            )
        for way in ("=", "<", ">"):
            await names(parts, "versions", f"version {way} {number}", "version desc")


async def test_a_text_that_would_spoil_every_list_is_not_stored(parts: Parts) -> None:
    before = await parts.store.revision()
    for description, labels_ in (("a\0b", {}), ("", {"k": "\0"}), ("", {"\0": "v"})):
        with pytest.raises(InvalidRequest, match="NUL"):
            await parts.models.create_model(
                by("r"), "m", "dataset", description, labels_, dry=False
            )
    assert await parts.store.revision() == before
    # What only looks like one is a text as any other.
    await parts.models.create_model(by("r"), "m", "dataset", "\\u0000", {"k": "\\"}, dry=False)
    assert await names(parts, "models", "labels.k:*", "description") == ["models/m"]
    version = await parts.version({"model.yaml": MANIFEST})
    with pytest.raises(InvalidRequest, match="NUL"):
        await parts.models.update_version(by(), version.name, "", {"description": "\0"}, dry=False)


async def test_a_value_that_the_database_does_not_take_is_the_callers_mistake(
    parts: Parts,
) -> None:
    await parts.model("m")
    with pytest.raises(InvalidRequest, match="filter"):
        await names(parts, "models", 'labels.k = "\0"')
    if parts.database.dialect == "postgresql":
        with pytest.raises(InvalidRequest):
            await parts.store.aliases("m", "\0", 5)

"""The grammar of filters and orders: what is read, what is refused, and nothing else happens."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.registry.filtering import (
    MOST_CONDITIONS,
    MOST_ORDERS,
    Condition,
    Field,
    Order,
    conditions,
    moment,
    orders,
)
from services.registry.listing import MODEL_FIELDS, VERSION_FIELDS, asked
from services.registry.resources import stored_moment
from services.runtime.errors import InvalidRequest

STATE, VERSION = Field("state", "", "word"), Field("version", "", "number")
TEXT, TIME = Field("description", "", "text"), Field("create_time", "", "time")
TEAM, ACCURACY = Field("labels", "team", "text"), Field("metrics", "accuracy", "number")
NOON = "2026-01-31T12:00:00.000000Z"


def read(text: str) -> tuple[Condition, ...]:
    """A filter over versions."""
    return conditions(text, VERSION_FIELDS)


def refused(text: str) -> str:
    """What a filter over versions is refused with."""
    with pytest.raises(InvalidRequest) as caught:
        read(text)
    (violation,) = caught.value.violations
    assert violation.field == "filter"
    return violation.description


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("  \t\n ", ()),
        ("state = READY", [(STATE, "=", "ready")]),
        ("state=ready", [(STATE, "=", "ready")]),
        ('state != "Archived"', [(STATE, "!=", "archived")]),
        ("version >= 3", [(VERSION, ">=", 3.0)]),
        ('version < "3.5"', [(VERSION, "<", 3.5)]),
        ("metrics.accuracy > -1.5e-3", [(ACCURACY, ">", -0.0015)]),
        ("metrics.accuracy<=.5", [(ACCURACY, "<=", 0.5)]),
        ("metrics.accuracy:*", [(ACCURACY, ":", None)]),
        ("labels.team = nlp", [(TEAM, "=", "nlp")]),
        ('labels.team = "n l p"', [(TEAM, "=", "n l p")]),
        ('labels.team = ""', [(TEAM, "=", "")]),
        ("labels.team:*", [(TEAM, ":", None)]),
        ("labels.team : *", [(TEAM, ":", None)]),
        ('labels.team:"*"', [(TEAM, ":", "*")]),
        ("labels.team = *", [(TEAM, "=", "*")]),
        ("labels.team:nl", [(TEAM, ":", "nl")]),
        ("labels.a.b-c/d_e = 1", [(Field("labels", "a.b-c/d_e", "text"), "=", "1")]),
        ("metrics.f1.macro = 1", [(Field("metrics", "f1.macro", "number"), "=", 1.0)]),
        (r'description = "say \"hi\" to C:\\"', [(TEXT, "=", 'say "hi" to C:\\')]),
        (r'description = "a\b"', [(TEXT, "=", "ab")]),
        ('description = "a AND b = c"', [(TEXT, "=", "a AND b = c")]),
        ('description = "naïve\n☃"', [(TEXT, "=", "naïve\n☃")]),
        ("description = AND", [(TEXT, "=", "AND")]),
        ('description = "AND" AND version=1', [(TEXT, "=", "AND"), (VERSION, "=", 1.0)]),
        (f'create_time > "{NOON}"', [(TIME, ">", NOON)]),
        ('create_time = "2026-01-31T12:00:00Z"', [(TIME, "=", NOON)]),
        ('create_time = "2026-01-31T14:00:00+02:00"', [(TIME, "=", NOON)]),
        ('create_time = "2026-01-31 12:00"', [(TIME, "=", NOON)]),
        ("create_time < 2026-01-31", [(TIME, "<", "2026-01-31T00:00:00.000000Z")]),
        ("ready_time:*", [(Field("ready_time", "", "time"), ":", None)]),
        ('state=READY AND labels.team="nlp"', [(STATE, "=", "ready"), (TEAM, "=", "nlp")]),
    ],
)
def test_a_filter_is_read(text: str, expected: list[tuple[Field, str, str | float | None]]) -> None:
    assert [(c.field, c.operator, c.value) for c in read(text)] == list(expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("state", "expected a field"),
        ("state =", "expected a field"),
        ("= READY", "expected a field"),
        ("AND", "expected a field"),
        ("state = READY AND", "expected a field"),
        ("AND state = READY", "expected a field"),
        ('"state" = READY', "expected a field"),
        ("state READY version", "expected a field"),
        ("state = READY version = 1", "expected AND"),
        ("state = READY and version = 1", "expected AND"),
        ("state = READY OR version = 1", "expected AND"),
        ('state = READY "AND" version = 1', "expected AND"),
        ("NOT state = READY", "expected a field"),
        ("-state = READY", "is not one of"),
        ("(state = READY)", "cannot be read from '(state"),
        ("state = (READY OR ARCHIVED)", "cannot be read"),
        ("duration(1) = 2", "cannot be read from '(1)"),
        ('description = "open', "cannot be read"),
        ('description = "open\\"', "cannot be read"),
        ("description = = a", "needs a value"),
        ("description == a", "needs a value"),
        ("nonsense = 1", "'nonsense' is not one of: version, state"),
        ("STATE = READY", "is not one of"),
        ("labels = a", "labels.KEY"),
        ("labels. = a", "is not one of"),
        ("labels..a = a", "is not one of"),
        ("state.x = a", "is not one of"),
        ("metrics.é = 1", "is not one of"),
        ("labels.a'b = 1", "is not one of"),
        ("task = GENERATION", "is not one of"),  # of models only
        ("state = SLEEPING", "is not one of: UPLOADING"),
        ("state > READY", "has no order"),
        ("state:READY", "is no text"),
        ("version:1", "is no text"),
        ("create_time:2026", "is no text"),
        ("version = one", "compared with numbers"),
        ("version = *", "compared with numbers"),
        ("metrics.accuracy = NaN", "compared with numbers"),
        ("metrics.accuracy < Infinity", "compared with numbers"),
        ("metrics.accuracy < 1e999", "compared with numbers"),
        ("create_time > yesterday", "is no moment"),
        ('create_time > "2026-13-01"', "is no moment"),
        ('create_time > "0001-01-01T00:00:00+01:00"', "too far away"),
        ('create_time > "9999-12-31T23:00:00-02:00"', "too far away"),
        ('description = "a\0b"', "NUL"),
    ],
)
def test_what_is_no_filter_is_refused_in_words(text: str, said: str) -> None:
    assert said in refused(text)


def test_conditions_are_bounded() -> None:
    one = "version = 1"
    assert len(read(" AND ".join([one] * MOST_CONDITIONS))) == MOST_CONDITIONS
    assert "more than" in refused(" AND ".join([one] * (MOST_CONDITIONS + 1)))


_PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *VERSION_FIELDS,
                *("labels.a", "metrics.b", "AND", "=", "!=", "<", ">=", ":", "*", '"', "\\"),
                *("READY", "1", "-2.5", '"x"', '"2026-01-01"', "(", ")", "\0", " ", "\n"),
            ]
        ),
        st.text(max_size=4),
    ),
    max_size=12,
)


@given(st.one_of(st.text(), _PIECES.map("".join), _PIECES.map(" ".join)))
@example('create_time = "\ud800"')
@example("version = 1_0")
def test_any_text_is_a_filter_or_is_refused_by_its_field(text: str) -> None:
    for fields in (MODEL_FIELDS, VERSION_FIELDS):
        try:
            found = conditions(text, fields)
        except InvalidRequest as error:
            assert [violation.field for violation in error.violations] == ["filter"]
        else:
            assert all(condition.field.name in fields for condition in found)


@given(st.text().filter(lambda text: "\0" not in text))
def test_any_text_can_be_quoted(value: str) -> None:
    # A backslash before a line's end is no escape: nothing needs one there.
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    assert read(f'description = "{quoted}" AND version = 1')[0].value == value


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,60}", fullmatch=True))
def test_a_key_of_a_map_may_have_dots(key: str) -> None:
    (condition,) = read(f"labels.{key} = a")
    assert (condition.field.name, condition.field.key) == ("labels", key)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_is_read_as_it_is(value: float) -> None:
    assert read(f"metrics.a = {value!r}")[0].value == value


@given(
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 30)),  # zones come below
    st.integers(-23 * 60, 23 * 60),
)
def test_a_moment_has_one_form_so_that_moments_compare_as_texts(
    value: datetime, minutes: int
) -> None:
    there = value.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    found = moment(there.isoformat())
    assert found == stored_moment(there)
    assert datetime.fromisoformat(found) == there
    assert len(found) == len(NOON)
    assert moment(value.isoformat()) == stored_moment(value.replace(tzinfo=UTC))


def ordered(text: str) -> list[tuple[str, str, bool]]:
    """An order of versions."""
    return [(o.field.name, o.field.key, o.descending) for o in orders(text, VERSION_FIELDS)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" , ,", []),
        ("version", [("version", "", False)]),
        ("version asc", [("version", "", False)]),
        ("  version   desc  ", [("version", "", True)]),
        ("state,create_time desc", [("state", "", False), ("create_time", "", True)]),
        ("metrics.f1 desc, labels.a.b", [("metrics", "f1", True), ("labels", "a.b", False)]),
    ],
)
def test_an_order_is_read(text: str, expected: list[tuple[str, str, bool]]) -> None:
    assert ordered(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("nonsense", "version up", "version DESC", "version desc desc", "desc", "metrics"),
        *("labels.", "version;drop table models", "-version", "name", "state.x", "version\0"),
        ", ".join(["version"] * (MOST_ORDERS + 1)),
    ],
)
def test_what_is_no_order_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ordered(text)
    assert [violation.field for violation in caught.value.violations] == ["order_by"]


@given(st.text())
def test_any_text_is_an_order_or_is_refused_by_its_field(text: str) -> None:
    try:
        found = orders(text, MODEL_FIELDS)
    except InvalidRequest as error:
        assert [violation.field for violation in error.violations] == ["order_by"]
    else:
        assert all(isinstance(order, Order) and order.field.name in MODEL_FIELDS for order in found)


def test_archived_models_are_wanted_only_where_the_filter_names_the_time() -> None:
    hidden = Condition(Field("archive_time", "", "time"), "!=", None)
    assert asked("models", 5, "", "", "").filters == (hidden,)
    assert hidden in asked("models", 5, "", "task = GENERATION", "").filters
    assert hidden not in asked("models", 5, "", "archive_time:*", "").filters
    assert hidden not in asked("models", 5, "", 'archive_time < "2026-01-01"', "").filters
    assert asked("models", 5, "", "", "archive_time").filters == (hidden,)
    assert asked("versions", 5, "", "", "").filters == ()

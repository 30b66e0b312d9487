"""Constraints: what is taken, what is refused by field, and that either is soon said."""

import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.generator.constraints import Constraint, Kind, check
from services.runtime.errors import InvalidRequest

PATH = "params.constraint"
SOON_S = 2.0
KIB_64 = 65536
unhurried = settings(deadline=None)
# What Python says of sets in sets; what it means for us has a test of its own.
ambiguous = pytest.mark.filterwarnings("ignore:Possible:FutureWarning")


def refusal(kind: Kind, value: str) -> str | None:
    """What is said of it; None where it is taken."""
    try:
        check(Constraint(kind, value), PATH)
    except InvalidRequest as error:
        (violation,) = error.violations
        assert violation.field.startswith(f"{PATH}.{kind}")
        return violation.description
    return None


def of_schema(schema: object) -> str | None:
    """The same of a schema."""
    return refusal("json_schema", json.dumps(schema))


def nested(depth: int) -> dict[str, Any]:
    """A schema of so many levels."""
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"not": schema}
    return schema


class TestExpressions:
    @pytest.mark.parametrize(
        "pattern",
        [
            *("a", "a|b|", "(?:ab)+?", "(a)(b)", r"[a-z]*\d{2}", r"^\w+$", "\u4e2d{3,5}"),
            *("a{1024}", "(a{32}){32}", "a{1023,}", "(ab|cd){256}", ".{102}", "[^a]{102}"),
        ],
    )
    def test_what_engines_follow_is_taken(self, pattern: str) -> None:
        assert refusal("regex", pattern) is None

    @pytest.mark.parametrize("pattern", ["(", "a)", "[z-a]", "a**", "*", "\\", "(?P<1>a)", "(?"])
    def test_what_is_no_expression_is_refused(self, pattern: str) -> None:
        assert refusal("regex", pattern) is not None

    @pytest.mark.parametrize(
        "pattern",
        [
            *("(?=a)b", "(?!a)b", "(?<=a)b", "(?<!a)b", "(x(y|(?=a)))*"),
            *(r"(a)\1", "(?P<x>a)(?P=x)", "(a)?(?(1)b|c)", r"\bfoo", r"foo\B", "(a++)", "(?>a)"),
            *("(?i)a", "(?s)a", "(?x) a", "(?im)a"),
            "(?i:a)",
            "(?-i:a)",
        ],
    )
    def test_what_engines_do_not_follow_is_refused(self, pattern: str) -> None:
        assert refusal("regex", pattern) is not None

    @pytest.mark.parametrize(
        "pattern",
        [
            *("a{1025}", "(a{33}){32}", "a{1024,}", "(ab|cd){257}", "a{0,1025}", "(a|b{1024})"),
            *(".{103}", "[^a]{103}", "[^ab]{103}", "(((a{99}){99}){99}){99}", "ab" * 513),
            r"\S{1000}",
            r"[\s\S]{1000}",
            "(?:){4294967294}",
            "(a{0}){4294967294}",
        ],
    )
    def test_what_is_too_large_with_its_repetitions_written_out_is_refused(
        self, pattern: str
    ) -> None:
        assert "too large" in (refusal("regex", pattern) or "")


class TestSchemas:
    @pytest.mark.parametrize(
        "schema",
        [
            *({}, {"type": "object", "properties": {"pattern": {"type": "string"}}}),
            *({"maxLength": 256}, {"properties": {"minLength": {}, "$ref": {}}}),
            {"$defs": {"a~/b": {"items": {"$ref": "#"}}}, "$ref": "#/$defs/a~0~1b"},
            *({"pattern": "^[a-z]{3}$"}, {"anyOf": [{"maxItems": 500}, {"minItems": 500}]}),
            *({"enum": list(range(1998))}, nested(24)),
            *({"const": {"$ref": "x", "maxLength": 9999}}, {"enum": [{"pattern": "("}]}),
            {"anyOf": [{}, {"$ref": "#/anyOf/0"}]},
        ],
    )
    def test_what_engines_follow_is_taken(self, schema: object) -> None:
        assert of_schema(schema) is None

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", "1", '"a"', "null", "{'a': 1}", '{"const": NaN}', '{"maximum": -Infinity}'],
    )
    def test_what_is_no_json_object_is_refused(self, text: str) -> None:
        assert "no JSON" in (refusal("json_schema", text) or "")

    @pytest.mark.parametrize(
        ("schema", "said"),
        [
            ({"$ref": "https://example.com/schema"}, "another document"),
            ({"items": {"$ref": "other.json#/a"}}, "another document"),
            ({"$ref": "#/$defs/a"}, "not there"),
            ({"$defs": {"a": {}}, "not": {"$ref": "#/$defs/a/b"}}, "not there"),
            ({"properties": {"x": {"pattern": "(?=a)"}}}, "no engine follows"),
            ({"propertyNames": {"pattern": "("}}, "no regular expression"),
            ({"patternProperties": {"(?=a)": {}}}, "no engine follows"),
            ({"pattern": "a{1025}"}, "too large"),
            ({"maxLength": 257}, "too large"),
            ({"properties": {f"p{n}": {} for n in range(257)}}, "too large"),
            ({"anyOf": [{"maxItems": 500}, {"minLength": 132}]}, "too large"),
            (nested(25), "nested more than 24"),
            ({"enum": list(range(1999))}, "more than 2000 parts"),
        ],
    )
    def test_what_engines_do_not_follow_is_refused(self, schema: object, said: str) -> None:
        assert said in (of_schema(schema) or "")

    @pytest.mark.parametrize(
        "schema",
        [
            {"anyOf": [{"maxLength": 9999}, {"minLength": -9999, "maxLength": -9999}]},
            *({"maxLength": 1e9}, {"maxLength": 1025.0}),
            {"anyOf": [{"pattern": "a{1000}"}] * 99},
            {"$ref": "#/x", "x": {"maxLength": 9999}},
        ],
    )
    def test_no_way_of_writing_gets_round_the_bound(self, schema: object) -> None:
        assert of_schema(schema) is not None


class TestChoices:
    def test_texts_are_taken_up_to_a_sum(self) -> None:
        check(Constraint("choices", choices=("a", "b" * 16_383)), PATH)

    @pytest.mark.parametrize("choices", [("a", ""), ("a", "b" * 16_384)])
    def test_empty_ones_and_too_many_characters_are_refused(self, choices: tuple[str, ...]) -> None:
        with pytest.raises(InvalidRequest) as refused:
            check(Constraint("choices", choices=choices), PATH)
        (violation,) = refused.value.violations
        # A message `choices` with a field `choices`.
        assert violation.field == f"{PATH}.choices.choices"

    def test_any_json_object_is_taken(self) -> None:
        check(Constraint("json_object"), PATH)


@ambiguous
class TestBombs:
    @pytest.mark.parametrize("kind", ["regex", "json_schema"])
    @pytest.mark.parametrize(
        ("bomb", "close"),
        [
            *(
                ("(", ")"),
                ("(?:a", ")"),
                ("(a|", ")"),
                ("[", "]"),
                ('{"not":', "}"),
                ('{"a":[', "]}"),
            ),
            *((bomb, "") for bomb in ("(", "[", "(?:", "[^", "a|", "a?", "(a)", "{", "\\", "(?#")),
            *((bomb, "") for bomb in ("[a-", "(?=", ".*", "(a*)*", "((a|b)*)*", "(?P<", "a{9}")),
            *((bomb, "") for bomb in ("a{999999999}", "[a-z]{9}", '{"not":', '{"a":[', "9", '"')),
        ],
    )
    def test_64_kib_of_anything_are_refused_soon(self, kind: Kind, bomb: str, close: str) -> None:
        times = KIB_64 // len(bomb + close)
        text = bomb * times + close * times
        began = time.perf_counter()
        assert refusal(kind, text) is not None
        assert of_schema({"pattern": text}) is not None
        assert time.perf_counter() - began < SOON_S


MARKS = "()[]{}|*+?.^$\\-,:=!<>PiLux019ab\u00e9 "
EXPRESSIONS = st.text() | st.text(MARKS, max_size=30)
KEYS = st.sampled_from(
    [
        *("$ref", "pattern", "patternProperties", "properties", "items", "anyOf", "not", "type"),
        *("enum", "maxLength", "minLength", "minProperties", "minimum", "required", "const"),
    ]
)
VALUES = st.recursive(
    st.none() | st.integers(-5, 2000) | st.floats() | EXPRESSIONS | st.just("#/not"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
)
SCHEMAS = st.text() | st.dictionaries(KEYS, VALUES, max_size=4).map(json.dumps)


class TestAnything:
    @ambiguous
    @unhurried
    @given(EXPRESSIONS)
    def test_an_expression_is_taken_or_refused(self, text: str) -> None:
        assert refusal("regex", text) != ""

    @ambiguous
    @unhurried
    @given(SCHEMAS)
    @example('{"properties": null}')
    def test_a_schema_is_taken_or_refused(self, text: str) -> None:
        assert refusal("json_schema", text) != ""

    @pytest.mark.parametrize(
        "pattern",
        [
            "a{" + "9" * 5000 + "}",
            "[[a]",
        ],
    )
    def test_no_expression_is_anything_else(self, pattern: str) -> None:
        assert refusal("regex", pattern) != ""

    @pytest.mark.parametrize(
        "text",
        [
            *(
                '{"$ref": {}}',
                '{"pattern": 1}',
                '{"items": "a"}',
                '{"anyOf": {}}',
                '{"type": [[]]}',
            ),
            '{"properties": null}',
            '{"patternProperties": 5}',
            '{"minLength": "a", "maxLength": 1}',
            '{"minProperties": "a"}',
            f'{{"minimum": 1{"0" * 400}}}',
        ],
    )
    def test_no_schema_is_anything_else(self, text: str) -> None:
        assert refusal("json_schema", text) != ""

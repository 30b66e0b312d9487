"""Tools: calls are taken out of a text however it is cut, and nothing else of it is lost."""

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.generator import constraints
from services.generator.tools import (
    CLOSE,
    MISTRAL,
    OPEN,
    Call,
    CallReader,
    Tool,
    Toolbox,
    written_out,
)

unhurried = settings(deadline=None)
WEATHER = Tool("weather", "Of a place.", '{"type": "object", "properties": {"at": {}}}')
NOW = Tool("now")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)
CALL = st.fixed_dictionaries(
    {"name": st.text("ab\u00e9", max_size=3)},
    optional={"arguments": st.dictionaries(st.text(max_size=2), JSON, max_size=2)},
)
BODY = (CALL | st.lists(CALL, max_size=2) | JSON).map(json.dumps)
BROKEN = st.sampled_from(['{"name": "f"', '{"name": "f", "arguments": "{}"}', "{}", "", " "])
# Openings, their beginnings, and bodies with and without their ends, in any order.
MARKS = st.sampled_from([OPEN, CLOSE, MISTRAL, OPEN[:5], CLOSE[:4], MISTRAL[:3], "<", "[", "]"])
BLOCK = st.builds(lambda body, close: OPEN + body + close, BODY | BROKEN, st.just(CLOSE))
TEXT = st.lists(MARKS | BLOCK | BODY | BROKEN | st.text(max_size=3), max_size=8).map("".join)
MODE = st.sampled_from([{}, {"mistral": True}, {"whole": True}])


def read(pieces: Sequence[str], **mode: bool) -> tuple[str, list[Call]]:
    """The text and the calls; ids are numbers in the order in which they are given."""
    numbers = map(str, itertools.count())
    reader = CallReader(**mode, new_id=lambda: next(numbers))
    text = "".join([reader.push(piece) for piece in pieces])
    text += reader.flush()
    assert reader.flush() == ""
    return text, reader.calls


def call(name: str, id_: str = "0", **arguments: Any) -> Call:
    """As the reader gives it."""
    return Call(id_, name, json.dumps(arguments))


def calls_in(body: str) -> list[tuple[str, Any]]:
    """Names and arguments, where a body is a call or a list of nothing else; else nothing."""
    try:
        found = json.loads(body)
    except ValueError:
        return []
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in calls):
        return []
    given = [(c["name"], c.get("arguments", c.get("parameters", {}))) for c in calls]
    return given if all(isinstance(arguments, dict) for _, arguments in given) else []


class TestCallReader:
    @unhurried
    @given(TEXT, st.lists(st.integers(0, 200), max_size=12), MODE)
    @example(f'a{OPEN}{{"name": "f"}}{CLOSE}b', list(range(200)), {})
    @example(f'a{MISTRAL}[{{"name": "f"}}]', list(range(200)), {"mistral": True})
    def test_however_a_text_is_cut_text_and_calls_are_the_same(
        self, text: str, cuts: list[int], mode: dict[str, bool]
    ) -> None:
        edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
        assert read(pieces, **mode) == read([text], **mode)

    @unhurried
    @given(TEXT)
    @example(f'{OPEN}{{"name": "f"}}{CLOSE}{OPEN}[]{CLOSE}{OPEN}{{"name": "g"}}')
    def test_blocks_that_are_calls_are_taken_out_and_all_else_stays(self, text: str) -> None:
        found: list[tuple[str, Any]] = []

        def taken(match: re.Match[str]) -> str:
            calls = calls_in(match[1])
            found.extend(calls)
            return "" if calls else match[0]

        # The end of the text closes the last.
        left = re.sub(f"{OPEN}(.*?)(?:{CLOSE}|\\Z)", taken, text, flags=re.DOTALL)
        said, calls = read([text])
        assert said == left
        assert [(one.name, json.loads(one.arguments)) for one in calls] == found
        assert [one.id for one in calls] == [str(i) for i in range(len(calls))]

    @pytest.mark.parametrize(("mode", "opening"), [("whole", ""), ("mistral", MISTRAL)])
    @unhurried
    @given(BODY | BROKEN)
    def test_a_call_that_ends_with_the_text_is_taken_or_the_text_stays(
        self, mode: str, opening: str, body: str
    ) -> None:
        before = "" if mode == "whole" else "hm "
        said, calls = read([before + opening + body], **{mode: True})
        found = calls_in(body)
        assert [(one.name, json.loads(one.arguments)) for one in calls] == found
        assert said == (before if found else before + opening + body)

    def test_text_comes_as_soon_as_it_is_in_no_call(self) -> None:
        reader = CallReader()
        pushed = ["so <", "b> <tool", '_call>{"name": "f"}', "</tool_call", "> and", " <"]
        assert [reader.push(text) for text in pushed] == ["so ", "<b> ", "", "", " and", " "]
        assert (reader.flush(), [one.name for one in reader.calls]) == ("<", ["f"])

    def test_parameters_are_arguments_by_another_name_and_may_be_left_out(self) -> None:
        text = '[{"name": "f", "parameters": {"x": 1}}, {"name": "g"}]'
        assert read([text], whole=True) == ("", [call("f", x=1), call("g", "1")])

    def test_one_that_is_no_call_among_calls_leaves_all_of_them_in_the_text(self) -> None:
        text = f'{OPEN}[{{"name": "f"}}, 7]{CLOSE}'
        assert read([text]) == (text, [])

    def test_each_call_has_an_id_of_its_own(self) -> None:
        reader = CallReader(whole=True)
        reader.push('[{"name": "f"}, {"name": "f"}]')
        reader.flush()
        assert len({one.id for one in reader.calls}) == 2

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
    def test_a_number_that_is_none_in_json_is_in_no_call(self, number: str) -> None:
        text = f'{OPEN}{{"name": "f", "arguments": {{"x": {number}}}}}{CLOSE}'
        assert read([text]) == (text, [])

    def test_however_deep_a_call_is_nested_it_is_taken_or_stays(self) -> None:
        for depth in range(800, 1000):
            body = f'{{"name": "f", "arguments": {{"x": {"[" * depth}{"]" * depth}}}}}'
            said, calls = read([body], whole=True)
            assert (said == "") == (len(calls) == 1)
            assert said in ("", body)


class TestToolbox:
    @pytest.mark.parametrize("name", ["", "weather", "now"])
    def test_what_must_be_called_can_be_asked_of_an_engine(self, name: str) -> None:
        found = Toolbox((WEATHER, NOW), "required", name).constraint()
        constraints.check(found, "tools")
        one = json.loads(found.value)
        names = [call["properties"]["name"]["const"] for call in one.get("anyOf", [one])]
        assert names == ([name] if name else ["weather", "now"])

    def test_a_tool_whose_schema_refers_to_a_part_of_itself_can_be_asked_for(self) -> None:
        schema = {"properties": {"at": {"$ref": "#/$defs/place"}}, "$defs": {"place": {}}}
        tool = Tool("weather", parameters=json.dumps(schema))
        constraints.check(Toolbox((tool, NOW), "required").constraint(), "tools")

    def test_only_a_choice_of_required_forces_a_call(self) -> None:
        forced = [Toolbox((NOW,), choice).forced for choice in ("auto", "none", "required")]
        assert forced == [False, False, True]


MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "Where {is} it?"},
    {
        "role": "assistant",
        "content": "Let me look.",
        "tool_calls": [
            {"id": "1", "function": {"name": "weather", "arguments": {"at": "Rome"}}},
            {"id": "2", "function": {"name": "now", "arguments": {}}},
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "Sunny."},
]


class TestWrittenOut:
    def test_calls_and_results_are_said_in_the_messages(self) -> None:
        user, assistant, result = written_out(MESSAGES, ())
        assert user == MESSAGES[0]
        said, calls = read([assistant["content"]])
        assert (assistant["role"], said.strip()) == ("assistant", "Let me look.")
        assert calls == [call("weather", at="Rome"), call("now", "1")]
        assert (result["role"], "Sunny." in result["content"]) == ("user", True)
        assert not any(
            "tool_calls" in one or "tool_call_id" in one for one in written_out(MESSAGES, ())
        )

    @pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be {brief}."}]])
    def test_the_tools_are_said_first_after_what_the_system_said(
        self, system: list[dict[str, Any]]
    ) -> None:
        first, *rest = written_out([*system, *MESSAGES], (WEATHER, NOW))
        assert rest == written_out(MESSAGES, ())
        assert first["role"] == "system"
        assert first["content"].startswith(system[0]["content"] if system else "These functions")
        lines = first["content"].partition("<tools>\n")[2].partition("\n</tools>")[0].splitlines()
        assert [json.loads(line) for line in lines] == [
            tool.described()["function"] for tool in (WEATHER, NOW)
        ]

    def test_what_is_given_is_left_alone(self) -> None:
        before = json.dumps(MESSAGES)
        written_out(MESSAGES, (NOW,))
        assert json.dumps(MESSAGES) == before

"""Templates as models have them pass; budgets are kept whatever a template does."""

from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from jinja2.ext import loopcontrols

from services.registry.checks import templates
from services.registry.checks.findings import RefusedError
from services.templates import budget
from services.templates.budget import MAX_SIZE, Budget, OverBudgetError
from services.templates.sandbox import Sandbox
from tests.unit.registry_checks.corpus import CHATML

TOOLS = """
{%- macro render(tool) -%}{{ tool | tojson(indent=2) }}{%- endmacro -%}
{%- if tools is defined and tools is not none %}
    {%- for tool in tools %}{{ render(tool) }}{% endfor %}
{%- endif %}
{%- set ns = namespace(system='', first=true, last=(messages | length) - 1) %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{% set ns.system = message.content %}{% endif %}
{%- endfor %}
{{- bos_token }}{{ 'You are ' ~ ns.system if ns.system else '' }}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.first and message.role == 'user' and not message.content.startswith('<tool>') %}
        {%- set ns.first = false %}{% set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate') }}
    {%- endif %}
    {%- set content = message.content.split('</think>')[-1].lstrip('\\n') | trim %}
    {%- if loop.first or (loop.previtem and loop.previtem.role != message.role) -%}
        {{ '<' + message.role + '>\\n' + content + '</' + message.role + '>' }}
    {%- endif %}
    {%- if message.tool_calls is defined %}{{ message.tool_calls[0].name }}{% endif %}
    {%- if loop.last %}{% break %}{% else %}{{ ',' }}{% continue %}{% endif %}
{%- endfor %}
{%- generation %}{{ strftime_now('%d %b %Y') }}{% endgeneration %}
{%- for key, text in {'a': 1, 'b': [2, 3]}.items() %}{{ key }}={{ text }}{% endfor %}
{{- messages | map(attribute='role') | join(', ') }}
{{- messages | selectattr('role', 'equalto', 'user') | list | length }}
{{- range(3) | list }}{{ 'x' * 3 }}{{ '%s' % 'y' }}{{ 7 // 2 ** 1 }}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}
"""
PARTS = (
    "{% for m in messages %}{% for p in m.content %}{{ p.text.upper() }}{% endfor %}{% endfor %}"
)
PLAIN = TOOLS.replace("{%- generation %}{{ strftime_now('%d %b %Y') }}{% endgeneration %}", "")


@pytest.mark.parametrize("source", [CHATML, TOOLS, PARTS, "", "text"])
def test_templates_of_models_pass(source: str) -> None:
    templates.check(source)


def test_a_template_may_refuse_a_conversation() -> None:
    templates.check("{{ raise_exception('Only user messages are supported') }}")


def test_only_the_default_template_must_write_a_plain_conversation() -> None:
    source = "{% for document in documents %}{{ document.title }}{% endfor %}"
    templates.check(source, "rag")
    with pytest.raises(RefusedError, match="cannot write a conversation"):
        templates.check(source)


def test_what_is_written_is_what_jinja_writes() -> None:
    """Leading everything past the budget changes nothing in the output."""
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    variables = {"messages": messages, "add_generation_prompt": True, "bos_token": "<s>"}
    options = {"trim_blocks": True, "lstrip_blocks": True, "extensions": [loopcontrols]}
    plain = jinja2.Environment(**options)  # noqa: S701 - as models' templates are rendered
    for source in (CHATML, PLAIN):
        text = plain.from_string(source).render(variables)
        assert Sandbox(Budget()).render_bounded(source, variables) == len(text)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ loop.length }}{% endfor %}", "1232"),
        ("{% for a in [1, 2, 3] if a > 1 %}{{ a }}{% else %}none{% endfor %}", "23"),
        ("{% for a in [] %}{% else %}none{% endfor %}", "none"),
        ("{{ 'a' ~ 1 ~ none }}{{ [1] + [2] }}{{ {'a': (1,)} }}", "a1None[1, 2]{'a': (1,)}"),
        ("{% set a, b = 1, 2 %}{{ b }}{{ 1 if a in (1, 2) else 0 }}", "21"),
        ("{% set n = namespace(a=1) %}{% set n.a = n.a + 1 %}{{ n.a }}{{ n }}", "2<namespace>"),
        ("{% filter upper %}a{{ 'b' }}{% endfilter %}{{ 'a' is string }}", "ABTrue"),
        ("{% call(x) m() %}{{ x }}{% endcall %}", None),
        ("{% macro m() %}{{ caller(1) }}{% endmacro %}{% call(x) m() %}{{ x }}{% endcall %}", "1"),
        ("{% raw %}{{ a }}{% endraw %}{# nothing #}{{ 'a' 'b' }}", "{{ a }}ab"),
        ("{{ [1, 2, 3] | select('odd') }}{{ ['a'] | map('upper') }}", "[1, 3]['A']"),
        ("{{ ', '.join(['a', 'b']) }}{{ 'abc'[1:] }}{{ 'a,b'.split(',')[1] }}", "a, bbcb"),
    ],
)
def test_the_changed_tree_means_the_same(source: str, text: str | None) -> None:
    if text is None:
        with pytest.raises(RefusedError):
            templates.check(source)
    else:
        assert Sandbox(Budget()).render_bounded(source, {}) == len(text)


def test_the_clock_ends_it() -> None:
    now = SimpleNamespace(s=0.0)
    spent = Budget(clock=lambda: now.s)
    spent.step()
    now.s = budget.SECONDS + 1
    with pytest.raises(OverBudgetError, match="too long"):
        spent.step()


def test_shared_parts_weigh_as_often_as_they_are_written() -> None:
    inner: list[Any] = ["x" * 100]
    assert Budget().weigh([inner, inner]) > 200
    for _ in range(20):
        inner = [inner, inner]
    with pytest.raises(OverBudgetError, match="too large"):
        Budget().weigh(inner)


@pytest.mark.parametrize("size", [0, 1, MAX_SIZE])
def test_room_is_given_up_to_the_limit(size: int) -> None:
    Budget().room(size)
    with pytest.raises(OverBudgetError):
        Budget().room(MAX_SIZE + 1)

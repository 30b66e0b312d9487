"""Path templates: what they match, that expanding is the inverse, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.template import Template, Variable, split

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,6}(\.[a-z][a-z0-9_]{0,6}){0,2}", fullmatch=True)
LITERALS = st.from_regex(r"[A-Za-z0-9._~-]{1,8}", fullmatch=True)
# What a server hands over after decoding: anything but a slash; in the last segment no colon.
VALUES = st.text(st.characters(exclude_characters="/:", exclude_categories=["Cs"]), min_size=1)


@st.composite
def templates(draw: st.DrawFn) -> Template:
    """Any template without `**`."""
    segments: list[str] = []
    variables: list[Variable] = []
    fields = draw(st.lists(NAMES, unique=True, max_size=3))
    for field in fields:
        segments += draw(st.lists(LITERALS, max_size=2))
        own = draw(st.lists(st.one_of(LITERALS, st.just("*")), min_size=1, max_size=3))
        variables.append(Variable(field, len(segments), len(segments) + len(own)))
        segments += own
    segments += draw(st.lists(LITERALS, min_size=0 if segments else 1, max_size=2))
    verb = draw(st.one_of(st.just(""), LITERALS))
    return Template(tuple(segments), tuple(variables), verb)


@given(templates())
def test_what_is_written_is_parsed_back(template: Template) -> None:
    assert Template.parse(str(template)) == template


@given(templates(), st.data())
def test_what_is_expanded_is_matched_back(template: Template, data: st.DataObject) -> None:
    values = {}
    for variable in template.variables:
        own = template.segments[variable.start : variable.stop]
        filled = [data.draw(VALUES) if segment == "*" else segment for segment in own]
        values[variable.field] = "/".join(filled)
    assert template.match(*split(template.expand(values))) == values


@pytest.mark.parametrize(
    ("template", "path", "variables"),
    [
        ("/v1/models", "/v1/models", {}),
        ("/v1/models", "/v1/models/", None),
        ("/v1/models", "/v1/models:resolve", None),
        ("/v1/{name=models/*}", "/v1/models/a", {"name": "models/a"}),
        ("/v1/{name=models/*}", "/v1/models/a/b", None),
        ("/v1/{name=models/*}", "/v1/models/", None),
        ("/v1/{name=models/*}", "/v1/models/a:archive", None),
        ("/v1/{name=models/*}:archive", "/v1/models/a:archive", {"name": "models/a"}),
        ("/v1/{name=models/*}:archive", "/v1/models/a", None),
        ("/v1/{name=models/*}:archive", "/v1/models/:archive", None),
        ("/v1/{id}", "/v1/a", {"id": "a"}),
        ("/v1/{a.b=x/*/y}/z", "/v1/x/1/y/z", {"a.b": "x/1/y"}),
        ("/v1/{name=files/**}", "/v1/files/a/b/c", {"name": "files/a/b/c"}),
        ("/v1/{name=files/**}", "/v1/files", {"name": "files"}),
        ("/v1/{name=files/**}", "/v1/other/a", None),
    ],
)
def test_matching(template: str, path: str, variables: dict[str, str] | None) -> None:
    assert Template.parse(template).match(*split(path)) == variables


@pytest.mark.parametrize(
    "text",
    [
        "v1/models",
        "/v1/{name=models/*",
        "/v1/{Name}",
        "/v1/{name}/{name}",
        "/v1/**/models",
        "/v1//models",
        "/v1/mod els",
        "/v1/x{name}",
        "/v1/models:",
    ],
)
def test_what_is_no_template_is_refused(text: str) -> None:
    if text.endswith(":"):
        assert Template.parse(text).verb == ""
        return
    with pytest.raises(ValueError, match="'"):
        Template.parse(text)

"""What an answer must look like, checked before an engine sees it. Pure.

An engine turns a constraint into a state machine over its whole vocabulary, between two steps of
everybody's work. What that costs grows with the positions that an expression has once its counted
repetitions are written out, so these are bounded here, as are the depth and size of a schema.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from services.runtime.errors import InvalidRequest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from re import _constants as sre  # type: ignore[attr-defined]  # has no public name
    from re import _parser as sre_parser  # type: ignore[attr-defined]

Kind = Literal["json_schema", "regex", "choices", "json_object"]
MAX_POSITIONS = 1024
WIDE = 10
"""What a place costs where nearly any character may stand, against one for a few characters."""
MAX_DEPTH = 24
MAX_NODES = 2000
MAX_CHOICES_CHARACTERS = 16_384
_BEYOND = (sre.ASSERT, sre.ASSERT_NOT, sre.GROUPREF, sre.GROUPREF_EXISTS)
_BOUNDARIES = (sre.AT_BOUNDARY, sre.AT_NON_BOUNDARY)
_REPEATS = ("minItems", "maxItems", "minProperties", "maxProperties")
_LENGTHS = ("minLength", "maxLength")


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must look like: one kind, and what it says."""

    kind: Kind
    value: str = ""
    """The schema as JSON text, or the expression."""
    choices: tuple[str, ...] = ()


def check(constraint: Constraint, path: str) -> None:
    """Raise InvalidRequest where a constraint is malformed or would cost too much."""
    if constraint.kind == "json_schema":
        check_schema(constraint.value, f"{path}.json_schema")
    elif constraint.kind == "regex":
        check_regex(constraint.value, f"{path}.regex")
    elif constraint.kind == "choices":
        _check_choices(constraint.choices, f"{path}.choices")


def _check_choices(choices: Sequence[str], path: str) -> None:
    if any(not choice for choice in choices):
        raise InvalidRequest.field(f"{path}.choices", "an empty text is no choice")
    if sum(len(choice) for choice in choices) > MAX_CHOICES_CHARACTERS:
        said = f"has more than {MAX_CHOICES_CHARACTERS} characters in all"
        raise InvalidRequest.field(f"{path}.choices", said)


def check_regex(pattern: str, path: str) -> None:
    """The same for an expression."""
    try:
        parsed = sre_parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidRequest.field(path, f"is no regular expression: {error}") from error
    if parsed.state.flags & ~re.UNICODE:
        raise InvalidRequest.field(path, "sets flags, which no engine follows")
    try:
        positions = _positions(parsed)
    except RecursionError as error:
        raise InvalidRequest.field(path, "is nested too deeply") from error
    except InvalidRequest as error:
        said = f"{error.message}, which no engine follows"
        raise InvalidRequest.field(path, said) from error
    if positions > MAX_POSITIONS:
        said = (
            f"is too large: {positions} positions with its repetitions written out, and at most "
            f"{MAX_POSITIONS} are taken (one that takes nearly any character counts as {WIDE})"
        )
        raise InvalidRequest.field(path, said)


def _positions(parsed: Any) -> int:
    """How many places an expression has with its counted repetitions written out."""
    return sum(_of(kind, value) for kind, value in parsed)


def _of(kind: Any, value: Any) -> int:
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
        least, most, inner = value
        # Without an end it is one more place that leads back to itself.
        times = least + 1 if most == sre.MAXREPEAT else most
        return int(times) * _positions(inner)
    if kind is sre.SUBPATTERN:
        return _positions(value[-1])
    if kind is sre.BRANCH:
        return sum(_positions(branch) for branch in value[1])
    if kind is sre.ATOMIC_GROUP:
        return _positions(value)
    if kind in _BEYOND or (kind is sre.AT and value in _BOUNDARIES):
        raise InvalidRequest("looks around, refers back, or asks for word boundaries")
    if kind in (sre.ANY, sre.NOT_LITERAL) or (kind is sre.IN and value[0][0] is sre.NEGATE):
        return WIDE
    return 1


def check_schema(text: str, path: str) -> None:
    """The same for a JSON Schema."""
    try:
        schema = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest.field(path, f"is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise InvalidRequest.field(path, "is no JSON object")
    positions = 0
    for count, (depth, node) in enumerate(_nodes(schema)):
        if depth > MAX_DEPTH:
            raise InvalidRequest.field(path, f"is nested more than {MAX_DEPTH} deep")
        if count >= MAX_NODES:
            raise InvalidRequest.field(path, f"has more than {MAX_NODES} parts")
        if isinstance(node, dict):
            positions += _check_node(node, schema, path)
        if positions > MAX_POSITIONS:
            said = f"is too large: its lengths, counts and patterns add up to over {MAX_POSITIONS}"
            raise InvalidRequest.field(path, said)


def _check_node(node: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> int:
    """Refuse what no engine can follow; the positions that the node costs by itself."""
    reference = node.get("$ref")
    if isinstance(reference, str):
        _check_reference(reference, schema, path)
    pattern = node.get("pattern")
    if isinstance(pattern, str):
        check_regex(pattern, f"{path}: pattern")
    repeats = max((_number(node.get(name)) for name in _REPEATS), default=0)
    lengths = max((_number(node.get(name)) for name in _LENGTHS), default=0)
    return repeats + lengths


def _check_reference(reference: str, schema: Mapping[str, Any], path: str) -> None:
    """A reference within the schema that leads somewhere."""
    if reference != "#" and not reference.startswith("#/"):
        raise InvalidRequest.field(path, "refers to another document, which is never fetched")
    found: Any = schema
    for part in reference.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            raise InvalidRequest.field(path, f"refers to {reference[:100]!r}, which is not there")
        found = found[name]


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _nodes(schema: Any) -> Iterator[tuple[int, Any]]:
    """Every part of the document with its depth, without recursion."""
    pending: list[tuple[int, Any]] = [(1, schema)]
    while pending:
        depth, node = pending.pop()
        yield depth, node
        if isinstance(node, dict):
            pending += [(depth + 1, value) for value in node.values()]
        elif isinstance(node, list):
            pending += [(depth + 1, value) for value in node]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")

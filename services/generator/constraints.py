"""What an answer must look like, checked before an engine sees it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.generator import expressions, schemas
from services.runtime.errors import InvalidRequest

Kind = Literal["json_schema", "regex", "choices", "json_object"]
MAX_CHOICES_CHARACTERS = 16_384


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
        schemas.check(constraint.value, f"{path}.json_schema")
    elif constraint.kind == "regex":
        expressions.check(constraint.value, f"{path}.regex")
    elif constraint.kind == "choices":
        _check_choices(constraint.choices, f"{path}.choices")


def _check_choices(choices: Sequence[str], path: str) -> None:
    if any(not choice for choice in choices):
        raise InvalidRequest.field(f"{path}.choices", "an empty text is no choice")
    if sum(len(choice) for choice in choices) > MAX_CHOICES_CHARACTERS:
        said = f"has more than {MAX_CHOICES_CHARACTERS} characters in all"
        raise InvalidRequest.field(f"{path}.choices", said)

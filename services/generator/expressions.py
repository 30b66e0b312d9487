"""Regular expressions as constraints: their size with repetitions written out, and what no engine
follows. Pure.

An engine turns an expression into a state machine over its whole vocabulary, between two steps of
everybody's work; what that costs grows with its positions, so these are bounded.
"""

import re
import warnings
from typing import Any

from services.runtime.errors import InvalidRequest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from re import _constants as sre  # type: ignore[attr-defined]  # has no public name
    from re import _parser as sre_parser  # type: ignore[attr-defined]

MAX_POSITIONS = 1024
MANY = 1024
"""Characters in a range that is as good as any."""
WIDE = 10
"""What a place costs where nearly any character may stand, against one for a few characters."""
_BEYOND = {
    sre.ASSERT: "looks around",
    sre.ASSERT_NOT: "looks around",
    sre.GROUPREF: "refers back",
    sre.GROUPREF_EXISTS: "refers back",
    sre.AT: "asks for edges of words or lines within",
    sre.ATOMIC_GROUP: "has atomic groups",
    sre.POSSESSIVE_REPEAT: "has possessive repetitions",
}
# What Python reads in one way and engines in another; escapes are passed over as a whole.
_TRAPS = re.compile(
    r"(?P<octal>\\[0-9])|\\.|(?P<empty>\[\^?\])|(?P<brace>\{(?!\d+,?\d*\}))|(?P<note>\(\?#)|(?P<name>\(\?P)",
    re.S,
)
_SAID = {
    "octal": "has a backslash before a digit, which engines take for different things",
    "empty": "has a ] as the first of a class: write it with a backslash before it",
    "brace": "has a { that is no repetition: write a backslash before it, or {0,n} for {,n}",
    "name": "has a named group, which no engine follows",
    "note": "has a comment, which no engine follows",
}


def check(pattern: str, path: str) -> int:
    """The positions of an expression; InvalidRequest where it is malformed, too large, or cannot be
    followed."""
    for trap in _TRAPS.finditer(pattern):
        if trap.lastgroup is not None:
            raise InvalidRequest.field(path, _SAID[trap.lastgroup])
    try:
        with warnings.catch_warnings():
            # What Python may read as sets within sets some day, some engines do today.
            warnings.simplefilter("error", FutureWarning)
            parsed = sre_parser.parse(pattern)
    except (re.error, RecursionError, OverflowError, ValueError, FutureWarning) as error:
        said = str(error)[:200]
        raise InvalidRequest.field(path, f"is no regular expression: {said}") from error
    if parsed.state.flags & ~re.UNICODE:
        raise InvalidRequest.field(path, "sets flags, which no engine follows")
    # Both mean nothing more than what is meant anyway: a match as a whole.
    inner = list(parsed)
    inner = inner[1:] if inner[:1] == [(sre.AT, sre.AT_BEGINNING)] else inner
    inner = inner[:-1] if inner[-1:] == [(sre.AT, sre.AT_END)] else inner
    try:
        positions = _positions(inner)
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
    return positions


def _positions(parsed: Any) -> int:
    """How many places an expression has with its counted repetitions written out."""
    return sum(_of(kind, value) for kind, value in parsed)


def _of(kind: Any, value: Any) -> int:
    if kind in _BEYOND:
        raise InvalidRequest(_BEYOND[kind])
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        least, most, inner = value
        # Without an end it is one more place that leads back to itself.
        times = least + 1 if most == sre.MAXREPEAT else most
        return int(times) * max(1, _positions(inner))
    if kind is sre.SUBPATTERN:
        _, add_flags, del_flags, inner = value
        if add_flags or del_flags:
            raise InvalidRequest("sets flags")
        return _positions(inner)
    if kind is sre.BRANCH:
        return sum(_positions(branch) for branch in value[1])
    if kind in (sre.ANY, sre.NOT_LITERAL) or (kind is sre.IN and any(map(_is_wide, value))):
        return WIDE
    return 1


def _is_wide(part: tuple[Any, Any]) -> bool:
    """Whether a part of a class takes nearly any character."""
    kind, value = part
    if kind is sre.RANGE:
        return int(value[1]) - int(value[0]) > MANY
    return kind is sre.NEGATE or (kind is sre.CATEGORY and "NOT" in str(value))

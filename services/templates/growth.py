"""How large the result of an operation can be, told before it is done. Knows no budget."""

import re
from collections.abc import Mapping, Sized
from typing import Any

from jinja2.exceptions import SecurityError

from services.templates.budget import MAX_BITS, OverBudgetError


def grown(
    name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], size: int
) -> int:
    """At most how large the result of this method or filter is."""
    every = [*args, *kwargs.values()]
    if name == "join":
        counts = [len(part) for part in (value, *every) if isinstance(part, Sized)]
        return size + max(counts, default=0) * max(map(_length, (value, *every)))
    if name == "replace":
        return size + (_length(value) + 1) * max(map(_length, every), default=0)
    if name == "indent":
        widths = [part if isinstance(part, int) else _length(part) for part in every]
        return size * (1 + max([4, *widths]))
    # Escaping makes six characters of one, and nothing on the lists makes more.
    return size * 6


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str) else 0


def repeated(value: Any, times: Any) -> int:
    """The size of a sequence so many times; 0 where it is none."""
    if not isinstance(value, str | bytes | list | tuple) or not isinstance(times, int):
        return 0
    return len(value) * max(times, 0)


def check_power(left: Any, right: Any) -> None:
    """Refuse a power that has too many digits."""
    whole = isinstance(left, int) and isinstance(right, int)
    if whole and left.bit_length() * max(right, 0) > MAX_BITS:
        raise OverBudgetError("makes a number that is too large")


def check_format(layout: str) -> None:
    """Refuse a width in a format: it makes texts of any length."""
    if re.search(r"%[^a-zA-Z%]*[\d*]", layout):
        raise SecurityError("formats with a width, which is not allowed")

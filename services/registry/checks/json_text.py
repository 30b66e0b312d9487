"""JSON of anyone's: bounded in size, depth and number of values before it is parsed."""

import json
import re
from typing import Any

from services.registry.checks.findings import RefusedError

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 100
MAX_VALUES, MAX_QUOTES = 2_000_000, 6_000_000
# Always matches from a quote, so that text without a closing one is not tried again and again.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_NESTING = bytes(set(range(256)) - set(b"[]{}"))


def parse(data: bytes, rule: str, *, unique_keys: bool = False) -> Any:
    """The value."""
    bare = outline(data, rule)
    if bare.count(b",") + bare.count(b"[") + bare.count(b"{") > MAX_VALUES:
        raise RefusedError(rule, f"has more than {MAX_VALUES} values")
    pairs = _unique if unique_keys else None
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise RefusedError(rule, f"is not JSON: {error}") from error


def parse_object(data: bytes, rule: str, *, unique_keys: bool = False) -> dict[str, Any]:
    """The object."""
    value = parse(data, rule, unique_keys=unique_keys)
    if not isinstance(value, dict):
        raise RefusedError(rule, "must be a JSON object")
    return value


def outline(data: bytes, rule: str) -> bytes:
    """The text without its strings, where its size and depth are in order."""
    if len(data) > MAX_BYTES:
        raise RefusedError(rule, f"is larger than {MAX_BYTES >> 20} MiB")
    if data.count(b'"') > MAX_QUOTES:
        raise RefusedError(rule, f"has more than {MAX_QUOTES // 2} texts")
    bare = _STRING.sub(b"", data)
    depth = 0
    for byte in bare.translate(None, _NOT_NESTING):
        depth += 1 if byte in b"[{" else -1
        if depth > MAX_DEPTH:
            raise RefusedError(rule, f"is nested more than {MAX_DEPTH} deep")
        if depth < 0:
            break
    if depth:
        raise RefusedError(rule, "is not JSON: its brackets do not match")
    return bare


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found

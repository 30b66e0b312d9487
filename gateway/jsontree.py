"""JSON text to a tree of Python values, bounded before anything is built from it. Knows no message.

Only UTF-8, no duplicate keys, no NaN, at most so deep and so many containers: `[],[],...` takes 30
times its length in memory.
"""

import json
import re
from typing import Any

from services.runtime.errors import InvalidRequest

Json = Any
MAX_CONTAINERS = 500_000
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


def parse(body: bytes, max_depth: int) -> Json:
    """The tree of a JSON document; InvalidRequest says why there is none."""
    if _containers(body) > MAX_CONTAINERS:
        raise InvalidRequest(f"the body has more than {MAX_CONTAINERS} arrays and objects")
    try:
        tree = json.loads(
            body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant
        )
    except RecursionError:
        raise InvalidRequest(f"the body is nested deeper than {max_depth}") from None
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8") from None
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if too_deep(tree, max_depth):
        raise InvalidRequest(f"the body is nested deeper than {max_depth}")
    return tree


def too_deep(tree: Json, max_depth: int) -> bool:
    """Whether containers are nested deeper than `max_depth`; uses no stack of its own."""
    level = [tree] if isinstance(tree, dict | list) else []
    depth = 0
    while level:
        depth += 1
        if depth > max_depth:
            return True
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
    return False


def _containers(body: bytes) -> int:
    count = body.count(b"[") + body.count(b"{")
    if count <= MAX_CONTAINERS:
        return count
    # Brackets inside strings are text; only now is it worth finding out.
    bare = _STRING.sub(b"", body)
    return bare.count(b"[") + bare.count(b"{")


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    built = dict(pairs)
    if len(built) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add gives None
        raise ValueError(f"key {twice!r} appears twice")
    return built


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")

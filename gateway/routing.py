"""Which method of the contract a request means: the table of routes. Knows no wire and no message.

Literal segments win over `*`, whatever the order in which routes were added.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gateway.template import Template, split

TargetT = TypeVar("TargetT")


@dataclass(frozen=True, slots=True)
class Route(Generic[TargetT]):
    """An HTTP method and a path template, and what they lead to."""

    http_method: str
    template: Template
    target: TargetT
    body: str = ""
    """The request field that the body fills; "*" for the request itself, "" for none."""

    @property
    def key(self) -> tuple[str, tuple[str, ...], str]:
        """Two routes with the same key match the same requests."""
        return self.http_method, self.template.segments, self.template.verb


@dataclass(frozen=True, slots=True)
class Match(Generic[TargetT]):
    """What a path leads to: a route, or only the HTTP methods that it does have."""

    route: Route[TargetT] | None
    variables: Mapping[str, str] = field(default_factory=dict)
    allowed: tuple[str, ...] = ()


class RouteTable(Generic[TargetT]):
    """All routes. Building it refuses duplicates."""

    def __init__(self, routes: Iterable[Route[TargetT]]) -> None:
        self.routes = tuple(sorted(routes, key=lambda route: route.template.rank()))
        self._fixed: dict[tuple[int, str], list[Route[TargetT]]] = {}
        self._open: list[Route[TargetT]] = []
        seen: dict[tuple[str, tuple[str, ...], str], Route[TargetT]] = {}
        for route in self.routes:
            if route.key in seen:
                raise ValueError(
                    f"{route.http_method} {route.template} leads to {route.target} "
                    f"and to {seen[route.key].target}"
                )
            seen[route.key] = route
            segments = route.template.segments
            if segments[-1] == "**":
                self._open.append(route)
            else:
                key = (len(segments), route.template.verb)
                self._fixed.setdefault(key, []).append(route)

    def match(self, http_method: str, path: str) -> Match[TargetT] | None:
        """The route of a request, or the methods its path has; None for an unknown path."""
        if not path.startswith("/"):
            return None
        segments, verb = split(path)
        allowed: list[str] = []
        for route in (*self._fixed.get((len(segments), verb), ()), *self._open):
            variables = route.template.match(segments, verb)
            if variables is None:
                continue
            if route.http_method == http_method:
                return Match(route, variables)
            allowed.append(route.http_method)
        return Match(None, allowed=tuple(sorted(set(allowed)))) if allowed else None

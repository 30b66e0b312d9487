"""Path templates of google.api.http: parse, match, expand. Knows no method and no message.

    /registry/v1/{name=models/*/versions/*}:archive

A variable covers the segments of its own pattern, `*` alone where it gives none. `*` is one
segment, `**` any number at the end. A verb is what follows the last colon of the last segment, so
`models/*` never takes `models/x:archive`, and a resource id cannot hold a colon there.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_LITERAL = re.compile(r"[A-Za-z0-9._~-]+")
_FIELD = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*")
_VARIABLE = re.compile(r"\{([^{}=]+)(?:=([^{}]+))?\}")
_RANK = {"*": 1, "**": 2}


@dataclass(frozen=True, slots=True)
class Variable:
    """A field path and the run of segments that it takes: `segments[start:stop]`."""

    field: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: segments (literals, `*`, `**`), the variables over them, the verb."""

    segments: tuple[str, ...]
    variables: tuple[Variable, ...] = ()
    verb: str = ""

    @classmethod
    def parse(cls, text: str) -> "Template":
        """The template written as `text`; ValueError where it is not one."""
        body, verb = _cut_verb(text)
        if not body.startswith("/"):
            raise ValueError(f"{text!r} does not start with a slash")
        segments: list[str] = []
        variables: list[Variable] = []
        for part in _parts(body[1:]):
            found = _VARIABLE.fullmatch(part)
            own = (found[2] or "*").split("/") if found else [part]
            if found:
                if not _FIELD.fullmatch(found[1]):
                    raise ValueError(f"{found[1]!r} in {text!r} is not a field path")
                variables.append(Variable(found[1], len(segments), len(segments) + len(own)))
            segments.extend(own)
        template = cls(tuple(segments), tuple(variables), verb)
        template._check(text)
        return template

    def _check(self, text: str) -> None:
        for segment in self.segments:
            if segment not in _RANK and not _LITERAL.fullmatch(segment):
                raise ValueError(f"{segment!r} in {text!r} is not a segment")
        if "**" in self.segments[:-1]:
            raise ValueError(f"'**' in {text!r} is not the last segment")
        if self.verb and not _LITERAL.fullmatch(self.verb):
            raise ValueError(f"{self.verb!r} in {text!r} is not a verb")
        names = [variable.field for variable in self.variables]
        if len(set(names)) < len(names):
            raise ValueError(f"{text!r} names a variable twice")

    def match(self, segments: Sequence[str], verb: str) -> dict[str, str] | None:
        """The variables of a split path, by field path; None where it does not match."""
        if verb != self.verb:
            return None
        own = self.segments
        if own and own[-1] == "**":
            if len(segments) < len(own) - 1:
                return None
        elif len(segments) != len(own):
            return None
        for pattern, segment in zip(own, segments, strict=False):
            if pattern == "*":
                if not segment:
                    return None
            elif pattern not in ("**", segment):
                return None
        return {
            variable.field: "/".join(segments[variable.start : self._stop(variable)])
            for variable in self.variables
        }

    def expand(self, values: Mapping[str, str]) -> str:
        """The path that gives these variables; the inverse of `match`."""
        built: list[str] = []
        at = 0
        for variable in self.variables:
            built.extend(self.segments[at : variable.start])
            value = values[variable.field]
            built.extend([value] if value or self.segments[-1] != "**" else [])
            at = variable.stop
        built.extend(self.segments[at:])
        return "/" + "/".join(built) + (f":{self.verb}" if self.verb else "")

    def rank(self) -> tuple[int, ...]:
        """Sorts literal segments before `*`, and `*` before `**`."""
        return tuple(_RANK.get(segment, 0) for segment in self.segments)

    def _stop(self, variable: Variable) -> int | None:
        return None if self.segments[variable.stop - 1] == "**" else variable.stop

    def __str__(self) -> str:
        values = {v.field: self._written(v) for v in self.variables}
        return self.expand(values)

    def _written(self, variable: Variable) -> str:
        pattern = "/".join(self.segments[variable.start : variable.stop])
        return "{" + variable.field + ("" if pattern == "*" else f"={pattern}") + "}"


def split(path: str) -> tuple[list[str], str]:
    """The segments and the verb of a request path."""
    body, verb = _cut_verb(path)
    # A colon with nothing behind it is no verb, and not none either.
    return body[1:].split("/"), verb or path[len(body) :]


def _cut_verb(text: str) -> tuple[str, str]:
    slash = text.rfind("/")
    colon = text.rfind(":")
    return (text[:colon], text[colon + 1 :]) if colon > max(slash, text.rfind("}")) else (text, "")


def _parts(body: str) -> list[str]:
    """Split at slashes outside braces."""
    parts: list[str] = []
    for piece in body.split("/"):
        if parts and parts[-1].count("{") > parts[-1].count("}"):
            parts[-1] += "/" + piece
        else:
            parts.append(piece)
    return parts

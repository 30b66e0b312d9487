"""Tools: how a model is told of them, and its calls read from what it writes. Knows no engine.

A template that knows tools is given them; for one that does not, they are written into the system
message, and calls and their results into the messages, in the form that Hermes models learned.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from services.generator.constraints import Constraint
from services.generator.text import overlap

Choice = Literal["auto", "none", "required"]
OPEN, CLOSE = "<tool_call>", "</tool_call>"
MISTRAL = "[TOOL_CALLS]"
_INTRODUCTION = """\
These functions can be called, one JSON object a line:
<tools>
{tools}
</tools>
To call one, write its name and arguments in this form:
<tool_call>
{{"name": <name>, "arguments": <object>}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: str = ""
    """JSON Schema of its arguments; empty: it takes none."""

    @property
    def schema(self) -> dict[str, Any]:
        """The schema of its arguments."""
        found: dict[str, Any] = (
            json.loads(self.parameters)
            if self.parameters
            else {"type": "object", "properties": {}, "additionalProperties": False}
        )
        return found

    def described(self) -> dict[str, Any]:
        """As templates know tools."""
        about = {"name": self.name, "description": self.description, "parameters": self.schema}
        return {"type": "function", "function": about}


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool by the model."""

    id: str
    name: str
    arguments: str
    """As JSON text."""


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of a prompt, and which must be called."""

    tools: tuple[Tool, ...]
    choice: Choice = "auto"
    name: str = ""
    """The one that must be called; empty: any."""

    @property
    def forced(self) -> bool:
        """Whether the answer is a call and nothing else."""
        return self.choice == "required"

    def constraint(self) -> Constraint:
        """What an answer that must be a call looks like."""
        wanted = [tool for tool in self.tools if self.name in ("", tool.name)]
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.name},
                    "arguments": {"$ref": f"#/$defs/{tool.name}"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in wanted
        ]
        schema: dict[str, Any] = {**calls[0]} if len(calls) == 1 else {"anyOf": calls}
        # Each under a name of its own, so that what refers to a part of itself still does.
        schema["$defs"] = {t.name: _moved(t.schema, f"#/$defs/{t.name}") for t in wanted}
        return Constraint("json_schema", json.dumps(schema))


def _moved(node: Any, to: str) -> Any:
    """A schema whose references count from another place."""
    if isinstance(node, list):
        return [_moved(one, to) for one in node]
    if not isinstance(node, dict):
        return node
    found = {name: _moved(value, to) for name, value in node.items()}
    if isinstance(node.get("$ref"), str):
        found["$ref"] = to + node["$ref"].removeprefix("#")
    return found


def written_out(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
) -> list[dict[str, Any]]:
    """The messages for a template that does not know tools."""
    found = [_written_out(message) for message in messages]
    if not tools:
        return found
    lines = "\n".join(json.dumps(tool.described()["function"]) for tool in tools)
    introduction = _INTRODUCTION.format(tools=lines)
    if found and found[0]["role"] == "system":
        content = f"{found[0]['content']}\n\n{introduction}"
        return [{**found[0], "content": content}, *found[1:]]
    return [{"role": "system", "content": introduction}, *found]


def _written_out(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content") or ""
    if message["role"] == "tool":
        said = f"<tool_response>\n{content}\n</tool_response>"
        return {"role": "user", "content": said}
    calls = [one["function"] for one in message.get("tool_calls", ())]
    blocks = [
        f"{OPEN}\n{json.dumps({'name': c['name'], 'arguments': c['arguments']})}\n{CLOSE}"
        for c in calls
    ]
    kept = {k: v for k, v in message.items() if k not in ("tool_calls", "tool_call_id")}
    return {**kept, "content": "\n".join([*([content] if content else []), *blocks])}


def _new_id() -> str:
    return f"call_{secrets.token_hex(8)}"


@dataclass(slots=True)
class CallReader:
    """Takes calls out of a text as it comes; what is no call after all stays in it.

    `whole`: the text is one call from beginning to end.
    """

    whole: bool = False
    mistral: bool = False
    new_id: Callable[[], str] = _new_id
    calls: list[Call] = field(default_factory=list)
    _held: str = ""

    def push(self, text: str) -> str:
        """The text that is certainly in no call."""
        self._held += text
        if self.whole:
            return ""
        opening = MISTRAL if self.mistral else OPEN
        out = ""
        while True:
            start = self._held.find(opening)
            if start < 0:
                keep = overlap(self._held, opening)
                out += self._held[: len(self._held) - keep]
                self._held = self._held[len(self._held) - keep :]
                return out
            out += self._held[:start]
            self._held = self._held[start:]
            end = -1 if self.mistral else self._held.find(CLOSE)
            if end < 0:
                return out
            block, self._held = self._held[: end + len(CLOSE)], self._held[end + len(CLOSE) :]
            out += "" if self._take(block[len(OPEN) : -len(CLOSE)]) else block

    def flush(self) -> str:
        """What was held back and is no call, when no more text comes."""
        held, self._held = self._held, ""
        opening = "" if self.whole else MISTRAL if self.mistral else OPEN
        if held.startswith(opening) and self._take(held[len(opening) :]):
            return ""
        return held

    def _take(self, text: str) -> bool:
        """Read a call, or a list of them, from JSON text; False where it is none."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return False
        calls = [_call(one, self.new_id) for one in (found if isinstance(found, list) else [found])]
        read = [call for call in calls if call is not None]
        if not read or len(read) != len(calls):
            return False
        self.calls += read
        return True


def _call(found: Any, new_id: Callable[[], str]) -> Call | None:
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", found.get("parameters", {}))
    try:
        found["name"].encode()
        written = json.dumps(arguments, allow_nan=False)
    except (ValueError, RecursionError):
        return None  # half a character, a number that is none, or nested without end
    return Call(new_id(), found["name"], written) if isinstance(arguments, dict) else None

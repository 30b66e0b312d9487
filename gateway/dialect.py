"""Routes that speak as callers already do, over the same RPCs; knows none of the dialects.

Each operation names the RPC whose scope its caller needs, so that one table decides who may do
what, and comes with its part of the OpenAPI document. What fails before the first byte is
answered at the edge, in the dialect's own shape.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from google.protobuf.message import Message
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.routing import BaseRoute, compile_path
from starlette.routing import Match as Found
from starlette.types import Receive, Scope, Send

from gateway import caller, jsontree, wire
from gateway.bodies import read_body, read_json_body
from gateway.calls import Calls, noted
from gateway.contract import Method
from gateway.errors import Answer, RefusalError
from gateway.opencall import OpenCall
from gateway.replies import reply, start_of
from gateway.transcode import BACKSTOP_S, Limits
from services.runtime.errors import DeadlineExpired, InvalidRequest

Json = dict[str, Any]
RequestT = TypeVar("RequestT", bound=BaseModel)
ErrorShape = Callable[[Answer, str], tuple[int, Json, dict[str, str]]]
"""The status, the body and more headers of an error on a path."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One HTTP method of one path."""

    verb: str
    path: str
    """As OpenAPI writes it: "/v1/models/{model}"."""
    method: Method
    """Its scope is what the caller needs."""
    serve: Callable[["Exchange"], Awaitable[None]]
    doc: Json
    """The operation as the OpenAPI document has it."""


@dataclass(slots=True)
class Exchange:
    """One request on its way through."""

    scope: Scope
    receive: Receive
    send: Send
    headers: Headers
    variables: Mapping[str, str]
    metadata: caller.Metadata
    until: float
    limits: Limits
    calls: Calls
    callers: caller.Callers
    stack: AsyncExitStack
    begun: bool = field(default=False, init=False)
    """Whether a stream has begun."""

    @property
    def request_id(self) -> str:
        """The id of the request."""
        return str(self.scope["gristmill.request_id"])

    async def json(self, kind: type[RequestT]) -> RequestT:
        """The body, read as the dialect's request."""
        return validated(kind, await self.tree())

    async def tree(self) -> Any:
        """The body as JSON; an empty one is an empty object."""
        body = await read_json_body(self.headers, self.receive)
        depth = self.limits.max_json_depth
        return await wire.aside(len(body), lambda: jsontree.parse(body.strip() or b"{}", depth))

    async def body(self) -> bytes:
        """The body as it came."""
        return await read_body(self.receive)

    async def admitted(self, method: Method) -> caller.Metadata:
        """Metadata for a call of another method than the one that the caller was let in for."""
        return await self.callers.admit(method.path, self.scope, self.headers)

    async def start(self, method: Method, request: Message) -> OpenCall:
        """Begin a call, which ends with the request."""
        remaining_s = self.until - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineExpired("the deadline had passed when the request was read")
        call = self.calls.start(method, request, self.metadata, remaining_s)
        await self.stack.enter_async_context(self.calls.attended(call, self.receive, follows=False))
        return call

    async def ask(self, method: Method, request: Message) -> Any:
        """The answer of a unary call."""
        return await (await self.start(method, request)).message()

    async def reply(self, tree: Any, status: int = 200) -> None:
        """Answer with JSON."""
        body = json.dumps(tree, ensure_ascii=False, allow_nan=False).encode()
        await reply(self.send, body, status)

    async def write(self, data: bytes, media_type: str = "text/event-stream") -> None:
        """Send a part of a stream."""
        if not self.begun:
            self.begun = True
            fields = {"content-type": media_type, "x-accel-buffering": "no"}
            await self.send(start_of(200, fields))
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """End the stream."""
        await self.send({"type": "http.response.body", "body": b""})

    def failed(self, error: Exception, call: OpenCall) -> Answer:
        """The answer to what failed after the first byte; noted for the log and the trace."""
        return noted(error, self.scope, call)


class Dialect(BaseRoute):
    """One Starlette route for all operations of a dialect, matched on the path as decoded."""

    def __init__(
        self,
        operations: Sequence[Operation],
        error_shape: ErrorShape,
        calls: Calls,
        callers: caller.Callers,
        limits: Limits,
    ) -> None:
        self.operations = tuple(operations)
        self._error_shape = error_shape
        self._calls = calls
        self._callers = callers
        self._limits = limits
        self._paths: dict[str, dict[str, Operation]] = {}
        for one in operations:
            self._paths.setdefault(one.path, {})[one.verb] = one
        self._patterns = [(compile_path(path)[0], verbs) for path, verbs in self._paths.items()]

    def matches(self, scope: Scope) -> tuple[Found, Scope]:
        """Whether the path is one of ours."""
        if scope["type"] == "http":
            for pattern, verbs in self._patterns:
                found = pattern.fullmatch(scope["path"])
                if found:
                    return Found.FULL, {
                        "gristmill.verbs": verbs,
                        "gristmill.variables": found.groupdict(),
                    }
        return Found.NONE, {}

    def shaped(self, found: Answer, path: str) -> Answer:
        """An error as the dialect has it."""
        status, tree, more = self._error_shape(found, path)
        return replace(found, http=status, body=tree, headers={**found.headers, **more})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; what fails before its first byte gets its shape at the edge."""
        verbs: dict[str, Operation] = scope["gristmill.verbs"]
        operation = verbs.get(scope["method"])
        scope["gristmill.route"] = next(iter(verbs.values())).path
        if operation is None:
            raise RefusalError(405, headers={"allow": ", ".join(sorted(verbs))})
        headers = Headers(scope=scope)
        metadata = await self._callers.admit(operation.method.path, scope, headers)
        timeout_s = caller.timeout_s(headers, self._limits.timeout_of(operation.method))
        variables: dict[str, str] = scope["gristmill.variables"]
        try:
            async with asyncio.timeout(timeout_s + BACKSTOP_S), AsyncExitStack() as stack:
                until = time.monotonic() + timeout_s
                await operation.serve(
                    Exchange(
                        *(scope, receive, send, headers, variables, metadata, until),
                        *(self._limits, self._calls, self._callers, stack),
                    )
                )
        except TimeoutError:
            raise DeadlineExpired("the deadline passed") from None


def parse(kind: type[RequestT], body: bytes, max_depth: int) -> RequestT:
    """The request in a body."""
    return validated(kind, jsontree.parse(body, max_depth))


def validated(kind: type[RequestT], tree: Any) -> RequestT:
    """A request of JSON; what is wrong with it, by the caller's own name for it."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not _is_label(part))
        said = "is not supported" if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise InvalidRequest.field(where or "body", said) from None


def _is_label(part: int | str) -> bool:
    """Whether a part of a path names a member of a union, which no caller knows."""
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "NamedTool", "none"))

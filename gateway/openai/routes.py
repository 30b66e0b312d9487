"""The routes of the OpenAI API: `/v1/chat/completions`, `/v1/completions`, `/v1/models`."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

import grpc
from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1 import loaded_model_pb2
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.routing import BaseRoute
from starlette.routing import Match as Found
from starlette.types import Receive, Scope, Send

from gateway import caller, jsontree
from gateway.bodies import read_json_body
from gateway.caller import Callers
from gateway.calls import Calls, OpenCall
from gateway.contract import MOUNTED, Method, routes
from gateway.errors import Answer, RefusalError, answer
from gateway.openai import answers, messages
from gateway.openai.answers import (
    CHAT_KIND,
    TEXT_KIND,
    ChatParts,
    Envelope,
    Gathered,
    Json,
    TextParts,
)
from gateway.openai.requests import ChatRequest, CompletionRequest
from gateway.replies import reply, start_of
from gateway.streams import Silence, paced
from gateway.transcode import BACKSTOP_S, Limits
from services.runtime.errors import DeadlineExpired, InvalidRequest, NotFound

RequestT = TypeVar("RequestT", bound=BaseModel)
CHAT, TEXT, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"
_ALLOWED = {CHAT: "POST", TEXT: "POST", MODELS: "GET"}
_DONE = b"data: [DONE]\n\n"
_METHODS = {
    route.target.path.rsplit("/", 1)[1]: route.target
    for mounted in MOUNTED
    if mounted.upstream == "generator"
    for route in routes(mounted)
}


class OpenAi(BaseRoute):
    """One Starlette route for the four of them."""

    def __init__(
        self,
        calls: Calls,
        callers: Callers,
        limits: Limits,
    ) -> None:
        self._calls = calls
        self._callers = callers
        self._limits = limits

    def matches(self, scope: Scope) -> tuple[Found, Scope]:
        """Whether the path is one of ours."""
        if scope["type"] == "http" and _known(scope["path"]):
            return Found.FULL, {}
        return Found.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; what fails before its first byte is answered as OpenAI does."""
        started = False

        async def sending(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._serve(scope, receive, sending)
        except Exception as error:
            if started:
                raise
            found = answer(error, scope["gristmill.request_id"])
            scope["gristmill.answer"] = found
            body = json.dumps(answers.error(found)).encode()
            retry = "true" if found.http in (429, 503) else "false"
            fields = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "x-should-retry": retry,
                **found.headers,
            }
            await send(start_of(found.http, fields))
            await send({"type": "http.response.body", "body": body})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        known = _known(path)
        scope["gristmill.route"] = known if path == known else f"{known}/{{model}}"
        if scope["method"] != _ALLOWED[known]:
            raise RefusalError(405, headers={"allow": _ALLOWED[known]})
        headers = Headers(scope=scope)
        method = _METHODS["ListLoadedModels" if known == MODELS else "GenerateStream"]
        metadata = await self._callers.admit(method.path, scope, headers)
        timeout_s = caller.timeout_s(headers, self._limits.default_stream_timeout_s)
        until = time.monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s + BACKSTOP_S):
                if known == MODELS:
                    await self._models(method, metadata, path, until, receive, send)
                    return
                body = await read_json_body(headers, receive)
                exchange = Exchange(
                    self._calls, self._limits, scope, receive, send, metadata, until
                )
                if known == CHAT:
                    await exchange.chat(_read(ChatRequest, body, self._limits.max_json_depth))
                else:
                    await exchange.text(_read(CompletionRequest, body, self._limits.max_json_depth))
        except TimeoutError:
            raise DeadlineExpired("the deadline passed") from None

    async def _models(
        self,
        method: Method,
        metadata: caller.Metadata,
        path: str,
        until: float,
        receive: Receive,
        send: Send,
    ) -> None:
        call = self._calls.start(
            method, pb.ListLoadedModelsRequest(), metadata, until - time.monotonic()
        )
        async with self._calls.attended(call, receive, follows=False):
            response: Any = await call.message()
        found: dict[str, Json] = {}
        for one in response.models:
            if one.state == loaded_model_pb2.LOAD_STATE_READY:
                found[one.model] = {
                    "id": one.model,
                    "object": "model",
                    "created": one.ready_time.seconds,
                    "owned_by": "gristmill",
                }
        if path == MODELS:
            listed = {"object": "list", "data": [found[name] for name in sorted(found)]}
            await reply(send, json.dumps(listed).encode())
            return
        name = path.removeprefix(f"{MODELS}/")
        if name not in found:
            raise NotFound(f"there is no model {name!r} here", resource=("model", name))
        await reply(send, json.dumps(found[name]).encode())


class Exchange:
    """One request on its way through."""

    def __init__(
        self,
        calls: Calls,
        limits: Limits,
        scope: Scope,
        receive: Receive,
        send: Send,
        metadata: caller.Metadata,
        until: float,
    ) -> None:
        self._calls = calls
        self._limits = limits
        self._scope = scope
        self._receive = receive
        self._send = send
        self._metadata = metadata
        self._until = until
        self._id = scope["gristmill.request_id"]

    async def chat(self, request: ChatRequest) -> None:
        """POST /v1/chat/completions."""
        envelope = Envelope(CHAT_KIND, f"chatcmpl-{self._id}", request.model)
        asked = [messages.chat(request)]
        if request.stream:
            usage = bool(request.stream_options and request.stream_options.include_usage)
            await self._stream(asked[0], envelope, usage=usage)
        else:
            await self._whole(asked, envelope, request.n or 1, logprobs=bool(request.logprobs))

    async def text(self, request: CompletionRequest) -> None:
        """POST /v1/completions."""
        envelope = Envelope(TEXT_KIND, f"cmpl-{self._id}", request.model)
        asked = messages.completions(request)
        if not request.stream:
            wanted = request.logprobs is not None
            await self._whole(asked, envelope, request.n or 1, logprobs=wanted)
            return
        if len(asked) > 1:
            raise InvalidRequest.field("prompt", "a stream has one prompt")
        usage = bool(request.stream_options and request.stream_options.include_usage)
        await self._stream(asked[0], envelope, usage=usage)

    async def _whole(
        self,
        asked: Sequence[pb.GenerateStreamRequest],
        envelope: Envelope,
        n: int,
        *,
        logprobs: bool,
    ) -> None:
        async with AsyncExitStack() as stack:
            calls = [await self._start(stack, one) for one in asked]
            parts = await asyncio.gather(*[self._gather(call, envelope, n) for call in calls])
        choose = answers.chat_choice if envelope.kind == CHAT_KIND else answers.text_choice
        gathered = [one for choices, _ in parts for one in choices]
        choices = [choose(i, one, logprobs=logprobs) for i, one in enumerate(gathered)]
        whole = envelope.of(choices, answers.usage([used for _, used in parts]))
        await reply(self._send, json.dumps(whole, ensure_ascii=False).encode())

    async def _start(self, stack: AsyncExitStack, request: pb.GenerateStreamRequest) -> OpenCall:
        remaining_s = self._until - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineExpired("the deadline had passed when the request was read")
        method = _METHODS["GenerateStream"]
        call = self._calls.start(method, request, self._metadata, remaining_s)
        await stack.enter_async_context(self._calls.attended(call, self._receive, follows=False))
        return call

    async def _gather(
        self, call: OpenCall, envelope: Envelope, n: int
    ) -> tuple[list[Gathered], Any]:
        choices = [Gathered() for _ in range(n)]
        usage: Any = None
        while (event := await call.read()) is not grpc.aio.EOF:
            kind = event.WhichOneof("event")
            if kind == "started":
                envelope.began(event.started)
            elif kind == "delta":
                choices[event.delta.index].add(event.delta)
            else:
                usage = event.finished.usage
                for last in event.finished.choices:
                    choices[last.index].last = last
        return choices, usage

    async def _stream(
        self, request: pb.GenerateStreamRequest, envelope: Envelope, *, usage: bool
    ) -> None:
        async with AsyncExitStack() as stack:
            call = await self._start(stack, request)
            started = False
            try:
                async with aclosing(self._chunks(call, envelope, request, usage=usage)) as chunks:
                    async for chunk in chunks:
                        await self._write(chunk, started=started)
                        started = True
            except Exception as error:
                if not started:
                    raise
                found = self._failed(error, call)
                last = json.dumps(answers.error(found)).encode()
                await self._write(b"data: " + last + b"\n\n", started=True)
            await self._send({"type": "http.response.body", "body": b""})

    async def _write(self, data: bytes, *, started: bool) -> None:
        if not started:
            fields = {"content-type": "text/event-stream", "x-accel-buffering": "no"}
            await self._send(start_of(200, fields))
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def _failed(self, error: Exception, call: OpenCall) -> Answer:
        found = answer(error, self._id)
        self._scope["gristmill.answer"] = found
        call.status = found.status
        return found

    async def _chunks(
        self,
        call: OpenCall,
        envelope: Envelope,
        request: pb.GenerateStreamRequest,
        *,
        usage: bool,
    ) -> AsyncGenerator[bytes, None]:
        """The lines of a stream."""
        parts = ChatParts(request.params.n or 1) if envelope.kind == CHAT_KIND else TextParts()

        def line(choices: Sequence[Json], used: Json | None = None) -> bytes:
            chunk = envelope.of(choices, used, chunk=True)
            if not usage:
                del chunk["usage"]
            return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"

        async for event in _events(call, self._limits.ping_interval_s):
            if isinstance(event, Silence):
                yield b": ping\n\n"
                continue
            if event.HasField("started"):
                envelope.began(event.started)
            for choice in parts.of(event):
                yield line([choice])
            if usage and event.HasField("finished"):
                yield line([], answers.usage([event.finished.usage]))
        yield _DONE


async def _events(call: OpenCall, ping_interval_s: float) -> AsyncIterator[Any]:
    async with aclosing(paced(call.read, grpc.aio.EOF, ping_interval_s)) as events:
        async for event in events:
            yield event


def _known(path: str) -> str:
    """The route of a path; empty where it is none of ours."""
    if path in _ALLOWED:
        return path
    name = path.removeprefix(f"{MODELS}/")
    return MODELS if name != path and name and "/" not in name else ""


def _read(kind: type[RequestT], body: bytes, max_depth: int) -> RequestT:
    """The request in a body; what is wrong with it, by the caller's own name for it."""
    tree = jsontree.parse(body, max_depth)
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

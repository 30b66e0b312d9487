"""A guarded gateway in front of services that only note who calls, and a client that normalises
nothing; every route of the application, found by itself. Knows no test.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from starlette.routing import Route as Plain

from gateway import app, console
from gateway.config import GatewayConfig
from gateway.dialect import Dialect
from gateway.server import HttpServer
from gateway.transcode import Transcoder
from services.runtime.auth import PUBLIC, SCOPES
from tests.harness import SOON_S, soon
from tests.unit.gateway.recorder import Recorder
from tests.unit.gateway.test_gateway_auth import token_file

Headers = Sequence[tuple[str, str]]
OWN = "the-gateway-itself-0000"
NAMES = ("read", "infer", "admin", "delegate", "all", "proxy")
TOKENS = {name: f"{name}-token-{name}" for name in NAMES}
SECURITY_HEADERS = {
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
HANDSHAKE = (
    ("connection", "upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
)
_GUARDED = {console.METRICS: console.READING}
_DIALECTS = ("openai", "oip", "simple")


def bearer(name: str) -> tuple[str, str]:
    """The header with one of the tokens."""
    return ("authorization", f"Bearer {TOKENS[name]}")


@dataclass(frozen=True)
class Target:
    """Something that can be asked for."""

    verb: str
    path: str
    method: str
    """The RPC whose scope is needed; "" where it is open to all by itself."""
    dialect: str = ""
    socket: bool = False
    body: bytes = b""
    of_contract: bool = False

    @property
    def scope(self) -> str:
        """What a caller needs."""
        return SCOPES[self.method] if self.method else PUBLIC

    @property
    def headers(self) -> Headers:
        """Those that the request itself needs."""
        return HANDSHAKE if self.socket else ()

    def __str__(self) -> str:
        return f"{'WebSocket' if self.socket else self.verb} {self.path}"


def targets(gateway: app.Gateway) -> list[Target]:
    """Every route of the application; AssertionError for one of a kind unknown here."""
    found: list[Target] = []
    spoken = app.spoken()
    for route in _flat(gateway.app.router.routes):
        if isinstance(route, Transcoder):
            found += _of_contract(route)
        elif isinstance(route, Dialect):
            spoken = [one for one in spoken if one not in route.operations]
            found += _of_dialect(route)
        else:
            assert isinstance(route, Plain), f"of a kind unknown here: {route!r}"
            method = _GUARDED.get(route.path, "")
            found += [Target(verb, route.path, method) for verb in sorted(route.methods or ())]
    assert spoken == [], "spoken, and not routed"
    return found


def _flat(routes: Iterable[Any]) -> list[Any]:
    """Routes, also those that newer versions of FastAPI keep inside an included router."""
    found: list[Any] = []
    for one in routes:
        inner = getattr(getattr(one, "original_router", None), "routes", None)
        found += _flat(inner) if inner is not None else [one]
    return found


def _of_contract(transcoder: Transcoder) -> list[Target]:
    found = []
    for route in transcoder.table.routes:
        path = re.sub(r"\{[a-z_.]+=?([^}]*)\}", lambda one: one[1] or "*", str(route.template))
        path = re.sub(r"\*+", "1", path)
        body = b"{}" if route.body else b""
        about = route.target
        for socket in (False, True) if about.client_streaming else (False,):
            found.append(
                Target(
                    *(route.http_method, path, about.path),
                    socket=socket,
                    body=b"" if socket else body,
                    of_contract=socket or not about.client_streaming,
                )
            )
        if not about.client_streaming and route.http_method == "GET":
            # Called as a WebSocket it is refused, but not before the caller is known.
            found.append(Target("GET", path, about.path, socket=True))
    return found


def _of_dialect(dialect: Dialect) -> list[Target]:
    (shape,) = [s for operations, s in app.DIALECTS if tuple(operations) == dialect.operations]
    name = shape.__module__.split(".")[1]
    assert name in _DIALECTS, f"of a dialect unknown here: {name}"
    found = []
    for one in dialect.operations:
        content = one.doc.get("requestBody", {}).get("content", {}).get("application/json", {})
        body = json.dumps(content.get("example", {})).encode() if one.verb == "POST" else b""
        path = re.sub(r"\{[^}]+\}", "1", one.path)
        found.append(Target(one.verb, path, one.method.path, name, body=body))
    return found


@dataclass
class Answer:
    """What came back; status 0 where nothing did."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    @classmethod
    def of(cls, head: bytes) -> "Answer":
        """The beginning of an answer."""
        line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        split = (one.partition(":") for one in lines)
        return cls(int(line.split()[1]), [(n.lower(), v.strip()) for n, _, v in split])

    def get(self, name: str) -> str:
        """A header, which there must not be twice."""
        found = [value for one, value in self.headers if one == name]
        assert len(found) <= 1, (name, found)
        return found[0] if found else ""

    def __str__(self) -> str:
        return f"{self.status} {self.body[:300]!r}"


@dataclass
class Front:
    """The gateway's door."""

    server: HttpServer
    recorder: Recorder
    inner: str
    """What no answer may name."""

    async def send(self, *parts: bytes, head_only: bool = False) -> Answer:
        """Bytes as they are, and the first answer to them."""
        self.recorder.called.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            head = await soon(reader.readuntil(b"\r\n\r\n"))
            answer = Answer.of(head)
            if answer.status == 101:
                await soon(self.recorder.called.wait())
            elif not head_only:
                length = answer.get("content-length")
                answer.body = await soon(
                    reader.readexactly(int(length)) if length else reader.read()
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            return Answer()
        else:
            return answer
        finally:
            writer.transport.abort()

    async def ask(
        self,
        verb: str,
        target: str,
        *headers: tuple[str, str],
        body: bytes = b"",
        hosts: Sequence[str] = ("localhost",),
        may_fail: bool = False,
        parsed: bool = True,
    ) -> Answer:
        """A request, and its answer, which is decent; `parsed` where it is HTTP at all."""
        lines = [f"{verb} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in (*(("host", h) for h in hosts), *headers)]
        if not any(name == "connection" for name, _ in headers):
            lines.append("connection: close")
        if body:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        head = "\r\n".join(lines) + "\r\n\r\n"
        answer = await self.send(head.encode("latin-1") + body, head_only=verb == "HEAD")
        asked = (verb, target, hosts, headers)
        self.hold_decent(answer, asked, may_fail=may_fail)
        if parsed and answer.status >= 200:
            hold_headers(answer, asked)
        return answer

    async def call(self, target: Target, *headers: tuple[str, str], **more: Any) -> Answer:
        """A request for a route."""
        given = (*target.headers, *headers)
        return await self.ask(target.verb, target.path, *given, body=target.body, **more)

    async def settled(self) -> None:
        """Wait until the gateway has nothing in hand."""
        assert await self.server.gateway.in_hand.wait_idle(SOON_S)

    def hold_decent(self, answer: Answer, asked: object, *, may_fail: bool = False) -> None:
        """Whatever was asked: no failure of ours, nothing told, every header there."""
        assert may_fail or answer.status != 500, (asked, str(answer))
        said = answer.body.decode("utf-8", "replace") + str(answer.headers)
        for secret in (self.inner, OWN, "Traceback", 'File "', "site-packages", str(Path.cwd())):
            assert secret not in said, (asked, said)
        if answer.status < 200:
            assert answer.status == 0 or answer.get("x-request-id"), asked
            return
        assert re.fullmatch(r"[A-Za-z0-9._:/-]{1,128}", answer.get("x-request-id")), asked
        assert answer.get("x-content-type-options") == "nosniff", asked
        assert not any(name.startswith("access-control-") for name, _ in answer.headers), asked
        assert not answer.get("server"), asked


def hold_headers(answer: Answer, asked: object) -> None:
    """What a browser must be told with every answer."""
    for name, value in SECURITY_HEADERS.items():
        assert answer.get(name) == value, (asked, name, str(answer))
    assert "default-src 'none'" in answer.get("content-security-policy"), asked


@asynccontextmanager
async def front(folder: Path, *, tokens: bool = True, **config: Any) -> AsyncIterator[Front]:
    """A gateway with a token of each scope, and one token of its own."""
    recorder = Recorder()
    behind = grpc.aio.server()
    behind.add_generic_rpc_handlers((recorder,))
    inner = f"127.0.0.1:{behind.add_insecure_port('127.0.0.1:0')}"
    await behind.start()
    given: dict[str, Any] = dict.fromkeys(("registry", "classifier", "generator"), inner)
    if tokens:
        scopes = {name: name for name in TOKENS}
        scopes |= {"all": "read infer admin", "proxy": "infer delegate"}
        given["token_file"] = token_file(folder, **{n: (TOKENS[n], s) for n, s in scopes.items()})
        given["upstream_token"] = OWN
    server = HttpServer(
        GatewayConfig(port=0, admin_port=-1, drain_grace_s=5.0, **{**given, **config})
    )
    await server.start()
    try:
        yield Front(server, recorder, inner)
    finally:
        await soon(server.drain())
        await behind.stop(None)

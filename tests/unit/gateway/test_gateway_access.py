"""Every route of the application, found by itself, asked for by every kind of caller.

What a caller may is decided by the scope of the RPC behind a route. A route that is added is tested
here without a change; one that is open to all is not, unless it is spelled out below.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import grpc
import pytest

from gateway import app
from gateway.config import GatewayConfig
from services.runtime.auth import PUBLIC, SCOPES
from tests.harness import CLASSIFY
from tests.unit.gateway.access import HANDSHAKE, OWN, Answer, Front, Target, bearer, front, targets

OPEN = {
    *("/", "/docs", "/openapi.json", "/health", "/health/live", "/health/ready"),
    *(f"/docs/{name}.css" for name in ("docs", "operation")),
    *(f"/docs/{name}.js" for name in ("docs", "dom", "schema", "settings", "stream", "theme")),
    *("/docs/tryit.js", "/docs/icon.svg"),
    *(f"/console/{name}.css" for name in ("console", "views")),
    *(f"/console/{name}.js" for name in ("api", "chart", "charts", "chat", "classify", "console")),
    *(f"/console/{name}.js" for name in ("history", "metrics", "model", "models", "overview")),
    *(f"/console/{name}.js" for name in ("parts", "snippets", "traffic")),
}
"""What anybody may read; nothing of it can be written to."""
CALLERS = ("nobody", "stranger", "read", "infer", "admin", "delegate")
BATCH = 8


def credentials(caller: str) -> list[tuple[str, str]]:
    """What a caller sends."""
    if caller == "stranger":
        return [("authorization", "Bearer not-one-that-is-known")]
    return [] if caller == "nobody" else [bearer(caller)]


def refusal(target: Target, caller: str) -> tuple[int, str] | None:
    """How the caller must be refused; None where it is let through."""
    if target.scope in (PUBLIC, caller):
        return None
    early = {"nobody": (401, "CREDENTIALS_MISSING"), "stranger": (401, "CREDENTIALS_INVALID")}
    return early.get(caller, (403, "SCOPE_MISSING"))


def hold_shape(target: Target, answer: Answer, status: int, reason: str) -> None:
    """An error in the shape that the clients of its dialect read."""
    assert answer.status == status, f"{target}: {answer}"
    assert answer.get("content-type") == "application/json", target
    if target.verb == "HEAD":
        return
    tree = json.loads(answer.body)
    error = tree["error"]
    if target.dialect == "oip":
        assert set(tree) == {"error"}, target
        assert error
        assert isinstance(error, str), target
    elif target.dialect == "openai":
        assert set(tree) == {"error"}, target
        assert set(error) == {"message", "type", "param", "code"}, target
        assert error["code"] == reason.lower(), target
        assert answer.get("x-should-retry") == "false", target
    else:
        assert set(tree) == ({"detail", "error"} if target.dialect else {"error"}), target
        assert set(error) == {"code", "status", "reason", "message", "details", "requestId"}
        assert (error["code"], error["reason"]) == (status, reason), target
        assert error["requestId"] == answer.get("x-request-id"), target


def hold_calls(f: Front, target: Target, caller: str) -> None:
    """Nothing is called that is not the caller's to call, and under its own name only."""
    mine = {caller, PUBLIC}
    for method, metadata in f.recorder.calls:
        assert SCOPES[method] in mine, (str(target), method)
        # To a method that is open to all the gateway does not say who it is.
        known = SCOPES[method] != PUBLIC
        said = {key: metadata.get(key) for key in ("authorization", "x-gristmill-identity")}
        assert said["authorization"] == (f"Bearer {OWN}" if known else None), target
        assert said["x-gristmill-identity"] == (caller if known else None), target
        assert metadata.get("x-gristmill-scopes") == (caller if known else None), target


async def each(found: Sequence[Target], ask: Callable[[Target], Awaitable[None]]) -> None:
    """Ask for all, a few at a time; for where nobody looks at which call came from which."""
    for at in range(0, len(found), BATCH):
        await asyncio.gather(*(ask(one) for one in found[at : at + BATCH]))


@pytest.fixture(scope="module")
def every() -> list[Target]:
    """All there is to ask for."""

    async def find() -> list[Target]:
        gateway = app.build(GatewayConfig(port=0))
        found = targets(gateway)
        await gateway.close()
        return found

    return asyncio.run(find())


def test_the_enumeration_misses_nothing(every: list[Target]) -> None:
    """Each RPC that is annotated, each operation that is spoken, and both WebSockets."""
    methods = {one.method for one in every}
    assert {route.target.path for route in app.table_of().routes} <= methods
    spoken = {(one.verb, one.path.count("/"), one.method.path) for one in app.spoken()}
    assert spoken <= {(one.verb, one.path.count("/"), one.method) for one in every}
    sockets = {one.method for one in every if one.socket}
    assert {one for one in methods if one.endswith("Bidi")} <= sockets
    assert {one.path for one in every} >= OPEN
    assert {"read", "infer", "admin", PUBLIC} == {one.scope for one in every}


def test_what_is_open_to_all_is_spelled_out(every: list[Target]) -> None:
    public = [one for one in every if one.scope == PUBLIC]
    assert {one.path for one in public} == OPEN
    assert {one.verb for one in public} == {"GET", "HEAD"}
    assert not any(one.socket for one in public)


@pytest.mark.parametrize("caller", CALLERS)
async def test_the_scope_of_the_method_decides(
    every: list[Target], caller: str, tmp_path: Path
) -> None:
    async with front(tmp_path) as f:
        for target in every:
            f.recorder.calls.clear()
            answer = await f.call(target, *credentials(caller))
            refused = refusal(target, caller)
            if refused:
                hold_shape(target, answer, *refused)
                assert bool(answer.get("www-authenticate")) == (refused[0] == 401), target
                assert f.recorder.calls == [], target
                continue
            assert answer.status not in (401, 403), f"{target}: {answer}"
            hold_calls(f, target, caller)
            if target.of_contract and not target.socket:
                assert answer.status == 200, f"{target}: {answer}"
                assert f.recorder.methods == [target.method], target


async def test_who_may_all_reaches_what_the_route_says(every: list[Target], tmp_path: Path) -> None:
    async with front(tmp_path) as f:
        for target in every:
            f.recorder.calls.clear()
            answer = await f.call(target, bearer("all"))
            assert answer.status not in (401, 403), f"{target}: {answer}"
            if target.socket and target.of_contract:
                assert answer.status == 101, f"{target}: {answer}"
                assert f.recorder.methods == [target.method], target
            elif target.of_contract or (target.dialect and f.recorder.calls):
                assert f.recorder.methods[0] == target.method, target


async def test_nobody_is_told_what_is_behind(every: list[Target], tmp_path: Path) -> None:
    """Neither where services fail, saying more than they should, nor where none answers."""
    told = f'Traceback: File "{Path.cwd()}/x.py", line 1, in f at ipv4:10.1.2.3:50051'
    codes = (
        *(grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE),
        *(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED),
    )
    asked = [one for one in every if not one.socket]
    async with front(tmp_path) as f:

        async def ask(target: Target) -> None:
            answer = await f.call(target, bearer("all"), may_fail=True)
            assert b"10.1.2.3" not in answer.body, target

        for code in codes:
            f.recorder.fault = (code, told)
            await each(asked if code is grpc.StatusCode.INTERNAL else asked[::7], ask)
    dead = dict.fromkeys(("registry", "classifier", "generator"), "127.0.0.1:1")
    async with front(tmp_path, **dead) as f:

        async def ask_the_dead(target: Target) -> None:
            answer = await f.call(target, bearer("all"), may_fail=True)
            assert b"127.0.0.1" not in answer.body, target
            assert b"refused" not in answer.body.lower(), target
            assert answer.status != 500, f"{target}: {answer}"

        await each([one for one in asked if one.method], ask_the_dead)


async def test_other_paths_are_no_websockets(every: list[Target], tmp_path: Path) -> None:
    contract = {one.path for one in every if one.of_contract or one.method == CLASSIFY}
    async with front(tmp_path) as f:
        for path in sorted({one.path for one in every} - contract):
            answer = await f.ask("GET", path, *HANDSHAKE, bearer("all"))
            assert answer.status in (400, 404), f"{path}: {answer}"
        assert f.recorder.calls == []


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
async def test_pages_of_other_sites_reach_no_route(
    every: list[Target], origin: str, tmp_path: Path
) -> None:
    """Whoever they speak for, with every method, and when they ask before they do."""
    asks = ("access-control-request-method", "POST"), ("access-control-request-headers", "x-a")
    async with front(tmp_path) as f:
        for target in every:
            answer = await f.call(target, bearer("all"), ("origin", origin))
            hold_shape(target, answer, 403, "ORIGIN_REFUSED")
        for path in sorted({one.path for one in every}):
            answer = await f.ask("OPTIONS", path, ("origin", origin), *asks)
            assert answer.status == 403, f"{path}: {answer}"
        assert f.recorder.calls == []


@pytest.mark.parametrize("host", ["evil.example", "localhost/v1/models?", "127.0.0.1.nip.io:80"])
async def test_names_that_others_bind_reach_no_route(
    every: list[Target], host: str, tmp_path: Path
) -> None:
    """Without tokens, where the name is all that tells a page of another site from its user."""
    async with front(tmp_path, tokens=False) as f:
        for target in every:
            answer = await f.call(target, hosts=(host,))
            hold_shape(target, answer, 421, "HOST_REFUSED")
        assert f.recorder.calls == []


async def test_who_may_not_speak_for_others_speaks_for_nobody(
    every: list[Target], tmp_path: Path
) -> None:
    claims = [("x-gristmill-identity", "root"), ("x-gristmill-scopes", "read,infer,admin")]
    async with front(tmp_path) as f:
        for target in every:
            f.recorder.calls.clear()
            answer = await f.call(target, bearer("infer"), *claims)
            if target.scope == PUBLIC:
                assert answer.status in (200, 503), target
                assert not any("root" in str(metadata) for _, metadata in f.recorder.calls)
            else:
                hold_shape(target, answer, 403, "SCOPE_MISSING")
                assert f.recorder.calls == [], target
            public = target.scope == PUBLIC
            unknown = await f.call(target, *claims)
            assert unknown.status == (answer.status if public else 401), target
            # Who may speak for others gives away no scope that it lacks itself.
            given = await f.call(target, bearer("delegate"), *claims)
            assert given.status == (answer.status if public else 403), target

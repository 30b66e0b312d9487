"""What a request says of itself: whose it is, of which site, to which host; only a token counts."""

import base64
import itertools
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.harness import CLASSIFY
from tests.unit.gateway.access import HANDSHAKE, TOKENS, Front, bearer, front

GOOD = TOKENS["all"]
MODELS = "/registry/v1/models"
PATHS = (
    *(MODELS, "/registry/v1/models/1", "/classifier/v1/models", "/v1/models"),
    *("/v2/models/1/stats", "/models", "/console/metrics"),
)
GUARDED = (
    *(("GET", path) for path in PATHS),
    *(("POST", "/classifier/v1/classify"), ("POST", "/v1/chat/completions")),
    *(("POST", "/predict"), ("POST", "/v2/models/1/infer"), ("DELETE", "/models/1")),
)
"""Of each kind of route; all of them need a token."""


@pytest_asyncio.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Front]:
    """With tokens."""
    async with front(tmp_path) as found:
        yield found


@pytest_asyncio.fixture
async def unguarded(tmp_path: Path) -> AsyncIterator[Front]:
    """Without tokens, of its own or of callers."""
    async with front(tmp_path, tokens=False) as found:
        yield found


def claims() -> dict[str, tuple[list[tuple[str, str]], list[str]]]:
    """Headers, and hosts, that are no token, whatever they are."""
    encoded = base64.urlsafe_b64encode(GOOD.encode()).decode().rstrip("=")
    offered = ("sec-websocket-protocol", f"gristmill.v1, gristmill.bearer.{encoded}")
    lies = [
        *(("x-original-url", "/health/live"), ("x-rewrite-url", "/health/live")),
        *(("x-forwarded-host", "localhost"), ("x-forwarded-proto", "https")),
        *(("x-forwarded-prefix", "/health/live"), ("x-forwarded-uri", "/health/live")),
        *(("x-forwarded-for", "127.0.0.1"), ("x-real-ip", "127.0.0.1"), ("x-script-name", "/docs")),
        *(("forwarded", "for=127.0.0.1;host=localhost;proto=https"), ("x-remote-user", "all")),
        *(("x-gristmill-identity", "all"), ("x-gristmill-scopes", "read,infer,admin")),
        *(("cookie", f"authorization=Bearer {GOOD}; token={GOOD}"), ("x-api-key", GOOD), offered),
        *(("proxy-authorization", f"Bearer {GOOD}"), ("grpc-metadata-authorization", GOOD)),
    ]
    wrong = [
        *("", "Bearer", "Bearer ", GOOD, f"Basic {GOOD}", f"Bearer{GOOD}", f"Bearer\t{GOOD}"),
        *(f"Bearer {GOOD} x", f"Bearer {GOOD},", f"Bearer x {GOOD}", f"Bearer {GOOD.upper()}"),
        *(f"Bearer {GOOD[:-1]}", f"Bearer, Bearer {GOOD}", f"Bearer {encoded}", "Bearer \xff"),
    ]
    rebuilt = [
        *("localhost/health/live?", "localhost/docs#", "localhost/v1/models?", "localhost/health?"),
        *(
            "localhost:80/health/live",
            "x@localhost/docs",
            "",
            "localhost\\docs?",
            "[::1]/docs?",
            "[",
        ),
    ]
    return {
        **{f"{name}: {value}": ([(name, value)], ["localhost"]) for name, value in lies},
        "all of them": (lies[:-1], ["localhost"]),
        **{f"authorization: {one}": ([("authorization", one)], ["localhost"]) for one in wrong},
        "authorization twice": ([("authorization", "Bearer x"), bearer("all")], ["localhost"]),
        **{f"host: {one}": ([], [one]) for one in rebuilt},
        "no host": ([], []),
        "two hosts": ([], ["localhost", "localhost"]),
        "two hosts and a path": ([], ["localhost/health/live?", "localhost"]),
    }


@pytest.mark.parametrize("name", claims())
async def test_what_is_no_token_is_none(guarded: Front, name: str) -> None:
    headers, hosts = claims()[name]
    for verb, path in GUARDED:
        answer = await guarded.ask(verb, path, *headers, hosts=hosts, body=b"{}")
        assert answer.status == (401 if len(hosts) == 1 else 400), f"{verb} {path}: {answer}"
        assert not answer.get("strict-transport-security")
        for query in (f"access_token={GOOD}", f"token={GOOD}&authorization=Bearer%20{GOOD}"):
            answer = await guarded.ask(verb, f"{path}?{query}", *headers, hosts=hosts)
            assert answer.status == (401 if len(hosts) == 1 else 400), f"{verb} {path}: {answer}"
    assert guarded.recorder.calls == []


async def test_a_scheme_is_in_any_case_and_a_token_in_its_own(guarded: Front) -> None:
    for value in (f"bEaReR {GOOD}", f"BEARER   {GOOD}  "):
        answer = await guarded.ask("GET", MODELS, ("authorization", value))
        assert answer.status == 200, str(answer)


@pytest.mark.parametrize(
    "origins",
    [
        *(["http://["], ["http://[::1"], ["http://[x]"], ["http://a:b:c"], ["//localhost"], [""]),
        *(["file://"], ["localhost"], ["http://localhost@evil.example"], ["http://localhost:80"]),
        *(["http://localhost.evil.example"], ["http://evil.example, http://localhost"], ["*"]),
        *(["http://localhost", "http://localhost"], ["http://evil.example", "http://localhost"]),
        ["http://\xe9\xbd\xff"],
    ],
)
async def test_what_is_no_origin_of_ours_is_refused(guarded: Front, origins: list[str]) -> None:
    given = [("origin", one) for one in origins]
    for verb, path in (*GUARDED[:8], ("GET", "/"), ("GET", "/health/live"), ("OPTIONS", "/docs")):
        answer = await guarded.ask(verb, path, bearer("all"), *given)
        # What has the scheme aside the host's name is the page's own; one slash less is no origin.
        assert answer.status == 403 or origins == ["//localhost"], f"{verb} {path}: {answer}"
    if len(origins) == 1:
        answer = await guarded.ask("GET", "/classifier/v1/classify:bidi", *HANDSHAKE, *given)
        assert answer.status in (401, 403), str(answer)


async def test_an_origin_that_is_none_is_not_that_of_a_host_without_a_name(guarded: Front) -> None:
    for host, origin in itertools.product(("", ":80"), ("null", "", "file://")):
        answer = await guarded.ask("GET", MODELS, bearer("all"), ("origin", origin), hosts=(host,))
        assert answer.status in (400, 403, 421), f"{host!r} {origin!r}: {answer}"


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "localhost.evil.example",
            "localhost.",
            "127.0.0.1.",
            "2130706433",
            "0x7f.1",
        ),
        *(
            "localhost@evil.example",
            "evil.example#localhost",
            "localhost/",
            "%6cocalhost",
            "",
            ":80",
        ),
        *(
            "localhost, evil.example",
            "[evil.example]",
            "[::1].evil.example",
            "127.1",
            "local\xadhost",
        ),
    ],
)
async def test_names_that_are_not_ours_are_refused_without_tokens(
    unguarded: Front, host: str
) -> None:
    for verb, path in (*GUARDED, ("GET", "/"), ("GET", "/health/live"), ("OPTIONS", "/docs")):
        answer = await unguarded.ask(verb, path, hosts=(host,))
        assert answer.status in (400, 421), f"{verb} {path}: {answer}"
    answer = await unguarded.ask("GET", "/classifier/v1/classify:bidi", *HANDSHAKE, hosts=(host,))
    assert answer.status in (400, 421), str(answer)
    assert unguarded.recorder.calls == []


async def test_who_speaks_for_others_gives_no_more_than_it_has(tmp_path: Path) -> None:
    async with front(tmp_path) as f:
        bob = [("x-gristmill-identity", "bob"), ("x-gristmill-scopes", "infer,admin,read,delegate")]
        asked = "POST", "/classifier/v1/classify"
        answer = await f.ask(*asked, bearer("proxy"), *bob, body=b"{}")
        assert answer.status == 200, str(answer)
        ((method, metadata),) = f.recorder.calls
        assert method == CLASSIFY
        assert (metadata["x-gristmill-identity"], metadata["x-gristmill-scopes"]) == (
            "bob",
            "infer",
        )
        assert (await f.ask("GET", MODELS, bearer("proxy"), *bob)).status == 403
        for name in ("b b", "\xe9", "-", "a" * 200, "a,b", "a/../b"):
            claim = ("x-gristmill-identity", name)
            answer = await f.ask(*asked, bearer("proxy"), claim, body=b"{}")
            assert answer.status == 403, f"{name}: {answer}"
        f.recorder.calls.clear()
        twice = ("x-gristmill-identity", ""), ("x-gristmill-identity", "root")
        await f.ask(*asked, bearer("infer"), *twice, body=b"{}")
        assert not any("root" in str(metadata) for _, metadata in f.recorder.calls)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("authorization", "Bearer \xe9"), ("authorization", "Bearer\tx")),
        *(("x-gristmill-identity", "\xe9"), ("x-gristmill-scopes", "\xe9")),
        *(("grpc-metadata-x", "\xe9"), ("traceparent", "\xe9"), ("tracestate", "\t\xe9")),
        *(("x-request-id", "\xe9"), ("accept", "\xe9"), ("content-type", "\xe9")),
        *(("content-encoding", "\xe9"), ("if-none-match", "\xe9"), ("grpc-timeout", "\xb2S")),
        *(("x-gristmill-timeout-ms", "\xb2"), ("grpc-metadata-te", "x")),
    ],
)
async def test_values_that_cannot_be_passed_on_are_the_callers_fault(
    unguarded: Front, name: str, value: str
) -> None:
    for verb, path in GUARDED:
        answer = await unguarded.ask(verb, path, (name, value))
        assert answer.status < 500 or answer.status == 503, f"{verb} {path}: {answer}"


async def test_a_refused_websocket_is_no_failure_of_ours(
    guarded: Front, caplog: pytest.LogCaptureFixture
) -> None:
    """Anybody can have one refused: it must not look as if something here were broken."""
    caplog.set_level(logging.WARNING)
    answer = await guarded.ask("GET", "/classifier/v1/classify:bidi", *HANDSHAKE)
    assert answer.status == 401
    await guarded.settled()
    loud = [one.message for one in caplog.records if one.levelno >= logging.ERROR]
    assert loud == []

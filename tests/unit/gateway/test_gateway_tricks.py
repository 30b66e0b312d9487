"""Requests that mean to be taken for others by their target or their method.

The reference is written here once more and plainly: a path is decoded once, and is that of a route
or of none. Nothing else of a request chooses where it goes.
"""

import itertools
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import unquote

import pytest
import pytest_asyncio

from services.runtime.auth import PUBLIC
from tests.unit.gateway.access import Front, Target, bearer, front, targets

SEEDS = (
    *("/registry/v1/models", "/registry/v1/models/1", "/classifier/v1/models", "/v1/models"),
    *("/v2/models/1/stats", "/models", "/console/metrics"),
    *("/health/live", "/openapi.json", "/docs/docs.js"),
)
"""Paths of each kind of route; all of them are for GET."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
STRANGE = ("PROPFIND", "MKCOL", "PURGE", "LINK", "FOO", "get", "GET,POST", "G\x00ET")


@pytest_asyncio.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Front]:
    """With tokens."""
    async with front(tmp_path) as found:
        yield found


def tricks(path: str) -> list[str]:
    """Targets that look like the path, or like another and lead to it."""
    first, _, rest = path[1:].partition("/")
    *_, last = path.split("/")
    coded = "".join(f"%{ord(letter):02x}" for letter in last)
    before = ("/docs/..", "/docs/%2e%2e", "/health/live/../..", "/health/live/%2E%2E/..", "/.", "/")
    before += ("/docs%2f..", "/docs/..%2f..", "/docs/%252e%252e", "/docs%252f..", "/docs/..;")
    before += (
        "/docs%5c..",
        "/docs/..%255c",
        "/docs\\..",
        "/health/live%00",
        "/health/live%3f",
        "/%20",
    )
    after = (
        "/",
        "//",
        "/.",
        "/..",
        "/../1",
        ";a=b",
        ";/docs",
        "%00",
        "%0a",
        "%0d%0a",
        "%20",
        "%09",
    )
    after += (
        "%3f",
        "%23",
        "?",
        "?/health/live",
        "#",
        "#/docs",
        "?a#b",
        ".json",
        "%2f",
        "%5c",
        ":",
        "%ff",
    )
    after += ("%c0%af", "%u002f", "%", "%2", "%zz", "%e2%80%ae")
    return [
        path,
        *(one + path for one in before),
        *(path + one for one in after),
        *(path.upper(), path.title(), path.replace("/", "//"), path.replace("/", "/./")),
        path.replace(last, coded),
        path.replace(last, coded.replace("%", "%25")),
        f"/{first}%2f{rest}",
        f"/{first}%252f{rest}",
        f"/{first}%5c{rest}",
        f"/{first}\\{rest}",
        *(f"http://localhost{path}", f"HTTPS://localhost{path}", f"http://evil.example{path}"),
        *(f"http://a@evil.example:1{path}", f"//evil.example{path}", f"file://{path}", path[1:]),
        *(f"http://localhost/health/live#{path}", f"/health/live?{path}", f"/health/live#{path}"),
        *("*", "localhost:80", f"/{'a/' * 2000}", f"/{'%41' * 5000}"),
    ]


def meant(every: Sequence[Target], verb: str, target: str) -> Target | None:
    """What a target asks for; None where it is nothing."""
    path = re.sub(r"^[A-Za-z]+://[^/?#]*", "", target)
    path = unquote(re.split(r"[?#]", path)[0])
    for one in every:
        # Where a route takes anything, it was found with a 1 there.
        shape = re.escape(one.path)
        if one.path.startswith(("/registry/", "/v1/models/", "/v2/models/", "/models/")):
            shape = re.sub(r"(?<=/)1(?=/|:|$|\\)", "[^/:]+" if one.of_contract else "[^/]+", shape)
        if one.verb == verb and not one.socket and re.fullmatch(shape, path, re.DOTALL):
            return one
    return None


@pytest.mark.parametrize("path", SEEDS)
async def test_a_target_leads_where_its_decoded_path_says(guarded: Front, path: str) -> None:
    every, wrong = targets(guarded.server.gateway), []
    for verb, target in itertools.product(("GET", "POST", "DELETE"), tricks(path)):
        found = meant(every, verb, target)
        nothing = (400, 404, 405)
        for more in ([], [bearer("all")]):
            guarded.recorder.calls.clear()
            answer = await guarded.ask(verb, target, *more, parsed=False)
            called = set(guarded.recorder.methods[:1])
            right = called <= ({found.method} if found and more else set())
            if found is None:
                right &= answer.status in nothing
            elif found.scope != PUBLIC and not more:
                right &= answer.status in (400, 401, 404)
            if not right:
                wrong.append(f"{verb} {target[:80]} {more}: {answer.status} {called}")
    assert not wrong, "\n".join(wrong)


async def test_a_path_leads_to_the_method_that_is_asked_for(guarded: Front) -> None:
    """Whatever other methods it has, and whatever a header says that was meant."""
    every = targets(guarded.server.gateway)
    names = ("x-http-method-override", "x-http-method", "x-method-override", "_method")
    for path, verb in itertools.product(SEEDS, (*METHODS, *STRANGE)):
        found = meant(every, verb, path)
        for more in ([], [bearer("all")]):
            guarded.recorder.calls.clear()
            overrides = [(name, "GET" if verb != "GET" else "DELETE") for name in names]
            answer = await guarded.ask(verb, path, *more, *overrides, parsed=verb in METHODS[:-1])
            if found is None:
                assert answer.status in (400, 404, 405), f"{verb} {path}: {answer}"
                assert answer.status != 405 or answer.get("allow"), f"{verb} {path}: {answer}"
            assert set(guarded.recorder.methods[:1]) <= {found.method if found else ""}
            assert more or guarded.recorder.calls == []

"""Who may call which route: default deny over the whole table, delegation, passing on."""

import hashlib
import re
from pathlib import Path

import yaml

from services.runtime.auth import SCOPES
from tests.unit.gateway.stack import BODY, CLASSIFY, error_of, stack


def token_file(folder: Path, **tokens: tuple[str, str]) -> Path:
    """A token file: name=(token, scopes)."""
    entries = [
        {
            "identity": name,
            "sha256": hashlib.sha256(token.encode()).hexdigest(),
            "scopes": scopes.split(),
        }
        for name, (token, scopes) in tokens.items()
    ]
    path = folder / f"{'-'.join(tokens)}.yaml"
    path.write_text(yaml.safe_dump({"tokens": entries}))
    return path


PUBLIC = {"/health/live", "/health/ready", "/openapi.json", "/", "/docs"}


class TestAuthentication:
    async def test_every_route_is_refused_without_a_token(self, tmp_path: Path) -> None:
        tokens = token_file(tmp_path, alice=("a" * 20, "infer"))
        async with stack(token_file=tokens) as s:
            routes = s.gateway.gateway.table.routes
            assert len(routes) > 40
            for route in routes:
                values = {v.field: "x" for v in route.template.variables}
                path = route.template.expand(values) if not values else _filled(str(route.template))
                response = await s.client.request(route.http_method, path, content=b"")
                error_of(response, 401, "CREDENTIALS_MISSING")
                assert response.headers["www-authenticate"] == "Bearer"
            assert s.calls == []
            for path in PUBLIC:
                assert (await s.client.get(path)).status_code in (200, 307, 503)

    async def test_every_route_needs_its_own_scope(self, tmp_path: Path) -> None:
        tokens = token_file(tmp_path, nobody=("n" * 20, ""))
        headers = {"authorization": "Bearer " + "n" * 20}
        async with stack(token_file=tokens) as s:
            for route in s.gateway.gateway.table.routes:
                assert route.target.path in SCOPES
                path = _filled(str(route.template))
                response = await s.client.request(route.http_method, path, headers=headers)
                error_of(response, 403, "SCOPE_MISSING")

    async def test_the_host_header_cannot_choose_what_is_guarded(self, tmp_path: Path) -> None:
        tokens = token_file(tmp_path, alice=("a" * 20, "infer"))
        async with stack(token_file=tokens) as s:
            for host in ("localhost/health/live?", "localhost/docs#"):
                response = await s.client.post(CLASSIFY, json=BODY, headers={"host": host})
                assert response.status_code in (400, 401)
            assert s.calls == []

    async def test_the_gateway_speaks_for_its_callers(self, tmp_path: Path) -> None:
        own = "g" * 20
        inner = token_file(tmp_path, gateway=(own, "infer read admin delegate"))
        outer = token_file(tmp_path, alice=("a" * 20, "infer"))
        async with stack(behind={"token_file": inner}, token_file=outer, upstream_token=own) as s:
            response = await s.classify(headers={"authorization": "Bearer " + "a" * 20})
        assert response.status_code == 200
        _, call, _ = s.calls[0]
        assert call.identity.name == "alice"
        assert call.identity.scopes == {"infer"}
        assert own not in str(call.metadata)

    async def test_without_a_token_of_its_own_it_passes_the_callers_on(
        self, tmp_path: Path
    ) -> None:
        inner = token_file(tmp_path, bob=("b" * 20, "infer"))
        async with stack(behind={"token_file": inner}) as s:
            error_of(await s.classify(), 401, "CREDENTIALS_MISSING")
            known = await s.classify(headers={"authorization": "Bearer " + "b" * 20})
        assert known.status_code == 200
        assert s.calls[0][1].identity.name == "bob"


def _filled(template: str) -> str:
    """A path that the template matches."""
    return re.sub(r"\{[a-z_.]+=?([^}]*)\}", r"\1", template).replace("*", "x")

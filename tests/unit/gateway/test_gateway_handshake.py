"""Who may open a WebSocket, and what is answered before there is one."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.typing import Subprotocol

from services.runtime.call import current_call
from tests import harness
from tests.harness import SOON_S, soon
from tests.unit.gateway.stack import CLASSIFY, error_of, stack
from tests.unit.gateway.talk import (
    BIDI,
    answered,
    end_of,
    ids,
    items,
    received,
    refusal,
    talk,
)
from tests.unit.gateway.test_gateway_auth import token_file

V1 = Subprotocol("gristmill.v1")
ALICE = "alice-token-that-is-long"


def bearer(token: str) -> Subprotocol:
    """A token among the protocols."""
    encoded = base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")
    return Subprotocol(f"gristmill.bearer.{encoded}")


class TestHandshake:
    async def test_names_the_request_and_the_protocol(self) -> None:
        async with stack() as s:
            async with talk(s, additional_headers={"x-request-id": "mine"}) as socket:
                assert answered(socket)["x-request-id"] == "mine"
                assert socket.subprotocol is None
            async with talk(s, subprotocols=["other", V1]) as socket:
                assert socket.subprotocol == V1
                assert answered(socket)["x-request-id"]
            async with talk(s, subprotocols=["other"]) as socket:
                assert socket.subprotocol is None

    @pytest.mark.parametrize(
        ("path", "status", "reason"),
        [
            ("/nowhere", 404, "ROUTE_NOT_FOUND"),
            ("/", 404, "ROUTE_NOT_FOUND"),
            ("/health/live", 404, "ROUTE_NOT_FOUND"),
            ("/registry/v1/models/m", 400, "MALFORMED_REQUEST"),
            ("/registry/v1/watch", 400, "MALFORMED_REQUEST"),
            (CLASSIFY, 405, "METHOD_NOT_ALLOWED"),
            ("/v1/chat/completions", 404, "ROUTE_NOT_FOUND"),
        ],
    )
    async def test_other_paths_are_http_errors(self, path: str, status: int, reason: str) -> None:
        async with stack() as s:
            error, _ = await refusal(s, path)
        assert (error["code"], error["reason"]) == (status, reason)

    async def test_what_is_refused_is_no_fault_of_ours(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with stack() as s:
            await refusal(s, "/nowhere")
        assert [one.message for one in caplog.records if one.levelname == "ERROR"] == []

    async def test_is_not_logged_with_its_query_nor_more_often_than_is_asked_for(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        async with stack(log_sample_every=0) as s:
            assert (await s.classify()).status_code == 200
            caplog.clear()
            async with talk(s, f"{BIDI}?hidden=word") as socket:
                await socket.send("")
                assert (await end_of(socket)).code == 1000
            assert await s.gateway.gateway.in_hand.wait_idle(SOON_S)
            said = [one.getMessage() for one in caplog.records]
        assert said == []

    async def test_other_sites_and_other_names_are_refused(self) -> None:
        async with stack(allowed_origins="https://ui.example") as s:
            error, _ = await refusal(s, origin="https://evil.example")
            assert (error["code"], error["reason"]) == (403, "ORIGIN_REFUSED")
            port = s.gateway.port
            rebound = {"proxy": None, "host": "127.0.0.1", "port": port}
            error, _ = await refusal(s, f":{port}@evil.example{BIDI}", **rebound)
            assert (error["code"], error["reason"]) == (421, "HOST_REFUSED")
            assert await s.gateway.gateway.in_hand.wait_idle(0)
            async with talk(s, origin="https://ui.example") as socket:
                await socket.send(items("a"))
                assert ids(await received(socket)) == ["a"]

    @pytest.mark.parametrize("value", ["0", "soon", "-1"])
    async def test_a_deadline_that_is_none_is_refused(self, value: str) -> None:
        async with stack() as s:
            error, _ = await refusal(s, additional_headers={"x-gristmill-timeout-ms": value})
        assert (error["code"], error["reason"]) == (400, "INVALID_FIELD")

    async def test_who_may(self, tmp_path: Path) -> None:
        names: list[str] = []

        async def who(requests: Any, context: Any) -> AsyncIterator[Any]:
            call = current_call()
            names.append(call.identity.name)
            assert ALICE not in str(call.metadata)
            async for _ in requests:
                pass
            yield harness.bidi_response(call.identity.name)

        own = "gateway-token-long-enough"
        inner = token_file(tmp_path, gateway=(own, "infer read delegate"))
        outer = token_file(tmp_path, alice=(ALICE, "infer"), bob=("b" * 20, "read"))
        config = {"behind": {"token_file": inner}, "token_file": outer, "upstream_token": own}
        async with stack(bidi=who, **config) as s:
            for given in (
                {"additional_headers": {"authorization": f"Bearer {ALICE}"}},
                {"subprotocols": [V1, bearer(ALICE)]},
                {"subprotocols": [bearer(ALICE), V1]},
            ):
                async with talk(s, **given) as socket:
                    assert socket.subprotocol == (V1 if "subprotocols" in given else None)
                    assert ALICE not in str(answered(socket))
                    await socket.send("")
                    assert ids(await received(socket)) == ["alice"]
            for given, status, reason in (
                ({}, 401, "CREDENTIALS_MISSING"),
                ({"subprotocols": [V1]}, 401, "CREDENTIALS_MISSING"),
                ({"subprotocols": [V1, bearer("nobody")]}, 401, "CREDENTIALS_INVALID"),
                ({"subprotocols": [V1, "gristmill.bearer.a"]}, 401, "CREDENTIALS_MISSING"),
                ({"additional_headers": {"authorization": "Bearer x"}}, 401, "CREDENTIALS_INVALID"),
                ({"subprotocols": [V1, bearer("b" * 20)]}, 403, "SCOPE_MISSING"),
            ):
                error, headers = await refusal(s, **given)
                assert (error["code"], error["reason"]) == (status, reason), given
                assert headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
        assert names == ["alice"] * 3

    async def test_protocols_may_come_in_several_headers(self, tmp_path: Path) -> None:
        outer = token_file(tmp_path, alice=(ALICE, "infer"))
        more = {
            "subprotocols": [V1],
            "additional_headers": [("Sec-WebSocket-Protocol", str(bearer(ALICE)))],
        }
        async with stack(token_file=outer) as s, talk(s, **more) as socket:
            await socket.send("")
            assert (await end_of(socket)).code == 1000

    async def test_without_an_upgrade_it_is_426(self) -> None:
        async with stack() as s:
            response = await soon(s.client.get(BIDI))
            error_of(response, 426, "UPGRADE_REQUIRED")
            assert response.headers["upgrade"] == "websocket"

"""A client's stream as a WebSocket: what is said on it, and who may open one."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gateway.protocol import MAX_PARTS
from services.runtime import errors
from tests import harness
from tests.unit.gateway.stack import stack
from tests.unit.gateway.talk import (
    answered,
    budget,
    end_of,
    frame,
    ids,
    items,
    received,
    talk,
)


class TestMessages:
    async def test_items_in_and_results_out(self) -> None:
        async with stack() as s, talk(s) as socket:
            await socket.send(items("a"))
            assert ids(await received(socket)) == ["a"]
            await socket.send(items("b", "c"))
            await socket.send(items("ü"))
            assert [ids(await received(socket)) for _ in range(3)] == [["b"], ["c"], ["ü"]]

    async def test_the_empty_text_ends_it_after_all_results(self) -> None:
        async with stack() as s, talk(s) as socket:
            await socket.send(items("a", "b"))
            await socket.send(items("c"))
            await socket.send("")
            await socket.send("")
            end = await end_of(socket)
            assert budget(s).held_bytes == 0
        assert [ids(one) for one in end.messages] == [["a"], ["b"], ["c"]]
        assert (end.code, end.reason) == (1000, "")

    async def test_nothing_at_all_is_a_stream_too(self) -> None:
        async with stack() as s, talk(s) as socket:
            await socket.send("")
            end = await end_of(socket)
        assert (end.messages, end.code) == ([], 1000)

    async def test_one_side_does_not_wait_for_the_other(self) -> None:
        async def last_first(requests: Any, context: Any) -> AsyncIterator[Any]:
            seen = [item.id async for request in requests for item in request.items]
            for name in reversed(seen):
                yield harness.bidi_response(name)

        async with stack(bidi=last_first) as s, talk(s) as socket:
            for index in range(20):
                await socket.send(items(str(index)))
            await socket.send("")
            end = await end_of(socket)
        assert [ids(one) for one in end.messages] == [[str(n)] for n in reversed(range(20))]
        assert end.code == 1000

    @pytest.mark.parametrize(
        ("raised", "code"),
        [
            (lambda: errors.InvalidRequest.field("items[0].id", "used twice"), 4400),
            (lambda: errors.NotFound("no such model", resource=("model", "m")), 4404),
            (lambda: errors.Overloaded("full", retry_after_s=3.0), 4429),
            (lambda: errors.ModelNotReady("loading"), 4503),
            (lambda: errors.DeadlineTooShort("no time"), 4504),
            (lambda: ValueError("a secret"), 4500),
        ],
    )
    async def test_an_error_is_the_last_message_and_the_same_as_over_http(
        self, raised: Callable[[], Exception], code: int
    ) -> None:
        async def unary(request: Any, context: Any) -> Any:
            raise raised()

        async def bidi(requests: Any, context: Any) -> AsyncIterator[Any]:
            async for request in requests:
                yield harness.bidi_response(request.items[0].id)
                raise raised()

        same = {"x-request-id": "the-same"}
        async with stack(unary, bidi=bidi) as s:
            over_http = (await s.classify(headers=same)).json()["error"]
            async with talk(s, additional_headers=same) as socket:
                await socket.send(items("a"))
                end = await end_of(socket)
        assert ids(end.messages[0]) == ["a"]
        assert end.error(code, over_http["reason"]) == over_http
        assert len(end.messages) == 2
        assert "secret" not in json.dumps(end.messages)

    @pytest.mark.parametrize(
        ("message", "field", "said"),
        [
            (items("a").encode(), None, "text messages"),
            ("{", None, "not JSON"),
            ('{"items":[],"items":[]}', None, "twice"),
            ('{"items":NaN}', None, "NaN"),
            ("[" * 30 + "]" * 30, None, "deeper than 20"),
            ("[" * 100_000, None, ""),
            ("[]", "body", "must be an object"),
            ("null", "body", "must be an object"),
            (" ", None, "not JSON"),
            ('{"nothing": 1}', "nothing", "no such field"),
            ('{"items": [{"id": "a", "x": {}}]}', "items[0].x", "no such field"),
            ('{"items": [{"id": 7}]}', "items[0].id", "must be a string"),
            ('{"items": []}', "items", ""),
        ],
    )
    async def test_what_is_no_message_ends_it(
        self, message: str | bytes, field: str | None, said: str
    ) -> None:
        async with stack(max_json_depth=20) as s, talk(s) as socket:
            await socket.send(message)
            end = await end_of(socket)
            await s.behind.idle()
            assert budget(s).held_bytes == 0
        error = end.error(4400, "INVALID_FIELD")
        assert said in error["message"]
        fields = [v["field"] for d in error["details"] for v in d.get("fieldViolations", ())]
        assert fields == ([field] if field else [])

    async def test_a_text_after_the_end_is_an_error(self) -> None:
        async def never(requests: Any, context: Any) -> AsyncIterator[Any]:
            async for _ in requests:
                pass
            yield harness.bidi_response("all read")
            await asyncio.Event().wait()

        async with stack(bidi=never) as s, talk(s) as socket:
            await socket.send("")
            assert ids(await received(socket)) == ["all read"]
            await socket.send(items("a"))
            error = (await end_of(socket)).error(4400, "INVALID_FIELD")
            assert "ended this stream" in error["message"]
            await s.behind.idle()

    async def test_a_message_has_a_largest_size(self) -> None:
        async with stack(max_body_bytes=4096) as s:
            async with talk(s) as socket:
                await socket.send(items("a", text="x" * 3000))
                assert ids(await received(socket)) == ["a"]
                await socket.send(items("a", text="x" * 4096))
                assert (await end_of(socket)).code == 1009
            async with talk(s) as socket:
                await socket.send(["x" * 2000] * 3)
                assert (await end_of(socket)).code == 1009
            await s.behind.idle()
            assert budget(s).held_bytes == 0

    async def test_all_bodies_together_have_a_bound_here_too(self) -> None:
        async with stack(max_body_bytes=4096, max_buffered_bytes=4096) as s, talk(s) as socket:
            budget(s).take(3000)
            await socket.send(items("a", text="x" * 2000))
            (await end_of(socket)).error(4429, "QUEUE_FULL")
            assert budget(s).held_bytes == 3000

    @pytest.mark.parametrize(("frames", "taken"), [(MAX_PARTS, True), (MAX_PARTS + 1, False)])
    async def test_a_message_has_a_largest_number_of_frames(
        self, frames: int, taken: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        text = items("a").encode()
        async with stack() as s, talk(s) as socket:
            socket.transport.write(frame(1, text, last=False))
            socket.transport.write(frame(0, b" ", last=False) * (frames - 2))
            socket.transport.write(frame(0, b" "))
            if taken:
                assert ids(await received(socket)) == ["a"]
            else:
                assert (await end_of(socket)).code == 1009
                await s.behind.idle()
        assert [one for one in caplog.records if one.levelname == "ERROR"] == []

    async def test_text_that_is_not_utf_8_ends_it(self) -> None:
        async with stack() as s, talk(s) as socket:
            socket.transport.write(frame(1, b'{"a": "\xff"}'))
            assert (await end_of(socket)).code == 1007
            await s.behind.idle()

    async def test_nothing_is_compressed(self) -> None:
        async with stack() as s, talk(s, compression="deflate") as socket:
            assert socket.request is not None
            assert "permessage-deflate" in socket.request.headers["Sec-WebSocket-Extensions"]
            assert "Sec-WebSocket-Extensions" not in answered(socket)

"""The small parts by themselves: streams and silence, bodies, what is in hand, settings."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.bodies import BodyBounds, BodyBudget, BoundedReceive, read_json_body
from gateway.config import GatewayConfig, listed
from gateway.errors import ClientGoneError, RefusalError
from gateway.inhand import InHand
from gateway.streams import SILENCE, CallCancelledError, framing_for, paced
from gateway.upstream import connect
from services.runtime.errors import Draining, MessageTooLarge, Overloaded
from tests.harness import soon

END = object()


def reading(*items: object) -> Callable[[], Awaitable[object]]:
    """A `read` that gives these, awaiting events and raising exceptions among them."""
    left = iter(items)

    async def read() -> object:
        item = next(left)
        if isinstance(item, asyncio.Event):
            await item.wait()
            return "after"
        if isinstance(item, BaseException):
            raise item
        return item

    return read


class TestPaced:
    async def test_gives_everything_until_the_end(self) -> None:
        assert [item async for item in paced(reading(1, 2, END), END, 60.0)] == [1, 2]

    async def test_says_when_nothing_comes_and_loses_nothing(self) -> None:
        release = asyncio.Event()
        items = paced(reading(release, END), END, 0.001)
        assert await soon(anext(items)) is SILENCE
        assert await soon(anext(items)) is SILENCE
        release.set()
        assert [item async for item in items if item is not SILENCE] == ["after"]

    async def test_raises_what_reading_raises(self) -> None:
        with pytest.raises(ValueError, match="broken"):
            [item async for item in paced(reading(1, ValueError("broken")), END, 60.0)]

    async def test_a_cancelled_read_is_not_a_cancelled_task(self) -> None:
        with pytest.raises(CallCancelledError):
            [item async for item in paced(reading(asyncio.CancelledError()), END, 60.0)]

    async def test_closing_cancels_the_read(self) -> None:
        cancelled = asyncio.Event()

        async def read() -> object:
            try:
                return await asyncio.Future[object]()
            finally:
                cancelled.set()

        items = paced(read, END, 0.001)
        await soon(anext(items))
        await items.aclose()
        await soon(cancelled.wait())


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", "text/event-stream"),
        ("*/*", "text/event-stream"),
        ("application/json", "text/event-stream"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("Application/JSONL; q=0.9, */*", "application/x-ndjson"),
        ("application/x-ndjson, text/event-stream", "text/event-stream"),
    ],
)
def test_the_caller_chooses_the_framing(accept: str, media_type: str) -> None:
    assert framing_for(accept).media_type == media_type


def receiving(*chunks: bytes, gone: bool = False) -> Callable[[], Awaitable[dict[str, Any]]]:
    """An ASGI `receive` of a body."""

    async def messages() -> AsyncIterator[dict[str, Any]]:
        for index, chunk in enumerate(chunks):
            more = gone or index < len(chunks) - 1
            yield {"type": "http.request", "body": chunk, "more_body": more}
        yield {"type": "http.disconnect"}

    stream = messages()

    async def receive() -> dict[str, Any]:
        return await anext(stream)

    return receive


class TestBodies:
    async def test_counts_what_it_cannot_know_beforehand(self) -> None:
        budget = BodyBudget(100)
        bounded = BoundedReceive(receiving(b"x" * 6, b"x" * 6), {}, {}, BodyBounds(10, budget))
        bounded.check()
        with pytest.raises(MessageTooLarge):
            await read_json_body({}, bounded)
        assert budget.held_bytes == 6
        bounded.release()
        bounded.release()
        assert budget.held_bytes == 0

    @pytest.mark.parametrize(("length", "refused"), [("10", False), ("11", True), ("x", False)])
    def test_believes_a_length_that_is_too_large(self, length: str, refused: bool) -> None:
        bounded = BoundedReceive(
            receiving(), {}, {"content-length": length}, BodyBounds(10, BodyBudget(100))
        )
        assert bounded.refused is refused

    async def test_all_bodies_together_have_a_bound(self) -> None:
        budget = BodyBudget(15)
        first = BoundedReceive(receiving(b"x" * 10), {}, {}, BodyBounds(10, budget))
        await read_json_body({}, first)
        with pytest.raises(Overloaded):
            await read_json_body(
                {}, BoundedReceive(receiving(b"x" * 10), {}, {}, BodyBounds(10, budget))
            )
        first.release()
        second = BoundedReceive(receiving(b"x" * 10), {}, {}, BodyBounds(10, budget))
        assert await read_json_body({}, second) == b"x" * 10

    async def test_a_client_that_leaves_in_the_middle(self) -> None:
        with pytest.raises(ClientGoneError):
            await read_json_body({}, receiving(b"{", gone=True))

    @pytest.mark.parametrize(
        ("kind", "taken"),
        [
            ("application/json", True),
            ("application/json; charset=utf-8", True),
            ("application/merge-patch+json", True),
            ("text/plain", False),
            ("application/x-protobuf", False),
            ("", False),
        ],
    )
    async def test_only_json(self, kind: str, taken: bool) -> None:
        headers = {"content-type": kind}
        assert await read_json_body(headers, receiving(b"")) == b""
        if taken:
            assert await read_json_body(headers, receiving(b"{}")) == b"{}"
        else:
            with pytest.raises(RefusalError):
                await read_json_body(headers, receiving(b"{}"))


class TestInHand:
    async def test_refuses_beyond_its_limit_and_while_draining(self) -> None:
        in_hand = InHand(1)
        with in_hand.one():
            with pytest.raises(Overloaded), in_hand.one():
                pass
            assert in_hand.count == 1
        in_hand.draining = True
        with pytest.raises(Draining), in_hand.one():
            pass
        assert in_hand.count == 0

    async def test_waits_until_nothing_is_left(self) -> None:
        in_hand = InHand(2)
        with in_hand.one():
            assert not await in_hand.wait_idle(0.001)
            waiting = asyncio.create_task(in_hand.wait_idle(10.0))
        assert await soon(waiting)


class TestConfig:
    def test_a_token_is_read_from_its_file_and_never_shown(self, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text("secret-token\n")
        config = GatewayConfig(upstream_token_file=file)
        assert config.own_token() == "secret-token"
        shown = GatewayConfig(upstream_token="secret-token")  # type: ignore[arg-type]  # as the environment gives it
        assert shown.own_token() == "secret-token"
        assert "secret-token" not in f"{config!r} {shown!r} {shown.model_dump_json()}"

    @pytest.mark.parametrize("text", ["", "  \n", "two\nlines", "späte"])
    def test_unusable_tokens(self, text: str, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text(text)
        with pytest.raises(ValueError, match="token"):
            GatewayConfig(upstream_token_file=file).own_token()

    def test_settings_that_contradict_each_other(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="exclude"):
            GatewayConfig(upstream_token="a", upstream_token_file=tmp_path)  # type: ignore[arg-type]  # as above
        with pytest.raises(ValueError, match="max_buffered_bytes"):
            GatewayConfig(max_body_bytes=2**20, max_buffered_bytes=1024)
        with pytest.raises(ValueError, match="loopback"):
            GatewayConfig(host="0.0.0.0")

    def test_lists(self) -> None:
        assert listed(" a:1, ,b:2,") == ("a:1", "b:2")

    async def test_an_upstream_needs_an_address(self) -> None:
        with pytest.raises(ValueError, match="classifier"):
            connect(GatewayConfig(classifier=","))

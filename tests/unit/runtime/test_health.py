"""grpc.health.v1: Check and List answer, Watch stays open and tells of each change."""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.runtime import errors
from services.runtime.health import NOT_SERVING, SERVICE_UNKNOWN, SERVING, Health
from tests.harness import (
    Scripted,
    Served,
    failure,
    health_check,
    health_list,
    health_stream,
    reason,
    serve,
    soon,
)

SERVICE = "gristmill.classifier.v1.ClassifierService"


def test_a_process_is_not_serving_before_it_says_so() -> None:
    assert Health().statuses() == {"": NOT_SERVING}


def test_statuses_are_set_removed_and_unknown() -> None:
    health = Health()
    health.set("models/m", serving=True)
    assert health.status("models/m") == SERVING
    health.set("models/m", serving=False)
    assert health.status("models/m") == NOT_SERVING
    health.remove("models/m")
    health.remove("models/never")
    assert health.status("models/m") is None


def test_a_model_is_named_by_its_resource() -> None:
    health = Health()
    health.model("m", True)  # a callback's own shape
    assert health.statuses()["models/m"] == SERVING
    health.model("m", None)
    assert "models/m" not in health.statuses()


def test_during_a_drain_nothing_turns_serving_any_more() -> None:
    health = Health()
    health.set("models/m", serving=True)
    health.drain()
    health.set("", serving=True)
    health.set("models/late", serving=True)
    assert set(health.statuses().values()) == {NOT_SERVING}


async def test_a_watch_tells_now_and_each_change_until_the_drain() -> None:
    health = Health()
    health.set("m", serving=True)
    async with aclosing(health.watch("m")) as watch:
        assert await anext(watch) == SERVING
        health.set("m", serving=False)
        assert await anext(watch) == NOT_SERVING
        health.remove("m")
        assert await anext(watch) == SERVICE_UNKNOWN
        health.set("m", serving=True)
        assert await anext(watch) == SERVING
        health.drain()
        assert await anext(watch) == NOT_SERVING
        with pytest.raises(StopAsyncIteration):
            await soon(anext(watch))


async def test_a_watch_does_not_repeat_what_has_not_changed() -> None:
    health = Health()
    async with aclosing(health.watch("m")) as watch:
        assert await anext(watch) == SERVICE_UNKNOWN
        following = asyncio.ensure_future(anext(watch))
        for _ in range(3):
            health.set("another", serving=True)
            await asyncio.sleep(0)
        assert not following.done()
        health.set("m", serving=True)
        assert await soon(following) == SERVING


async def test_a_watch_that_was_left_is_forgotten() -> None:
    health = Health()
    watches = [health.watch("") for _ in range(10)]
    for watch in watches:
        await anext(watch)
    assert len(health._watchers) == 10
    for watch in watches:
        await watch.aclose()
    assert not health._watchers


async def test_a_new_watch_during_the_drain_tells_once_and_ends() -> None:
    health = Health()
    health.drain()
    assert [status async for status in health.watch("")] == [NOT_SERVING]


async def read(watch: Any) -> int:
    """The next status of a watch on the wire."""
    answer = await soon(watch.read())
    assert answer is not grpc.aio.EOF, "the watch ended"
    return int(answer.status)


async def test_process_services_and_models_are_checked_and_listed(transport: str) -> None:
    health = Health()
    async with serve(Scripted(), transport, health=health) as served:
        health.set("models/m", serving=True)
        health.set("models/loading", serving=False)
        for name in ("", SERVICE, "models/m"):
            assert await health_check(served.channel, name) == SERVING
        assert await health_check(served.channel, "models/loading") == NOT_SERVING
        assert await health_list(served.channel) == {
            "": SERVING,
            SERVICE: SERVING,
            "models/m": SERVING,
            "models/loading": NOT_SERVING,
        }


async def test_an_unknown_name_is_not_found(transport: str) -> None:
    async with serve(Scripted(), transport) as served:
        error = await failure(health_check(served.channel, "models/nope"))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert reason(error) == errors.MODEL_NOT_LOADED


async def test_a_watch_of_an_unknown_name_waits_for_it(transport: str) -> None:
    health = Health()
    async with serve(Scripted(), transport, health=health) as served:
        watch = health_stream(served.channel, "models/m")
        assert await read(watch) == SERVICE_UNKNOWN
        health.set("models/m", serving=False)
        assert await read(watch) == NOT_SERVING
        health.set("models/m", serving=True)
        assert await read(watch) == SERVING
        health.remove("models/m")
        assert await read(watch) == SERVICE_UNKNOWN
        assert not watch.done()
        watch.cancel()
        await served.idle()


@pytest.mark.parametrize("name", ["", SERVICE, "models/unknown"])
async def test_the_drain_ends_a_watch_with_its_reason(transport: str, name: str) -> None:
    async with serve(Scripted(), transport, linger=True) as served:
        watch = health_stream(served.channel, name)
        unknown = name not in ("", SERVICE)
        assert await read(watch) == (SERVICE_UNKNOWN if unknown else SERVING)
        drained = asyncio.ensure_future(served.server.drain())
        if not unknown:
            assert await read(watch) == NOT_SERVING
        error = await failure(watch.read())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert reason(error) == errors.DRAINING
        await soon(drained)


async def test_many_watch_and_each_is_told(transport: str) -> None:
    health = Health()
    async with serve(Scripted(), transport, health=health) as served:
        watches = [health_stream(served.channel, "models/m") for _ in range(50)]
        assert {await read(watch) for watch in watches} == {SERVICE_UNKNOWN}
        health.set("models/m", serving=True)
        assert {await read(watch) for watch in watches} == {SERVING}
        assert served.server.interceptor.in_flight == 50
        for watch in watches:
            watch.cancel()
        await served.idle()
        assert not health._watchers


async def test_health_needs_no_token(transport: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text(f"tokens: [{{identity: a, sha256: {'a' * 64}, scopes: [read]}}]")
    async with serve(Scripted(), transport, token_file=path) as served:
        assert await health_check(served.channel) == SERVING
        assert await read(health_stream(served.channel)) == SERVING
        assert (await health_list(served.channel))[""] == SERVING


async def test_a_status_follows_the_server(transport: str) -> None:
    """NOT_SERVING until the server says it is ready."""
    health = Health()
    async with serve(Scripted(), transport, health=health) as served:
        assert isinstance(served, Served)
        health.set("", serving=False)
        assert await health_check(served.channel) == NOT_SERVING
        served.server.ready()
        assert await health_check(served.channel) == SERVING

"""Calls that could not begin: tried again elsewhere or later, and never more than does good."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from gateway import opencall
from gateway.breaker import FAILURES
from services.runtime.health import NOT_SERVING
from tests.harness import SOON_S, metric, soon
from tests.unit.gateway.several import (
    CLASSIFY_STREAM,
    GENERATE,
    GET,
    LIST,
    Process,
    Request,
    Script,
    bare,
    before,
    dead_address,
    draining,
    failing,
    loading,
    processes,
    refusing,
    silent_address,
    until,
)
from tests.unit.gateway.stack import error_of, events

CREATE = ("POST", "/registry/v1/models?model_id=m", {"task": "TASK_CLASSIFICATION"})
CREATE_ONCE = ("POST", f"{CREATE[1]}&request_id=0190b2f4-0000-7000-8000-000000000001", CREATE[2])


class TestSeveralAddresses:
    async def test_a_dead_one_fails_no_request_and_is_left_alone(self) -> None:
        retries = metric("gristmill_upstream_retries_total", upstream="registry")
        async with processes(None) as (alive,):
            with dead_address() as dead:
                async with before(dead, alive.target) as g:
                    statuses = [(await g.ask()).status_code for _ in range(60)]
        assert statuses == [200] * 60
        assert len(alive.calls) == 60
        wasted = metric("gristmill_upstream_retries_total", upstream="registry") - retries
        assert wasted <= FAILURES

    async def test_one_that_is_known_to_be_down_gets_no_calls(self) -> None:
        async with processes(None) as (alive,):
            with dead_address() as dead:
                async with before(dead, alive.target) as g:
                    down, up = g.upstream("generator").addresses
                    alive.health.set("", serving=False)
                    await until(lambda: not down.is_up and up.health == "NOT_SERVING")
                    statuses = [(await g.ask(GENERATE)).status_code for _ in range(20)]
        assert statuses == [200] * 20

    async def test_one_that_ends_fails_no_request(self) -> None:
        async with processes(None, None) as (stays, ends):
            async with before(stays.target, ends.target) as g:
                assert [(await g.ask()).status_code for _ in range(10)] == [200] * 10
                assert stays.calls
                assert ends.calls
                await ends.stop()
                assert [(await g.ask()).status_code for _ in range(30)] == [200] * 30
                await ends.start()
                seen = len(ends.calls)
                async with asyncio.timeout(SOON_S):
                    while len(ends.calls) == seen:
                        assert (await g.ask()).status_code == 200

    @pytest.mark.parametrize("error", [draining, loading])
    @pytest.mark.parametrize("request_", [GET, GENERATE])
    async def test_what_one_refused_before_it_began_another_answers(
        self, error: Callable[[], Exception], request_: Request
    ) -> None:
        async with processes(refusing(error), None) as (refuses, answers):
            async with before(refuses.target, answers.target) as g:
                assert [(await g.ask(request_)).status_code for _ in range(4)] == [200] * 4
        assert refuses.calls
        assert len(answers.calls) == 4

    async def test_one_that_refuses_does_not_get_the_turns_of_the_others_too(self) -> None:
        async with processes(refusing(loading), None) as (refuses, answers):
            async with before(refuses.target, answers.target) as g:
                assert [(await g.ask()).status_code for _ in range(4)] == [200] * 4
        assert len(refuses.calls) == 1

    async def test_one_that_fails_does_not_either(self) -> None:
        async with processes(bare, None) as (fails, answers):
            async with before(fails.target, answers.target) as g:
                await until(lambda: all(one.health for one in g.upstream().addresses))
                assert [(await g.ask()).status_code for _ in range(4)] == [200] * 4
        assert len(fails.calls) == 2

    async def test_one_whose_model_is_not_there_fails_no_request_however_long_it_takes(
        self,
    ) -> None:
        async with processes(refusing(loading), None) as both:
            async with before(*(one.target for one in both)) as g:
                assert [(await g.ask()).status_code for _ in range(60)] == [200] * 60

    async def test_no_process_is_asked_twice_for_what_it_refused(self) -> None:
        async with processes(refusing(loading), refusing(loading)) as both:
            async with before(*(one.target for one in both)) as g:
                response = await g.ask(GENERATE)
        error = error_of(response, 503, "MODEL_NOT_READY")
        assert response.headers["retry-after"] == "7"
        (hint,) = [d for d in error["details"] if d["@type"].endswith("google.rpc.RetryInfo")]
        assert hint["retryDelay"] == "6.200s"
        assert [one.calls for one in both] == [["Generate"], ["Generate"]]

    async def test_one_that_says_it_does_not_serve_gets_no_calls_while_another_does(self) -> None:
        async with processes(None, None) as (serves, rests):
            rests.health.set("", serving=False)
            async with before(serves.target, rests.target) as g:
                addresses = g.upstream().addresses
                await until(lambda: all(one.health for one in addresses))
                assert rests.health.status("") == NOT_SERVING
                assert [(await g.ask()).status_code for _ in range(20)] == [200] * 20
                assert rests.calls == []
                rests.health.set("", serving=True)
                serves.health.set("", serving=False)
                await until(lambda: [a.health for a in addresses] == ["NOT_SERVING", "SERVING"])
                assert [(await g.ask()).status_code for _ in range(20)] == [200] * 20
                assert (len(serves.calls), len(rests.calls)) == (20, 20)
                rests.health.set("", serving=False)
                await until(lambda: [a.health for a in addresses] == ["NOT_SERVING"] * 2)
                assert (await g.ask()).status_code == 200

    async def test_one_that_answers_nothing_is_left_alone(self) -> None:
        async with processes(None) as (answers,), silent_address() as silent:
            async with before(silent, answers.target) as g:
                await until(lambda: g.upstream().addresses[1].health == "SERVING")
                limit = {"headers": {"x-gristmill-timeout-ms": "200"}}
                statuses = [(await g.ask(**limit)).status_code for _ in range(40)]
        assert statuses.count(504) <= FAILURES
        assert set(statuses[-10:]) == {200}


class TestWhatIsRepeated:
    async def test_a_repeatable_call_that_reached_nothing(self) -> None:
        async with processes(failing("GetModel", first=1)) as (one,), before(one.target) as g:
            assert (await g.ask(GET)).status_code == 200
        assert one.calls == ["GetModel"] * 2

    async def test_with_an_end(self) -> None:
        async with processes(failing("GetModel")) as (one,), before(one.target) as g:
            response = await g.ask(GET)
        error = error_of(response, 503, "UPSTREAM_UNAVAILABLE")
        assert response.headers["retry-after"] == "1"
        assert any(d.get("retryDelay") == "1s" for d in error["details"])
        assert one.calls == ["GetModel"] * 3

    async def test_a_call_that_must_not_be_repeated_is_not(self) -> None:
        async with processes(bare) as (one,), before(one.target) as g:
            error_of(await g.ask(GENERATE), 503, "UPSTREAM_UNAVAILABLE")
        assert one.calls == ["Generate"]

    async def test_nor_elsewhere(self) -> None:
        async with processes(bare, bare) as both:
            async with before(*(one.target for one in both)) as g:
                error_of(await g.ask(GENERATE), 503, "UPSTREAM_UNAVAILABLE")
        assert sorted(len(one.calls) for one in both) == [0, 1]

    async def test_a_creation_that_says_which_it_is(self) -> None:
        async with processes(failing("CreateModel", first=1)) as (one,), before(one.target) as g:
            assert (await g.ask(CREATE_ONCE)).status_code == 200
        assert len(one.calls) == 2

    async def test_a_creation_without_a_request_id_is_another_one_each_time(self) -> None:
        async with processes(failing("CreateModel", first=1)) as (one,), before(one.target) as g:
            error_of(await g.ask(CREATE), 503, "UPSTREAM_UNAVAILABLE")
        assert len(one.calls) == 1

    async def test_a_stream_before_its_first_message(self) -> None:
        script = failing("ClassifyStream[0]", first=1)
        async with processes(script) as (one,), before(one.target) as g:
            response = await g.ask(CLASSIFY_STREAM)
        assert response.status_code == 200
        assert len(events(response.text)) == 2
        assert one.calls == ["ClassifyStream[0]", "ClassifyStream[0]", "ClassifyStream[1]"]

    async def test_never_a_stream_after_its_first_message(self) -> None:
        script = failing("ClassifyStream[1]")
        async with processes(script, script) as both:
            async with before(*(one.target for one in both)) as g:
                response = await g.ask(CLASSIFY_STREAM)
        first, last = events(response.text)
        assert json.loads(first.removeprefix("data: "))["index"] == 0
        assert last.startswith("event: error\n")
        assert '"reason":"UPSTREAM_UNAVAILABLE"' in last
        assert sorted(len(one.calls) for one in both) == [0, 2]

    @pytest.mark.parametrize(
        ("script", "code"), [(bare, 4503), (refusing(draining), 1012), (refusing(loading), 4503)]
    )
    async def test_never_what_the_client_streams(self, script: Script, code: int) -> None:
        async with processes(script, script) as both:
            async with before(*(one.target for one in both)) as g:
                url = f"ws://127.0.0.1:{g.gateway.port}/classifier/v1/classify:bidi"
                async with connect(url, proxy=None) as socket:
                    assert "error" in json.loads(await soon(socket.recv()))
                    with pytest.raises(ConnectionClosed):
                        await soon(socket.recv())
                    assert socket.close_code == code
        assert sorted(len(one.calls) for one in both) == [0, 1]

    async def test_no_more_than_the_deadline_has_room_for(self) -> None:
        async with processes(bare) as (one,), before(one.target) as g:
            limit = {"headers": {"x-gristmill-timeout-ms": "120"}}
            error_of(await g.ask(GET, **limit), 503, "UPSTREAM_UNAVAILABLE")
        assert len(one.calls) == 1

    async def test_one_deadline_for_all_tries(self) -> None:
        async def hangs_the_second_time(name: str, context: Any) -> None:
            if len(one.calls) == 1:
                await bare(name, context)
            await asyncio.Event().wait()

        async with processes(hangs_the_second_time) as (one,), before(one.target) as g:
            began = time.monotonic()
            limit = {"headers": {"x-gristmill-timeout-ms": "800"}}
            error_of(await g.ask(GET, **limit), 504, "DEADLINE_EXPIRED")
            took = time.monotonic() - began
        assert one.calls == ["GetModel"] * 2
        assert one.times_left[1] < one.times_left[0]
        assert 0.7 < took < 2.0

    async def test_nothing_for_a_client_that_has_left(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(opencall, "RETRY_PAUSE_S", (0.5, 0.5))
        async with processes(bare) as (one,), before(one.target) as g:
            caller = asyncio.create_task(g.ask(GET))
            await until(lambda: g.upstream().budget.level < 10)
            caller.cancel()
            assert await g.gateway.gateway.in_hand.wait_idle(SOON_S)
            assert len(one.calls) == 1


class TestTrouble:
    async def test_retries_have_a_budget(self) -> None:
        # What works in between keeps the breaker closed: only the budget stops retries.
        async with processes(failing("GetModel")) as (one,), before(one.target) as g:
            for _ in range(60):
                error_of(await g.ask(GET), 503, "UPSTREAM_UNAVAILABLE")
                assert (await g.ask(LIST)).status_code == 200
        assert 60 < one.calls.count("GetModel") <= 60 + 6
        assert one.calls.count("ListModels") == 60

    async def test_a_service_in_trouble_gets_less_work_and_not_more(self) -> None:
        async with processes(bare) as (one,), before(one.target) as g:
            began = time.monotonic()
            answers = await asyncio.gather(*(g.ask(GET) for _ in range(20)))
            in_flight = len(one.calls)
            answers += [await g.ask(GET) for _ in range(100)]
            elapsed = time.monotonic() - began
        for response in answers:
            error = error_of(response, 503, "UPSTREAM_UNAVAILABLE")
            assert 1 <= int(response.headers["retry-after"]) <= 5
            assert any("retryDelay" in detail for detail in error["details"])
            assert one.target not in response.text
        assert in_flight <= 20 + FAILURES
        assert len(one.calls) - in_flight <= elapsed + 1

    async def test_a_service_that_comes_back_is_found_within_seconds(self) -> None:
        async with processes(None) as (one,), before(one.target) as g:
            assert (await g.ask()).status_code == 200
            await one.stop()
            for _ in range(FAILURES):
                error_of(await g.ask(), 503, "UPSTREAM_UNAVAILABLE")
            assert not g.upstream().addresses[0].breaker.lets_through(time.monotonic())
            began = time.monotonic()
            for _ in range(20):
                error_of(await g.ask(), 503, "UPSTREAM_UNAVAILABLE")
            assert time.monotonic() - began < 2.0
            await one.start()
            began = time.monotonic()
            await found(one, g.ask)
            assert time.monotonic() - began < 10.0
            assert [(await g.ask()).status_code for _ in range(10)] == [200] * 10


async def found(one: Process, ask: Callable[[], Awaitable[Any]]) -> None:
    """Ask now and then until the process has answered."""
    seen = len(one.calls)
    async with asyncio.timeout(SOON_S):
        while (await ask()).status_code != 200:
            await asyncio.sleep(0.05)
    assert len(one.calls) > seen

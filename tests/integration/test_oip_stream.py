"""ModelStreamInfer on both servers: order, window, failures, drain, and callers that leave."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from services.classifier.oip import stream as stream_module
from services.oip.contract import pb
from tests.harness import collect, failure, reason, soon
from tests.integration.inference_protocol import Rig, numbers_in, rig, texts, with_parameters
from tests.unit.classifier.models import FIRST_TOKEN

Code = grpc.StatusCode
STRICT = ((stream_module.STRICT, "true"),)


async def given(*requests: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferRequest]:
    """Requests, and then no more."""
    for request in requests:
        yield request


def answer_of(response: pb.ModelStreamInferResponse) -> list[int]:
    """The numbers of a response that is no failure and is the last of its request."""
    assert not response.error_message
    assert response.infer_response.parameters["triton_final_response"].bool_param
    return numbers_in(response.infer_response)


async def read(call: Any, into: list[Any]) -> None:
    """All that still comes."""
    while (response := await call.read()) is not grpc.aio.EOF:
        into.append(response)


async def ended(call: Any) -> None:
    """The caller has no more to send, and nothing more comes."""
    await call.done_writing()
    assert await soon(call.read()) is grpc.aio.EOF
    assert await soon(call.code()) is Code.OK


async def test_many_requests_are_answered_in_their_order(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path, instances=2) as r:
        requests = [texts(n, n + 1, words=1 + n % 4, id=str(n)) for n in range(1000)]
        found = await collect(r.stream(given(*requests)))
        assert [answer_of(one) for one in found] == [[n, n + 1] for n in range(1000)]
        assert [one.infer_response.id for one in found] == [str(n) for n in range(1000)]
        assert r.world.traffic.streams == set()


async def test_requests_run_side_by_side(transport: str, tmp_path: Path) -> None:
    """And what was asked first is answered first, though it is computed last."""
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        r.world.runner().batcher._scheduler.max_batch_size = 1
        first = r.start("ModelInfer", texts(0))
        await r.device.entered()
        call = r.stream()
        await call.write(with_parameters(texts(1), priority=9))
        await call.write(with_parameters(texts(2), priority=1))
        await r.until(lambda: r.world.runner().batcher.counts.submitted == 3)
        r.device.open()
        assert answer_of(await soon(call.read())) == [1]
        assert answer_of(await soon(call.read())) == [2]
        assert [value - FIRST_TOKEN for value in r.device.computed] == [0, 2, 1]
        await ended(call)
        await soon(first)


async def test_a_request_that_fails_fails_alone(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.bad = {FIRST_TOKEN + 5.0}
        requests = [
            texts(1, id="a"),
            texts(2, id="b", model="nobody"),
            texts(5, id="c"),
            pb.ModelInferRequest(id="d"),
            texts(3, id="e"),
        ]
        found = await collect(r.stream(given(*requests)))
        assert [one.infer_response.id for one in found] == ["a", "b", "c", "d", "e"]
        assert answer_of(found[0]) == [1]
        assert answer_of(found[4]) == [3]
        assert [bool(one.error_message) for one in found] == [False, True, True, True, False]
        assert "nobody" in found[1].error_message
        assert "bad item" not in found[2].error_message
        failed = [one.infer_response for one in found[1:4]]
        assert [one.parameters["reason"].string_param for one in failed] == [
            "MODEL_NOT_FOUND",
            "BACKEND_FAILED",
            "INVALID_FIELD",
        ]
        assert all(one.parameters["triton_final_response"].bool_param for one in failed)
        assert [len(one.outputs) for one in failed] == [0, 0, 0]


async def test_a_caller_may_have_the_first_failure_as_status(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        call = r.stream(metadata=STRICT)
        await call.write(texts(1))
        assert answer_of(await soon(call.read())) == [1]
        await call.write(texts(2, model="nobody"))
        error = await failure(call.read())
        assert (error.code(), reason(error)) == (Code.NOT_FOUND, "MODEL_NOT_FOUND")
        assert r.world.traffic.streams == set()


async def test_an_answer_is_the_final_response_itself(transport: str, tmp_path: Path) -> None:
    """A model that gives one response each has no empty one to mark the end, as with Triton."""
    async with rig(transport, tmp_path) as r:
        asked = with_parameters(texts(1), triton_enable_empty_final_response=True)
        found = await collect(r.stream(given(asked, asked)))
        assert [answer_of(one) for one in found] == [[1], [1]]


async def test_bytes_that_are_no_request_end_the_stream_after_what_came_before(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        call = r.served.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
        await call.write(texts(1).SerializeToString())
        await call.write(b"\xff\xff")
        response = pb.ModelStreamInferResponse.FromString(await soon(call.read()))
        assert answer_of(response) == [1]
        error = await failure(call.read())
        assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_no_more_is_read_than_the_window_holds(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        window = stream_module.WINDOW_REQUESTS
        counts = r.world.runner().batcher.counts
        call = r.stream(given(*(texts(n) for n in range(3 * window))))
        await r.until(lambda: counts.submitted == window)
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert counts.submitted == window
        r.device.open()
        found = await collect(call)
        assert [answer_of(one) for one in found] == [[n] for n in range(3 * window)]


async def test_no_more_is_read_than_the_window_holds_in_bytes(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        counts = r.world.runner().batcher.counts
        large = [texts(n) for n in range(18)]
        for request in large:
            request.parameters["mine"].string_param = "x" * 2**22
        call = r.stream(given(*large))
        fit = stream_module.WINDOW_BYTES // 2**22
        await r.until(lambda: counts.submitted == fit)
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert counts.submitted == fit
        r.device.open()
        assert [answer_of(one) for one in await collect(call)] == [[n] for n in range(18)]


async def test_who_leaves_a_stream_leaves_nothing_behind(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        runner = r.world.runner()
        runner.batcher._scheduler.max_batch_size = 1
        call = r.stream()
        for number in range(50):
            await call.write(texts(number))
        await r.until(lambda: runner.batcher.counts.submitted == 50)
        await r.device.entered()
        call.cancel()
        await r.served.idle()
        await r.until(lambda: runner.batcher.counts.cancelled >= 49)
        assert runner.admission.items == 0
        r.device.open()
        assert numbers_in(await r.infer(texts(77))) == [77]
        assert len(r.device.computed) <= 4
        assert r.world.traffic.streams == set()


async def test_each_request_has_its_own_timeout(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        call = r.stream()
        await call.write(texts(1))
        await r.device.entered()
        await call.write(with_parameters(texts(2), timeout=30_000))
        await call.write(texts(3))
        await r.until(lambda: r.world.runner().batcher.counts.expired == 1)
        r.device.open()
        assert answer_of(await soon(call.read())) == [1]
        late = await soon(call.read())
        assert late.infer_response.parameters["reason"].string_param == "DEADLINE_EXPIRED"
        assert answer_of(await soon(call.read())) == [3]
        await ended(call)


async def test_a_request_without_timeout_has_the_servers(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path, servicer={"default_timeout_s": 0.03}) as r:
        r.device.held = True
        call = r.stream()
        await call.write(texts(1))
        await r.device.entered()
        await call.write(texts(2))
        await r.until(lambda: r.world.runner().batcher.counts.expired == 2)
        r.device.open()
        for _ in range(2):
            late = await soon(call.read())
            assert late.infer_response.parameters["reason"].string_param == "DEADLINE_EXPIRED"
        await ended(call)


async def test_no_request_outlives_its_stream(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        for _ in range(20):
            r.world.runner().batcher._cost.observe(1, 25.0)
        call = r.stream(timeout=10)
        await call.write(texts(1))
        late = await soon(call.read())
        assert late.infer_response.parameters["reason"].string_param == "DEADLINE_TOO_SHORT"
        await ended(call)


async def drained(r: Rig, call: Any) -> Any:
    """The error that ends a stream in a drain."""
    draining = asyncio.ensure_future(r.served.server.drain())
    await r.until(lambda: r.world.traffic.draining)
    r.device.open()
    found: list[Any] = []
    error = await failure(read(call, found))
    await soon(draining)
    return found, error


async def test_a_drain_answers_what_was_read_and_ends(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        call = r.stream()
        for number in range(3):
            await call.write(texts(number))
        await r.until(lambda: r.world.runner().batcher.counts.submitted == 3)
        found, error = await drained(r, call)
        assert [answer_of(one) for one in found] == [[0], [1], [2]]
        assert (error.code(), reason(error)) == (Code.UNAVAILABLE, "DRAINING")


async def test_a_silent_stream_ends_in_a_drain(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        call = r.stream()
        await call.write(texts(1))
        assert answer_of(await soon(call.read())) == [1]
        found, error = await drained(r, call)
        assert found == []
        assert (error.code(), reason(error)) == (Code.UNAVAILABLE, "DRAINING")

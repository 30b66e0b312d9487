"""One suite for both HTTP/2 servers: what a caller sees is the same, or stands in the table."""

import asyncio
import gzip
import random
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, RetryInfo

from services.oip.contract import POOL as OIP_POOL
from services.oip.contract import SERVICE as OIP
from services.oip.contract import method_handlers
from services.runtime import errors, standard, transports
from services.runtime.call import current_call
from services.runtime.server import CannotStart, Server
from tests.harness import (
    CLASSIFY,
    GOAWAY,
    PING,
    SOON_S,
    HarnessConfig,
    RawHttp2,
    Reflection,
    Scripted,
    Served,
    bidi_request,
    bidi_response,
    classifier,
    collect,
    details,
    error_info,
    failure,
    health_check,
    health_list,
    item,
    metadata,
    metric,
    metric_sum,
    pb,
    reason,
    request,
    rpc,
    serve,
    soon,
    status_of,
    stream_request,
)

TestT = TypeVar("TestT", bound=Callable[..., Any])
Code = grpc.StatusCode
CAPABILITIES = {capability.name: capability for capability in transports.CAPABILITIES}
PROVEN: set[str] = set()
ONES = "gristmill.classifier.v1.ClassifierService"


def proves(name: str) -> Callable[[TestT], TestT]:
    """Mark the test of a row of the capability table."""

    def mark(test: TestT) -> TestT:
        PROVEN.add(name)
        return test

    return mark


def able(name: str, transport: str) -> bool:
    """What the table says of one transport."""
    return bool(getattr(CAPABILITIES[name], transport))


def test_every_row_of_the_table_is_proven_here_and_no_other() -> None:
    assert set(CAPABILITIES) == PROVEN


# Unary, streams, and what comes with them.


@proves("unary and streaming calls")
async def test_a_unary_call_is_answered(transport: str) -> None:
    async def answer(message: Any, _context: Any) -> Any:
        return pb.ClassifyResponse(model=message.items[0].text.text, version=7)

    async with serve(Scripted(unary=answer), transport) as served:
        response = await soon(served.stub.Classify(request("é\U0001f600")))
        assert (response.model, response.version) == ("é\U0001f600", 7)


@proves("unary and streaming calls")
async def test_a_server_stream_comes_whole_and_in_order(transport: str) -> None:
    async with serve(Scripted(), transport) as served:
        responses = await collect(served.stub.ClassifyStream(stream_request(3000)))
        assert [response.index for response in responses] == list(range(3000))


async def test_a_server_stream_may_be_empty(transport: str) -> None:
    async def nothing(_request: Any, _context: Any) -> AsyncIterator[Any]:
        return
        yield

    async with serve(Scripted(stream=nothing), transport) as served:
        assert await collect(served.stub.ClassifyStream(stream_request())) == []


@proves("bidi streams")
async def test_a_bidi_stream_answers_while_it_is_asked(transport: str) -> None:
    async with serve(Scripted(), transport) as served:
        call = served.stub.ClassifyBidi()
        for number in range(50):
            await soon(call.write(bidi_request(f"{number}", f"{number}b")))
            read = [(await soon(call.read())).results[0].id for _ in range(2)]
            assert read == [f"{number}", f"{number}b"]
        await soon(call.done_writing())
        assert await soon(call.read()) is grpc.aio.EOF
        assert await soon(call.code()) is Code.OK


@proves("bidi streams")
async def test_a_bidi_stream_may_answer_late_and_end_early(transport: str) -> None:
    async def first_two(requests: Any, _context: Any) -> AsyncIterator[Any]:
        names = [message.items[0].id async for message in requests]
        for name in reversed(names):
            yield bidi_response(name)

    async def leave(requests: Any, _context: Any) -> AsyncIterator[Any]:
        async for message in requests:
            yield bidi_response(message.items[0].id)
            return

    async with serve(Scripted(bidi=first_two), transport) as served:
        asked = (bidi_request(name) for name in "abc")
        responses = await collect(served.stub.ClassifyBidi(asked))
        assert [response.results[0].id for response in responses] == ["c", "b", "a"]
    async with serve(Scripted(bidi=leave), transport) as served:
        call = served.stub.ClassifyBidi()
        await soon(call.write(bidi_request("a")))
        assert (await soon(call.read())).results[0].id == "a"
        assert await soon(call.read()) is grpc.aio.EOF
        assert await soon(call.code()) is Code.OK


@proves("peer() on bidi streams")
async def test_the_peer(transport: str) -> None:
    async def unary(_request: Any, context: Any) -> Any:
        return pb.ClassifyResponse(model=context.peer())

    async def bidi(_requests: Any, context: Any) -> AsyncIterator[Any]:
        yield bidi_response(context.peer())

    async with serve(Scripted(unary=unary, bidi=bidi), transport) as served:
        assert (await soon(served.stub.Classify(request()))).model.startswith("ipv4:127.0.0.1:")
        (answer,) = await collect(served.stub.ClassifyBidi(iter([bidi_request("a")])))
        known = answer.results[0].id.startswith("ipv4:127.0.0.1:")
        assert known == able("peer() on bidi streams", transport)


async def test_what_is_known_of_a_call_is_its_own(transport: str) -> None:
    """Calls that run at once do not see each other's id, metadata or deadline."""
    together = asyncio.Barrier(30)

    async def unary(message: Any, _context: Any) -> Any:
        before = current_call()
        async with asyncio.timeout(SOON_S):
            await together.wait()
        call = current_call()
        assert before is call
        assert call.method == CLASSIFY
        return pb.ClassifyResponse(model=f"{call.request_id} {call.metadata['x-number']}")

    async with serve(Scripted(unary=unary), transport) as served:
        calls = [
            served.stub.Classify(
                request(), metadata=(("x-request-id", f"id-{n}"), ("x-number", str(n)))
            )
            for n in range(30)
        ]
        answers = [response.model for response in await soon(asyncio.gather(*calls))]
        assert answers == [f"id-{n} {n}" for n in range(30)]


# Errors.

ERRORS = [
    (errors.InvalidRequest.field("items[0]", "has no content"), Code.INVALID_ARGUMENT),
    (errors.NotFound("no model m", resource=("model", "models/m")), Code.NOT_FOUND),
    (errors.Overloaded("full", retry_after_s=0.25), Code.RESOURCE_EXHAUSTED),
    (errors.DeadlineTooShort("too short"), Code.DEADLINE_EXCEEDED),
    (errors.ModelNotReady("loading", metadata={"state": "LOADING"}), Code.UNAVAILABLE),
    (errors.FailedPrecondition("no"), Code.FAILED_PRECONDITION),
    (errors.DataLoss("corrupt"), Code.DATA_LOSS),
    (errors.NotImplementedYet("later"), Code.UNIMPLEMENTED),
]


def failing(error: Exception) -> Scripted:
    """A classifier that fails, its streams after one message."""

    async def unary(_request: Any, _context: Any) -> None:
        raise error

    async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        yield pb.ClassifyStreamResponse(index=5)
        raise error

    async def bidi(requests: Any, _context: Any) -> AsyncIterator[Any]:
        async for message in requests:
            yield bidi_response(message.items[0].id)
            raise error

    return Scripted(unary, stream, bidi)


@proves("status details and trailing metadata")
@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda part: type(part).__name__)
async def test_an_error_reaches_the_caller_whole(
    transport: str, error: errors.GristmillError, code: grpc.StatusCode
) -> None:
    """Status, message, reason and request id, in each shape of call, after what came before."""
    sent = (("x-request-id", "mine-1"),)
    async with serve(failing(error), transport) as served:
        stub = served.stub
        calls = (
            (stub.ClassifyStream(stream_request(), metadata=sent), lambda r: r.index, 5),
            (
                lambda: stub.ClassifyBidi(iter([bidi_request("a")]), metadata=sent),
                lambda r: r.results[0].id,
                "a",
            ),
        )
        got = [await failure(stub.Classify(request(), metadata=sent))]
        for call, read, value in calls:
            before: list[Any] = []
            got.append(await failure(collect(call, before)))
            assert [read(response) for response in before] == [value]
    for one in got:
        assert (one.code(), one.details()) == (code, error.message)
        assert reason(one) == error.reason_given
        assert dict(error_info(one).metadata) == error.metadata
        assert status_of(one).code == code.value[0]
        assert status_of(one).message == error.message
        assert metadata(one)["x-request-id"] == "mine-1"


TEXTS = ["", "a\nb\r\n", "100% \x1b[31m %0a", "é\u2028\u202e", "\U0001f600" * 50, "x" * 5000, "\0"]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
async def test_a_message_of_any_text_is_answered(transport: str, text: str) -> None:
    error = errors.NotFound(text)
    async with serve(failing(error), transport) as served:
        got = await failure(served.stub.Classify(request()))
        assert got.code() is Code.NOT_FOUND
        assert reason(got) == errors.MODEL_NOT_FOUND
        assert status_of(got).message == error.message
        assert got.details() == error.message


async def test_a_huge_name_is_refused_as_itself(transport: str) -> None:
    """It stands in the message; a status too large for clients would reach them as another."""
    async with serve(Scripted(), transport) as served:
        error = await failure(health_check(served.channel, "n" * 200_000))
        assert error.code() is Code.NOT_FOUND
        many = pb.ClassifyBidiRequest(items=[pb.BidiItem(id="i" * 200)] * 1000)
        error = await failure(collect(lambda: served.stub.ClassifyBidi(iter([many]))))
        assert error.code() is Code.INVALID_ARGUMENT
        (bad,) = details(status_of(error), BadRequest)
        assert bad.field_violations[0].field == "items[0].id"


async def test_a_bug_is_internal_and_says_nothing(transport: str) -> None:
    async with serve(failing(RuntimeError("secret")), transport) as served:
        for call in (
            served.stub.Classify(request()),
            collect(served.stub.ClassifyStream(stream_request())),
            collect(lambda: served.stub.ClassifyBidi(iter([bidi_request("a")]))),
        ):
            error = await failure(call)
            assert error.code() is Code.INTERNAL
            assert "secret" not in f"{error.details()}{error.trailing_metadata()}"
            assert reason(error) == errors.INTERNAL
            assert error_info(error).metadata["request_id"] == metadata(error)["x-request-id"]


@pytest.mark.parametrize(
    ("hint_s", "milliseconds"), [(0.25, "250"), (0.0001, "1"), (1.2341, "1235"), (60.0, "60000")]
)
@proves("retry pushback trailer")
async def test_a_retry_hint_is_never_early(
    transport: str, hint_s: float, milliseconds: str
) -> None:
    error = errors.Overloaded("full", retry_after_s=hint_s)
    async with serve(failing(error), transport) as served:
        got = await failure(served.stub.Classify(request()))
        (retry,) = details(status_of(got), RetryInfo)
        assert retry.retry_delay.ToNanoseconds() / 1e9 >= hint_s
        sent = {"grpc-retry-pushback-ms": milliseconds}
        found = {k: v for k, v in metadata(got).items() if k in sent}
        assert found == (sent if able("retry pushback trailer", transport) else {})


async def test_a_hint_that_nobody_gave_is_no_pushback(transport: str) -> None:
    async with serve(failing(errors.Draining("going")), transport) as served:
        got = await failure(served.stub.Classify(request()))
        assert details(status_of(got), RetryInfo)
        assert "grpc-retry-pushback-ms" not in metadata(got)


async def test_an_unknown_method_is_unimplemented(transport: str) -> None:
    async with serve(Scripted(), transport) as served:
        for path in (f"/{ONES}/Nope", "/nope.v1.Nope/Nope", f"/{ONES}/classify"):
            for call in (
                served.channel.unary_unary(path)(b""),
                collect(served.channel.unary_stream(path)(b"")),
                collect(partial(served.channel.stream_stream(path), [b""])),
            ):
                assert (await failure(call)).code() is Code.UNIMPLEMENTED


async def test_an_rpc_that_is_not_built_says_so(transport: str) -> None:
    """A method of the contract that the servicer leaves to the generated base."""
    bare = classifier(rpc.ClassifierServiceServicer())
    async with serve(bare, transport) as served:
        for call in (
            served.stub.Classify(request()),
            collect(served.stub.ClassifyStream(stream_request())),
            collect(lambda: served.stub.ClassifyBidi(iter([bidi_request("a")]))),
        ):
            error = await failure(call)
            assert error.code() is Code.UNIMPLEMENTED
            assert reason(error) == errors.NOT_IMPLEMENTED


async def test_bytes_that_are_no_message_are_the_callers_error(transport: str) -> None:
    async with serve(Scripted(), transport) as served:
        for bad in (b"\xff\xff\xff", b"\x12\x05\x0a\x03\x0a\x01\xff", b"\x0a"):
            for call in (
                served.channel.unary_unary(CLASSIFY)(bad),
                collect(served.channel.unary_stream(f"/{ONES}/ClassifyStream")(bad)),
                collect(partial(served.channel.stream_stream(f"/{ONES}/ClassifyBidi"), [bad])),
            ):
                error = await failure(call)
                assert error.code() is Code.INVALID_ARGUMENT
                assert reason(error) == errors.INVALID_FIELD
                assert metadata(error)["x-request-id"]


async def test_bounds_are_checked_before_the_handler(transport: str) -> None:
    ran = []

    async def note(message: Any, _context: Any) -> None:
        ran.append(message)

    async with serve(Scripted(unary=note), transport) as served:
        error = await failure(served.stub.Classify(request(priority=10)))
        assert error.code() is Code.INVALID_ARGUMENT
        (bad,) = details(status_of(error), BadRequest)
        assert [violation.field for violation in bad.field_violations] == ["priority"]
        good, empty = bidi_request("a"), pb.ClassifyBidiRequest()
        before: list[Any] = []
        error = await failure(
            collect(lambda: served.stub.ClassifyBidi([good, empty, good]), before)
        )
        assert error.code() is Code.INVALID_ARGUMENT
        assert [response.results[0].id for response in before] == ["a"]
        assert not ran


# Metadata.


@proves("status details and trailing metadata")
async def test_metadata_goes_both_ways(transport: str) -> None:
    async def unary(_request: Any, context: Any) -> None:
        seen.append(current_call().metadata)
        await context.send_initial_metadata((("x-early", "1"), ("x-early-bin", b"\0\xff")))

    async def stream(_request: Any, context: Any) -> AsyncIterator[Any]:
        await context.send_initial_metadata((("x-early", "2"),))
        yield pb.ClassifyStreamResponse()

    seen: list[Any] = []
    sent = (
        ("x-mine", "a b"),
        ("x-mine-bin", b"\0\xff"),
        ("x-request-id", "mine"),
        ("authorization", "Bearer secret"),
    )
    async with serve(Scripted(unary, stream), transport) as served:
        call = served.stub.Classify(request(), metadata=sent)
        await soon(call)
        early = dict(await soon(call.initial_metadata()))
        assert (early["x-early"], early["x-early-bin"]) == ("1", b"\0\xff")
        assert dict(await soon(call.trailing_metadata())) == {"x-request-id": "mine"}
        assert (seen[0]["x-mine"], seen[0]["x-mine-bin"]) == ("a b", b"\0\xff")
        assert "authorization" not in seen[0], "a token is for the edge alone"
        streamed = served.stub.ClassifyStream(stream_request(), metadata=sent)
        await collect(streamed)
        assert dict(await soon(streamed.initial_metadata()))["x-early"] == "2"
        assert dict(await soon(streamed.trailing_metadata()))["x-request-id"] == "mine"


async def test_calls_without_an_id_get_one_each(transport: str) -> None:
    async with serve(Scripted(), transport) as served:
        found = set()
        for _ in range(20):
            call = served.stub.Classify(request())
            await soon(call)
            found.add(dict(await soon(call.trailing_metadata()))["x-request-id"])
        assert len(found) == 20


@proves("initial metadata of a failed unary call")
async def test_metadata_sent_early_by_a_call_that_fails(transport: str) -> None:
    async def unary(_request: Any, context: Any) -> None:
        await context.send_initial_metadata((("x-early", "1"),))
        raise errors.NotFound("gone")

    async with serve(Scripted(unary), transport) as served:
        error = await failure(served.stub.Classify(request()))
        assert reason(error) == errors.MODEL_NOT_FOUND
        arrived = "x-early" in dict(error.initial_metadata() or ())
        assert arrived == able("initial metadata of a failed unary call", transport)
        assert "x-early" not in metadata(error)


@proves("a status for too much metadata")
async def test_too_much_metadata_is_refused_and_the_server_lives(transport: str) -> None:
    async with serve(Scripted(), transport) as served:
        # Up to the limit it passes; grpcio refuses at random between it and a quarter more.
        for size in (1000, 15_000):
            await soon(served.stub.Classify(request(), metadata=(("x-big", "v" * size),)))
        told = able("a status for too much metadata", transport)
        for size, otherwise in ((30_000, Code.UNKNOWN), (300_000, Code.UNAVAILABLE)):
            call = served.stub.Classify(request(), metadata=(("x-big", "v" * size),))
            error = await failure(call)
            assert error.code() is (Code.RESOURCE_EXHAUSTED if told else otherwise)
        await soon(served.stub.Classify(request()))
        assert metric("gristmill_calls_in_flight") == 0


@pytest.mark.parametrize("odd", [b"\xff\xfe", b"\xc3\x28", b"a\nb", b"a\0b", b"\x1b[0m", b""])
async def test_metadata_that_is_no_text_harms_nobody(transport: str, odd: bytes) -> None:
    """Such calls are answered or cut off, each transport as it likes; others go on."""
    async with serve(Scripted(), transport) as served:
        async with RawHttp2.connect(served.server.port) as raw:
            headers = {b"x-odd": odd, b"x-request-id": odd, b"traceparent": odd}
            raw.call(CLASSIFY, headers, request())
            await raw.answered(1)
        assert (await soon(served.stub.Classify(request()))).model == "m"
        await served.idle()
        assert metric("gristmill_calls_in_flight") == 0


# Deadlines and cancellation; tests/integration/test_cancellation.py has the rest.


def waiting() -> tuple[Scripted, asyncio.Queue[str], asyncio.Queue[str]]:
    """A classifier that waits for ever, and what it says when it starts and is cancelled."""
    started: asyncio.Queue[str] = asyncio.Queue()
    ended: asyncio.Queue[str] = asyncio.Queue()

    async def wait(shape: str) -> None:
        started.put_nowait(shape)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.put_nowait(shape)
            raise

    async def unary(_request: Any, _context: Any) -> None:
        await wait("unary")

    async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        yield pb.ClassifyStreamResponse()
        await wait("stream")

    async def bidi(requests: Any, _context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            await wait("bidi")
        yield bidi_response()

    return Scripted(unary, stream, bidi), started, ended


SHAPES: dict[str, Callable[..., Any]] = {
    "unary": lambda stub, **more: stub.Classify(request(), **more),
    "stream": lambda stub, **more: collect(stub.ClassifyStream(stream_request(), **more)),
    "bidi": lambda stub, **more: collect(stub.ClassifyBidi([bidi_request("a")], **more)),
}


@proves("deadlines and cancellation")
@pytest.mark.parametrize("shape", SHAPES)
async def test_a_deadline_passes_and_the_handler_is_cancelled(transport: str, shape: str) -> None:
    servicer, started, ended = waiting()
    async with serve(servicer, transport) as served:
        error = await failure(SHAPES[shape](served.stub, timeout=0.2))
        assert error.code() is Code.DEADLINE_EXCEEDED
        assert await soon(started.get()) == await soon(ended.get()) == shape
        await served.idle()


@proves("deadlines and cancellation")
@pytest.mark.parametrize("shape", SHAPES)
async def test_a_caller_gives_up_and_the_handler_is_cancelled(transport: str, shape: str) -> None:
    servicer, started, ended = waiting()
    async with serve(servicer, transport) as served:
        calls = {
            "unary": served.stub.Classify(request()),
            "stream": served.stub.ClassifyStream(stream_request()),
            "bidi": served.stub.ClassifyBidi(iter([bidi_request("a")])),
        }
        assert {await soon(started.get()) for _ in calls} == set(SHAPES)
        calls[shape].cancel()
        assert await soon(ended.get()) == shape
        assert ended.empty()
        for call in calls.values():
            call.cancel()
        await served.idle()


@proves("deadlines and cancellation")
async def test_a_call_knows_its_deadline_or_gets_the_servers(transport: str) -> None:
    async def unary(_request: Any, context: Any) -> None:
        loop_now = asyncio.get_running_loop().time()
        found.append((current_call().deadline.remaining(loop_now), context.time_remaining()))

    found: list[Any] = []
    async with serve(Scripted(unary), transport, default_timeout_s=123.0) as served:
        await soon(served.stub.Classify(request()))
        await soon(served.stub.Classify(request(), timeout=1000.0))
    (without, _), (with_one, remaining) = found
    assert 100 < without <= 123
    # The client rounds what it sends, by up to a hundredth.
    assert 950 < with_one <= 1010
    assert abs(with_one - remaining) < 5


# Sizes and flow.


@proves("message size limits")
async def test_messages_beyond_the_limit_are_refused_both_ways(transport: str) -> None:
    async def unary(message: Any, _context: Any) -> Any:
        return pb.ClassifyResponse(model="y" * message.priority * 30_000)

    async with serve(Scripted(unary), transport, max_message_bytes=100_000) as served:
        assert (await soon(served.stub.Classify(request("x" * 90_000)))).model == ""
        assert len((await soon(served.stub.Classify(request(priority=3)))).model) == 90_000
        for call in (
            served.stub.Classify(request("x" * 100_001)),
            served.stub.Classify(request(priority=4)),
            collect(
                served.stub.ClassifyStream(pb.ClassifyStreamRequest(items=[item("x" * 10**5)]))
            ),
            collect(
                lambda: served.stub.ClassifyBidi(
                    [pb.ClassifyBidiRequest(items=[pb.BidiItem(item=item("x" * 10**5))])]
                )
            ),
        ):
            error = await failure(call)
            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert "larger than max" in error.details()
        await soon(served.stub.Classify(request()))
        await served.idle()


@proves("message size limits")
async def test_a_message_as_large_as_the_default_takes_passes(transport: str) -> None:
    large = pb.ClassifyRequest(items=[item("x" * 1_000_000)] * 60)
    big = (("grpc.max_send_message_length", -1),)
    async with serve(Scripted(), transport) as served:
        stub = rpc.ClassifierServiceStub(served.open(*big))
        assert (await soon(stub.Classify(large))).model == "m"


@proves("compressed requests are refused")
async def test_compressed_requests(transport: str) -> None:
    """Inflating what anyone may send is a way to fill the memory: see the table's note."""
    name = "compressed requests are refused"
    async with serve(Scripted(), transport, max_message_bytes=100_000) as served:
        zipped = rpc.ClassifierServiceStub(served.open(compression=grpc.Compression.Gzip))
        deflated = rpc.ClassifierServiceStub(served.open(compression=grpc.Compression.Deflate))
        refused = [
            deflated.Classify(request("x" * 50_000)),
            collect(lambda: zipped.ClassifyBidi([bidi_request("x" * 100)])),
        ]
        if able(name, transport):
            refused.append(zipped.Classify(request("x" * 50_000)))
        else:
            assert await soon(zipped.Classify(request("x" * 50_000)))
            inflated = await failure(zipped.Classify(request("x" * 200_000)))
            assert inflated.code() is Code.RESOURCE_EXHAUSTED
        for call in refused:
            assert (await failure(call)).code() is Code.UNIMPLEMENTED


async def test_a_flag_that_lies_about_compression_harms_nobody(transport: str) -> None:
    async with serve(Scripted(), transport) as served:
        async with RawHttp2.connect(served.server.port) as raw:
            raw.call(CLASSIFY, {}, gzip.compress(request().SerializeToString()), flag=1)
            await raw.answered(1)
            raw.call(CLASSIFY, {b"grpc-encoding": b"gzip"}, b"no gzip", flag=1, stream=3)
            await raw.answered(3)
        assert (await soon(served.stub.Classify(request()))).model == "m"
        assert metric("gristmill_calls_in_flight") == 0


async def stalls(served: Served, progress: Callable[[], int]) -> int:
    """How far something came when it no longer moves while the server does other things."""
    before, still = -1, 0
    async with asyncio.timeout(SOON_S):
        while still < 30:
            still = still + 1 if progress() == before else 0
            before = progress()
            await served.stub.Classify(request())
    return before


async def test_a_slow_reader_holds_its_stream_back(transport: str) -> None:
    sent = 0

    async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        nonlocal sent
        for index in range(5000):
            sent = index + 1
            yield pb.ClassifyStreamResponse(index=index, model="z" * 20_000)

    async with serve(Scripted(stream=stream), transport) as served:
        slow = rpc.ClassifierServiceStub(served.open()).ClassifyStream(stream_request())
        assert (await soon(slow.read())).index == 0
        ahead = await stalls(served, lambda: sent)
        assert ahead < 2500, "the server runs ahead of its reader"
        for index in range(1, 1000):
            assert (await soon(slow.read())).index == index
        assert await stalls(served, lambda: sent) > ahead
        slow.cancel()
        await served.idle()


async def test_who_does_not_read_is_not_read_from(transport: str) -> None:
    taken = 0

    async def bidi(requests: Any, _context: Any) -> AsyncIterator[Any]:
        nonlocal taken
        async for message in requests:
            taken += 1
            yield bidi_response(message.items[0].id, model="z" * 20_000)

    async def endless() -> AsyncIterator[Any]:
        while True:
            yield bidi_request("a")

    async with serve(Scripted(bidi=bidi), transport) as served:
        slow = rpc.ClassifierServiceStub(served.open()).ClassifyBidi(endless())
        assert (await soon(slow.read())).results[0].id == "a"
        assert await stalls(served, lambda: taken) < 5000
        slow.cancel()
        await served.idle()


async def test_many_streams_at_once_do_not_mix(transport: str) -> None:
    async def stream(message: Any, _context: Any) -> AsyncIterator[Any]:
        for index in range(20):
            await asyncio.sleep(0)
            yield pb.ClassifyStreamResponse(index=index, model=message.items[0].text.text)

    async with serve(Scripted(stream=stream), transport) as served:
        calls = [
            collect(served.stub.ClassifyStream(pb.ClassifyStreamRequest(items=[item(f"{n}")])))
            for n in range(200)
        ]
        for n, responses in enumerate(await soon(asyncio.gather(*calls))):
            assert [r.index for r in responses] == list(range(20))
            assert {r.model for r in responses} == {f"{n}"}


async def test_a_connection_has_no_more_streams_than_it_may(transport: str) -> None:
    started: asyncio.Queue[int] = asyncio.Queue()

    async def unary(message: Any, _context: Any) -> None:
        started.put_nowait(message.priority)
        await asyncio.Event().wait()

    async with serve(Scripted(unary), transport, max_concurrent_streams=5) as served:
        calls = [served.stub.Classify(request(priority=n)) for n in range(9)]
        first = [await soon(started.get()) for _ in range(5)]
        another = rpc.ClassifierServiceStub(served.open()).Classify(request(priority=9))
        assert await soon(started.get()) == 9
        assert started.empty()
        assert served.server.interceptor.in_flight == 6
        calls[first[0]].cancel()
        assert await soon(started.get()) in set(range(9)) - set(first)
        for call in (*calls, another):
            call.cancel()
        await served.idle()


def counted() -> tuple[float, float, float]:
    """Calls begun, calls ended, calls in flight, by the metrics of the process."""
    return (
        metric("grpc_server_call_started_total", grpc_method=CLASSIFY),
        metric_sum("grpc_server_call_duration_seconds_count", grpc_method=CLASSIFY),
        metric("gristmill_calls_in_flight"),
    )


async def test_waves_with_a_third_cancelled_add_up(transport: str) -> None:
    """500 calls at once, three times over: in hand when cancelled, and at any other moment."""
    gate, arrived, given_back = asyncio.Event(), asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def unary(_request: Any, _context: Any) -> None:
        arrived.release()
        try:
            await gate.wait()
        except asyncio.CancelledError:
            given_back.release()
            raise

    rng = random.Random(7)
    async with serve(Scripted(unary), transport) as served:
        begun, ended, _ = counted()
        for wave in range(3):
            gate.clear() if wave == 0 else gate.set()
            calls = [served.stub.Classify(request()) for _ in range(500)]
            if wave == 0:
                for _ in calls:
                    await soon(arrived.acquire())
                assert served.server.interceptor.in_flight == 500
            given_up = calls[::3]
            for call in given_up:
                call.cancel()
                if wave == 2 and rng.random() < 0.3:
                    await asyncio.sleep(0)
            if wave == 0:
                for _ in given_up:
                    await soon(given_back.acquire())
            gate.set()
            results = await soon(asyncio.gather(*calls, return_exceptions=True))
            answered = sum(not isinstance(result, BaseException) for result in results)
            assert answered >= 500 - len(given_up)
            others = [results[n] for n in range(500) if n % 3]
            assert not [r for r in others if isinstance(r, BaseException)]
            await served.idle()
        after = counted()
        assert after[0] - begun == after[1] - ended
        assert 2 * 500 * 2 / 3 <= after[0] - begun <= 1500
        assert after[2] == 0


# Reflection and health.

ALL_SERVICES = [
    ONES,
    "inference.GRPCInferenceService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
]


class Nothing:
    """An Open Inference servicer that has every method and does nothing."""

    def __getattr__(self, name: str) -> Any:
        """Any method of the service."""
        if not any(method.name == name for method in OIP.methods):
            raise AttributeError(name)

        async def answer(_request: Any, _context: Any) -> None:
            raise errors.NotImplementedYet("nothing")

        return answer


@asynccontextmanager
async def both_pools(transport: str) -> AsyncIterator[Served]:
    """A server with a service whose messages live in a pool of their own."""
    handlers = {OIP.full_name: method_handlers(Nothing())}
    service = classifier(Scripted(), handlers=handlers, pools=(OIP_POOL,))
    async with serve(service, transport) as served:
        yield served


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_a_client_learns_every_method_by_reflection(transport: str, version: str) -> None:
    async with both_pools(transport) as served:
        reflection = Reflection(served.channel, version)
        assert sorted(await reflection.services()) == sorted(ALL_SERVICES)
        methods = await reflection.methods()
        assert f"/{ONES}/ClassifyBidi" in methods
        assert "/inference.GRPCInferenceService/ModelStreamInfer" in methods
        assert "/grpc.health.v1.Health/List" in methods
        bidi = methods[f"/{ONES}/ClassifyBidi"]
        assert (bidi.client_streaming, bidi.server_streaming) == (True, True)
        infer = methods["/inference.GRPCInferenceService/ModelInfer"].input_type
        assert {"model_name", "inputs", "raw_input_contents"} <= set(infer.fields_by_name)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_finds_messages_files_and_extensions(transport: str, version: str) -> None:
    async with both_pools(transport) as served:
        reflection = Reflection(served.channel, version)
        for symbol in (
            "gristmill.classifier.v1.ClassifyRequest",
            "gristmill.classifier.v1.ClassifierService.Classify",
            "inference.ModelInferRequest.InferInputTensor",
            "grpc.health.v1.HealthListResponse",
            "google.rpc.ErrorInfo",
        ):
            await reflection.load(file_containing_symbol=symbol)
        for name in ("gristmill/classifier/v1/item.proto", "inference/grpc_service.proto"):
            assert await reflection.load(file_by_filename=name) == name
        asked = {"containing_type": "google.protobuf.FieldOptions", "extension_number": 50201}
        assert (
            await reflection.load(file_containing_extension=asked)
            == "gristmill/bounds/v1/bounds.proto"
        )
        answer = await reflection.ask(all_extension_numbers_of_type="google.protobuf.FieldOptions")
        assert 50201 in answer.all_extension_numbers_response.extension_number


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_answers_what_is_not_there(transport: str, version: str) -> None:
    async with both_pools(transport) as served:
        reflection = Reflection(served.channel, version)
        for question in (
            {"file_containing_symbol": "nope.Nope"},
            {"file_containing_symbol": f"{ONES}.Nope"},
            {"file_by_filename": "nope.proto"},
            {"all_extension_numbers_of_type": "nope.Nope"},
            {"file_containing_extension": {"containing_type": "nope.N", "extension_number": 1}},
            {
                "file_containing_extension": {
                    "containing_type": "google.protobuf.FieldOptions",
                    "extension_number": 1,
                }
            },
        ):
            answer = await reflection.ask(**question)
            assert answer.error_response.error_code == Code.NOT_FOUND.value[0], question


async def test_health_answers_check_watch_and_list(transport: str) -> None:
    async with both_pools(transport) as served:
        serving = standard.HealthCheckResponse.SERVING
        assert await health_check(served.channel) == serving
        assert await health_list(served.channel) == dict.fromkeys(
            ["", ONES, "inference.GRPCInferenceService"], serving
        )


# Addresses.


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost", "unix"])
async def test_it_listens_where_it_is_told(transport: str, host: str, tmp_path: Path) -> None:
    if host == "unix":
        host = f"unix:{tmp_path}/s"
    async with serve(Scripted(), transport, host=host) as served:
        bare = host.strip("[]")
        port = served.server.port
        target = host if host.startswith("unix:") else f"[{bare}]:{port}"
        target = f"{host}:{port}" if host in ("localhost", "127.0.0.1") else target
        async with grpc.aio.insecure_channel(target) as channel:
            assert (await soon(rpc.ClassifierServiceStub(channel).Classify(request()))).model


async def test_a_port_that_is_taken_stops_the_start(transport: str) -> None:
    async with serve(Scripted(), transport) as served:
        config = HarnessConfig(transport=transport, port=served.server.port, admin_port=-1)
        with pytest.raises(CannotStart, match=str(served.server.port)):
            Server(config, classifier(Scripted()), served.server.health)


# Keepalive: a connection that says nothing is kept, one that is dead is closed.


@asynccontextmanager
async def counting_proxy(port: int) -> AsyncIterator[tuple[int, asyncio.Semaphore]]:
    """A port before a server that counts the pings that its client sends."""
    pings = asyncio.Semaphore(0)

    async def upward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(24))
        while True:
            head = await reader.readexactly(9)
            if head[3] == PING and not head[4]:
                pings.release()
            writer.write(head + await reader.readexactly(int.from_bytes(head[:3], "big")))

    async def downward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, before = await asyncio.open_connection("127.0.0.1", port)
        ways = asyncio.gather(upward(reader, before), downward(behind, writer))
        relayed.append(ways)
        with suppress(asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            await ways
        for end in (writer, before):
            end.close()

    relayed: list[asyncio.Future[Any]] = []
    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1], pings
    finally:
        listening.close()
        for ways in relayed:
            ways.cancel()
        await asyncio.gather(*relayed, return_exceptions=True)


async def silent_call(transport: str, pings: int, client_s: float, **config: float) -> None:
    """A call during which the client pings so often, and nothing else is said."""
    release = asyncio.Event()

    async def unary(_request: Any, _context: Any) -> None:
        await release.wait()

    async with serve(Scripted(unary), transport, **config) as served:
        async with counting_proxy(served.server.port) as (port, seen):
            options = (
                ("grpc.keepalive_time_ms", round(client_s * 1000)),
                ("grpc.keepalive_timeout_ms", round(client_s * 1000)),
                ("grpc.http2.max_pings_without_data", 0),
            )
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
                call = rpc.ClassifierServiceStub(channel).Classify(request())
                async with asyncio.timeout(SOON_S + 2 * pings * client_s):
                    for _ in range(pings):
                        await seen.acquire()
                release.set()
                assert (await soon(call)).model == "m"


@proves("keepalive of silent connections")
async def test_a_client_that_pings_through_a_silent_call_is_kept(transport: str) -> None:
    await silent_call(transport, pings=4, client_s=0.6, min_ping_interval_s=0.3)


@pytest.mark.soak
@pytest.mark.timeout(180)
async def test_ten_seconds_between_pings_through_a_silent_minute(transport: str) -> None:
    """The settings that clients are told to use, against the default ones of the server."""
    await silent_call(transport, pings=6, client_s=10.0)


@proves("keepalive of silent connections")
async def test_the_server_pings_a_silent_connection(transport: str) -> None:
    config = {"keepalive_time_s": 0.2, "keepalive_timeout_s": 5.0}
    async with serve(Scripted(), transport, **config) as served:
        async with RawHttp2.connect(served.server.port) as raw:
            for _ in range(3):
                assert await raw.first(lambda frame: frame.kind == PING and not frame.flags)


@proves("keepalive of silent connections")
@pytest.mark.parametrize("in_call", [True, False])
async def test_the_server_closes_a_connection_that_does_not_answer(
    transport: str, in_call: bool
) -> None:
    servicer, started, ended = waiting()
    config = {"keepalive_time_s": 0.2, "keepalive_timeout_s": 0.2}
    async with serve(servicer, transport, **config) as served:
        async with RawHttp2.connect(served.server.port) as raw:
            raw.answers_pings = False
            if in_call:
                raw.call(CLASSIFY, {}, request())
                await soon(started.get())
            assert await raw.first(lambda _: False) is None
        if in_call:
            assert await soon(ended.get()) == "unary"


@proves("limits on client pings")
async def test_a_client_that_pings_all_the_time(transport: str) -> None:
    async with serve(Scripted(), transport) as served:
        async with RawHttp2.connect(served.server.port) as raw:
            answered = 0
            for number in range(20):
                raw.send(PING, 0, 0, struct.pack(">Q", number))
                frame = await raw.first(lambda f: f.kind in (PING, GOAWAY) and f.flags in (0, 1))
                if frame is None or frame.kind == GOAWAY:
                    assert frame is None or b"too_many_pings" in frame.payload
                    break
                answered += 1
            assert (answered < 20) == able("limits on client pings", transport)


# Connection age and TLS: what native lacks, and that it is refused rather than ignored.


@proves("maximum connection age")
async def test_an_old_connection_is_asked_to_go() -> None:
    async with serve(Scripted(), "grpcio", max_connection_age_s=0.2) as served:
        async with RawHttp2.connect(served.server.port) as raw:
            assert await raw.first(lambda frame: frame.kind == GOAWAY)
        for _ in range(3):
            await soon(served.stub.Classify(request()))


NATIVE_LACKS = [
    {"max_connection_age_s": 60.0},
    {"tls_certificate": Path("c.pem"), "tls_key": Path("k.pem")},
    {
        "tls_certificate": Path("c.pem"),
        "tls_key": Path("k.pem"),
        "tls_client_ca": Path("ca.pem"),
    },
]


@proves("maximum connection age")
@proves("TLS and mutual TLS")
@pytest.mark.parametrize("config", NATIVE_LACKS)
def test_native_refuses_what_it_cannot_do_and_auto_takes_grpcio(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(config))):
        transports.choose(HarnessConfig(transport="native", **config))
    name, why = transports.choose(HarnessConfig(transport="auto", **config))
    assert (name, next(iter(config)) in why) == ("grpcio", True)
    assert transports.choose(HarnessConfig(transport="grpcio", **config))[0] == "grpcio"


def test_auto_takes_grpcio_beyond_loopback_where_a_bomb_may_come_from_anywhere() -> None:
    open_to_all = HarnessConfig(host="0.0.0.0", insecure=True)
    name, why = transports.choose(open_to_all)
    assert (name, "inflates" in why) == ("grpcio", True)
    by_hand = HarnessConfig(host="0.0.0.0", insecure=True, transport="native")
    assert transports.choose(by_hand) == ("native", "configured")


def test_auto_takes_native_where_nothing_speaks_against_it() -> None:
    assert transports.choose(HarnessConfig())[0] == "native"
    assert transports.choose(HarnessConfig(transport="grpcio")) == ("grpcio", "configured")


@proves("compressed requests are refused")
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com"])
def test_auto_takes_grpcio_where_strangers_could_send_a_bomb(host: str) -> None:
    """Native, which would inflate it, is taken there only where an operator says so."""
    name, why = transports.choose(HarnessConfig(host=host, insecure=True))
    assert (name, "inflates" in why) == ("grpcio", True)
    asked = HarnessConfig(host=host, insecure=True, transport="native")
    assert transports.choose(asked)[0] == "native"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a server that it signed for this machine, a client, and a stranger's client."""
    folder = tmp_path_factory.mktemp("keys")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for ca in ("ca", "stranger_ca"):
        files = ("-keyout", f"{ca}.key", "-out", f"{ca}.pem")
        openssl("req", "-x509", *curve, "-subj", f"/CN={ca}", "-days", "2", *files)
    for name, ca in (("server", "ca"), ("client", "ca"), ("stranger", "stranger_ca")):
        files = ("-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl("req", *curve, "-subj", f"/CN={name}", *files)
        (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        signed_by = ("-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial")
        out = ("-extfile", "san", "-days", "2", "-out", f"{name}.pem")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed_by, *out)
    return folder


def credentials(keys: Path, ca: str, client: str = "") -> grpc.ChannelCredentials:
    """What a client trusts and shows."""
    return grpc.ssl_channel_credentials(
        (keys / f"{ca}.pem").read_bytes(),
        (keys / f"{client}.key").read_bytes() if client else None,
        (keys / f"{client}.pem").read_bytes() if client else None,
    )


@asynccontextmanager
async def over_tls(keys: Path, mutual: bool) -> AsyncIterator[Any]:
    """A server with TLS, chosen by `auto`; gives a way to call it."""
    config = {"tls_certificate": keys / "server.pem", "tls_key": keys / "server.key"}
    if mutual:
        config["tls_client_ca"] = keys / "ca.pem"
    async with serve(Scripted(), "auto", **config) as served:
        assert served.server.transport == "grpcio"

        async def call(secure: Any) -> str:
            target = f"localhost:{served.server.port}"
            channel = (
                grpc.aio.secure_channel(target, secure)
                if secure
                else grpc.aio.insecure_channel(target)
            )
            async with channel:
                answer = await soon(rpc.ClassifierServiceStub(channel).Classify(request()))
                return str(answer.model)

        yield call


@proves("TLS and mutual TLS")
async def test_tls(keys: Path) -> None:
    async with over_tls(keys, mutual=False) as call:
        assert await call(credentials(keys, "ca")) == "m"
        for secure in (credentials(keys, "stranger_ca"), None):
            assert (await failure(call(secure))).code() is Code.UNAVAILABLE


@proves("TLS and mutual TLS")
async def test_mutual_tls(keys: Path) -> None:
    async with over_tls(keys, mutual=True) as call:
        assert await call(credentials(keys, "ca", "client")) == "m"
        for secure in (credentials(keys, "ca"), credentials(keys, "ca", "stranger"), None):
            assert (await failure(call(secure))).code() is Code.UNAVAILABLE


@proves("drain")
async def test_a_drain_refuses_and_finishes(transport: str) -> None:
    """In short; tests/integration/test_drain.py has the rest, on real processes."""
    release, started = asyncio.Event(), asyncio.Event()

    async def unary(_request: Any, _context: Any) -> None:
        started.set()
        await release.wait()

    async with serve(Scripted(unary), transport, linger=True) as served:
        accepted = served.stub.Classify(request())
        await soon(started.wait())
        drained = asyncio.ensure_future(served.server.drain())
        await asyncio.sleep(0)
        error = await failure(served.stub.Classify(request()))
        assert (error.code(), reason(error)) == (Code.UNAVAILABLE, errors.DRAINING)
        assert not drained.done()
        release.set()
        assert (await soon(accepted)).model == "m"
        await soon(drained)
        with pytest.raises(OSError, match="."):
            await asyncio.open_connection("127.0.0.1", served.server.port)

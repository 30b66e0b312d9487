"""ClassifyBidi on both servers: what is answered, under which id, and whose error a failure is."""

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2
from gristmill.classifier.v1 import item_pb2, options_pb2

from services.runtime.admission import Limits
from tests.harness import details, pb, reason, soon, status_of
from tests.integration.bidi_streams import (
    Code,
    errors,
    info,
    named,
    numbers,
    other,
    ref,
    rig,
)
from tests.unit.classifier.models import message, number_in

TEXT = message(1)


# Ids, order, several at once.


async def test_several_items_in_a_message_are_answered_under_their_ids(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        talk = r.talk()
        await talk.send(named(5, "a"), named(7, "b", words=3), named(5, "c"))
        await talk.send(named(9, "ein Name mit Leerzeichen, ß und \n"))
        found = await talk.rest()
        wanted = {"a": 5, "b": 7, "c": 5, "ein Name mit Leerzeichen, ß und \n": 9}
        assert numbers(found.values()) == wanted
        assert {(one.model, one.version) for one in found.values()} == {("m", 1)}
        assert found["b"].result.classification.tokens == 3
        timings = found["b"].result.timings
        assert timings.compute_us > 0
        assert timings.preprocess_us > 0
        assert 1 <= timings.batch_size <= 4


async def test_results_come_as_they_are_done_in_any_order(transport: str, tmp_path: Path) -> None:
    """Across messages and within one: what is held on one instance holds nothing else up."""
    async with rig(transport, tmp_path, instances=2) as r:
        r.one_by_one()
        r.device.hold(1, 2)
        talk = r.talk()
        await talk.send(named(1))
        assert await r.device.entered() == [1]
        await talk.send(named(3), named(4))
        assert numbers((await talk.results(2)).values()) == {"3": 3, "4": 4}
        r.device.let_go(1)
        assert numbers((await talk.results(1)).values()) == {"1": 1}
        await talk.send(named(2), named(5), named(6))
        assert numbers((await talk.results(2)).values()) == {"5": 5, "6": 6}
        r.device.let_go(2)
        assert numbers((await talk.rest()).values()) == {"2": 2}


async def test_a_model_that_is_busy_holds_up_no_other(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path, "m", "n") as r:
        r.device.hold(1)
        talk = r.talk()
        await talk.send(named(1), model=ref("m"))
        assert await r.device.entered() == [1]
        await talk.send(named(2), model=ref("n"))
        one = await talk.result()
        assert (one.id, one.model, number_in(one.result)) == ("2", "n", 2)
        r.device.let_go(1)
        (last,) = (await talk.rest()).values()
        assert (last.id, last.model, number_in(last.result)) == ("1", "m", 1)


async def test_what_is_done_together_comes_in_one_message(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.hold(0)
        talk = r.talk()
        await talk.send(named(0))
        await r.device.entered()
        for number in range(1, 25, 4):
            await talk.send(*(named(n) for n in range(number, number + 4)))
        await r.submitted(25)
        r.device.let_go(0)
        found = await talk.rest()
        assert numbers(found.values()) == {str(n): n for n in range(25)}
        assert r.device.batches[1:] == [list(range(1, 25))]
        assert [len(message) for message in talk.messages] == [1, 24]


async def test_half_closing_ends_the_stream_once_all_is_answered(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.hold(1)
        talk = r.talk()
        await talk.send(named(1), named(2))
        await talk.send(*(named(n) for n in range(3, 60)))
        ended = asyncio.ensure_future(talk.rest())
        await r.submitted(59)
        assert not ended.done()
        r.device.let_go()
        assert numbers((await soon(ended)).values()) == {str(n): n for n in range(1, 60)}
        await r.served.idle()
        assert await r.talk().rest() == {}, "nothing asked, nothing answered"


async def test_an_id_may_be_used_again_after_its_result(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        talk = r.talk()
        for number in range(300):
            await talk.send(named(number, "again"))
            assert numbers([await talk.result()]) == {"again": number}
        assert await talk.rest() == {}


@pytest.mark.parametrize("where", ["one message", "two messages"])
async def test_an_id_that_is_used_twice_ends_the_stream(
    transport: str, where: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.hold(1)
        talk = r.talk()
        if where == "one message":
            await talk.send(named(1, "a"), named(2, "b"), named(3, "a"))
        else:
            await talk.send(named(1, "a"), named(2, "b"))
            await r.device.entered()
            await talk.send(named(3, "a"))
            (stream,) = r.world.traffic.streams
            await r.until(lambda: stream._reader.done())  # it has been read, while "a" runs
            r.device.let_go(1)
            found = numbers([await talk.result(), await talk.result()])
            assert found == {"a": 1, "b": 2}, "what came before it is answered first"
        error = await talk.failure()
        assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
        (violations,) = details(status_of(error), error_details_pb2.BadRequest)
        assert [one.field for one in violations.field_violations] == ["items.id"]
        await r.served.idle()
        runner = r.world.runner()
        await r.until(lambda: not runner.batcher.counts.pending)
        assert runner.admission.items == 0


async def test_what_was_done_before_comes_before_the_stream_fails(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        counts = r.world.runner().batcher.counts
        talk = r.talk()
        await talk.send(named(1))
        await r.until(lambda: counts.completed == 1)
        await soon(talk.call.write(pb.ClassifyBidiRequest(items=[named(3), pb.BidiItem(id="x")])))
        error = await talk.failure()
        assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
        assert [numbers(message) for message in talk.messages] == [{"1": 1}]
        assert r.device.computed == [1]


# Bounds.


def spoiled(**fields: Any) -> pb.ClassifyBidiRequest:
    """A message with one field out of its bounds."""
    return pb.ClassifyBidiRequest(**{"items": [named(1)], **fields})


LONG_TEXT = item_pb2.Item(text=item_pb2.Text(text="x" * 1_000_001))
SPOILED = [
    ("items", spoiled(items=[])),
    ("items", spoiled(items=[named(n) for n in range(1025)])),
    ("items[0].id", spoiled(items=[pb.BidiItem(item=TEXT)])),
    ("items[1].id", spoiled(items=[named(1), pb.BidiItem(id="x" * 129, item=TEXT)])),
    ("items[0].item", spoiled(items=[pb.BidiItem(id="a")])),
    ("items[0].item.text.text", spoiled(items=[other("a", LONG_TEXT)])),
    ("timeout", spoiled(timeout=duration_pb2.Duration())),
    ("timeout", spoiled(timeout=duration_pb2.Duration(nanos=999_999))),
    ("timeout", spoiled(timeout=duration_pb2.Duration(seconds=3600, nanos=1))),
    ("timeout", spoiled(timeout=duration_pb2.Duration(seconds=-1))),
    ("priority", spoiled(priority=10)),
    ("options.top_k", spoiled(options=options_pb2.ClassifyOptions(top_k=0))),
    ("options.top_k", spoiled(options=options_pb2.ClassifyOptions(top_k=10_001))),
    ("options.threshold", spoiled(options=options_pb2.ClassifyOptions(threshold=1.01))),
    ("options.threshold", spoiled(options=options_pb2.ClassifyOptions(threshold=math.nan))),
]


@pytest.mark.parametrize(
    ("field", "request_"), SPOILED, ids=[f"{n}: {field}" for n, (field, _) in enumerate(SPOILED)]
)
async def test_a_message_out_of_bounds_ends_the_stream(
    transport: str, field: str, request_: pb.ClassifyBidiRequest, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        talk = r.talk()
        await talk.send(named(7))
        assert numbers([await talk.result()]) == {"7": 7}
        await soon(talk.call.write(request_))
        error = await talk.failure()
        assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
        (violations,) = details(status_of(error), error_details_pb2.BadRequest)
        assert [one.field for one in violations.field_violations] == [field]
        assert r.device.computed == [7]


async def test_what_is_just_within_bounds_is_answered(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        talk = r.talk()
        await talk.send(*(named(n, f"{n:0>128}") for n in range(1024)), timeout=3600, priority=9)
        found = await talk.results(1024)
        assert numbers(found.values()) == {f"{n:0>128}": n for n in range(1024)}
        await talk.send(named(1), priority=1, options=options_pb2.ClassifyOptions(top_k=10_000))
        assert len((await talk.result()).result.classification.labels) == 2
        await talk.send(named(2), timeout=0.001)
        assert (await talk.result()).id == "2"  # in time or not, it has its own result
        assert await talk.rest() == {}


# Model and options, said once.


async def test_model_and_options_hold_until_others_are_given(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path, "m", "n") as r:
        await r.world.add("m", 2, "canary")
        talk = r.talk()

        async def say(**fields: Any) -> tuple[str, int, int, int]:
            await talk.send(named(9), probabilities=False, **fields)
            one = await talk.result()
            found = one.result.classification
            return one.model, one.version, len(found.labels), len(found.probabilities)

        every = options_pb2.ClassifyOptions(top_k=5, return_probabilities=True)
        assert await say(model=ref("m"), options=every) == ("m", 1, 2, 2)
        assert await say() == ("m", 1, 2, 2)
        assert await say(model=ref("n")) == ("n", 1, 2, 2)
        assert await say(options=options_pb2.ClassifyOptions()) == ("n", 1, 1, 0)
        assert await say() == ("n", 1, 1, 0)
        assert await say(model=ref("m", alias="canary")) == ("m", 2, 1, 0)
        assert await say() == ("m", 2, 1, 0)
        assert await say(model=ref("m", version=1), options=every) == ("m", 1, 2, 2)
        assert await talk.rest() == {}


async def test_labels_thresholds_and_probabilities(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        await r.world.add("tags", output={"labels": ["a", "b"], "multi_label": True})
        talk = r.talk()

        async def labels(options: Any) -> list[str]:
            await talk.send(named(9), options=options, probabilities=False)
            result = (await talk.result()).result
            assert result.WhichOneof("outcome") == "classification", result
            for label in result.classification.labels:
                assert 0 <= label.score <= 1
            return [label.label for label in result.classification.labels]

        await talk.send(named(9), model=ref("tags"), probabilities=False)
        assert [one.label for one in (await talk.result()).result.classification.labels] == ["b"]
        assert await labels(options_pb2.ClassifyOptions(top_k=2)) == ["b", "a"]
        assert await labels(options_pb2.ClassifyOptions(threshold=0.5)) == ["b"]
        assert await labels(options_pb2.ClassifyOptions(threshold=0.0)) == ["b", "a"]
        assert await labels(options_pb2.ClassifyOptions(threshold=1.0)) == []
        half = options_pb2.ClassifyOptions(threshold=0.5)
        await talk.send(named(1), named(2), model=ref("m"), options=half)
        assert errors((await talk.results(2)).values()) == dict.fromkeys(
            ("1", "2"), (code_pb2.INVALID_ARGUMENT, "UNSUPPORTED_FIELD")
        )
        await talk.send(named(3), options=options_pb2.ClassifyOptions())
        assert numbers((await talk.rest()).values()) == {"3": 3}


async def test_a_stream_follows_an_alias_that_moves(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        talk = r.talk()
        r.device.hold(1)
        await talk.send(named(1))
        await r.device.entered()
        await r.world.add("m", 2)
        await talk.send(named(2))
        assert (await talk.result()).version == 2
        r.device.let_go(1)
        assert (await talk.result()).version == 1
        assert await talk.rest() == {}


# Whose error it is.


async def test_a_model_that_is_not_there_is_the_error_of_its_items(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path, "m", "n") as r:
        talk = r.talk()
        for given, code, why in (
            (None, code_pb2.INVALID_ARGUMENT, "MODEL_AMBIGUOUS"),
            (ref("nobody"), code_pb2.NOT_FOUND, "MODEL_NOT_FOUND"),
            (None, code_pb2.NOT_FOUND, "MODEL_NOT_FOUND"),  # as in the message before
            (ref("m", alias="nowhere"), code_pb2.NOT_FOUND, "ALIAS_NOT_FOUND"),
            (ref("m", version=7), code_pb2.NOT_FOUND, "MODEL_NOT_LOADED"),
        ):
            await talk.send(named(1), named(2), model=given)
            found = await talk.results(2)
            assert errors(found.values()) == dict.fromkeys(("1", "2"), (code, why))
            assert {(one.model, one.version) for one in found.values()} == {("", 0)}
            assert not any(one.result.HasField("timings") for one in found.values())
        (resource,) = details(found["1"].result.error, error_details_pb2.ResourceInfo)
        assert resource.resource_type == "model"
        await talk.send(named(3), model=ref("n"))
        assert numbers((await talk.rest()).values()) == {"3": 3}


async def test_items_fail_alone(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.bad = {5}
        talk = r.talk()
        refuse = options_pb2.ClassifyOptions(truncation=options_pb2.TRUNCATION_REFUSE)
        await talk.send(
            named(1),
            other("none", item_pb2.Item()),
            other("vector", item_pb2.Item(float_features=item_pb2.FloatFeatures(values=[1.0]))),
            other("image", item_pb2.Item(image=item_pb2.Image(data=b"x"))),
            named(2, "long", words=65),
            named(5, "bad"),
            named(6),
            options=refuse,
        )
        found = await talk.results(7)
        assert numbers([found.pop("1"), found.pop("6")]) == {"1": 1, "6": 6}
        assert errors(found.values()) == {
            "none": (code_pb2.INVALID_ARGUMENT, "INVALID_FIELD"),
            "vector": (code_pb2.INVALID_ARGUMENT, "UNSUPPORTED_FIELD"),
            "image": (code_pb2.INVALID_ARGUMENT, "UNSUPPORTED_FIELD"),
            "long": (code_pb2.INVALID_ARGUMENT, "INVALID_FIELD"),
            "bad": (code_pb2.INTERNAL, "BACKEND_FAILED"),
        }
        assert "bad item" not in found["bad"].result.error.message
        assert {(one.model, one.version) for one in found.values()} == {("m", 1)}
        await talk.send(named(8))
        assert numbers((await talk.rest()).values()) == {"8": 8}


async def test_a_full_queue_is_the_error_of_the_items_that_found_it_so(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path, limits=Limits(3, 10**6)) as r:
        r.device.hold(1)
        talk = r.talk()
        await talk.send(named(1), named(2))
        await r.device.entered()
        await talk.send(named(3), named(4))
        found = await talk.results(2)
        full = (code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert errors(found.values()) == {"3": full, "4": full}
        (retry,) = details(found["3"].result.error, error_details_pb2.RetryInfo)
        assert retry.retry_delay.ToTimedelta().total_seconds() > 0
        await talk.send(named(5))  # there is room for one
        await r.submitted(3)
        await talk.send(*(named(n) for n in range(6, 10)))  # there will never be room for four
        found = await talk.results(4)
        assert {why for _, why in errors(found.values()).values()} == {"INVALID_FIELD"}
        r.device.let_go(1)
        assert numbers((await talk.rest()).values()) == {"1": 1, "2": 2, "5": 5}


async def test_what_cannot_be_done_in_time_is_refused_item_by_item(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        for _ in range(20):
            r.world.runner().batcher._cost.observe(1, 30.0)
        talk = r.talk()
        await talk.send(named(1), named(2), timeout=10)
        found = await talk.results(2)
        short = (code_pb2.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT")
        assert errors(found.values()) == {"1": short, "2": short}
        predicted = int(info(found["1"].result).metadata["predicted_wait_ms"])
        assert predicted == pytest.approx(30_000, rel=0.1)
        assert r.device.batches == []
        await talk.send(named(3), timeout=120)
        assert numbers((await talk.rest()).values()) == {"3": 3}

"""ModelInfer on both servers: every form of a request, and whose fault a failure is."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from services.oip.contract import pb
from services.runtime.admission import Limits
from services.runtime.catalog import PolicyEntry
from services.runtime.traffic import Split
from tests.harness import details, error_info, failure, reason, soon, status_of
from tests.integration.inference_protocol import (
    numbers_in,
    raw_bytes,
    rig,
    texts,
    told_of,
    with_parameters,
)
from tests.unit.classifier.models import FIRST_TOKEN, text_of

Code = grpc.StatusCode


def field_of(error: Any) -> str:
    """The field that a refusal names."""
    (bad,) = details(status_of(error), error_details_pb2.BadRequest)
    return str(bad.field_violations[0].field)


async def test_a_request_of_many_items_is_answered_in_their_order(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        response = await r.infer(texts(*range(1024), id="mine"))
        assert numbers_in(response) == list(range(1024))
        assert (response.model_name, response.model_version, response.id) == ("m", "1", "mine")
        assert dict(response.parameters) == {}


async def test_every_form_of_a_text(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        values = [text_of(number).encode() for number in (7, 8)]
        for shape in ([2], [2, 1]):
            raw = pb.ModelInferRequest(model_name="m", raw_input_contents=[raw_bytes(values)])
            raw.inputs.add(name="text", datatype="BYTES", shape=shape)
            typed = pb.ModelInferRequest(model_name="m")
            tensor = typed.inputs.add(name="text", datatype="BYTES", shape=shape)
            tensor.contents.bytes_contents.extend(values)
            for request in (raw, typed):
                assert numbers_in(await r.infer(request)) == [7, 8]
        ids = np.array([[FIRST_TOKEN + 1, 0], [FIRST_TOKEN + 2, 0]], dtype=np.int64)
        own = pb.ModelInferRequest(raw_input_contents=[ids.tobytes(), np.ones_like(ids).tobytes()])
        for name in ("input_ids", "attention_mask"):
            own.inputs.add(name=name, datatype="INT64", shape=ids.shape)
        assert numbers_in(await r.infer(own)) == [1, 2]


async def test_every_kind_of_model(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        await r.world.add("pairs", input={"kind": "text_pair"})
        await r.world.add("vectors", input={"kind": "float_features", "names": ["a", "b"]})
        await r.world.add("raw", input={"kind": "tensors"})
        told_of(r.world)
        pair = texts(3, 4, model="pairs")
        second = pair.inputs.add(name="text_pair", datatype="BYTES", shape=[2])
        second.CopyFrom(pair.inputs[1])
        pair.raw_input_contents.append(raw_bytes([b"n0", b"n0"]))
        assert numbers_in(await r.infer(pair)) == [3, 4]
        features = np.array([[FIRST_TOKEN + 5, 0], [FIRST_TOKEN + 6, 1]], dtype=np.float32)
        vector = pb.ModelInferRequest(model_name="vectors")
        tensor = vector.inputs.add(name="features", datatype="FP32", shape=[2, 2])
        tensor.contents.fp32_contents.extend(features.ravel().tolist())
        assert numbers_in(await r.infer(vector)) == [5, 6]
        ids = np.array([[FIRST_TOKEN + 9]], dtype=np.int64)
        raw = pb.ModelInferRequest(model_name="raw", raw_input_contents=[ids.tobytes()] * 2)
        for name in ("input_ids", "attention_mask"):
            raw.inputs.add(name=name, datatype="INT64", shape=[1, 1])
        assert numbers_in(await r.infer(raw)) == [9]


async def test_outputs_and_their_classes(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        request = texts(0, 1)
        wanted = request.outputs.add(name="probabilities")
        assert numbers_in(await r.infer(request)) == [0, 1]
        for classes, shape in ((1, [2, 1]), (2, [2, 2]), (9, [2, 2])):
            wanted.parameters["classification"].int64_param = classes
            response = await r.infer(request)
            (output,) = response.outputs
            assert (output.datatype, list(output.shape)) == ("BYTES", shape)
            one = [b"0.999996:1:second", b"0.000004:0:first"][:classes]
            two = [b"0.999995:1:second", b"0.000005:0:first"][:classes]
            assert response.raw_output_contents[0] == raw_bytes(one + two)
        unknown = texts(0)
        unknown.outputs.add(name="scores")
        error = await r.fails("ModelInfer", unknown)
        assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
        assert field_of(error) == "outputs[scores]"


async def test_outputs_are_given_as_they_are(transport: str, tmp_path: Path) -> None:
    """What has no label, for it is no number, is still what the model gave."""
    async with rig(transport, tmp_path, "m") as r:
        await r.world.add("vectors", input={"kind": "float_features", "names": ["a"]})
        told_of(r.world)
        request = pb.ModelInferRequest(model_name="vectors", raw_input_contents=[b"\0\0\xc0\x7f"])
        request.inputs.add(name="features", datatype="FP32", shape=[1, 1])
        response = await r.infer(request)
        assert np.isnan(np.frombuffer(response.raw_output_contents[0], "<f8")).all()


async def test_what_does_not_fit_is_the_callers_fault(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        mixed = texts(1)
        mixed.inputs[0].contents.bytes_contents.append(b"x")
        other = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"\0" * 4])
        other.inputs.add(name="words", datatype="FP32", shape=[1])
        short = texts(1)
        short.raw_input_contents[0] = b"\1\0\0\0"
        not_text = texts(1)
        not_text.raw_input_contents[0] = raw_bytes([b"\xff"])
        for request, field in (
            (mixed, "inputs[text]"),
            (other, "inputs"),
            (short, "inputs[text]"),
            (not_text, "inputs[text][0]"),
            (texts(*[0] * 4097), "inputs"),
            (texts(1, model_version="first"), "model_version"),
            (pb.ModelInferRequest(model_name="m"), "inputs"),
            (with_parameters(texts(1), priority=10), "parameters[priority]"),
            (with_parameters(texts(1), triton_unknown=True), "parameters[triton_unknown]"),
        ):
            error = await r.fails("ModelInfer", request)
            assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
            assert field_of(error) == field
        for parameter in ({"sequence_id": 1}, {"sequence_start": True}):
            error = await r.fails("ModelInfer", with_parameters(texts(1), **parameter))
            assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, "UNSUPPORTED_FIELD")
        assert r.device.batches == []


async def test_parameters_that_are_the_callers_own_are_taken(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        request = with_parameters(texts(1), mine="x", no_cache=True, priority=0, timeout=0)
        request.inputs[0].parameters["content_type"].string_param = "str"
        request.inputs[0].parameters["binary_data_size"].int64_param = 6
        assert numbers_in(await r.infer(request)) == [1]


async def test_a_request_fails_with_its_first_failed_item(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.bad = {FIRST_TOKEN + 5.0, FIRST_TOKEN + 6.0}
        error = await r.fails("ModelInfer", texts(4, 5, 6))
        assert (error.code(), reason(error)) == (Code.INTERNAL, "BACKEND_FAILED")
        assert "bad item" not in error.details()
        assert error_info(error).metadata["item"] == "1"
        assert numbers_in(await r.infer(texts(4))) == [4]


async def test_texts_that_are_cut_are_told_of(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        response = await r.infer(texts(1, words=65))
        assert response.parameters["truncated"].bool_param
        assert numbers_in(response) == [1]


async def test_models_and_versions(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        await r.world.add("m", 2, "canary")
        told_of(r.world)
        for model, version, answers in (("m", "", "1"), ("", "", "1"), ("m", "2", "2")):
            response = await r.infer(texts(1, model=model, model_version=version))
            assert (response.model_name, response.model_version) == ("m", answers)
        await r.world.add("broken", not_a_field="of any manifest")
        r.world.catalog.set_model("llm", "generation", archived=False)
        for model, version, code, why in (
            ("nobody", "", Code.NOT_FOUND, "MODEL_NOT_FOUND"),
            ("m", "3", Code.NOT_FOUND, "MODEL_NOT_LOADED"),
            ("broken", "", Code.UNAVAILABLE, "MODEL_NOT_READY"),
            ("llm", "", Code.FAILED_PRECONDITION, "WRONG_TASK"),
        ):
            error = await r.fails("ModelInfer", texts(1, model=model, model_version=version))
            assert (error.code(), reason(error)) == (code, why), model


async def test_no_version_means_what_the_traffic_policy_says(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        await r.world.add("m", 2, "canary")
        told_of(r.world)
        splits = (Split(0, "live", 50), Split(2, "", 50))
        r.world.catalog.set_policy("m", PolicyEntry(splits, sticky_key="user"))
        await r.world.serving.update(r.world.catalog)
        drawn = []
        for user in "abcdefghij":
            asked = [await r.infer(texts(1), metadata=(("user", user),)) for _ in range(2)]
            first, second = (response.model_version for response in asked)
            assert first == second
            drawn.append(first)
        assert set(drawn) == {"1", "2"}


async def test_priority_orders_the_queue(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        batcher = r.world.runner().batcher
        batcher._scheduler.max_batch_size = 1
        calls = []
        for number, priority in enumerate((0, 0, 9, 1)):
            before = batcher.counts.submitted
            request = texts(number)
            request.parameters["priority"].uint64_param = priority
            calls.append(r.start("ModelInfer", request, timeout=60))
            await r.until(lambda before=before: batcher.counts.submitted > before)
            if not number:
                await r.device.entered()
        r.device.open()
        await soon(asyncio.gather(*calls))
        assert [value - FIRST_TOKEN for value in r.device.computed] == [0, 3, 1, 2]


async def test_a_timeout_shortens_the_deadline(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        first = r.start("ModelInfer", texts(1))
        await r.device.entered()
        late = with_parameters(texts(2), timeout=50_000)
        error = await failure(r.start("ModelInfer", late, timeout=600))
        assert (error.code(), reason(error)) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED")
        r.device.open()
        await soon(first)
        assert [value - FIRST_TOKEN for value in r.device.computed] == [1]


async def test_a_caller_that_leaves_leaves_nothing_behind(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        runner = r.world.runner()
        first = r.start("ModelInfer", texts(1))
        await r.device.entered()
        second = r.start("ModelInfer", texts(2, 3))
        await r.until(lambda: runner.batcher.counts.submitted == 3)
        second.cancel()
        await r.until(lambda: runner.batcher.counts.cancelled == 2)
        assert runner.admission.items == 1
        r.device.open()
        await soon(first)
        assert [value - FIRST_TOKEN for value in r.device.computed] == [1]


async def test_a_full_queue_says_when_to_come_back(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path, limits=Limits(3, 10**6)) as r:
        r.device.held = True
        first = r.start("ModelInfer", texts(1, 2))
        await r.device.entered()
        error = await r.fails("ModelInfer", texts(3, 4))
        assert (error.code(), reason(error)) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        (retry,) = details(status_of(error), error_details_pb2.RetryInfo)
        assert retry.retry_delay.ToTimedelta().total_seconds() > 0
        error = await r.fails("ModelInfer", texts(1, 2, 3, 4))
        assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
        r.device.open()
        await soon(first)


@pytest.mark.parametrize("given", [b"\xff\xff", b"\x2a\x05\x0a\x03abc"])
async def test_bytes_that_are_no_request(transport: str, tmp_path: Path, given: bytes) -> None:
    async with rig(transport, tmp_path) as r:
        call = r.served.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        error = await failure(call(given))
        assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")

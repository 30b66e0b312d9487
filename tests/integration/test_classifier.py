"""The classifier over gRPC, on both servers: every shape of call, and whose fault a failure is."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2
from gristmill.classifier.v1 import item_pb2, loaded_model_pb2, options_pb2, result_pb2
from gristmill.registry.v1 import model_pb2

from services.classifier.classifier import Classifier
from services.classifier.servicer import ClassifierServicer
from services.classifier.starter import Starter
from services.classifier.traffic import Traffic
from services.inference.manifest import FILE_NAME
from services.inference.serving import Serving
from services.runtime.admission import Limits
from services.runtime.catalog import Catalog, VersionEntry
from tests.harness import (
    SOON_S,
    Served,
    classifier,
    collect,
    details,
    error_info,
    failure,
    metadata,
    pb,
    reason,
    serve,
    soon,
    status_of,
)
from tests.unit.classifier.models import FIRST_TOKEN, World, message, number_in
from tests.unit.inference.fakes import Device

Code = grpc.StatusCode
SENTENCES = {
    "I love this film, it is wonderful.": "positive",
    "The worst evening of my life, a terrible mess.": "negative",
}


@dataclass
class Rig:
    """A served classifier, its device and what stands behind it."""

    served: Served
    world: World
    device: Device

    async def classify(self, *items: item_pb2.Item, **fields: Any) -> Any:
        """One unary call; probabilities come back, since they say whose answer it is."""
        return await soon(self.served.stub.Classify(asking(*items, **fields)))

    async def fails(self, *items: item_pb2.Item, **fields: Any) -> Any:
        """The error of one unary call."""
        return await failure(self.served.stub.Classify(asking(*items, **fields)))


def asking(*items: item_pb2.Item, options: Any = None, **fields: Any) -> pb.ClassifyRequest:
    """A request; a reference to a model may be given as a tuple."""
    how = options or options_pb2.ClassifyOptions()
    how.return_probabilities = True
    return pb.ClassifyRequest(items=items or (message(1),), options=how, **fields)


def streaming(*items: item_pb2.Item) -> pb.ClassifyStreamRequest:
    """The same for a stream."""
    how = options_pb2.ClassifyOptions(return_probabilities=True)
    return pb.ClassifyStreamRequest(items=items, options=how)


def ref(model: str = "", **which: Any) -> model_pb2.ModelRef:
    """A reference to a model."""
    return model_pb2.ModelRef(model=model, **which)


def item_reason(result: result_pb2.ItemResult) -> str:
    """The reason that an item failed."""
    assert result.WhichOneof("outcome") == "error", result
    (info,) = details(result.error, error_details_pb2.ErrorInfo)
    return str(info.reason)


@asynccontextmanager
async def rig(
    transport: str, folder: Path, *models: str, **world_fields: Any
) -> AsyncIterator[Rig]:
    """A classifier that serves these models on a device."""
    device = Device()
    world = World(folder, device, **world_fields)
    for model in models or ("m",):
        await world.add(model)
    servicer = world.servicer
    service = classifier(
        servicer,
        on_close=[world.close],
    )
    async with serve(service, transport) as served:
        try:
            yield Rig(served, world, device)
        finally:
            device.open()


# Classify.


async def test_many_items_are_answered_in_their_order(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        items = [message(number, words=1 + number % 5) for number in range(1024)]
        response = await r.classify(*items)
        assert [number_in(result) for result in response.results] == list(range(1024))
        assert (response.model, response.version) == ("m", 1)


async def test_items_fail_alone_and_the_call_is_ok(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.bad = {FIRST_TOKEN + 5.0}
        response = await r.classify(
            message(1),
            item_pb2.Item(),
            item_pb2.Item(float_features=item_pb2.FloatFeatures(values=[1.0])),
            item_pb2.Item(image=item_pb2.Image(data=b"x")),
            message(2, words=65),
            message(5),
            message(6),
            options=options_pb2.ClassifyOptions(truncation=options_pb2.TRUNCATION_REFUSE),
        )
        results = response.results
        assert [number_in(results[i]) for i in (0, 6)] == [1, 6]
        assert [item_reason(result) for result in results[1:6]] == [
            "INVALID_FIELD",
            "UNSUPPORTED_FIELD",
            "UNSUPPORTED_FIELD",
            "INVALID_FIELD",
            "BACKEND_FAILED",
        ]
        codes = [result.error.code for result in results[1:6]]
        assert codes == [code_pb2.INVALID_ARGUMENT] * 4 + [code_pb2.INTERNAL]
        assert "bad item" not in results[5].error.message


async def test_every_answer_says_where_its_time_went(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        started = time.monotonic()
        response = await r.classify(message(1), message(2), item_pb2.Item())
        took_us = (time.monotonic() - started) * 1e6
        for result in response.results[:2]:
            timings = result.timings
            parts = (timings.preprocess_us, timings.queue_us, timings.batch_us, timings.compute_us)
            assert timings.preprocess_us > 0
            assert timings.compute_us > 0
            assert max(parts) < took_us
            assert timings.batch_size == 2
            assert result.classification.tokens == 1
        assert not response.results[2].HasField("timings")


async def test_options(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        many = options_pb2.ClassifyOptions(top_k=10)
        (result,) = (await r.classify(message(9), options=many)).results
        found = result.classification
        assert [(one.label, one.index) for one in found.labels] == [("second", 1), ("first", 0)]
        assert [one.score for one in found.labels] == [
            found.probabilities[1],
            found.probabilities[0],
        ]
        plain = await soon(r.served.stub.Classify(pb.ClassifyRequest(items=[message(9)])))
        found = plain.results[0].classification
        assert [one.label for one in found.labels] == ["second"]
        assert list(found.probabilities) == []
        end = options_pb2.ClassifyOptions(truncation=options_pb2.TRUNCATION_END)
        (result,) = (await r.classify(message(9, words=65), options=end)).results
        assert (result.classification.truncated, result.classification.tokens) == (True, 64)


async def test_a_threshold_is_for_multi_label_models(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        await r.world.add("tags", output={"labels": ["a", "b"], "multi_label": True})
        half = options_pb2.ClassifyOptions(threshold=0.5)
        error = await r.fails(options=half, model=ref("m"))
        assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, "UNSUPPORTED_FIELD")
        (result,) = (await r.classify(options=half, model=ref("tags"))).results
        assert [one.label for one in result.classification.labels] == ["b"]
        none = options_pb2.ClassifyOptions(threshold=1.0)
        (result,) = (await r.classify(options=none, model=ref("tags"))).results
        assert list(result.classification.labels) == []


async def test_priority_and_deadline_order_the_queue(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        stub, batcher = r.served.stub, r.world.runner().batcher

        async def queue(number: int, **how: Any) -> Any:
            timeout = how.pop("timeout", 60)
            before = batcher.counts.submitted
            call = asyncio.ensure_future(
                _answer(stub.Classify(asking(message(number), **how), timeout=timeout))
            )
            while batcher.counts.submitted == before:
                await asyncio.sleep(0.001)
            return call

        calls = [await soon(queue(0))]
        await r.device.entered()
        batcher._scheduler.max_batch_size = 1
        hows: list[dict[str, Any]] = [
            {},
            {"timeout": 30},
            {"priority": 9},
            {"priority": 1},
            {"priority": 5, "timeout": 40},
        ]
        calls += [await soon(queue(number, **how)) for number, how in enumerate(hows, 1)]
        r.device.open()
        await soon(asyncio.gather(*calls))
        assert [value - FIRST_TOKEN for value in r.device.computed] == [0, 4, 2, 5, 1, 3]


async def _answer(call: Any) -> Any:
    return await call


# References.


async def test_references(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        await r.world.add("m", 2, "canary")
        for given, version in (
            (None, 1),
            (ref(), 1),
            (ref("m"), 1),
            (ref("m", alias="live"), 1),
            (ref("m", alias="canary"), 2),
            (ref("m", version=2), 2),
            (ref(alias="canary"), 2),
        ):
            assert (await r.classify(model=given)).version == version


async def test_references_that_lead_nowhere_say_why(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path, "m", "n") as r:
        r.world.catalog.set_model("llm", "generation", archived=False)
        r.world.catalog.set_alias("llm", "live", 1)
        await r.world.add("broken", not_a_field="of any manifest")
        error = await r.fails(model=ref())
        assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, "MODEL_AMBIGUOUS")
        assert dict(error_info(error).metadata)["models"] == "m,n"
        error = await r.fails(model=ref("nobody"))
        assert (error.code(), reason(error)) == (Code.NOT_FOUND, "MODEL_NOT_FOUND")
        (resource,) = details(status_of(error), error_details_pb2.ResourceInfo)
        assert (resource.resource_type, resource.resource_name) == ("model", "nobody")
        error = await r.fails(model=ref("m", alias="nowhere"))
        assert (error.code(), reason(error)) == (Code.NOT_FOUND, "ALIAS_NOT_FOUND")
        error = await r.fails(model=ref("llm"))
        assert (error.code(), reason(error)) == (Code.FAILED_PRECONDITION, "WRONG_TASK")
        error = await r.fails(model=ref("broken"))
        assert (error.code(), reason(error)) == (Code.UNAVAILABLE, "MODEL_NOT_READY")
        (retry,) = details(status_of(error), error_details_pb2.RetryInfo)
        assert retry.retry_delay.ToTimedelta().total_seconds() > 0


# ClassifyStream.


async def test_a_stream_gives_each_result_as_soon_as_it_is_ready(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        r.world.runner().batcher._scheduler.max_batch_size = 2
        r.device.held = True
        items = [message(10), item_pb2.Item(), message(11), message(12), message(13)]
        call = r.served.stub.ClassifyStream(streaming(*items))
        first = await soon(call.read())
        assert (first.index, item_reason(first.result)) == (1, "INVALID_FIELD")
        seen = {}
        for _ in range(2):
            await r.device.entered()
            r.device.step()
            for _ in range(2):
                one = await soon(call.read())
                seen[one.index] = number_in(one.result)
                assert (one.model, one.version) == ("m", 1)
                assert one.result.timings.batch_size == 2
        assert seen == {0: 10, 2: 11, 3: 12, 4: 13}
        assert await soon(call.read()) is grpc.aio.EOF
        assert await soon(call.code()) is Code.OK


async def test_a_stream_of_many_items_answers_each_once(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path, instances=2) as r:
        items = [message(n % 1000, words=1 + n % 3) for n in range(3000)]
        found = await collect(r.served.stub.ClassifyStream(streaming(*items)))
        assert sorted(one.index for one in found) == list(range(3000))
        assert all(number_in(one.result) == one.index % 1000 for one in found)


async def test_a_stream_that_is_refused_gives_nothing_first(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path, limits=Limits(2, 10**6)) as r:
        got: list[Any] = []
        call = r.served.stub.ClassifyStream(
            streaming(item_pb2.Item(), message(1), message(2), message(3))
        )
        error = await failure(collect(call, got))
        assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
        assert got == []


async def test_who_leaves_a_stream_leaves_nothing_behind(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        runner = r.world.runner()
        r.device.held = True
        runner.batcher._scheduler.max_batch_size = 1
        call = r.served.stub.ClassifyStream(streaming(*(message(n) for n in range(50))))
        await r.device.entered()
        r.device.step()
        await soon(call.read())
        call.cancel()
        await r.served.idle()
        while runner.batcher.counts.pending:
            await asyncio.sleep(0.001)
        assert (runner.admission.items, runner.batcher.counts.pending) == (0, 0)
        assert runner.batcher.counts.cancelled >= 48
        r.device.open()
        await r.classify(message(77))
        assert len(r.device.computed) <= 4


# Deadlines, cancellation, overload.


async def test_a_deadline_reaches_the_queue(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        first = r.served.stub.Classify(asking(message(1)))
        await r.device.entered()
        error = await failure(r.served.stub.Classify(asking(message(2)), timeout=0.1))
        assert error.code() is Code.DEADLINE_EXCEEDED
        counts = r.world.runner().batcher.counts
        async with asyncio.timeout(SOON_S):
            while counts.pending > 1:
                await asyncio.sleep(0.001)
        assert counts.expired + counts.cancelled == 1
        r.device.open()
        await soon(first)
        assert [value - FIRST_TOKEN for value in r.device.computed] == [1]


async def test_cancellation_reaches_the_queue(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        counts = r.world.runner().batcher.counts
        first = r.served.stub.Classify(asking(message(1)))
        await r.device.entered()
        second = r.served.stub.Classify(asking(message(2)))
        async with asyncio.timeout(SOON_S):
            while counts.submitted < 2:
                await asyncio.sleep(0.001)
            second.cancel()
            while not counts.cancelled:
                await asyncio.sleep(0.001)
        assert r.world.runner().admission.items == 1
        r.device.open()
        await soon(first)
        assert [value - FIRST_TOKEN for value in r.device.computed] == [1]


async def test_a_full_queue_says_when_to_come_back(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path, limits=Limits(3, 10**6)) as r:
        r.device.held = True
        first = r.served.stub.Classify(asking(message(1), message(2)))
        await r.device.entered()
        error = await r.fails(message(3), message(4))
        assert (error.code(), reason(error)) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        (retry,) = details(status_of(error), error_details_pb2.RetryInfo)
        assert retry.retry_delay.ToTimedelta().total_seconds() > 0
        assert ("grpc-retry-pushback-ms" in metadata(error)) == (transport == "grpcio")
        r.device.open()
        await soon(first)


async def test_what_cannot_be_done_in_time_is_refused_at_once(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        batcher = r.world.runner().batcher
        for _ in range(20):
            batcher._cost.observe(1, 30.0)
        started = time.monotonic()
        error = await failure(r.served.stub.Classify(asking(message(1)), timeout=10))
        assert (error.code(), reason(error)) == (Code.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT")
        assert time.monotonic() - started < 5
        assert int(error_info(error).metadata["predicted_wait_ms"]) == pytest.approx(
            30_000, rel=0.01
        )
        assert r.device.batches == []


# Models come and go.


async def test_a_model_is_loaded_listed_and_unloaded(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        stub = r.served.stub
        entry = VersionEntry("m", 2, "m-2", ())
        r.world.catalog.set_version(entry, servable=True)
        loaded = (await soon(stub.LoadModel(pb.LoadModelRequest(model=ref("m", version=2))))).model
        assert (loaded.model, loaded.version, loaded.digest) == ("m", 2, "m-2")
        assert loaded.state == loaded_model_pb2.LOAD_STATE_READY
        listed = (await soon(stub.ListLoadedModels(pb.ListLoadedModelsRequest()))).models
        assert [(one.model, one.version, list(one.aliases)) for one in listed] == [
            ("m", 1, ["live"]),
            ("m", 2, []),
        ]
        assert (await r.classify(model=ref("m", version=2))).version == 2
        await soon(stub.UnloadModel(pb.UnloadModelRequest(model=ref("m"))))
        listed = (await soon(stub.ListLoadedModels(pb.ListLoadedModelsRequest()))).models
        assert {one.state for one in listed} == {loaded_model_pb2.LOAD_STATE_UNLOADED}
        error = await r.fails(model=ref("m"))
        assert (error.code(), reason(error)) == (Code.NOT_FOUND, "MODEL_NOT_LOADED")
        await soon(stub.LoadModel(pb.LoadModelRequest(model=ref("m"))))
        assert (await r.classify(model=ref("m"))).version == 1


async def test_loading_needs_a_name(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        for method, asked in (
            (r.served.stub.LoadModel, pb.LoadModelRequest(model=ref())),
            (r.served.stub.LoadModel, pb.LoadModelRequest()),
            (r.served.stub.UnloadModel, pb.UnloadModelRequest(model=ref(version=1))),
        ):
            error = await failure(method(asked))
            assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_versions_change_without_a_failed_call(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        done = asyncio.Event()
        versions: list[int] = []

        async def call_on(worker: int) -> None:
            while not done.is_set():
                response = await soon(r.served.stub.Classify(asking(message(worker), message(99))))
                assert [number_in(result) for result in response.results] == [worker, 99]
                versions.append(response.version)

        workers = [asyncio.ensure_future(call_on(worker)) for worker in range(8)]
        async with asyncio.timeout(SOON_S):
            for version in range(1, 7):
                await r.world.add("m", version)
                while versions[-1:] != [version]:
                    await asyncio.sleep(0.001)
        done.set()
        await soon(asyncio.gather(*workers))
        assert set(versions) == {1, 2, 3, 4, 5, 6}
        async with asyncio.timeout(SOON_S):
            while len(r.world.serving.models()) > 1:
                await asyncio.sleep(0.001)
        for version in range(1, 6):
            counts = r.world.runner("m", version).batcher.counts
            assert counts.submitted == counts.completed


# The real thing.


def built(model: str) -> Path:
    """A model that `python -m models build` made."""
    root = Path(os.environ.get("GRISTMILL_CACHE") or Path.home() / ".cache" / "gristmill")
    folder = root / "models" / model
    if not (folder / FILE_NAME).is_file():
        raise AssertionError(f"{folder} is not there: run `make models` first")
    return folder


async def test_the_built_models_answer(transport: str) -> None:
    async def fetch(entry: VersionEntry) -> Path:
        return built(entry.model)

    catalog = Catalog(1)
    for model in ("iris", "sentiment"):
        catalog.set_model(model, "classification", archived=False)
        catalog.set_version(VersionEntry(model, 1, model, ()), servable=True)
        catalog.set_alias(model, "live", 1)
    with ThreadPoolExecutor(2) as threads:
        starter = Starter(threads, instances=2)
        serving: Serving[Classifier] = Serving("classification", fetch, starter.start)
        await serving.update(catalog)
        await soon(serving.synced.wait())
        assert [(one.state, one.reason) for one in serving.models()] == [("ready", "")] * 2
        servicer = ClassifierServicer(serving, Traffic(serving))
        async with serve(classifier(servicer, on_close=[serving.close]), transport) as served:
            texts = [item_pb2.Item(text=item_pb2.Text(text=text)) for text in SENTENCES]
            response = await soon(served.stub.Classify(asking(*texts, model=ref("sentiment"))))
            labels = [result.classification.labels[0].label for result in response.results]
            assert labels == list(SENTENCES.values())
            flower = item_pb2.FloatFeatures(values=[5.1, 3.5, 1.4, 0.2])
            iris = asking(item_pb2.Item(float_features=flower), model=ref("iris"))
            (result,) = (await soon(served.stub.Classify(iris))).results
            assert result.classification.labels[0].label == "setosa"
            assert sum(result.classification.probabilities) == pytest.approx(1.0)

"""Each service alone, sent a SIGTERM while it is called: what it accepted it answers."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import httpx
import pytest
from gristmill.classifier.v1 import classifier_service_pb2, item_pb2
from gristmill.classifier.v1 import classifier_service_pb2_grpc as classifier_rpc
from gristmill.generator.v1 import generator_service_pb2, prompt_pb2, sampling_params_pb2
from gristmill.generator.v1 import generator_service_pb2_grpc as generator_rpc
from gristmill.registry.v1 import model_pb2, registry_service_pb2
from gristmill.registry.v1 import registry_service_pb2_grpc as registry_rpc
from gristmill_client import Client

from services.runtime import standard
from services.runtime.health import SERVING
from tests.e2e.load import FIGURES, Call, Tally, lines_of, load
from tests.e2e.processes import (
    CACHE,
    MODELS,
    START_S,
    STOP_S,
    Service,
    alive,
    descendants,
    free_ports,
)

Services = dict[str, Service]
LOOK_S = 3.0
"""How often a process that says nothing is looked at."""


def serving(service: Service, *names: str) -> None:
    """Wait until each name is SERVING: the watch tells, or the end of the process."""
    with grpc.insecure_channel(service.address) as channel:
        watch = channel.unary_stream(
            f"/{standard.HEALTH}/Watch",
            request_serializer=standard.HealthCheckRequest.SerializeToString,
            response_deserializer=standard.HealthCheckResponse.FromString,
        )
        for name in names:
            asked = standard.HealthCheckRequest(service=name)
            end = time.monotonic() + START_S
            while not _said_serving(watch(asked, timeout=LOOK_S, wait_for_ready=True)):
                assert service.running, service.log[-2000:]
                assert time.monotonic() < end, f"{name} of the {service.name} does not serve"


def _said_serving(states: Any) -> bool:
    try:
        return any(state.status == SERVING for state in states)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, error  # type: ignore[attr-defined]  # a call is an error too
        return False
    finally:
        states.cancel()


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """The four of them, each a process of its own, with the three models."""
    folder, ports = tmp_path_factory.mktemp("services"), free_ports()
    follow = f"--registry=127.0.0.1:{ports['registry']}"
    found: Services = {}
    with ExitStack() as stack:

        def start(name: str, module: str, *arguments: str) -> None:
            found[name] = Service.start(module, ports[name], folder, *arguments)
            stack.callback(found[name].end)

        start("registry", "services.registry", f"--data-dir={folder / 'registry'}")
        for name in ("classifier", "generator"):
            start(name, f"services.{name}", follow, f"--cache-dir={folder / name}")
        behind = [f"--{name}=127.0.0.1:{ports[name]}" for name in ("classifier", "generator")]
        start("gateway", "gateway", follow, *behind)
        serving(found["registry"], "")
        with Client(registry=found["registry"].address) as client:
            for model in MODELS:
                client.models.push(CACHE / "models" / model, alias="live")
        serving(found["classifier"], "models/sentiment", "models/iris")
        serving(found["generator"], "models/smollm2")
        yield found


async def end_under(
    service: Service,
    call: Call,
    callers: int,
    answers: int,
    then: Callable[[], Awaitable[None]] | None = None,
) -> Tally:
    """SIGTERM in the middle of a load that goes on until the process has ended."""
    below = descendants(service.process.pid)
    async with load(call, callers) as work:
        await work.answers(answers)
        if then:
            await then()
        service.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(service.process.wait, STOP_S)
    FIGURES.append(f"SIGTERM to the {service.name}: {work.tally}")
    assert status == 0, service.log[-2000:]
    assert alive(below) == set(), "processes are left"
    return work.tally


def hold_to_its_word(service: Service, tally: Tally, event: str = "call") -> None:
    """Nothing that the service accepted failed, by what callers saw and by its own log."""
    assert tally.failed == []
    assert tally.answered > 0
    calls = {i: c for i, c in lines_of(service.log, event).items() if i.startswith("load-")}
    ok = ("OK", 200)
    wrong = [c for c in calls.values() if c["status"] not in ok and c.get("reason") != "DRAINING"]
    assert wrong == []
    lost = [calls[i] for i in tally.unreachable if i in calls and calls[i]["status"] in ok]
    assert lost == [], "answered, and the answer did not arrive"
    assert '"complete": true' in service.log


class TestSigterm:
    """From the edge inwards, so that the ones behind still run."""

    async def test_gateway(self, services: Services) -> None:
        service = services["gateway"]
        items = {"model": {"model": "sentiment"}, "items": [{"text": {"text": "not bad"}}]}
        base = f"http://{service.address}"
        async with httpx.AsyncClient(base_url=base, timeout=START_S, trust_env=False) as client:

            async def classify(request_id: str) -> None:
                headers = {"x-request-id": request_id}
                answer = await client.post("/classifier/v1/classify", json=items, headers=headers)
                answer.raise_for_status()

            tally = await end_under(service, classify, 8, 40)
        hold_to_its_word(service, tally, "request")

    async def test_generator(self, services: Services) -> None:
        service = services["generator"]
        request = generator_service_pb2.GenerateRequest(
            prompts=[prompt_pb2.Prompt(text=prompt_pb2.TextPrompt(text="Once upon a time"))],
            params=sampling_params_pb2.SamplingParams(max_tokens=12, ignore_eos=True),
        )
        # Longer than a server that does not wait for what is in hand would live.
        long = generator_service_pb2.GenerateStreamRequest(
            prompt=request.prompts[0],
            params=sampling_params_pb2.SamplingParams(max_tokens=300, ignore_eos=True),
        )
        async with grpc.aio.insecure_channel(service.address) as channel:
            stub: Any = generator_rpc.GeneratorServiceStub(channel)

            async def generate(request_id: str) -> None:
                answer = await stub.Generate(request, metadata=[("x-request-id", request_id)])
                assert answer.results[0].generation.usage.completion_tokens == 12

            stream = stub.GenerateStream(long, metadata=[("x-request-id", "load-stream")])

            async def begun() -> None:
                while not (await stream.read()).HasField("delta"):
                    pass

            tally = await end_under(service, generate, 4, 4, begun)
            last = None
            while (message := await stream.read()) is not grpc.aio.EOF:
                last = message
            assert last is not None
            assert last.finished.usage.completion_tokens == 300
        hold_to_its_word(service, tally)

    async def test_classifier(self, services: Services) -> None:
        service = services["classifier"]
        text = item_pb2.Item(text=item_pb2.Text(text="not bad at all"))
        request = classifier_service_pb2.ClassifyRequest(
            model=model_pb2.ModelRef(model="sentiment"), items=[text] * 3
        )
        async with grpc.aio.insecure_channel(service.address) as channel:
            stub: Any = classifier_rpc.ClassifierServiceStub(channel)

            async def classify(request_id: str) -> None:
                answer = await stub.Classify(request, metadata=[("x-request-id", request_id)])
                assert [one.WhichOneof("outcome") for one in answer.results] == [
                    "classification"
                ] * 3

            tally = await end_under(service, classify, 12, 60)
        hold_to_its_word(service, tally)

    async def test_registry_and_what_it_acknowledged_is_there_again(
        self, services: Services
    ) -> None:
        service = services["registry"]
        acknowledged: list[str] = []
        async with grpc.aio.insecure_channel(service.address) as channel:
            stub: Any = registry_rpc.RegistryServiceStub(channel)

            async def create(request_id: str) -> None:
                request = registry_service_pb2.CreateModelRequest(
                    model_id=request_id,
                    model=model_pb2.Model(task=model_pb2.TASK_CLASSIFICATION),
                )
                metadata = [("x-request-id", request_id)]
                answer = await stub.CreateModel(request, metadata=metadata)
                acknowledged.append(answer.model.name)

            tally = await end_under(service, create, 6, 30)
        hold_to_its_word(service, tally)
        data = next(a for a in service.process.args if str(a).startswith("--data-dir="))  # type: ignore[union-attr]  # a list
        after = Service.start("services.registry", service.port, service.log_file.parent, str(data))
        try:
            serving(after, "")
            with Client(registry=after.address) as client:
                kept = {f"models/{model.name}" for model in client.models.list()}
        finally:
            after.end()
        assert len(acknowledged) == tally.answered
        assert set(acknowledged) <= kept
        assert after.process.returncode == 0

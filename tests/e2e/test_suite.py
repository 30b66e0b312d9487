"""One running suite: what it prints works, every way in gives the same answers, models change."""

import asyncio
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from gristmill.classifier.v1 import classifier_service_pb2, item_pb2
from gristmill.classifier.v1 import classifier_service_pb2_grpc as classifier_rpc
from gristmill.generator.v1 import generator_service_pb2, prompt_pb2, sampling_params_pb2
from gristmill.generator.v1 import generator_service_pb2_grpc as generator_rpc
from gristmill.registry.v1 import model_pb2

from services.runtime.health import SERVING
from tests.e2e.load import load
from tests.e2e.processes import (
    CACHE,
    COMMAND_S,
    ROOT,
    Suite,
    copied,
    environment,
    read_json,
    shell,
    tool,
)
from tests.harness import collect, health_check, health_list, health_stream

SERVICES = {
    "registry": "gristmill.registry.v1.RegistryService",
    "classifier": "gristmill.classifier.v1.ClassifierService",
    "generator": "gristmill.generator.v1.GeneratorService",
}
SENTENCES = ["I love this wonderful film.", "A terrible, boring waste of time."]
FLOWER = [5.1, 3.5, 1.4, 0.2]


def single(number: float) -> float:
    """A number as a float field holds it."""
    (found,) = struct.unpack("f", struct.pack("f", number))
    return float(found)


class TestPrinted:
    """The lines that the suite prints, taken from its output as they stand."""

    def test_the_curl_line_classifies(self, suite: Suite) -> None:
        (answer,) = read_json(shell(suite.line("curl")))
        (result,) = answer["results"]
        assert result["classification"]["labels"][0]["label"] == "positive"

    def test_the_grpcurl_line_streams(self, suite: Suite) -> None:
        tool("grpcurl")
        messages = read_json(shell(suite.line("grpcurl")))
        assert list(messages[0]) == ["started"]
        assert all(list(message) == ["delta"] for message in messages[1:-1])
        assert list(messages[-1]) == ["finished"]
        assert "".join(message["delta"]["text"] for message in messages[1:-1]).strip()

    def test_the_addresses_are_those_that_were_asked_for(self, suite: Suite) -> None:
        for name, port in suite.ports.items():
            assert f"localhost:{port}" in suite.output, name
        page = httpx.get(f"{suite.http}/docs", trust_env=False)
        assert page.status_code == 200


class TestGrpcurl:
    """A person who has grpcurl and no file of ours."""

    @pytest.mark.parametrize("name", SERVICES)
    def test_lists_and_describes_each_service(self, suite: Suite, name: str) -> None:
        grpcurl, address = tool("grpcurl"), suite.address(name)
        listed = shell(f"{grpcurl} -plaintext {address} list").split()
        assert SERVICES[name] in listed
        assert "grpc.health.v1.Health" in listed
        methods = shell(f"{grpcurl} -plaintext {address} list {SERVICES[name]}").split()
        described = shell(f"{grpcurl} -plaintext {address} describe {SERVICES[name]}")
        assert methods
        for method in methods:
            assert f"rpc {method.rpartition('.')[2]} " in described

    @pytest.mark.parametrize(
        ("name", "message", "field"),
        [
            ("registry", "gristmill.registry.v1.ModelVersion", "artifacts"),
            ("classifier", "gristmill.classifier.v1.ClassifyRequest", "items"),
            ("generator", "gristmill.generator.v1.SamplingParams", "temperature"),
        ],
    )
    def test_describes_messages(self, suite: Suite, name: str, message: str, field: str) -> None:
        text = shell(f"{tool('grpcurl')} -plaintext {suite.address(name)} describe {message}")
        assert field in text

    def call(self, suite: Suite, name: str, method: str, body: dict[str, Any]) -> list[Any]:
        """The answers to one call."""
        path = f"{SERVICES[name]}/{method}"
        grpcurl, address = tool("grpcurl"), suite.address(name)
        return read_json(shell(f"{grpcurl} -plaintext -d '{json.dumps(body)}' {address} {path}"))

    def test_calls_the_registry(self, suite: Suite) -> None:
        (answer,) = self.call(suite, "registry", "ListModels", {})
        names = {model["name"] for model in answer["models"]}
        assert names == {"models/sentiment", "models/iris", "models/smollm2"}

    def test_calls_the_classifier(self, suite: Suite) -> None:
        body = {"model": {"model": "iris"}, "items": [{"float_features": {"values": FLOWER}}]}
        (answer,) = self.call(suite, "classifier", "Classify", body)
        assert answer["results"][0]["classification"]["labels"][0]["label"] == "setosa"

    def test_calls_the_generator(self, suite: Suite) -> None:
        body = {"prompt": {"text": {"text": "hello world"}}}
        (answer,) = self.call(suite, "generator", "CountTokens", body)
        assert answer == {"tokens": 2, "max_context_tokens": 8192}


class TestWays:
    """The same question by gRPC and by HTTP."""

    async def test_a_classification_is_the_same(self, suite: Suite) -> None:
        request = classifier_service_pb2.ClassifyRequest(
            model=model_pb2.ModelRef(model="sentiment"),
            items=[item_pb2.Item(text=item_pb2.Text(text=sentence)) for sentence in SENTENCES],
        )
        request.options.return_probabilities = True
        async with grpc.aio.insecure_channel(suite.address("classifier")) as channel:
            stub: Any = classifier_rpc.ClassifierServiceStub(channel)
            wire = await stub.Classify(request)
        body = {
            "model": {"model": "sentiment"},
            "items": [{"text": {"text": sentence}} for sentence in SENTENCES],
            "options": {"returnProbabilities": True},
        }
        async with httpx.AsyncClient(base_url=suite.http, trust_env=False) as client:
            web = (await client.post("/classifier/v1/classify", json=body)).json()
        found = [result["classification"] for result in web["results"]]
        expected = [result.classification for result in wire.results]
        assert [one["labels"][0]["label"] for one in found] == ["positive", "negative"]
        for one, other in zip(found, expected, strict=True):
            assert [label["label"] for label in one["labels"]] == [x.label for x in other.labels]
            scores = [single(p) for p in one["probabilities"]]
            assert scores == pytest.approx(list(other.probabilities), abs=1e-6)
        assert (web["model"], web["version"]) == (wire.model, wire.version) == ("sentiment", 1)

    async def test_a_generation_is_the_same_and_comes_in_pieces(self, suite: Suite) -> None:
        question = "What is the capital of France?"
        message = prompt_pb2.ChatMessage(role=prompt_pb2.ROLE_USER, content=question)
        request = generator_service_pb2.GenerateStreamRequest(
            prompt=prompt_pb2.Prompt(chat=prompt_pb2.ChatPrompt(messages=[message])),
            params=sampling_params_pb2.SamplingParams(temperature=0, max_tokens=24),
        )
        async with grpc.aio.insecure_channel(suite.address("generator")) as channel:
            stub: Any = generator_rpc.GeneratorServiceStub(channel)
            wire = await collect(stub.GenerateStream(request))
        body = {
            "prompt": {"chat": {"messages": [{"role": "ROLE_USER", "content": question}]}},
            "params": {"temperature": 0, "maxTokens": 24},
        }
        events: list[Any] = []
        async with (
            httpx.AsyncClient(base_url=suite.http, trust_env=False) as client,
            client.stream("POST", "/generator/v1/generate:stream", json=body) as response,
        ):
            assert response.headers["content-type"].startswith("text/event-stream")
            async for line in response.aiter_lines():
                assert not line.startswith("event: error"), line
                if line.startswith("data: "):
                    events.append(json.loads(line.removeprefix("data: ")))
        text = "".join(event["delta"]["text"] for event in events if "delta" in event)
        assert text == "".join(message.delta.text for message in wire if message.HasField("delta"))
        assert "Paris" in text
        assert sum("delta" in event for event in events) > 3
        assert list(events[0]) == ["started"]
        usage = events[-1]["finished"]["usage"]
        assert usage["completionTokens"] == wire[-1].finished.usage.completion_tokens

    async def test_an_error_has_the_same_reason(self, suite: Suite) -> None:
        path = "/classifier/v1/classify"
        async with httpx.AsyncClient(base_url=suite.http, trust_env=False) as client:
            absent = {"model": {"model": "nobody"}, "items": [{"text": {"text": "x"}}]}
            answer = await client.post(path, json=absent)
        error = answer.json()["error"]
        assert (answer.status_code, error["reason"]) == (404, "MODEL_NOT_FOUND")


class TestHealth:
    @pytest.mark.parametrize(
        ("name", "models"),
        [("classifier", ["sentiment", "iris"]), ("generator", ["smollm2"]), ("registry", [])],
    )
    async def test_process_service_and_models_serve(
        self, suite: Suite, name: str, models: list[str]
    ) -> None:
        async with grpc.aio.insecure_channel(suite.address(name)) as channel:
            for one in ("", SERVICES[name], *(f"models/{model}" for model in models)):
                assert await health_check(channel, one) == SERVING, one
            listed = await health_list(channel)
        assert {f"models/{model}" for model in models} <= set(listed)
        assert set(listed.values()) == {SERVING}

    def test_the_gateway_is_ready(self, suite: Suite) -> None:
        answer = httpx.get(f"{suite.http}/health/ready", trust_env=False)
        assert answer.status_code == 200
        states = {name: one["status"] for name, one in answer.json()["upstreams"].items()}
        assert states == dict.fromkeys(SERVICES, "SERVING")


class TestModelChange:
    async def test_an_alias_moves_under_calls_and_none_fails(
        self, suite: Suite, tmp_path: Path
    ) -> None:
        iris = CACHE / "models" / "iris"
        second = copied(iris, tmp_path / "iris", "Species of an iris", "The species of an iris")
        item = item_pb2.Item(float_features=item_pb2.FloatFeatures(values=FLOWER))
        request = classifier_service_pb2.ClassifyRequest(
            model=model_pb2.ModelRef(model="iris"), items=[item]
        )
        seen: list[tuple[int, int]] = []
        first_new = asyncio.Event()

        async with grpc.aio.insecure_channel(suite.address("classifier")) as channel:
            stub: Any = classifier_rpc.ClassifierServiceStub(channel)

            async def classify(request_id: str) -> None:
                began = len(seen)
                answer = await stub.Classify(request, metadata=[("x-request-id", request_id)])
                assert answer.results[0].classification.labels[0].label == "setosa"
                seen.append((began, answer.version))
                if answer.version == 2:
                    first_new.set()

            states: list[int] = []
            watch = health_stream(channel, "models/iris")
            watching = asyncio.ensure_future(_note(watch, states))
            async with load(classify, callers=4) as work:
                await work.answers(20)
                pushed = await _gristmill(suite, "push", str(second), "--json")
                assert json.loads(pushed)["version"] == 2
                await work.answers(20)
                assert {version for _, version in seen} == {1}, "only an alias makes it answer"
                await _gristmill(suite, "promote", "iris", "2")
                async with asyncio.timeout(COMMAND_S):
                    await first_new.wait()
                await work.answers(50)
            watch.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        assert work.tally.failed == []
        assert (work.tally.draining, work.tally.unreachable) == (0, {})
        switched = next(i for i, (_, version) in enumerate(seen) if version == 2)
        late = [version for began, version in seen if began > switched]
        assert set(late) == {2}, "a call that began after the switch was answered by the old"
        assert set(states) == {SERVING}

    async def test_the_registry_says_what_answers(self, suite: Suite) -> None:
        shown = json.loads(await _gristmill(suite, "show", "sentiment:live", "--json"))
        assert shown["state"] == "READY"
        answered = json.loads(
            await _gristmill(suite, "classify", "sentiment", "A fine morning.", "--json")
        )
        assert "positive" in json.dumps(answered)


async def _note(watch: Any, states: list[int]) -> None:
    """What a watch says until it is cancelled."""
    async for message in watch:
        states.append(message.status)  # they come one by one


async def _gristmill(suite: Suite, *arguments: str) -> str:
    """The `gristmill` command against the suite; the loop goes on meanwhile."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("gristmill")),
        *arguments,
        env=environment(**suite.client_environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


class TestGo:
    @pytest.mark.timeout(400)  # a machine that has not built grpc-go yet takes minutes
    def test_the_go_client_calls_the_suite(self, suite: Suite) -> None:
        go = tool("go")
        done = subprocess.run(
            [go, "test", "-count=1", "-v", "-run", "TestSuite", "./clients/go/gristmill"],
            env=environment(GRISTMILL_E2E="1", **suite.client_environment),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=390,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "--- SKIP" not in done.stdout
        assert done.stdout.count("--- PASS: TestSuite") >= 3, done.stdout

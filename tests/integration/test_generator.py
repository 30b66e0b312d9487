"""The generator over real servers: first with an engine that the test steps, then with OpenVINO."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1 import generator_service_pb2_grpc as rpc
from gristmill.generator.v1 import loaded_model_pb2, prompt_pb2, result_pb2
from gristmill.generator.v1.sampling_params_pb2 import OutputConstraint, SamplingParams
from gristmill.registry.v1 import model_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.generator.engine import EngineSettings
from services.generator.engines.fake import FakeEngine
from services.generator.engines.openvino import OpenVinoEngine, OpenVinoTokenizer
from services.generator.generator import Generator
from services.generator.servicer import GeneratorServicer
from services.generator.text import Detokenizer
from services.inference.serving import Serving
from services.runtime.errors import EngineRestarting, InvalidRequest
from services.runtime.server import Service
from tests.harness import (
    SOON_S,
    Served,
    collect,
    details,
    failure,
    reason,
    serve,
    soon,
    status_of,
)
from tests.unit.generator.stack import (
    CONTEXT,
    NAME,
    ScriptedEngine,
    generator,
    ids,
    said,
    script,
    serving,
    until,
)

Code = grpc.StatusCode
ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("GRISTMILL_CACHE", Path.home() / ".cache" / "gristmill"))
GGUF = CACHE / "models" / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_OF_MODEL = 8192


@dataclass
class Running:
    """A generator that is served, and a stub."""

    served: Served
    generator: Generator
    models: Serving[Generator]
    stub: Any

    @property
    def held(self) -> int:
        """Prompts that hold a permit."""
        return self.generator.admission.items


@asynccontextmanager
async def running(
    engine: Any, transport: str, folder: Path, context: int = CONTEXT, **config: Any
) -> AsyncIterator[Running]:
    """Serve `engine` over a real server."""
    with generator(engine, context=context) as one:
        models = await serving(one, folder)
        servicer = GeneratorServicer(models)
        service = Service(
            "generator", servicers=[(rpc.add_GeneratorServiceServicer_to_server, servicer)]
        )
        async with serve(service, transport, **config) as served:
            yield Running(served, one, models, rpc.GeneratorServiceStub(served.channel))
            await served.idle()
            assert one.admission.items == 0, "a permit was not returned"


@contextmanager
def stepping(engine: FakeEngine) -> Iterator[None]:
    """Step the engine all the while."""

    async def step() -> None:
        while True:
            engine.step()
            await asyncio.sleep(0.001)

    task = asyncio.ensure_future(step())
    try:
        yield
    finally:
        task.cancel()


def text(words: str) -> prompt_pb2.Prompt:
    """A prompt of text."""
    return prompt_pb2.Prompt(text=prompt_pb2.TextPrompt(text=words))


def tokens(*numbers: int) -> prompt_pb2.Prompt:
    """A prompt of token ids."""
    return prompt_pb2.Prompt(tokens=prompt_pb2.TokenPrompt(ids=numbers))


def chat(*contents: str) -> prompt_pb2.Prompt:
    """A prompt of messages of one person."""
    messages = [prompt_pb2.ChatMessage(role=prompt_pb2.ROLE_USER, content=c) for c in contents]
    return prompt_pb2.Prompt(chat=prompt_pb2.ChatPrompt(messages=messages))


def asking(*prompts: prompt_pb2.Prompt, **params: Any) -> pb.GenerateRequest:
    """A unary request."""
    return pb.GenerateRequest(prompts=prompts, params=SamplingParams(**params))


def streaming(prompt: prompt_pb2.Prompt, **params: Any) -> pb.GenerateStreamRequest:
    """A request for a stream."""
    return pb.GenerateStreamRequest(prompt=prompt, params=SamplingParams(**params))


@dataclass
class Heard:
    """A stream, read to its end."""

    started: pb.Started
    deltas: list[pb.Delta]
    finished: pb.Finished

    def text(self, index: int = 0) -> str:
        """The deltas of one choice, joined."""
        return "".join(delta.text for delta in self.deltas if delta.index == index)

    def ids(self, index: int = 0) -> list[int]:
        """The tokens of one choice."""
        return [t for delta in self.deltas if delta.index == index for t in delta.token_ids]


async def hear(responses: Any) -> Heard:
    """All of a stream, which must come in the order of the contract."""
    first, *middle, last = await collect(responses)
    kinds = [message.WhichOneof("event") for message in (first, *middle, last)]
    assert kinds == ["started", *["delta"] * len(middle), "finished"]
    heard = Heard(first.started, [message.delta for message in middle], last.finished)
    assert all(delta.text for delta in heard.deltas), "an empty delta"
    assert not any("\ufffd" in delta.text for delta in heard.deltas), "a part of a character"
    return heard


async def rest(stream: Any) -> list[Any]:
    """What is left of a stream of which a part was read."""
    found: list[Any] = []
    while (message := await soon(stream.read())) is not grpc.aio.EOF:
        found.append(message)
    return found


def violations(error: Any) -> list[str]:
    """The fields that a refused call names."""
    (bad,) = details(status_of(error), BadRequest)
    return [violation.field for violation in bad.field_violations]


class TestGenerate:
    async def test_every_prompt_has_its_answer_in_order(
        self, transport: str, tmp_path: Path
    ) -> None:
        engine = FakeEngine()
        words = [f"prompt number {i}" for i in range(64)]
        async with running(engine, transport, tmp_path) as r:
            with stepping(engine):
                answer = await soon(r.stub.Generate(asking(*map(text, words))))
        assert (answer.model, answer.version) == (NAME, 3)
        assert [one.generation.choices[0].text for one in answer.results] == words
        for one, said_ in zip(answer.results, words, strict=True):
            assert list(one.generation.choices[0].token_ids) == ids(said_)
            usage = one.generation.usage
            assert usage.prompt_tokens == usage.completion_tokens == len(said_)

    async def test_what_is_wrong_with_one_prompt_is_its_own(
        self, transport: str, tmp_path: Path
    ) -> None:
        engine = FakeEngine()
        bad_tools = chat("hi")
        bad_tools.chat.tools.add(name="f", parameters_json_schema="{")
        prompts = [text("good"), text("x" * CONTEXT), tokens(7, 0x110000), bad_tools, chat("fine")]
        async with running(engine, transport, tmp_path) as r:
            with stepping(engine):
                answer = await soon(r.stub.Generate(asking(*prompts)))
        kinds = [one.WhichOneof("outcome") for one in answer.results]
        assert kinds == ["generation", "error", "error", "error", "generation"]
        assert answer.results[4].generation.choices[0].text == "fine"
        wrong = [one.error for one in answer.results if one.HasField("error")]
        assert [error.code for error in wrong] == [Code.INVALID_ARGUMENT.value[0]] * 3
        named = [details(error, BadRequest)[0].field_violations[0].field for error in wrong]
        assert named == [
            "prompts[1]",
            "prompts[2].tokens.ids[1]",
            "prompts[3].chat.tools[0].parameters_json_schema",
        ]
        reasons = [details(error, ErrorInfo)[0].reason for error in wrong]
        assert reasons == ["INVALID_FIELD"] * 3

    async def test_a_prompt_that_the_engine_refuses_fails_alone(
        self, transport: str, tmp_path: Path
    ) -> None:
        engine = ScriptedEngine(script("ok"), [InvalidRequest("the engine refused: no")])
        async with running(engine, transport, tmp_path) as r:
            answer = await soon(r.stub.Generate(asking(text("a"), text("b"))))
        assert [one.WhichOneof("outcome") for one in answer.results] == ["generation", "error"]

    async def test_all_wrong_is_still_an_answer(self, transport: str, tmp_path: Path) -> None:
        async with running(FakeEngine(), transport, tmp_path) as r:
            answer = await soon(r.stub.Generate(asking(text("x" * CONTEXT), max_tokens=1)))
        assert answer.results[0].error.code == Code.INVALID_ARGUMENT.value[0]

    async def test_an_engine_that_dies_fails_the_call(self, transport: str, tmp_path: Path) -> None:
        engine = ScriptedEngine([said("a")], [EngineRestarting("it died")])
        async with running(engine, transport, tmp_path) as r:
            error = await failure(r.stub.Generate(asking(text("a"), text("b"))))
            assert error.code() is Code.UNAVAILABLE
            assert reason(error) == "ENGINE_RESTARTING"
            assert details(status_of(error), RetryInfo)
            await until(lambda: engine.aborted)
            assert r.held == 0
        assert engine.aborted == [0]

    async def test_choices_and_stops(self, transport: str, tmp_path: Path) -> None:
        engine = ScriptedEngine(script("say END now"), script("say no", "stop"))
        async with running(engine, transport, tmp_path) as r:
            answer = await soon(r.stub.Generate(asking(text("a"), n=2, stop=["END"], seed=5)))
        (result,) = answer.results
        one, two = result.generation.choices
        assert (one.index, one.text, one.stop_match) == (0, "say ", "END")
        assert (two.index, two.text, two.stop_match) == (1, "say no", "")
        stop = result_pb2.FINISH_REASON_STOP
        assert (one.finish_reason, two.finish_reason) == (stop, stop)
        assert [s.seed for s in engine.samplings] == [5, 6]
        assert engine.aborted == [0]


BAD = [
    (asking(text("a"), temperature=3), "params.temperature"),
    (asking(text("a"), temperature=float("nan")), "params.temperature"),
    (asking(text("a"), n=17), "params.n"),
    (asking(text("a"), n=0), "params.n"),
    (asking(text("a"), top_p=0), "params.top_p"),
    (asking(text("a"), top_k=0), "params.top_k"),
    (asking(text("a"), max_tokens=0), "params.max_tokens"),
    (asking(text("a"), presence_penalty=2.5), "params.presence_penalty"),
    (asking(text("a"), repetition_penalty=0), "params.repetition_penalty"),
    (asking(text("a"), logprobs=21), "params.logprobs"),
    (asking(text("a"), stop=["a"] * 17), "params.stop"),
    (asking(text("a"), stop=["ok", ""]), "params.stop[1]"),
    (asking(text("a"), stop=["x" * 257]), "params.stop[0]"),
    (asking(text("a"), logit_bias={1: 101.0}), "params.logit_bias[1]"),
    (asking(), "prompts"),
    (asking(*[text("a")] * 65), "prompts"),
    (asking(text("a"), text("")), "prompts[1].text.text"),
    (asking(tokens()), "prompts[0].tokens.ids"),
    (asking(chat()), "prompts[0].chat.messages"),
    (pb.GenerateRequest(prompts=[text("a")], priority=10), "priority"),
]


class TestRefusals:
    @pytest.mark.parametrize(
        ("request_", "field"), BAD, ids=lambda v: v if isinstance(v, str) else ""
    )
    async def test_what_is_out_of_bounds_is_refused_by_field(
        self, transport: str, tmp_path: Path, request_: Message, field: str
    ) -> None:
        engine = FakeEngine()
        async with running(engine, transport, tmp_path) as r:
            error = await failure(r.stub.Generate(request_))
        assert error.code() is Code.INVALID_ARGUMENT
        assert reason(error) == "INVALID_FIELD"
        assert violations(error) == [field]
        assert not engine.submitted.is_set()

    @pytest.mark.parametrize(
        ("params", "field"),
        [
            ({"logit_bias": {5: 1.0}}, "params.logit_bias"),
            ({"logprobs": 5}, "params.logprobs"),
            ({"constraint": OutputConstraint(regex="a")}, "params.constraint.regex"),
            ({"min_p": 1}, "params.min_p"),
        ],
    )
    async def test_what_the_engine_cannot_do_is_refused_by_field(
        self, transport: str, tmp_path: Path, params: dict[str, Any], field: str
    ) -> None:
        async with running(FakeEngine(), transport, tmp_path) as r:
            for call in (
                r.stub.Generate(asking(text("a"), **params)),
                collect(r.stub.GenerateStream(streaming(text("a"), **params))),
            ):
                error = await failure(call)
                assert error.code() is Code.INVALID_ARGUMENT
                assert reason(error) == "UNSUPPORTED_FIELD"
                assert violations(error) == [field]

    @pytest.mark.parametrize(
        ("ref", "code", "why"),
        [
            (model_pb2.ModelRef(model="other"), Code.NOT_FOUND, "MODEL_NOT_FOUND"),
            (model_pb2.ModelRef(model=NAME, version=9), Code.NOT_FOUND, "MODEL_NOT_LOADED"),
            (model_pb2.ModelRef(model=NAME, alias="next"), Code.NOT_FOUND, "ALIAS_NOT_FOUND"),
        ],
    )
    async def test_a_model_that_is_not_here(
        self, transport: str, tmp_path: Path, ref: model_pb2.ModelRef, code: Code, why: str
    ) -> None:
        async with running(FakeEngine(), transport, tmp_path) as r:
            request = asking(text("a"))
            request.model.CopyFrom(ref)
            error = await failure(r.stub.Generate(request))
        assert (error.code(), reason(error)) == (code, why)

    async def test_a_full_queue_refuses_the_whole_call_and_keeps_nothing(
        self, transport: str, tmp_path: Path
    ) -> None:
        engine = ScriptedEngine(script("a"))
        async with running(engine, transport, tmp_path) as r:
            # 64 prompts of 16 choices are more than the 1,000 that the queue takes.
            error = await failure(r.stub.Generate(asking(*[text("a")] * 64, n=16)))
            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert reason(error) == "QUEUE_FULL"
            assert details(status_of(error), RetryInfo)
            assert r.held == 0
            assert engine.samplings == []


class TestStream:
    async def test_started_then_deltas_then_finished(self, transport: str, tmp_path: Path) -> None:
        engine = FakeEngine()
        async with running(engine, transport, tmp_path) as r:
            with stepping(engine):
                heard = await hear(r.stub.GenerateStream(streaming(text("héllo 中😀"))))
        assert heard.started == pb.Started(model=NAME, version=3, prompt_tokens=8)
        assert heard.text() == "héllo 中😀"
        assert heard.ids() == ids("héllo 中😀")
        assert list(heard.finished.choices) == [
            result_pb2.Choice(finish_reason=result_pb2.FINISH_REASON_LENGTH)
        ]
        assert heard.finished.usage == result_pb2.Usage(prompt_tokens=8, completion_tokens=8)
        timings = heard.finished.timings
        assert timings.queue_us <= timings.time_to_first_token_us <= timings.total_us

    async def test_the_first_message_does_not_wait_for_a_token(
        self, transport: str, tmp_path: Path
    ) -> None:
        async with running(FakeEngine(), transport, tmp_path) as r:
            stream = r.stub.GenerateStream(streaming(text("abc")))
            first = await soon(stream.read())
            assert first.started.prompt_tokens == 3
            stream.cancel()

    async def test_a_delta_comes_with_its_step(self, transport: str, tmp_path: Path) -> None:
        engine = FakeEngine()
        async with running(engine, transport, tmp_path) as r:
            stream = r.stub.GenerateStream(streaming(text("abc")))
            await soon(stream.read())
            await soon(engine.submitted.wait())
            for letter in "abc":
                engine.step()
                assert (await soon(stream.read())).delta.text == letter
            assert (await soon(stream.read())).HasField("finished")
            assert await soon(stream.read()) is grpc.aio.EOF

    async def test_choices_come_side_by_side(self, transport: str, tmp_path: Path) -> None:
        engine = FakeEngine()
        async with running(engine, transport, tmp_path) as r:
            with stepping(engine):
                heard = await hear(r.stub.GenerateStream(streaming(text("abcd"), n=3)))
        assert [heard.text(i) for i in range(3)] == ["abcd"] * 3
        assert [choice.index for choice in heard.finished.choices] == [0, 1, 2]
        assert [delta.index for delta in heard.deltas[:3]] == [0, 1, 2]

    async def test_a_stop_ends_it(self, transport: str, tmp_path: Path) -> None:
        engine = FakeEngine()
        async with running(engine, transport, tmp_path) as r:
            with stepping(engine):
                request = streaming(text("one two three"), stop=["tw", "two"])
                heard = await hear(r.stub.GenerateStream(request))
        assert heard.text() == "one "
        (choice,) = heard.finished.choices
        assert (choice.finish_reason, choice.stop_match) == (result_pb2.FINISH_REASON_STOP, "tw")
        assert engine.aborted == [1]

    async def test_log_probabilities_where_asked_for(self, transport: str, tmp_path: Path) -> None:
        engine = ScriptedEngine([said("ab", logprob=-1), said("c", "length", logprob=-2)])
        async with running(engine, transport, tmp_path) as r:
            heard = await hear(r.stub.GenerateStream(streaming(text("x"), logprobs=0)))
            answer = await soon(r.stub.Generate(asking(text("x"), logprobs=0)))
        found = [(p.token_id, p.logprob) for delta in heard.deltas for p in delta.logprobs]
        assert found == [(97, -1), (98, -1), (99, -2)]
        (choice,) = answer.results[0].generation.choices
        assert [(p.token_id, p.logprob) for p in choice.logprobs] == found
        assert not heard.finished.choices[0].logprobs

    async def test_a_failure_after_the_first_message_is_the_streams_last_word(
        self, transport: str, tmp_path: Path
    ) -> None:
        engine = ScriptedEngine([said("a"), EngineRestarting("it died")])
        found: list[Any] = []
        async with running(engine, transport, tmp_path) as r:
            error = await failure(collect(r.stub.GenerateStream(streaming(text("x"))), found))
        assert (error.code(), reason(error)) == (Code.UNAVAILABLE, "ENGINE_RESTARTING")
        assert [message.WhichOneof("event") for message in found] == ["started", "delta"]

    async def test_what_does_not_fit_the_context_is_refused_before_anything(
        self, transport: str, tmp_path: Path
    ) -> None:
        found: list[Any] = []
        async with running(FakeEngine(), transport, tmp_path) as r:
            for request, field in (
                (streaming(text("x" * CONTEXT)), "prompt"),
                (streaming(text("x"), max_tokens=CONTEXT), "params.max_tokens"),
            ):
                error = await failure(collect(r.stub.GenerateStream(request), found))
                assert (error.code(), violations(error)) == (Code.INVALID_ARGUMENT, [field])
        assert found == []


class TestEndsEarly:
    async def test_cancelling_a_stream_aborts_without_another_step(
        self, transport: str, tmp_path: Path
    ) -> None:
        engine = FakeEngine()
        async with running(engine, transport, tmp_path) as r:
            stream = r.stub.GenerateStream(streaming(text("abcdef"), n=2))
            await soon(stream.read())
            await until(lambda: len(engine.running) == 2)
            engine.step()
            await soon(stream.read())
            steps = engine.stats.steps
            stream.cancel()
            await until(lambda: len(engine.aborted) == 2)
            await r.served.idle()
            assert (engine.running, engine.stats.steps) == ({}, steps)
            assert r.held == 0

    async def test_cancelling_a_unary_call_aborts_all_its_prompts(
        self, transport: str, tmp_path: Path
    ) -> None:
        engine = FakeEngine()
        async with running(engine, transport, tmp_path) as r:
            call = r.stub.Generate(asking(*[text("abc")] * 5))
            waiting = asyncio.ensure_future(call.code())
            await until(lambda: len(engine.running) == 5)
            assert r.held == 5
            call.cancel()
            await until(lambda: len(engine.aborted) == 5)
            await r.served.idle()
            assert r.held == 0
            assert await soon(waiting) is Code.CANCELLED

    async def test_a_connection_that_closes_aborts(self, transport: str, tmp_path: Path) -> None:
        engine = FakeEngine()
        async with running(engine, transport, tmp_path) as r:
            channel = r.served.open()
            stub: Any = rpc.GeneratorServiceStub(channel)
            stream = stub.GenerateStream(streaming(text("abc")))
            await soon(stream.read())
            await soon(engine.submitted.wait())
            await channel.close()
            await until(lambda: engine.aborted)
            await r.served.idle()
            assert r.held == 0

    @pytest.mark.parametrize("unary", [True, False])
    async def test_a_deadline_aborts(self, transport: str, tmp_path: Path, unary: bool) -> None:
        engine = FakeEngine()
        async with running(engine, transport, tmp_path) as r:
            error = await failure(
                r.stub.Generate(asking(text("abc")), timeout=0.2)
                if unary
                else collect(r.stub.GenerateStream(streaming(text("abc")), timeout=0.2))
            )
            assert error.code() is Code.DEADLINE_EXCEEDED
            await until(lambda: engine.aborted)
            await r.served.idle()
            assert r.held == 0

    async def test_a_call_without_a_deadline_has_the_servers(
        self, transport: str, tmp_path: Path
    ) -> None:
        engine = FakeEngine()
        async with running(engine, transport, tmp_path, default_timeout_s=0.1) as r:
            error = await failure(r.stub.Generate(asking(text("abc"))))
            assert (error.code(), reason(error)) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED")
        assert engine.aborted == [1]

    async def test_one_of_many_is_cancelled_and_the_others_go_on(
        self, transport: str, tmp_path: Path
    ) -> None:
        engine = FakeEngine()
        async with running(engine, transport, tmp_path) as r:
            streams = [r.stub.GenerateStream(streaming(text(f"text {i}"))) for i in range(8)]
            for stream in streams:
                await soon(stream.read())
            await until(lambda: len(engine.running) == 8)
            for stream in streams[::2]:
                stream.cancel()
            await until(lambda: len(engine.aborted) == 4)
            with stepping(engine):
                found = [await rest(stream) for stream in streams[1::2]]
        texts = ["".join(m.delta.text for m in messages) for messages in found]
        assert texts == [f"text {i}" for i in range(1, 8, 2)]


class TestOtherCalls:
    async def test_count_tokens_counts_as_generate_does(
        self, transport: str, tmp_path: Path
    ) -> None:
        engine = FakeEngine()
        async with running(engine, transport, tmp_path) as r:
            for prompt in (text("a中😀"), tokens(1, 2, 3), chat("a", "bc")):
                counted = await soon(r.stub.CountTokens(pb.CountTokensRequest(prompt=prompt)))
                assert counted == pb.CountTokensResponse(tokens=3, max_context_tokens=CONTEXT)
            error = await failure(r.stub.CountTokens(pb.CountTokensRequest()))
            assert violations(error) == ["prompt"]
            bad = pb.CountTokensRequest(prompt=tokens(0x110000))
            assert violations(await failure(r.stub.CountTokens(bad))) == ["prompt.tokens.ids[0]"]

    async def test_what_is_loaded_can_be_listed_put_away_and_taken_back(
        self, transport: str, tmp_path: Path
    ) -> None:
        engine = FakeEngine()
        async with running(engine, transport, tmp_path) as r:
            listed = await soon(r.stub.ListLoadedModels(pb.ListLoadedModelsRequest()))
            (one,) = listed.models
            assert (one.model, one.version, list(one.aliases)) == (NAME, 3, ["live"])
            assert (one.engine, one.device, one.digest) == ("fake", "cpu", "ab" * 32)
            assert one.state == loaded_model_pb2.LOAD_STATE_READY
            assert one.HasField("ready_time")
            assert one.signature.max_tokens == CONTEXT
            ref = model_pb2.ModelRef(model=NAME)
            await soon(r.stub.UnloadModel(pb.UnloadModelRequest(model=ref)))
            error = await failure(r.stub.Generate(asking(text("a"))))
            assert error.code() is Code.UNAVAILABLE
            loaded = await soon(r.stub.LoadModel(pb.LoadModelRequest(model=ref)))
            assert loaded.model.state == loaded_model_pb2.LOAD_STATE_READY
            with stepping(engine):
                answer = await soon(r.stub.Generate(asking(text("a"))))
            assert answer.results[0].generation.choices[0].text == "a"

    async def test_unloading_waits_for_the_stream_in_hand(
        self, transport: str, tmp_path: Path
    ) -> None:
        engine = FakeEngine()
        async with running(engine, transport, tmp_path) as r:
            stream = r.stub.GenerateStream(streaming(text("abc")))
            await soon(stream.read())
            ref = model_pb2.ModelRef(model=NAME)
            call = r.stub.UnloadModel(pb.UnloadModelRequest(model=ref))
            unloading = asyncio.ensure_future(call.code())
            await until(lambda: [one.state for one in r.models.models()] == ["draining"])
            request = asking(text("a"))
            request.model.CopyFrom(ref)
            error = await failure(r.stub.Generate(request))
            assert (error.code(), reason(error)) == (Code.NOT_FOUND, "MODEL_NOT_LOADED")
            assert not unloading.done()
            with stepping(engine):
                left = await rest(stream)
            assert left[-1].HasField("finished")
            assert await soon(unloading) is Code.OK


PLAIN = st.characters(exclude_categories=["Cs"])
SENTENCES = [
    "你好，世界！",
    "日本語のテキスト",
    "😀👩🏽\u200d🚀🇫🇷",
    "e\u0301a\u0308",
    "한국어",
    "שלום",
    "naïve café",
]


@pytest.fixture(scope="session")
def tokenizer() -> OpenVinoTokenizer:
    """The tokenizer of the small model."""
    assert GGUF.exists(), f"{GGUF} is missing: run `make models`"
    return OpenVinoTokenizer(GGUF)


class TestOpenVinoTokenizer:
    @settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        st.lists(st.sampled_from(SENTENCES) | st.text(PLAIN, max_size=8), max_size=4).map("".join)
    )
    def test_deltas_join_to_what_it_decodes(self, tokenizer: OpenVinoTokenizer, words: str) -> None:
        numbers = tokenizer.encode(words)
        whole = tokenizer.decode(numbers)
        text_ = Detokenizer(tokenizer.decode)
        deltas = [text_.push([number]) for number in numbers]
        assert "".join([*deltas, text_.flush()]) == whole
        if "\ufffd" not in whole:
            assert not any("\ufffd" in delta for delta in deltas)

    @pytest.mark.parametrize("words", SENTENCES)
    def test_gives_back_what_it_was_given(self, tokenizer: OpenVinoTokenizer, words: str) -> None:
        assert tokenizer.decode(tokenizer.encode(words)) == words

    @settings(
        max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.lists(st.integers(0, 49151), max_size=12))
    def test_deltas_of_any_tokens_join_to_what_it_decodes(
        self, tokenizer: OpenVinoTokenizer, numbers: list[int]
    ) -> None:
        """A model may say bytes that are no text."""
        text_ = Detokenizer(tokenizer.decode)
        deltas = [text_.push([number]) for number in numbers]
        assert "".join([*deltas, text_.flush()]) == tokenizer.decode(numbers)

    def test_knows_its_vocabulary_and_its_end(self, tokenizer: OpenVinoTokenizer) -> None:
        assert tokenizer.vocabulary == 49152
        assert max(tokenizer.eos_ids) < tokenizer.vocabulary

    def test_the_template_is_the_models_own(self, tokenizer: OpenVinoTokenizer) -> None:
        assert tokenizer.template is not None
        rendered = tokenizer.template.render([{"role": "user", "content": "hi", "name": "Ann"}])
        assert rendered.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_an_engine_starts_however_busy_grpc_is() -> None:
    """On uvloop, where a fork that runs grpc's handlers crashes one child in fifty."""
    command = [sys.executable, "-m", "tests.unit.generator.spawner", "100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "{'ready 0': 100}\n", done.stdout + done.stderr


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def openvino() -> AsyncIterator[OpenVinoEngine]:
    """The real engine, in its process."""
    assert GGUF.exists(), f"{GGUF} is missing: run `make models`"
    engine = OpenVinoEngine(GGUF, EngineSettings())
    await engine.start()
    try:
        yield engine
    finally:
        pid = engine.pid
        await engine.close()
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.asyncio(loop_scope="module")
class TestOpenVino:
    @pytest_asyncio.fixture(loop_scope="module")
    async def real(
        self, openvino: OpenVinoEngine, transport: str, tmp_path: Path
    ) -> AsyncIterator[Running]:
        """The real engine behind each server in turn."""
        async with running(openvino, transport, tmp_path, CONTEXT_OF_MODEL) as one:
            yield one

    async def test_deltas_join_to_exactly_the_text_of_generate(self, real: Running) -> None:
        for prompt in (chat("Name three colours."), text("The sun is"), chat("Say 你好 and 😀")):
            params = {"max_tokens": 24, "temperature": 0.0}
            heard = await hear(real.stub.GenerateStream(streaming(prompt, **params)))
            answer = await soon(real.stub.Generate(asking(prompt, **params)))
            (choice,) = answer.results[0].generation.choices
            assert heard.text() == choice.text != ""
            assert heard.ids() == list(choice.token_ids)
            assert heard.finished.choices[0].finish_reason == choice.finish_reason
            assert heard.finished.usage == answer.results[0].generation.usage

    async def test_text_is_what_the_tokens_decode_to(
        self, real: Running, openvino: OpenVinoEngine
    ) -> None:
        request = asking(chat("Tell me a story."), max_tokens=40, temperature=1, seed=3)
        answer = await soon(real.stub.Generate(request))
        generation = answer.results[0].generation
        (choice,) = generation.choices
        assert choice.text == openvino.tokenizer.decode(choice.token_ids)
        assert generation.usage.completion_tokens == len(choice.token_ids) <= 40

    async def test_equal_seeds_draw_equal_texts(self, real: Running) -> None:
        async def drawn(seed: int) -> str:
            request = asking(chat("Tell me a story."), max_tokens=16, temperature=1, seed=seed)
            answer = await soon(real.stub.Generate(request))
            return str(answer.results[0].generation.choices[0].text)

        first = await drawn(7)
        assert await drawn(7) == first
        assert {await drawn(seed) for seed in range(8, 12)} != {first}

    async def test_choices_of_one_prompt_differ(self, real: Running) -> None:
        request = asking(chat("Tell me a story."), max_tokens=16, temperature=1, seed=7, n=4)
        answer = await soon(real.stub.Generate(request))
        assert len({choice.text for choice in answer.results[0].generation.choices}) == 4

    @pytest.mark.parametrize("words", SENTENCES)
    async def test_whatever_the_script_the_text_is_whole(self, real: Running, words: str) -> None:
        prompt = chat(f"Repeat after me: {words}")
        heard = await hear(
            real.stub.GenerateStream(streaming(prompt, max_tokens=32, temperature=0))
        )
        heard.text().encode()
        count = await soon(real.stub.CountTokens(pb.CountTokensRequest(prompt=prompt)))
        assert heard.started.prompt_tokens == heard.finished.usage.prompt_tokens == count.tokens

    async def test_characters_of_several_tokens_come_whole(self, real: Running) -> None:
        """A text begun in another script goes on in it, so that deltas must wait for bytes."""
        heard = await hear(
            real.stub.GenerateStream(
                streaming(text("你好世界，你好，" * 8), max_tokens=24, temperature=0)
            )
        )
        assert any(ord(character) > 0x2E80 for character in heard.text())
        assert any(len(delta.token_ids) > 1 for delta in heard.deltas)

    async def test_prompts_at_once_keep_apart(
        self, real: Running, openvino: OpenVinoEngine
    ) -> None:
        prompts = [chat("Count: " + "one two " * i) for i in range(8)]
        counted = [
            await soon(real.stub.CountTokens(pb.CountTokensRequest(prompt=prompt)))
            for prompt in prompts
        ]
        params = {"max_tokens": 12, "temperature": 0.0}
        before = openvino.stats.steps
        heard = await asyncio.gather(
            *(hear(real.stub.GenerateStream(streaming(prompt, **params))) for prompt in prompts)
        )
        steps = openvino.stats.steps - before
        for one, count in zip(heard, counted, strict=True):
            assert one.started.prompt_tokens == count.tokens
            assert one.text() == openvino.tokenizer.decode(one.ids())
        assert steps < sum(len(one.ids()) for one in heard), "they did not share steps"

    async def test_the_end_of_the_model_is_a_stop_and_the_limit_a_length(
        self, real: Running
    ) -> None:
        short = await soon(
            real.stub.Generate(asking(chat("What is 1+1?"), max_tokens=2, temperature=0))
        )
        (choice,) = short.results[0].generation.choices
        assert choice.finish_reason == result_pb2.FINISH_REASON_LENGTH
        assert len(choice.token_ids) == 2
        prompt = chat("What is the capital of France? Answer in one word.")
        whole = await soon(real.stub.Generate(asking(prompt, max_tokens=64, temperature=0)))
        (choice,) = whole.results[0].generation.choices
        assert choice.finish_reason == result_pb2.FINISH_REASON_STOP
        assert (choice.stop_match, "<|im_end|>" in choice.text) == ("", False)

    async def test_stop_strings_and_stop_tokens(
        self, real: Running, openvino: OpenVinoEngine
    ) -> None:
        prompt = chat("Name three colours.")
        params = {"max_tokens": 24, "temperature": 0.0}
        free = await soon(real.stub.Generate(asking(prompt, **params)))
        (whole,) = free.results[0].generation.choices
        middle = whole.text[len(whole.text) // 2 :][:6]
        heard = await hear(real.stub.GenerateStream(streaming(prompt, stop=[middle], **params)))
        assert heard.text() == whole.text[: whole.text.index(middle)]
        assert heard.finished.choices[0].stop_match == middle
        token = whole.token_ids[5]
        stopped = await soon(real.stub.Generate(asking(prompt, stop_token_ids=[token], **params)))
        (choice,) = stopped.results[0].generation.choices
        first = list(whole.token_ids).index(token)
        assert list(choice.token_ids) == list(whole.token_ids)[: first + 1]
        assert choice.finish_reason == result_pb2.FINISH_REASON_STOP
        assert choice.stop_match == str(token)
        await until(lambda: not openvino.stats.running)

    async def test_log_probabilities_of_the_tokens_chosen(self, real: Running) -> None:
        request = asking(chat("Name three colours."), max_tokens=8, temperature=0, logprobs=0)
        answer = await soon(real.stub.Generate(request))
        (choice,) = answer.results[0].generation.choices
        assert [p.token_id for p in choice.logprobs] == list(choice.token_ids)
        assert all(p.logprob <= 0 for p in choice.logprobs)

    async def test_what_does_not_fit_the_context_is_refused(self, real: Running) -> None:
        long = tokens(*[1000] * CONTEXT_OF_MODEL)
        answer = await soon(real.stub.Generate(asking(long, text("a"), max_tokens=1)))
        error, fine = answer.results
        assert details(error.error, BadRequest)[0].field_violations[0].field == "prompts[0]"
        assert fine.HasField("generation")
        refused = await failure(collect(real.stub.GenerateStream(streaming(long))))
        assert (refused.code(), violations(refused)) == (Code.INVALID_ARGUMENT, ["prompt"])

    @pytest.mark.parametrize("bad", [49152, 60000, 2**32 - 1])
    async def test_a_token_that_it_does_not_have_is_refused(self, real: Running, bad: int) -> None:
        """The engine would read beyond its table and go on with what lies there."""
        error = await failure(collect(real.stub.GenerateStream(streaming(tokens(1, bad)))))
        assert (error.code(), violations(error)) == (
            Code.INVALID_ARGUMENT,
            ["prompt.tokens.ids[1]"],
        )

    async def test_cancelling_a_stream_frees_its_place_within_a_step(
        self, real: Running, openvino: OpenVinoEngine
    ) -> None:
        stream = real.stub.GenerateStream(
            streaming(chat("Tell me a long story."), max_tokens=2000, ignore_eos=True)
        )
        for _ in range(4):
            await soon(stream.read())
        assert openvino.stats.running == 1
        stream.cancel()
        await until(lambda: not openvino.stats.running)
        stopped = openvino.stats.steps
        await real.served.idle()
        again = await soon(real.stub.Generate(asking(text("a"), max_tokens=2)))
        assert again.results[0].HasField("generation")
        # Two tokens are two steps: nothing else was computed in between.
        assert openvino.stats.steps <= stopped + 3
        assert openvino.stats.orphaned_steps == 0

    async def test_many_cancelled_among_many_leave_nothing_behind(
        self, real: Running, openvino: OpenVinoEngine
    ) -> None:
        params = {"max_tokens": 40, "ignore_eos": True}
        streams = [
            real.stub.GenerateStream(streaming(chat(f"Story {i}."), **params)) for i in range(8)
        ]
        for stream in streams:
            await soon(stream.read())
        for stream in streams[::2]:
            await soon(stream.read())
            stream.cancel()
        for stream in streams[1::2]:
            assert (await rest(stream))[-1].HasField("finished")
        for stream in streams[::2]:
            with suppress(asyncio.CancelledError):
                await rest(stream)
        await until(lambda: not openvino.stats.running)
        assert openvino.stats.orphaned_steps == 0

    async def test_a_deadline_frees_its_place(
        self, real: Running, openvino: OpenVinoEngine
    ) -> None:
        request = streaming(chat("Tell me a long story."), max_tokens=2000, ignore_eos=True)
        error = await failure(collect(real.stub.GenerateStream(request, timeout=0.5)))
        assert error.code() is Code.DEADLINE_EXCEEDED
        await until(lambda: not openvino.stats.running)
        assert openvino.stats.orphaned_steps == 0


@pytest.mark.asyncio(loop_scope="module")
class TestOpenVinoDies:
    async def test_calls_fail_and_later_ones_work_again(
        self, openvino: OpenVinoEngine, tmp_path: Path
    ) -> None:
        params = {"max_tokens": 2000, "ignore_eos": True}
        async with running(openvino, "grpcio", tmp_path, CONTEXT_OF_MODEL) as real:
            streams = [real.stub.GenerateStream(streaming(text("a"), **params)) for _ in range(3)]
            unary = asyncio.ensure_future(failure(real.stub.Generate(asking(text("b"), **params))))
            for stream in streams:
                await soon(stream.read())
                await soon(stream.read())
            assert openvino.pid is not None
            killed = openvino.pid
            os.kill(killed, signal.SIGKILL)
            failed = [await failure(rest(stream)) for stream in streams]
            for error in (*failed, await soon(unary)):
                assert (error.code(), reason(error)) == (Code.UNAVAILABLE, "ENGINE_RESTARTING")
                assert details(status_of(error), RetryInfo)
            await real.served.idle()
            assert real.held == 0
            refused = await failure(real.stub.Generate(asking(text("a"), max_tokens=2)))
            assert (refused.code(), reason(refused)) == (Code.UNAVAILABLE, "ENGINE_RESTARTING")
            await self._answers_again(real)
            assert openvino.pid != killed

    async def _answers_again(self, real: Running) -> None:
        """Ask as a client does: again after the time that the refusal names."""
        until_s = time.monotonic() + 60
        while True:
            try:
                answer = await real.stub.Generate(asking(text("a"), max_tokens=2))
            except grpc.aio.AioRpcError as error:
                assert reason(error) == "ENGINE_RESTARTING"
                assert time.monotonic() < until_s, "the engine does not come back"
                (retry,) = details(status_of(error), RetryInfo)
                await asyncio.sleep(retry.retry_delay.ToTimedelta().total_seconds())
            else:
                assert answer.results[0].generation.choices[0].token_ids
                return

    async def test_one_that_is_closed_while_it_restarts_does_not_come_back(
        self, tmp_path: Path
    ) -> None:
        told: list[bool] = []
        engine = OpenVinoEngine(GGUF, EngineSettings(), told.append)
        await engine.start()
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        assert told == [], "whoever starts it says that it is ready"
        await until(lambda: told == [False])
        await asyncio.wait_for(engine.close(), SOON_S)
        await asyncio.sleep(0)
        with pytest.raises(ProcessLookupError):
            os.kill(engine.pid, 0)
        assert told == [False]

    async def test_one_that_is_given_up_while_it_starts_leaves_no_process(self) -> None:
        engine = OpenVinoEngine(GGUF, EngineSettings())
        starting = asyncio.ensure_future(engine.start())
        await until(lambda: engine.pid)
        pid = engine.pid
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    async def test_a_file_that_is_no_model_is_refused(self, tmp_path: Path) -> None:
        bad = tmp_path / "bad.gguf"
        bad.write_bytes(b"GGUF" + b"\0" * 64)
        engine = OpenVinoEngine(bad, EngineSettings())
        with pytest.raises(Exception, match=r".") as failed:
            await asyncio.wait_for(engine.start(), SOON_S)
        assert not isinstance(failed.value, TimeoutError)
        assert engine.pid is None or not Path(f"/proc/{engine.pid}").exists()

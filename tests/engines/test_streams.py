"""Many streams over a real server: who leaves ends the work, who stays is answered as if alone."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1 import generator_service_pb2_grpc as rpc
from gristmill.generator.v1 import prompt_pb2
from gristmill.generator.v1.sampling_params_pb2 import SamplingParams

from services.generator.engine import Engine
from services.generator.generator import Generator, Limits
from services.generator.servicer import GeneratorServicer
from services.inference.manifest import Manifest
from services.runtime.admission import Admission
from services.runtime.admission import Limits as QueueLimits
from services.runtime.server import Service
from tests.engines.rig import CONTEXT, NAMES, ROOT, SEQUENCES, Heard, back, empty, hear, patiently
from tests.harness import Served, reason, serve
from tests.unit.generator.stack import serving

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
    pytest.mark.parametrize("engine", NAMES[1:], indirect=True),
]
STREAMS = 64
KILLED = 16
TOKENS = 32
MOST_GAP = 0.25
"""Of log probability, between the two tokens at the place where two answers part."""


@asynccontextmanager
async def served(engine: Engine, folder: Path, transport: str) -> AsyncIterator[Served]:
    """The engine behind a real server."""
    manifest = Manifest.parse(
        "{schema: gristmill.dev/model/v1, name: parrot, task: generation, engine: vllm,"
        f" files: {{model: m}}, limits: {{max_context_tokens: {CONTEXT}}}}}"
    )
    with ThreadPoolExecutor(2) as threads:
        clock = asyncio.get_running_loop().time
        queue = Admission(QueueLimits(1000, 10**9), clock)
        one = Generator(manifest, engine, queue, threads, Limits(max_running=SEQUENCES))
        models = await serving(one, folder)
        servicer = GeneratorServicer(models)
        service = Service(
            "generator", servicers=[(rpc.add_GeneratorServiceServicer_to_server, servicer)]
        )
        async with serve(service, transport) as found:
            yield found
            await found.idle()
            assert queue.items == 0, "a permit was not returned"


def asking(number: int) -> pb.GenerateStreamRequest:
    """One of the streams: greedy, so that its answer is known."""
    prompt = prompt_pb2.Prompt(text=prompt_pb2.TextPrompt(text=f"Story {number}: once upon a time"))
    params = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True, logprobs=0)
    return pb.GenerateStreamRequest(prompt=prompt, params=params)


async def heard(call: Any, leave_after: int | None = None) -> tuple[list[int], list[float]]:
    """Tokens and their log probabilities, to the end or until one leaves."""
    ids: list[int] = []
    logprobs: list[float] = []
    async for event in call:
        if event.HasField("delta"):
            ids += event.delta.token_ids
            logprobs += [one.logprob for one in event.delta.logprobs]
            if leave_after is not None and len(ids) >= leave_after:
                call.cancel()
                return ids, logprobs
    return ids, logprobs


CLIENT = """
import asyncio, sys, grpc
from gristmill.generator.v1 import generator_service_pb2_grpc as rpc
from tests.engines.test_streams import asking

async def read(stub, number):
    async for event in stub.GenerateStream(asking(number)):
        print(number, flush=True)

async def main(port, count):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = rpc.GeneratorServiceStub(channel)
        await asyncio.gather(*[read(stub, 1000 + n) for n in range(count)])

asyncio.run(main(*map(int, sys.argv[1:])))
"""


async def begun(client: "subprocess.Popen[bytes]", count: int) -> None:
    """Wait until every stream of a client has had something."""

    def read() -> None:
        assert client.stdout is not None
        seen: set[bytes] = set()
        while len(seen) < count:
            line = client.stdout.readline()
            assert line, "the client ended"
            seen.add(line)

    await asyncio.to_thread(read)


_SOLO: dict[str, dict[int, Heard]] = {}


async def solo(engine: Engine) -> dict[int, Heard]:
    """What each stream that stays is answered when nobody else asks."""
    if engine.name not in _SOLO:
        _SOLO[engine.name] = {
            number: await hear(
                engine,
                asking(number).prompt.text.text,
                max_tokens=TOKENS,
                ignore_eos=True,
                logprobs=0,
            )
            for number in range(STREAMS // 2)
        }
    return _SOLO[engine.name]


async def test_half_leave_and_half_are_answered_as_if_alone(
    engine: Engine, transport: str, tmp_path: Path
) -> None:
    rng = random.Random(7)
    stay = range(STREAMS // 2)
    alone = await solo(engine)
    async with served(engine, tmp_path, transport) as one:
        stub = rpc.GeneratorServiceStub(one.channel)
        client = subprocess.Popen(  # noqa: ASYNC220  # it lives beside us
            [sys.executable, "-c", CLIENT, str(one.server.port), str(KILLED)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        try:
            staying = [asyncio.ensure_future(heard(stub.GenerateStream(asking(n)))) for n in stay]
            leaving = [
                asyncio.ensure_future(
                    heard(stub.GenerateStream(asking(n)), rng.randrange(1, TOKENS // 2))
                )
                for n in range(STREAMS // 2, STREAMS - KILLED)
            ]
            await patiently(begun(client, KILLED))
            client.send_signal(signal.SIGKILL)
            await patiently(asyncio.gather(*leaving))
            answers = await patiently(asyncio.gather(*staying))
        finally:
            client.kill()
            client.communicate()
        left_s = await empty(engine)
        assert engine.stats.orphaned_steps == 0
    gaps = []
    for number, (ids, logprobs) in zip(stay, answers, strict=True):
        known = alone[number]
        assert len(ids) == len(known.ids) == TOKENS
        at = next((i for i in range(TOKENS) if ids[i] != known.ids[i]), None)
        if at is not None:
            gaps.append(abs(logprobs[at] - known.logprobs[at]))
    print(
        f"{engine.name} {transport}: {len(gaps)} of {len(stay)} parted from their solo answer,"
        f" widest gap {max(gaps, default=0):.4f}; empty after {left_s * 1000:.0f} ms"
    )
    assert max(gaps, default=0) < MOST_GAP


async def test_a_killed_engine_fails_what_it_had_and_comes_back(
    engine: Engine, tmp_path: Path
) -> None:
    async with served(engine, tmp_path, "auto") as one:
        stub = rpc.GeneratorServiceStub(one.channel)
        calls = [stub.GenerateStream(asking(n)) for n in range(4)]
        for call in calls:
            async for event in call:
                if event.HasField("delta"):
                    break
        pid = engine.pid  # type: ignore[attr-defined]  # it is a process
        os.kill(pid, signal.SIGKILL)
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await patiently(heard(call))
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            assert reason(failed.value) == "ENGINE_RESTARTING"
        await patiently(back(engine), 200)
        assert engine.pid != pid  # type: ignore[attr-defined]
        ids, _ = await patiently(heard(stub.GenerateStream(asking(1))))
        assert len(ids) == TOKENS

"""An engine with no server: what `bench.generator` holds ours against. Run as a script, by the
Python that the engine is installed for:

    python -P bench/generator_bare.py openvino|vllm MODEL

Reads jobs from standard input, one JSON object a line ({"prompts": [[...]], "callers": n, "tokens":
n}), and prints what each gave: tokens, seconds and times to the first token, in milliseconds.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

Job = dict[str, Any]
KV_GIB = 1
SEQUENCES = 64


def quantile(values: list[float], share: float) -> float:
    """Of seconds, in milliseconds."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1000


def report(tokens: int, seconds: float, firsts: list[float]) -> None:
    """One line."""
    found = {"first_p50_ms": quantile(firsts, 0.5), "first_p99_ms": quantile(firsts, 0.99)}
    sys.stdout.write(json.dumps({"tokens": tokens, "seconds": seconds, **found}) + "\n")
    sys.stdout.flush()


def openvino(model: str) -> None:
    """The pipeline in a loop: as many prompts as there are callers, each followed by another."""
    import numpy as np
    import openvino
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_seqs = KV_GIB, SEQUENCES
    scheduler.max_num_batched_tokens = 512
    scheduler.enable_prefix_caching = scheduler.dynamic_split_fuse = True
    pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    number = 0
    for line in sys.stdin:
        job: Job = json.loads(line)
        config = genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.ignore_eos = job["tokens"], False, True
        left = list(job["prompts"])
        running: dict[int, tuple[Any, float, bool]] = {}
        tokens = 0
        firsts: list[float] = []
        started = time.perf_counter()
        while left or running:
            while left and len(running) < job["callers"]:
                number += 1
                ids = openvino.Tensor(np.array([left.pop(0)], dtype=np.int64))
                handle = pipeline.add_request(number, ids, config)
                running[number] = (handle, time.perf_counter(), False)
            pipeline.step()
            for key, (handle, sent, heard) in list(running.items()):
                while handle.can_read():
                    for output in handle.read().values():
                        tokens += len(output.generated_ids)
                        if output.finish_reason != genai.GenerationFinishReason.NONE:
                            running.pop(key, None)
                    if not heard:
                        heard = True
                        firsts.append(time.perf_counter() - sent)
                        if key in running:
                            running[key] = (handle, sent, True)
        report(tokens, time.perf_counter() - started, firsts)


async def vllm(model: str) -> None:
    """AsyncLLM with a task for each caller."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=model,
            dtype="float32",
            enforce_eager=True,
            max_num_seqs=SEQUENCES,
            max_num_batched_tokens=2048,
            max_model_len=2048,
            enable_prefix_caching=True,
        )
    )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    number = 0

    async def answer(job: Job) -> tuple[int, list[float]]:
        nonlocal number
        left, tokens = list(job["prompts"]), 0
        firsts: list[float] = []
        params = SamplingParams(
            max_tokens=job["tokens"],
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

        async def call_on() -> None:
            nonlocal number, tokens
            while left:
                prompt: Any = {"prompt_token_ids": left.pop(0)}
                number += 1
                sent, heard = time.perf_counter(), False
                async for output in engine.generate(prompt, params, str(number)):
                    tokens += len(output.outputs[0].token_ids)
                    if not heard:
                        heard = True
                        firsts.append(time.perf_counter() - sent)

        await asyncio.gather(*[call_on() for _ in range(job["callers"])])
        return tokens, firsts

    for line in sys.stdin:
        started = time.perf_counter()
        tokens, firsts = await answer(json.loads(line))
        report(tokens, time.perf_counter() - started, firsts)
    engine.shutdown()


if __name__ == "__main__":
    if sys.argv[1] == "openvino":
        openvino(sys.argv[2])
    else:
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(KV_GIB))
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        asyncio.run(vllm(sys.argv[2]))

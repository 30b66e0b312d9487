"""The process that owns a vLLM engine. Run by the Python that vLLM is installed for, as a script:
it imports nothing of Gristmill, whose environment need not be there.

What it says and hears over its socket is described in `process.py`. The model itself runs in
children of this process, as vLLM likes it.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections import deque
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase

Command = dict[str, Any]
STEPS_TO_ABORT = 2
"""Steps that the engine may have scheduled before it hears of an abort."""


class Figures:
    """What the engine said of itself after its last step."""

    def __init__(self) -> None:
        self.running = self.waiting = self.steps = self.orphaned = 0
        self.cache = 0.0
        self.held = 0
        """Prompts that somebody waits for."""
        self._aborted: deque[int] = deque([0] * STEPS_TO_ABORT, STEPS_TO_ABORT)

    def abort(self) -> None:
        """One that nobody waits for any more."""
        self._aborted[-1] += 1

    def step(self, stats: Any) -> None:
        """One step was made."""
        self.steps += 1
        self.running, self.waiting = stats.num_running_reqs, stats.num_waiting_reqs
        self.cache = stats.kv_cache_usage
        if self.running + self.waiting > self.held + sum(self._aborted):
            self.orphaned += 1
        self._aborted.append(0)


class Worker:
    """One engine and the prompts in it."""

    def __init__(self, engine: AsyncLLM, figures: Figures, writer: asyncio.StreamWriter) -> None:
        self._engine = engine
        self._figures = figures
        self._writer = writer
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._out: list[list[Any]] = []
        self._due = False
        self._lora = LoRARequest("adapter", 1, lora) if (lora := engine_lora()) else None

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Obey until the other side goes."""
        while line := await reader.readline():
            command: Command = json.loads(line)
            if "abort" in command:
                task = self._tasks.get(command["abort"])
                if task is not None:
                    self._figures.abort()
                    task.cancel()
            else:
                task = asyncio.create_task(self._follow(command))
                self._tasks[command["add"]] = task

    async def _follow(self, command: Command) -> None:
        """One prompt to its end."""
        key = command["add"]
        self._figures.held += 1
        try:
            params = sampling_params(command["sampling"])
            prompt: Any = {"prompt_token_ids": command["ids"]}
            async for output in self._engine.generate(
                prompt, params, str(key), lora_request=self._lora
            ):
                self._put(key, output)
        except EngineDeadError:
            end(70)
        except (VLLMClientError, ValueError) as error:
            self.write({"refused": key, "why": " ".join(str(error).split())[:300]})
        except Exception as error:
            self.write({"failed": key, "why": f"{type(error).__name__}: {error.__cause__}"})
            sys.stderr.write(f"prompt failed: {error!r}: {error.__cause__!r}\n")
        finally:
            self._figures.held -= 1
            self._tasks.pop(key, None)

    async def trial(self) -> None:
        """Prompts of the kinds that vLLM compiles something for when it first sees them."""
        for more in (
            {},
            {"logprobs": 2},
            {"temperature": 1.0, "top_p": 0.9, "top_k": 5, "seed": 1},
        ):
            params = SamplingParams(max_tokens=2, detokenize=False, **{"temperature": 0.0, **more})
            prompt: Any = {"prompt_token_ids": [1] * 16}
            async for _ in self._engine.generate(prompt, params, f"trial-{len(more)}"):
                pass
        self._figures.orphaned = 0  # these are nobody's

    def _put(self, key: int, output: Any) -> None:
        (one,) = output.outputs
        ids = list(one.token_ids)
        chosen, top = [], []
        for token, found in zip(ids, one.logprobs or (), strict=False):
            chosen.append(found[token].logprob)
            best = sorted(found.items(), key=lambda item: item[1].rank)
            top.append([(each, value.logprob) for each, value in best])
        finish = {None: None, "length": "length"}.get(one.finish_reason, "stop")
        cached = output.num_cached_tokens or 0
        self._out.append([key, ids, chosen, finish, top, cached])
        if not self._due:
            # What a step gives comes in one turn of the loop, and goes out in one line.
            self._due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._due = False
        out, self._out = self._out, []
        said = self._figures
        stats = [said.running, said.cache, said.steps, said.orphaned, said.waiting]
        self.write({"out": out, "stats": stats})

    def tell(self) -> None:
        """The figures alone: when the last prompt goes, no output says so."""
        self._flush()

    def write(self, message: dict[str, Any]) -> None:
        """One line."""
        self._writer.write(json.dumps(message).encode() + b"\n")


def sampling_params(given: dict[str, Any]) -> SamplingParams:
    """vLLM's own parameters."""
    names = ("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty")
    more = {name: given[name] for name in (*names, "repetition_penalty") if given[name] is not None}
    constraint = given["constraint"]
    return SamplingParams(
        max_tokens=given["max_tokens"],
        temperature=given["temperature"],
        stop_token_ids=list(given["stop_token_ids"]) or None,
        seed=given["seed"] if given["temperature"] > 0 else None,
        logprobs=given["logprobs"],
        logit_bias=dict(given["logit_bias"]) or None,
        ignore_eos=given["ignore_eos"],
        structured_outputs=constraint_in(constraint) if constraint else None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        **more,
    )


def constraint_in(given: dict[str, Any]) -> StructuredOutputsParams:
    """The same for a constraint."""
    if given["kind"] == "json_schema":
        return StructuredOutputsParams(json=given["value"])
    if given["kind"] == "regex":
        return StructuredOutputsParams(regex=given["value"])
    if given["kind"] == "choices":
        return StructuredOutputsParams(choice=list(given["choices"]))
    return StructuredOutputsParams(json_object=True)


def engine_lora() -> str:
    """The folder of the adapter that every prompt goes through; empty: there is none."""
    return str(json.loads(sys.argv[3])["extra"].get("lora_adapter") or "")


def engine_args(model: str, settings: dict[str, Any]) -> AsyncEngineArgs:
    """vLLM's own arguments."""
    extra = {name: value for name, value in settings["extra"].items() if value is not None}
    lora = extra.pop("lora_adapter", None)
    if current_platform.is_cpu():
        # Compiling takes 20 s when the first prompt needs it, and gains nothing on a processor.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        extra.setdefault("dtype", "float32")
        extra.setdefault("enforce_eager", True)
        extra.pop("gpu_memory_utilization", None)
    if lora:
        extra["enable_lora"] = True
    if settings["max_context_tokens"]:
        extra["max_model_len"] = settings["max_context_tokens"]
    return AsyncEngineArgs(
        model=model,
        max_num_seqs=settings["max_num_seqs"],
        max_num_batched_tokens=max(settings["max_num_batched_tokens"], 512),
        enable_prefix_caching=True,
        enable_chunked_prefill=True,
        max_logprobs=20,
        disable_log_stats=False,
        **extra,
    )


def end(code: int) -> None:
    """End this process and the children that run the model."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    os._exit(code)


async def run(connection: socket.socket, model: str, settings: dict[str, Any]) -> None:
    """Serve until the other side goes."""
    reader, writer = await asyncio.open_connection(sock=connection, limit=64 * 2**20)
    figures = Figures()
    worker: list[Worker] = []

    class Logger(StatLoggerBase):  # type: ignore[misc]  # untyped here
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            if scheduler_stats is not None:
                figures.step(scheduler_stats)
                if not figures.running and worker:
                    worker[0].tell()

        def log_engine_initialized(self) -> None:
            pass

    engine = AsyncLLM.from_engine_args(engine_args(model, settings), stat_loggers=[Logger])
    cache = engine.vllm_config.cache_config
    worker.append(Worker(engine, figures, writer))
    await worker[0].trial()
    capacity = (cache.num_gpu_blocks or 0) * (cache.block_size or 0)
    device = current_platform.device_type
    worker[0].write({"ready": {"device": device, "capacity_tokens": capacity}})
    await worker[0].serve(reader)


def main() -> None:
    """`python -P vllm_worker.py FD MODEL SETTINGS`."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    asyncio.run(run(connection, sys.argv[2], json.loads(sys.argv[3])))
    end(0)


if __name__ == "__main__":
    main()

"""The process that owns an OpenVINO GenAI pipeline: commands in, tokens out, one step at a time.

It is a process because a step holds the interpreter's lock from beginning to end. What it says and
hears over its socket is described in `process.py`.
"""

import json
import os
import select
import socket
import sys
from typing import Any, BinaryIO

import numpy as np
import openvino
import openvino_genai as genai

FINISH = {
    genai.GenerationFinishReason.STOP: "stop",
    genai.GenerationFinishReason.LENGTH: "length",
}
Command = dict[str, Any]
TRIAL_TOKENS = 319
"""With the one that it gives they fill blocks of the cache of any common size."""


class Worker:
    """One pipeline and the prompts in it."""

    def __init__(self, pipeline: Any, out: BinaryIO) -> None:
        self._pipeline = pipeline
        self._out = out
        self._handles: dict[int, Any] = {}
        self._unproven: set[int] = set()
        """Prompts whose constraint no step has seen yet."""
        self._steps = 0
        self._orphaned = 0
        self._aborted = 0

    def serve(self, commands: "Commands") -> None:
        """Step while there is work, wait while there is none."""
        while True:
            idle = not self._pipeline.has_non_finished_requests()
            for command in commands.read(wait=idle):
                self._obey(command)
            self._step()

    def trial(self) -> int:
        """One prompt, so that all is warm: how many tokens the cache holds."""
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = 2, True, False
        prompt = openvino.Tensor(np.ones((1, TRIAL_TOKENS), dtype=np.int64))
        self._pipeline.add_request(0, prompt, config)
        percent = 0.0
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            percent = max(percent, float(self._pipeline.get_metrics().cache_usage))
        return int((TRIAL_TOKENS + 1) * 100 / percent) if percent > 0 else 0

    def _obey(self, command: Command) -> None:
        if "abort" in command:
            handle = self._handles.pop(command["abort"], None)
            self._unproven.discard(command["abort"])
            if handle is not None:
                handle.cancel()
                self._aborted += 1
            return
        prompt = openvino.Tensor(np.array([command["ids"]], dtype=np.int64))
        try:
            handle = self._pipeline.add_request(
                command["add"], prompt, _config(command["sampling"])
            )
        except RuntimeError as error:
            self.write({"refused": command["add"], "why": str(error)})
        else:
            self._handles[command["add"]] = handle
            if command["sampling"]["constraint"]:
                self._unproven.add(command["add"])

    def _step(self) -> None:
        if not self._pipeline.has_non_finished_requests():
            return
        try:
            self._pipeline.step()
        except RuntimeError as error:
            if not self._unproven:
                raise  # the process ends, and another takes its place
            self._drop_unproven(error)
            if self._handles:
                raise  # with others in it the pipeline cannot go on
            return
        self._unproven.clear()
        self._steps += 1
        out = [item for key in list(self._handles) if (item := self._read(key))]
        metrics = self._pipeline.get_metrics()
        held = int(metrics.requests)
        # The pipeline counts a prompt until the step that sees its end, so that one is no orphan.
        if held > len(self._handles) + self._aborted + len(out):
            self._orphaned += 1
        self._aborted = 0
        usage = float(metrics.cache_usage) / 100
        stats = [len(self._handles), usage, self._steps, self._orphaned, 0]
        self.write({"out": out, "stats": stats})

    def _drop_unproven(self, error: Exception) -> None:
        """A step fails for a constraint that the engine cannot follow, and says so only then."""
        for key in self._unproven:
            self._handles.pop(key).cancel()
            self._aborted += 1
            self.write({"refused": key, "why": str(error)})
        self._unproven.clear()

    def _read(self, key: int) -> list[Any] | None:
        handle = self._handles[key]
        ids: list[int] = []
        logprobs: list[float] = []
        finish: str | None = None
        while handle.can_read():
            for output in handle.read().values():
                ids += output.generated_ids
                logprobs += output.generated_log_probs
                finish = FINISH.get(output.finish_reason, finish)
        status = handle.get_status()
        if finish is None and status == genai.GenerationStatus.IGNORED:
            del self._handles[key]
            self.write({"refused": key, "why": "the key-value cache cannot hold it even alone"})
            return None
        if finish is not None:
            del self._handles[key]
        return [key, ids, logprobs, finish, [], 0] if ids or finish else None

    def write(self, message: dict[str, Any]) -> None:
        self._out.write(json.dumps(message).encode() + b"\n")
        self._out.flush()


def _config(sampling: dict[str, Any]) -> Any:
    config = genai.GenerationConfig()
    config.max_new_tokens = sampling["max_tokens"]
    config.do_sample = sampling["temperature"] > 0
    if config.do_sample:
        config.temperature = sampling["temperature"]
        config.top_p = sampling["top_p"] if sampling["top_p"] is not None else 1.0
        if sampling["top_k"] is not None:
            config.top_k = sampling["top_k"]
        if sampling["min_p"]:
            config.min_p = sampling["min_p"]
    for name in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        if sampling[name] is not None:
            setattr(config, name, sampling[name])
    if sampling["seed"] is not None:
        config.rng_seed = sampling["seed"]
    if sampling["stop_token_ids"]:
        config.stop_token_ids = set(sampling["stop_token_ids"])
    config.logprobs = 0 if sampling["logprobs"] is None else 1
    config.ignore_eos = sampling["ignore_eos"]
    if sampling["constraint"]:
        config.structured_output_config = _constraint(sampling["constraint"])
    return config


def _constraint(given: dict[str, Any]) -> Any:
    config = genai.StructuredOutputConfig()
    if given["kind"] == "json_schema":
        config.json_schema = given["value"]
    elif given["kind"] == "json_object":
        config.json_schema = '{"type": "object"}'
    elif given["kind"] == "regex":
        config.regex = given["value"]
    else:
        # A text in JSON's form is one in the grammar's form too.
        config.grammar = "root ::= " + " | ".join(
            json.dumps(choice, ensure_ascii=False) for choice in given["choices"]
        )
    return config


class Commands:
    """What the other side asks for, read between steps by the thread that makes them: while a step
    runs no other thread could, and between two it would get no turn."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._partial = b""

    def read(self, *, wait: bool) -> list[Command]:
        """The commands that have come; waits for one where told to."""
        received = self._partial
        while wait or select.select([self._connection], [], [], 0)[0]:
            wait = False
            piece = self._connection.recv(1 << 20)
            if not piece:
                os._exit(0)  # nobody is left to read the answers
            received += piece
        *lines, self._partial = received.split(b"\n")
        return [json.loads(line) for line in lines]


def main() -> None:
    """`python -m services.generator.engines.openvino_worker FD MODEL SETTINGS`."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    settings = json.loads(sys.argv[3])
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = max(1, round(settings["kv_cache_gib"]))
    scheduler.max_num_seqs = settings["max_num_seqs"]
    scheduler.max_num_batched_tokens = settings["max_num_batched_tokens"]
    scheduler.enable_prefix_caching = True
    scheduler.dynamic_split_fuse = True
    pipeline = genai.ContinuousBatchingPipeline(sys.argv[2], scheduler, "CPU")
    out = connection.makefile("wb")
    worker = Worker(pipeline, out)
    worker.write({"ready": {"device": "cpu", "capacity_tokens": worker.trial()}})
    worker.serve(Commands(connection))


if __name__ == "__main__":
    main()

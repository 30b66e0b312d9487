"""The gateway against what is around it, in one run.

    python -m bench.gateway [--part requests|first] [--calls 12000] [--rounds 5]

1. requests: four numbers to three classes, over REST against a bare FastAPI route that does
   nothing, the route that one would write by hand, and the same call over gRPC.
2. first: the time to the first token over gRPC and through the gateway, which take turns.
"""

import argparse
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from statistics import median

from bench.classifier import HEAD, row
from bench.gateway_server import PATH
from bench.generator import model_of, over, prompts
from bench.measuring import Figures, Process, h2load, need, quiet, request
from services.generator.engines.openvino import OpenVinoTokenizer

CALLERS = (1, 16, 64)
NOWHERE = "127.0.0.1:1"
BODY = {
    "model": {"model": "iris"},
    "items": [{"floatFeatures": {"values": [5.1, 3.5, 1.4, 0.2]}}],
    "options": {"noCache": True},
}


@contextmanager
def gateway(classifier: str = NOWHERE, generator: str = NOWHERE) -> Iterator[tuple[str, int]]:
    """Ours, as it comes; where it listens, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "gateway", f"--port={port}", "--admin-port=-1"),
        *(f"--classifier={classifier}", f"--generator={generator}", f"--registry={NOWHERE}"),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(f"http://127.0.0.1:{port}/health/live")
            yield f"127.0.0.1:{port}", process.pid
        finally:
            process.terminate()


@contextmanager
def other(kind: str, target: str) -> Iterator[tuple[str, int]]:
    """A server of `bench.gateway_server`."""
    command = [sys.executable, "-m", "bench.gateway_server", kind, target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None:
            raise RuntimeError("no pipe")
        address = f"127.0.0.1:{process.stdout.readline().strip()}"
        try:
            _wait(f"http://{address}/openapi.json")
            yield address, process.pid
        finally:
            process.terminate()


def _wait(url: str) -> None:
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        with suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310  # our own
            return
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer")


def rest(address: str, pid: int, calls: int, callers: int) -> Figures:
    """Equal requests over HTTP/1.1, a connection for each caller."""
    words = ["--h1", "-c", str(callers), "-H", "content-type: application/json"]
    body = json.dumps(BODY).encode()
    return h2load([*words, f"http://{address}{PATH}"], body, calls, pid)


def requests(calls: int) -> None:
    """What HTTP and JSON cost beside the call itself."""
    message = request("iris")
    with ExitStack() as stack:
        classifier = Process("ours", "native", "iris")
        stack.callback(classifier.stop)
        servers = {
            "bare FastAPI, no-op": stack.enter_context(other("noop", NOWHERE)),
            "written by hand": stack.enter_context(other("hand", classifier.target)),
            "ours": stack.enter_context(gateway(classifier.target)),
        }
        print(f"\nrequests: one item each, load {quiet():.1f} before\n{HEAD}")
        for callers in CALLERS:
            count = max(500, calls * callers // 64)
            found = {}
            for name, (address, pid) in servers.items():
                rest(address, pid, count // 4, callers)
                found[name] = rest(address, pid, count, callers)
                row(f"{name}, {callers} callers", found[name])
            classifier.h2load(message, count, callers)
            direct = classifier.h2load(message, count, callers)
            row(f"gRPC, {callers} callers", direct)
            compared(found, direct)


def compared(found: dict[str, Figures], direct: Figures) -> None:
    """Print ours as shares of the others."""
    ours = found.pop("ours")
    shares = [f"{ours.calls_per_s / one.calls_per_s:.2f} of {name}" for name, one in found.items()]
    shares.append(f"{ours.calls_per_s / direct.calls_per_s:.2f} of gRPC")
    later = f"p50 {ours.p50_ms - direct.p50_ms:+.2f}, p99 {ours.p99_ms - direct.p99_ms:+.2f} ms"
    print(f"{'':6}calls: {', '.join(shares)}; {later} to gRPC")


def first(rounds: int) -> None:
    """What the gateway adds before the first token."""
    model = model_of("openvino")
    tokenizer = OpenVinoTokenizer(model)
    command = [sys.executable, "-m", "bench.generator_server", "openvino", "native", str(model)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        if server.stdout is None:
            raise RuntimeError("no pipe")
        port, _ = server.stdout.readline().split()
        target = f"127.0.0.1:{port}"
        try:
            with gateway(generator=target) as (address, pid):
                direct = over("grpc", target, server.pid)
                through = over("http", address, pid, "m")
                print(
                    f"\nfirst token, in ms: medians of {rounds} rounds, load {quiet():.1f} before"
                )
                for streams in (1, 8):
                    both: list[tuple[float, float, float]] = []
                    for number in range(rounds):
                        given = prompts(tokenizer, 4 * streams, 100 * streams + number)
                        # Each has its own prompts: what was read once is read faster.
                        again = prompts(tokenizer, 4 * streams, 5000 + 100 * streams + number)
                        one, two = direct(given, streams), through(again, streams)
                        both.append((one.p50_ms, two.p50_ms, two.cpu_ms or 0.0))
                    grpc_ms, http_ms = median(b[0] for b in both), median(b[1] for b in both)
                    added = median(b[1] - b[0] for b in both)
                    cpu_ms = median(b[2] for b in both)
                    print(
                        f"  {streams} streams: gRPC {grpc_ms:.2f}, through the gateway "
                        f"{http_ms:.2f}, added {added:+.2f}; {cpu_ms:.3f} ms of its CPU a token"
                    )
        finally:
            server.terminate()


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", choices=("requests", "first"))
    parser.add_argument("--calls", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    need()
    if options.part != "first":
        requests(options.calls)
    if options.part != "requests":
        first(options.rounds)


if __name__ == "__main__":
    main()

"""What the server adds to a call: bare no-op against ours on a trivial backend, on each transport.

    python -m bench.overhead [--calls 40000] [--callers 64]

Needs h2load (Debian's nghttp2-client): a load generator in Python would be the bottleneck.
"""

import argparse
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import grpc
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import classifier_service_pb2_grpc as rpc
from gristmill.classifier.v1 import item_pb2

METHOD = "/gristmill.classifier.v1.ClassifierService/Classify"
REQUEST = pb.ClassifyRequest(
    items=[item_pb2.Item(float_features=item_pb2.FloatFeatures(values=[7, 1, 2, 3]))]
)
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Figures:
    """One measured server."""

    calls_per_s: float
    cpu_ms: float
    one_caller_ms: float


class Bench:
    """A server process, measured from outside."""

    def __init__(self, mode: str, transport: str, profiled: int = 0) -> None:
        command = [sys.executable, "-m", "bench.overhead_server", mode, transport, str(profiled)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if self._process.stdout is None:
            raise RuntimeError("no standard output")
        self._out = self._process.stdout
        try:
            self.port = int(self._out.readline())
            self._check(mode)
        except BaseException:
            self._process.kill()
            raise

    def _check(self, mode: str) -> None:
        """One real call, so that what is measured is an answer and not an error."""
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            answer = rpc.ClassifierServiceStub(channel).Classify(REQUEST)
        if mode == "ours" and answer.results[0].classification.labels[0].label != "versicolor":
            raise RuntimeError(f"unexpected answer: {answer}")

    def load(self, calls: int, callers: int, body: Path) -> tuple[float, float, float]:
        """Calls a second, CPU milliseconds a call of the server, mean latency in milliseconds."""
        before = self._cpu_s()
        connections = min(8, callers)
        # Fixed words and numbers of our own.
        result = subprocess.run(
            [
                *("h2load", "-n", str(calls), "-c", str(connections)),
                *("-m", str(callers // connections), "-t", "1", "-d", str(body)),
                *("-H", "content-type: application/grpc", "-H", "te: trailers"),
                f"http://127.0.0.1:{self.port}{METHOD}",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        spent = self._cpu_s() - before
        succeeded = int(_find(r"(\d+) succeeded", result))
        if succeeded != calls:
            raise RuntimeError(f"{calls - succeeded} calls failed:\n{result}")
        rate = float(_find(r"finished in [^,]+, ([\d.]+) req/s", result))
        return rate, spent / calls * 1000, callers / rate * 1000

    def stop(self) -> str:
        """End it; returns what it printed last."""
        self._process.terminate()
        said = self._out.read()
        self._process.wait(30)
        return said

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


def measure(mode: str, transport: str, calls: int, callers: int, body: Path) -> Figures:
    """One server under load, after a warm-up."""
    bench = Bench(mode, transport)
    try:
        bench.load(max(callers, calls // 10), callers, body)
        rate, cpu_ms, _ = bench.load(calls, callers, body)
        _, _, alone_ms = bench.load(max(1, calls // 20), 1, body)
    finally:
        bench.stop()
    return Figures(rate, cpu_ms, alone_ms)


def profile(transport: str, calls: int, callers: int, body: Path) -> list[list[object]]:
    """Where the time of one call goes in our own server's event loop."""
    bench = Bench("ours", transport, calls)
    bench.load(calls, callers, body)
    found: list[list[object]] = json.loads(bench.stop().strip().splitlines()[-1])
    return found


def report(transport: str, calls: int, callers: int, body: Path) -> None:
    """Print one transport."""
    bare = measure("bare", transport, calls, callers, body)
    ours = measure("ours", transport, calls, callers, body)
    print(f"\n{transport}, {callers} callers, {calls} calls")
    print(f"{'':24}{'bare no-op':>14}{'ours':>14}{'ratio':>8}")
    for name, a, b in (
        ("calls/s", bare.calls_per_s, ours.calls_per_s),
        ("server CPU ms/call", bare.cpu_ms, ours.cpu_ms),
        ("one caller, mean ms", bare.one_caller_ms, ours.one_caller_ms),
    ):
        print(f"{name:24}{a:14.3f}{b:14.3f}{b / a:8.2f}")
    print("where ours goes (profiled, so slower): own us/call, times/call, function")
    for own, times, where in profile(transport, max(callers, calls // 10), callers, body):
        print(f"{own:10.1f}{times:8.2f}  {where}")


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"h2load printed something else:\n{text}")
    return found[1]


def main() -> None:
    """Run on both transports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=40_000)
    parser.add_argument("--callers", type=int, default=64)
    options = parser.parse_args()
    if shutil.which("h2load") is None:
        sys.exit("bench.overhead needs h2load: apt-get install nghttp2-client")
    message = REQUEST.SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        body.write_bytes(b"\0" + struct.pack(">I", len(message)) + message)
        for transport in ("grpcio", "native"):
            report(transport, options.calls, options.callers, body)


if __name__ == "__main__":
    main()

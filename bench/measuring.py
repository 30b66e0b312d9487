"""A server process measured from outside, and the two load generators; knows no benchmark.

h2load (Debian's nghttp2-client) for calls that are all alike, since it costs next to nothing;
bench/load, in Go, where items differ or the call is a bidi stream.
"""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import item_pb2, options_pb2
from gristmill.registry.v1 import model_pb2

METHOD = "/gristmill.classifier.v1.ClassifierService/Classify"
TICKS = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Figures:
    """One load: calls and items a second, CPU of the server for 1,000 calls, latencies."""

    calls_per_s: float
    items_per_s: float
    cpu_s_per_1000: float
    p50_ms: float
    p99_ms: float


def request(model: str, count: int = 1, text: str = "") -> bytes:
    """A message of equal items: a text, or the four numbers of a flower."""
    item = (
        item_pb2.Item(text=item_pb2.Text(text=text))
        if text
        else item_pb2.Item(float_features=item_pb2.FloatFeatures(values=[5.1, 3.5, 1.4, 0.2]))
    )
    return pb.ClassifyRequest(
        model=model_pb2.ModelRef(model=model),
        items=[item] * count,
        # What is measured is the model, not the cache.
        options=options_pb2.ClassifyOptions(no_cache=True),
    ).SerializeToString()


class Process:
    """A server of `bench.classifier_server`."""

    def __init__(self, mode: str, transport: str, model: str, profiled: int = 0) -> None:
        command = [sys.executable, "-m", "bench.classifier_server", mode, transport, model]
        command.append(str(profiled))
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if self._process.stdout is None:
            raise RuntimeError("no standard output")
        self._out = self._process.stdout
        port, self._admin = self._out.readline().split()
        self.target = f"127.0.0.1:{port}"

    def h2load(self, message: bytes, calls: int, callers: int) -> Figures:
        """Equal calls, as fast as `callers` at once can make them."""
        connections = min(8, callers)
        words = [
            *("-c", str(connections), "-m", str(callers // connections)),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
            f"http://{self.target}{METHOD}",
        ]
        body = b"\0" + struct.pack(">I", len(message)) + message
        return h2load(words, body, calls, self._process.pid)

    def load(
        self,
        model: str,
        calls: int,
        callers: int,
        *,
        items: int = 1,
        kind: str = "unary",
        ahead: int = 1,
        texts: Path | None = None,
    ) -> Figures:
        """Calls, or messages of bidi streams, whose items are those of a file in turn."""
        command = [
            *(str(load_generator()), "-target", self.target, "-model", model, "-kind", kind),
            *("-calls", str(calls), "-callers", str(callers), "-items", str(items)),
            *("-ahead", str(ahead)),
        ]
        if texts:
            command += ["-texts", str(texts)]
        before = self.cpu_s()
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        spent = self.cpu_s() - before
        found = json.loads(said)
        if found["failed"] or found["messages"] != calls:
            raise RuntimeError(f"calls failed: {found}")
        seconds = found["seconds"]
        return Figures(
            calls / seconds,
            found["items"] / seconds,
            spent / calls * 1000,
            found["p50_ms"],
            found["p99_ms"],
        )

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        url = f"http://127.0.0.1:{self._admin}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            lines = response.read().decode().splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[ {{]", line)
        )

    def cpu_s(self) -> float:
        """CPU seconds of the process so far."""
        return cpu_s(self._process.pid)

    def stop(self) -> str:
        """End it; returns what it printed last."""
        self._process.terminate()
        said = self._out.read()
        self._process.wait(30)
        return said


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def h2load(words: Sequence[str], content: bytes, calls: int, pid: int) -> Figures:
    """Equal requests to a process, in these words; RuntimeError where one fails."""
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(content)
        command = ["h2load", "-n", str(calls), "-t", "1", "-d", str(body), f"--log-file={log}"]
        before = cpu_s(pid)
        said = subprocess.run([*command, *words], capture_output=True, text=True, check=True).stdout
        spent = cpu_s(pid) - before
        times = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
    succeeded = re.search(r"(\d+) succeeded", said)
    rate = re.search(r"finished in [^,]+, ([\d.]+) req/s", said)
    if not succeeded or not rate or int(succeeded[1]) != calls:
        raise RuntimeError(f"calls failed:\n{said}")
    p50, p99 = times[len(times) // 2] / 1000, times[int(len(times) * 0.99)] / 1000
    per_s = float(rate[1])
    return Figures(per_s, per_s, spent / calls * 1000, p50, p99)


def load_generator() -> Path:
    """The program of bench/load, built when it is not there or older than its source."""
    source, program = ROOT / "bench" / "load" / "main.go", ROOT / ".tools" / "bin" / "load"
    if not program.is_file() or program.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["go", "build", "-o", str(program), "./bench/load"], cwd=ROOT, check=True)
    return program


def need() -> None:
    """Say what is missing."""
    for name, package in (("h2load", "nghttp2-client"), ("go", "Go 1.26")):
        if shutil.which(name) is None:
            sys.exit(f"this benchmark needs {name} ({package})")


def quiet() -> float:
    """The load of the machine before a run: figures of a busy one say little."""
    time.sleep(1.0)  # let what ran before leave
    return os.getloadavg()[0]

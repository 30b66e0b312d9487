"""Runs one job in a confined process of its own: words in, progress and a result out.

Knows neither the registry nor what the job does. The child is started by `subprocess`, in a thread:
a fork of the event loop's process would run gRPC's fork handlers.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from services.registry.worker.confine import Limits
from services.registry.worker.folders import OUT, TEMPORARY
from services.runtime import logs
from services.runtime.errors import FailedPrecondition, InvalidRequest

OnProgress = Callable[[float, str], None]
MODULE = "services.registry.worker.child"
MOST_LINE = 16 * 2**20
_KEPT_LOG = 4000
_END_S = 1.0
"""For a child that has said its last word, to end."""
_PASSED = (
    *("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH"),
    *("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
)
"""Of the environment: nothing that could hold a secret, and nothing that points to a service."""
_KINDS = {"InvalidRequest": InvalidRequest, "FailedPrecondition": FailedPrecondition}


class ChildLost(Exception):
    """The child ended without a result: killed for what it used, or crashed."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """How children are started."""

    limits: Limits = field(default_factory=Limits)
    wall_s: float = 3600.0
    python: str = sys.executable

    async def run(self, job: dict[str, Any], folder: Path, on_progress: OnProgress) -> Any:
        """The result of `job` over the files in `folder`; a domain error as the child raised it."""
        stop = threading.Event()
        loop = asyncio.get_running_loop()

        def said(progress: float, message: str) -> None:
            loop.call_soon_threadsafe(on_progress, progress, message)

        running = asyncio.ensure_future(asyncio.to_thread(self._run, job, folder, said, stop))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            # Not before it is gone: its folder is about to be removed.
            await asyncio.gather(running, return_exceptions=True)
            raise

    def _run(
        self, job: dict[str, Any], folder: Path, on_progress: OnProgress, stop: threading.Event
    ) -> Any:
        environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        for name in (OUT, TEMPORARY):
            (folder / name).mkdir(exist_ok=True)
        environment |= dict.fromkeys(("HOME", "TMPDIR"), str(folder / TEMPORARY))
        with (folder / "child.log").open("w+b") as log:
            process = subprocess.Popen(  # noqa: S603  # our own module, by our own interpreter
                [self.python, "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
            watch = threading.Thread(target=self._watch, args=(process, stop), daemon=True)
            watch.start()
            try:
                found = self._converse(process, job | {"folder": str(folder)}, on_progress)
            finally:
                # One that ends by itself has a status of its own, which says more.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_END_S)
                stop.set()
                watch.join()
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe:
                        pipe.close()
            if found is None:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _KEPT_LOG))
                text = log.read().decode(errors="replace")
                logs.get_logger().error("a child was lost", status=process.returncode, log=text)
                raise ChildLost(_why(process.returncode))
        return _result(found)

    def _watch(self, process: "subprocess.Popen[bytes]", stop: threading.Event) -> None:
        """End the child when its time is up, or when nobody wants it any more."""
        if not stop.wait(self.wall_s):
            logs.get_logger().warning("a child used up its time", limit_s=self.wall_s)
        process.kill()

    def _converse(
        self, process: "subprocess.Popen[bytes]", job: dict[str, Any], on_progress: OnProgress
    ) -> dict[str, Any] | None:
        """Hand the job over and listen; None when the child ended without a result."""
        assert process.stdin is not None  # noqa: S101  # asked for above
        assert process.stdout is not None  # noqa: S101
        spec = job | {"limits": asdict(self.limits)}
        try:
            process.stdin.write(json.dumps(spec).encode() + b"\n")
            # Left open: its end tells the child that nobody waits for it any more.
            process.stdin.flush()
        except BrokenPipeError:
            return None
        while line := process.stdout.readline(MOST_LINE):
            try:
                said = json.loads(line)
            except ValueError:
                return None
            if not isinstance(said, dict):
                return None
            if "progress" in said:
                on_progress(float(said["progress"]), str(said.get("message", ""))[:1000])
            else:
                return said
        return None


def _result(said: dict[str, Any]) -> Any:
    if "error" not in said:
        return said.get("result")
    error = said["error"]
    kind = _KINDS.get(error.get("kind", ""), FailedPrecondition)
    raise kind(str(error.get("message", ""))[:4000], reason=str(error.get("reason", "")) or None)


def _why(status: int) -> str:
    if status == -9:
        return "the work was ended: it used more time or memory than it may"
    if status < 0:
        return f"the work crashed with signal {-status}"
    return f"the work ended without a result, with status {status}"

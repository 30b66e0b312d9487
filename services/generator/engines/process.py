"""An engine in a process of its own: starts it, talks to it, starts it again when it dies.

The process is a worker script that speaks lines of JSON over a socket and ends when this side does:

In:  {"add": id, "ids": [...], "sampling": {...}}, {"abort": id}
Out: {"ready": {"capacity_tokens": ..., "device": ...}}, then as steps are made
     {"out": [[id, ids, logprobs, finish, top, cached], ...],
      "stats": [running, cache_usage, steps, orphaned_steps, waiting]},
     and {"refused": id, "why": ...} for a prompt that the engine does not take.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog

from services.generator.constraints import Constraint
from services.generator.engine import Capabilities, Finish, Sampling, Stats, Tokenizer, Tokens
from services.runtime.admission import Permit
from services.runtime.errors import (
    BackendFailed,
    EngineRestarting,
    GristmillError,
    InvalidRequest,
    ModelNotReady,
)

RESTART_S = (0.5, 30.0)
"""First and longest pause before the process is started again."""
MOST_BAD = 1000
LINE_BYTES = 64 * 2**20
_log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Stream:
    """One prompt on its way through the process."""

    constraint: Constraint | None
    tokens: asyncio.Queue[Tokens | GristmillError] = field(default_factory=asyncio.Queue)
    done: bool = False


class EngineProcess:
    """An engine whose model runs in another process; `command` starts it, given a descriptor."""

    def __init__(
        self,
        name: str,
        capabilities: Capabilities,
        command: Callable[[int], Sequence[str]],
        tokenizer: Callable[[], Tokenizer],
        on_health: Callable[[bool], None] = lambda serving: None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.device = "cpu"
        self.capabilities = capabilities
        self.capacity_tokens = 0
        self.stats = Stats()
        self.tokenizer: Tokenizer
        self._command = command
        self._make_tokenizer = tokenizer
        self._on_health = on_health
        self._environment = {**os.environ, **(environment or {})}
        self._streams: dict[int, _Stream] = {}
        self._next = 0
        self._writer: asyncio.StreamWriter | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._started_once = False
        self._bad: OrderedDict[Constraint | None, None] = OrderedDict()
        """Constraints that the engine could not follow, the newest last: it may not survive them
        twice."""

    async def start(self, timeout_s: float = 600.0) -> None:
        """Start the process; returns when the model is in memory."""
        self._supervisor = asyncio.create_task(self._supervise())
        waiting = asyncio.create_task(self._ready.wait())
        try:
            # Both read the files; side by side they take the time of one.
            self.tokenizer = await asyncio.to_thread(self._make_tokenizer)
            await asyncio.wait(
                (waiting, self._supervisor), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            self._check_started()
        except BaseException:
            waiting.cancel()
            await self.close()
            raise

    def _check_started(self) -> None:
        if not self._ready.is_set():
            raise ModelNotReady("the engine did not start; its log says why")

    @property
    def pid(self) -> int | None:
        """The process that runs the model now."""
        return self._process.pid if self._process else None

    async def submit(
        self, prompt: Sequence[int], sampling: Sampling, permit: Permit
    ) -> AsyncIterator[Tokens]:
        """Tokens as steps give them; closing the iterator aborts."""
        if not self._ready.is_set():
            raise EngineRestarting("the engine is being started again", retry_after_s=2.0)
        if sampling.constraint in self._bad:
            raise InvalidRequest("the engine failed on this constraint before")
        self._next += 1
        key, stream = self._next, _Stream(sampling.constraint)
        self._streams[key] = stream
        self._send({"add": key, "ids": list(prompt), "sampling": asdict(sampling)})
        try:
            while True:
                tokens = await stream.tokens.get()
                if isinstance(tokens, GristmillError):
                    raise tokens
                yield tokens
                if tokens.finish is not None:
                    return
        finally:
            del self._streams[key]
            if not stream.done:
                self._send({"abort": key})

    async def close(self) -> None:
        """End the process."""
        self._closing.set()
        self._end(signal.SIGTERM)
        if self._supervisor is not None:
            await asyncio.gather(self._supervisor, return_exceptions=True)

    def _end(self, how: signal.Signals) -> None:
        """End the process and what it started: an engine may run its model in children."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, how)

    def _send(self, command: dict[str, Any]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(command).encode() + b"\n")

    async def _supervise(self) -> None:
        """Keep the process alive: one that dies is started again, later each time it dies early."""
        pause = RESTART_S[0]
        while not self._closing.is_set():
            started = asyncio.get_running_loop().time()
            code = await self._run()
            was_ready = self._ready.is_set()
            self._ready.clear()
            if self._closing.is_set():
                break
            if not was_ready and not self._started_once:
                _log.error("engine did not start", engine=self.name, exit_code=code)
                return
            self._on_health(False)
            self._fail_all()
            lived = asyncio.get_running_loop().time() - started
            pause = RESTART_S[0] if lived > RESTART_S[1] else min(pause * 2, RESTART_S[1])
            _log.error("engine died", engine=self.name, exit_code=code, restart_in_s=pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
        self._fail_all()

    def _fail_all(self) -> None:
        self.stats = Stats(steps=self.stats.steps, orphaned_steps=self.stats.orphaned_steps)
        for stream in self._streams.values():
            if not stream.done:
                stream.done = True
                stream.tokens.put_nowait(
                    EngineRestarting("the engine failed and is being started again")
                )

    def _spawn(self, fd: int) -> "subprocess.Popen[bytes]":
        """Start the process. Not through the loop: uvloop forks by way of grpc's fork handlers, and
        while grpc is busy one child in fifty crashes in them."""
        return subprocess.Popen(  # noqa: S603  # our own command
            self._command(fd),
            pass_fds=(fd,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=self._environment,
            process_group=0,
        )

    async def _run(self) -> int:
        """One life of the process; returns its exit code."""
        ours, theirs = socket.socketpair()
        self._process = self._spawn(theirs.fileno())
        theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES)
        try:
            while line := await reader.readline():
                self._receive(json.loads(line))
        except ConnectionError:
            pass  # it died in the middle of a line
        finally:
            self._writer.close()
        code = await asyncio.to_thread(self._process.wait)
        self._end(signal.SIGKILL)  # whatever of it is left has lost its head
        return code

    def _receive(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self.capacity_tokens = message["ready"].get("capacity_tokens", 0)
            self.device = message["ready"].get("device", "cpu")
            # The first time it is ready, the model is not: whoever started it warms it up first.
            if self._started_once:
                self._on_health(True)
            self._started_once = True
            self._ready.set()
        elif "refused" in message:
            # Above its last line stands where in the engine's own sources that was.
            why = message["why"].strip().splitlines()[-1:]
            self._remember(message["refused"])
            self._tell(message["refused"], InvalidRequest(f"the engine refused: {''.join(why)}"))
        elif "failed" in message:
            self._tell(message["failed"], BackendFailed(message["why"]))
        else:
            self.stats = Stats(*message["stats"])
            for key, ids, logprobs, finish, top, cached in message["out"]:
                self._tell(key, Tokens(ids, logprobs, finish, top, cached))

    def _remember(self, key: int) -> None:
        """The constraint of a prompt that was refused is refused from now on."""
        stream = self._streams.get(key)
        if stream is not None and stream.constraint is not None:
            self._bad[stream.constraint] = None
            if len(self._bad) > MOST_BAD:
                self._bad.popitem(last=False)

    def _tell(self, key: int, tokens: Tokens | GristmillError) -> None:
        stream = self._streams.get(key)
        if stream is None:
            return
        finish: Finish | None = tokens.finish if isinstance(tokens, Tokens) else "stop"
        stream.done = finish is not None
        stream.tokens.put_nowait(tokens)

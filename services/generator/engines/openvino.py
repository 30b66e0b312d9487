"""OpenVINO GenAI: starts the process that owns the pipeline, and starts it again when it dies."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog

from services.generator.engine import EngineSettings, Finish, Sampling, Stats, Tokens
from services.runtime.admission import Permit
from services.runtime.errors import (
    EngineRestarting,
    GristmillError,
    InvalidRequest,
    ModelNotReady,
    Overloaded,
)

WORKER = "services.generator.engines.openvino_worker"
RESTART_S = (0.5, 30.0)
"""First and longest pause before the process is started again."""
LINE_BYTES = 16 * 2**20
_log = structlog.get_logger()


class OpenVinoTokenizer:
    """The tokenizer and chat template inside a GGUF file."""

    def __init__(self, model: Path) -> None:
        import openvino_genai as genai

        self._tokenizer = genai.Tokenizer(str(model))
        self.eos_ids = frozenset({int(self._tokenizer.get_eos_token_id())})
        self.vocabulary = max(self._tokenizer.get_vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it is."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = encoded.input_ids.data[0].tolist()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; bytes of a character that is not complete yet are left out."""
        return str(self._tokenizer.decode(list(ids)))

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation in the model's own template, ready for the answer."""
        return str(self._tokenizer.apply_chat_template(list(messages), True))


@dataclass(slots=True, eq=False)
class _Stream:
    """One prompt on its way through the process."""

    tokens: asyncio.Queue[Tokens | GristmillError] = field(default_factory=asyncio.Queue)
    done: bool = False


class OpenVinoEngine:
    """A pipeline in a process of its own."""

    name = "openvino-genai"
    device = "cpu"

    def __init__(
        self,
        model: Path,
        settings: EngineSettings,
        on_health: Callable[[bool], None] = lambda serving: None,
    ) -> None:
        self._model = model
        self._settings = settings
        self.tokenizer: OpenVinoTokenizer
        self._on_health = on_health
        self.stats = Stats()
        self._streams: dict[int, _Stream] = {}
        self._next = 0
        self._writer: asyncio.StreamWriter | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._started_once = False

    async def start(self, timeout_s: float = 300.0) -> None:
        """Start the process; returns when the model is in memory."""
        self._supervisor = asyncio.create_task(self._supervise())
        waiting = asyncio.create_task(self._ready.wait())
        try:
            # Both read the whole file; side by side they take the time of one.
            self.tokenizer = await asyncio.to_thread(OpenVinoTokenizer, self._model)
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
        self._next += 1
        key, stream = self._next, _Stream()
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
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
        if self._supervisor is not None:
            await asyncio.gather(self._supervisor, return_exceptions=True)

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
                _log.error("engine did not start", model=str(self._model.name), exit_code=code)
                return
            self._on_health(False)
            self._fail_all()
            lived = asyncio.get_running_loop().time() - started
            pause = RESTART_S[0] if lived > RESTART_S[1] else min(pause * 2, RESTART_S[1])
            _log.error("engine died", exit_code=code, restart_in_s=pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
        self._fail_all()

    def _fail_all(self) -> None:
        for stream in self._streams.values():
            if not stream.done:
                stream.done = True
                stream.tokens.put_nowait(
                    EngineRestarting("the engine failed and is being started again")
                )

    def _spawn(self, fd: int) -> "subprocess.Popen[bytes]":
        """Start the process. Not through the loop: uvloop forks by way of grpc's fork handlers, and
        while grpc is busy one child in fifty crashes in them."""
        command = [
            *(sys.executable, "-m", WORKER, str(fd)),
            *(str(self._model), json.dumps(asdict(self._settings))),
        ]
        return subprocess.Popen(  # noqa: S603  # our own command
            command, pass_fds=(fd,), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
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
        return await asyncio.to_thread(self._process.wait)

    def _receive(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            # The first time it is ready, the model is not: whoever started it warms it up first.
            if self._started_once:
                self._on_health(True)
            self._started_once = True
            self._ready.set()
        elif "refused" in message:
            # Above its last line stands where in the engine's own sources that was.
            why = message["why"].strip().splitlines()[-1:]
            self._tell(message["refused"], InvalidRequest(f"the engine refused: {''.join(why)}"))
        else:
            self.stats = Stats(*message["stats"])
            for key, ids, logprobs, finish in message["out"]:
                if finish == "refused":
                    self._tell(key, Overloaded("the prompt does not fit the key-value cache"))
                else:
                    self._tell(key, Tokens(ids, logprobs, finish))

    def _tell(self, key: int, tokens: Tokens | GristmillError) -> None:
        stream = self._streams.get(key)
        if stream is None:
            return
        finish: Finish | None = tokens.finish if isinstance(tokens, Tokens) else "stop"
        stream.done = finish is not None
        stream.tokens.put_nowait(tokens)

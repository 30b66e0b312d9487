"""The whole suite on this machine: starts each service as a process, registers the models, waits.

It knows the services only by their command lines. A child that dies ends the others, with the end
of its log as the reason. Ctrl-C or SIGTERM drains all of them.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from gristmill.registry.v1 import registry_service_pb2 as registry_pb
from gristmill.registry.v1 import registry_service_pb2_grpc as registry_rpc

from services.runtime import standard
from services.runtime.health import SERVING

# The one that takes longest to load comes first.
MODELS = ("smollm2", "sentiment", "iris")
PROCESSES = ("registry", "classifier", "generator", "gateway")
"""In the order of their admin ports."""
START_S = 900.0
"""The first start fetches models over the network."""
DRAIN_S = 45.0


@dataclass
class Child:
    """One process of the suite."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    def tail(self) -> str:
        """The end of its log, for a person."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-15:])


class SuiteError(Exception):
    """The suite cannot run; the text says why."""


class Suite:
    """The children, in the order they were started."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._data: Path = options.data
        self._admin = admin_ports(options.admin_port_base)
        self._children: list[Child] = []
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watching: list[asyncio.Task[None]] = []
        (self._data / "logs").mkdir(parents=True, exist_ok=True)

    async def start(self) -> None:
        """Start everything, and register the models while the services come up."""
        ports = self._options
        registry = f"127.0.0.1:{ports.registry_port}"
        cache = self._data / "cache"
        follow = f"--registry={registry}"
        # The generator takes longest, and begins with what it remembers before the registry is up.
        generator = f"--cache-dir={cache / 'generator'}"
        await self._spawn("generator", "services.generator", follow, generator)
        await self._spawn("registry", "services.registry", f"--data-dir={self._data / 'registry'}")
        classifier = f"--cache-dir={cache / 'classifier'}"
        await self._spawn("classifier", "services.classifier", follow, classifier)
        await self._spawn(
            "gateway",
            "gateway",
            follow,
            f"--classifier=127.0.0.1:{ports.classifier_port}",
            f"--generator=127.0.0.1:{ports.generator_port}",
            *(
                f"--{name}-metrics=http://127.0.0.1:{self._admin[name]}/metrics"
                for name in PROCESSES
                if name != "gateway"
            ),
        )
        build = ["-m", "models", "build", f"--cache={self._options.cache}"]
        await self._do("models", sys.executable, *build)
        await self._serving(registry, "")
        client = str(Path(sys.executable).with_name("gristmill"))
        # Where `live` points already is somebody's choice, perhaps another version than ours.
        absent = [model for model in MODELS if not await self._is_live(registry, model)]
        folders = [str(self._options.cache / "models" / model) for model in absent]
        if folders:
            push = [f"--registry={registry}", "push", "--alias=live"]
            await self._do("push", client, *push, *folders)
        for port, names in (
            (ports.classifier_port, ("models/sentiment", "models/iris", "")),
            (ports.generator_port, ("models/smollm2", "")),
        ):
            for name in names:
                await self._serving(f"127.0.0.1:{port}", name)
        await self._listening(ports.gateway_port)

    async def stop(self) -> int:
        """Drain from the edge inwards; returns the worst exit status."""
        worst = 0
        for watching in self._watching:
            watching.cancel()
        # What one has accepted may still need those behind it: they go later.
        for child in sorted(self._children, key=lambda c: PROCESSES.index(c.name), reverse=True):
            status = await self._end(child)
            worst = worst or status
        return worst

    async def _end(self, child: Child) -> int:
        """Drain one; returns its exit status."""
        if child.process.returncode is None:
            child.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(DRAIN_S):
                return await child.process.wait()
        except TimeoutError:
            child.process.kill()
            return await child.process.wait()

    async def _spawn(self, name: str, module: str, *arguments: str) -> None:
        port = getattr(self._options, f"{name}_port")
        log = self._data / "logs" / f"{name}.log"
        with log.open("w", encoding="utf-8") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                f"--port={port}",
                f"--admin-port={self._admin[name]}",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                # Ctrl-C is ours to pass on, in order.
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._children.append(child)
        self._watching.append(asyncio.create_task(self._watch(child)))

    async def _watch(self, child: Child) -> None:
        """A child that ends before the suite does takes the suite with it."""
        status = await child.process.wait()
        if not self.died.done():
            said = f"the {child.name} ended with status {status}:\n{child.tail()}"
            self.died.set_exception(SuiteError(said))

    async def _do(self, name: str, *command: str) -> None:
        """Run a command to its end, with its progress on our own terminal."""
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
        try:
            if await process.wait():
                raise SuiteError(f"{name} failed: {' '.join(command)}")
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()

    async def _is_live(self, registry: str, model: str) -> bool:
        async with grpc.aio.insecure_channel(registry) as channel:
            stub: Any = registry_rpc.RegistryServiceStub(channel)
            name = f"models/{model}/aliases/live"
            try:
                await stub.GetAlias(registry_pb.GetAliasRequest(name=name))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                return False
        return True

    async def _listening(self, port: int) -> None:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return

    async def _serving(self, address: str, name: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            check = channel.unary_unary(
                f"/{standard.HEALTH}/Check",
                request_serializer=standard.HealthCheckRequest.SerializeToString,
                response_deserializer=standard.HealthCheckResponse.FromString,
            )
            while True:
                try:
                    answer = await check(
                        standard.HealthCheckRequest(service=name), wait_for_ready=True
                    )
                    if answer.status == SERVING:
                        return
                except grpc.aio.AioRpcError as error:
                    if error.code() not in (
                        grpc.StatusCode.NOT_FOUND,
                        grpc.StatusCode.UNAVAILABLE,
                    ):
                        raise
                await asyncio.sleep(0.05)


def admin_ports(base: int) -> dict[str, int]:
    """The admin port of each process; free ones where the base is 0."""
    if base:
        return {name: base + index for index, name in enumerate(PROCESSES)}
    with ExitStack() as stack:
        held = {n: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for n in PROCESSES}
        return {name: one.getsockname()[1] for name, one in held.items()}


def say(options: argparse.Namespace, seconds: float) -> None:
    """Where everything is, and lines that work as they stand."""
    http = f"http://localhost:{options.gateway_port}"
    sys.stdout.write(
        f"""
Gristmill is ready after {seconds:.1f} s.

  registry    localhost:{options.registry_port}   models, versions, aliases
  classifier  localhost:{options.classifier_port}   sentiment, iris
  generator   localhost:{options.generator_port}   smollm2
  gateway     {http}   the console; {http}/docs the API
  logs        {options.data / "logs"}

curl -s {http}/classifier/v1/classify -H 'content-type: application/json' \
-d '{{"model": {{"model": "sentiment"}}, "items": [{{"text": {{"text": "not bad at all"}}}}]}}'

grpcurl -plaintext -d '{{"prompt": {{"chat": {{"messages": [{{"role": "ROLE_USER", \
"content": "What is the capital of France?"}}]}}}}, \
"params": {{"max_tokens": 32, "temperature": 0}}}}' \
localhost:{options.generator_port} gristmill.generator.v1.GeneratorService/GenerateStream

Ctrl-C stops it.
"""
    )
    sys.stdout.flush()


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of the suite."""
    parser = argparse.ArgumentParser(prog="python -m services", description=__doc__)
    cache = os.environ.get("GRISTMILL_CACHE", str(Path.home() / ".cache" / "gristmill"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="registry, caches, logs")
    parser.add_argument(
        "--cache", type=Path, default=Path(cache), help="models built from packages"
    )
    parser.add_argument("--registry-port", type=int, default=50051)
    parser.add_argument("--classifier-port", type=int, default=50052)
    parser.add_argument("--generator-port", type=int, default=50053)
    parser.add_argument("--gateway-port", type=int, default=8080)
    parser.add_argument("--admin-port-base", type=int, default=9151, help="0: free ports")
    return parser.parse_args(argv)


async def run(options: argparse.Namespace) -> int:
    """Start, wait for a signal or a death, stop."""
    started = time.monotonic()
    suite = Suite(options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.ensure_future(stop.wait())
    starting = asyncio.ensure_future(suite.start())
    status = 0
    try:
        async with asyncio.timeout(START_S):
            await _first(starting, stopping, suite.died)
        if not stopping.done():
            say(options, time.monotonic() - started)
            await _first(stopping, suite.died)
    except (SuiteError, TimeoutError) as error:
        sys.stderr.write(f"gristmill: {error or 'the suite did not start in time'}\n")
        status = 1
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        worst = await suite.stop()
    return status or worst


async def _first(*futures: "asyncio.Future[Any]") -> None:
    """Wait for the first to end, and raise what it raised."""
    done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    for future in done:
        future.result()


if __name__ == "__main__":
    sys.exit(asyncio.run(run(parse(sys.argv[1:]))))

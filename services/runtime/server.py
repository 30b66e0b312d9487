"""The lifecycle of a gRPC process: build, serve, drain. Knows no service.

Drain, on the first SIGTERM or SIGINT: health turns NOT_SERVING, new work is refused (UNAVAILABLE,
DRAINING), what is in hand is finished within the grace, the transport says GOAWAY and closes, the
service closes its backends, exporters are flushed, exit 0. A second signal exits at once.
"""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_channelz.v1 import channelz
from grpc_reflection.v1alpha import reflection, reflection_pb2

from services.runtime import health as health_service
from services.runtime import logs, metrics, standard, transports
from services.runtime.auth import Authenticator, TokenFile
from services.runtime.config import ServerConfig
from services.runtime.health import Health
from services.runtime.interceptors import Handler, Interceptor, Registrar
from services.runtime.tracing import Tracing

VERSION = "0.1.0.dev0"
AddServicer = Callable[[Any, Any], None]
# After the drain nothing accepted is left; this only lets the last bytes out.
CLOSE_GRACE_S = 1.0


@dataclass
class Service:
    """What a service hands to its server: servicers, and what to do around them."""

    name: str
    servicers: list[tuple[AddServicer, Any]] = field(default_factory=list)
    handlers: dict[str, dict[str, Handler]] = field(default_factory=dict)
    """Handlers of services without generated `add_..._to_server` code, by service name."""
    pools: tuple[Any, ...] = ()
    """Descriptor pools that reflection looks in before the default one."""
    on_drain: list[Callable[[], None]] = field(default_factory=list)
    """Called when the drain begins: admission refuses, long streams end."""
    on_close: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    """Awaited when nothing is in hand any more: backends close."""


class CannotStart(ValueError):
    """What is configured cannot be: an address in use, a token file that cannot be read."""


class Server:
    """One listening gRPC process."""

    def __init__(self, config: ServerConfig, service: Service, health: Health) -> None:
        self.config = config
        self.health = health
        self._service = service
        self._log = logs.get_logger()
        try:
            name, why = transports.choose(config)
            tokens = TokenFile.read(config.token_file) if config.token_file else None
            self._grpc, self.port = transports.build(name, config)
        except (ValueError, OSError) as error:
            raise CannotStart(str(error)) from error
        self.transport = name
        self.linger_s = transports.LINGER_S[name]
        self._tracing = Tracing(service.name, config.otlp_endpoint, config.trace_sample_ratio)
        self.interceptor = Interceptor(
            Authenticator(tokens),
            self._tracing,
            config.default_timeout_s,
            config.log_sample_every,
            pushback=name == "grpcio",
        )
        self.admin_port: int | None = None
        self.channelz_port: int | None = None
        self._register()
        self._log.info("transport chosen", transport=name, why=why)

    def _register(self) -> None:
        registrar = Registrar(self._grpc, self.interceptor)
        for add, servicer in self._service.servicers:
            add(servicer, registrar)
        for name, handlers in self._service.handlers.items():
            registrar.add_registered_method_handlers(name, handlers)
        own = list(registrar.services)
        registrar.add_registered_method_handlers(
            standard.HEALTH, health_service.handlers(self.health)
        )
        names = [*registrar.services, standard.REFLECTION_V1, standard.REFLECTION_V1ALPHA]
        servicer = reflection.aio.ReflectionServicer(
            names, pool=standard.Pools(*self._service.pools)
        )
        for name in (standard.REFLECTION_V1, standard.REFLECTION_V1ALPHA):
            registrar.add_registered_method_handlers(name, _reflection_handlers(servicer))
        self.services = own

    async def start(self) -> None:
        """Listen. Health stays NOT_SERVING until `ready`."""
        await self._grpc.start()
        self.admin_port = metrics.serve(
            self.config.admin_host, self.config.admin_port, self._service.name, VERSION
        )
        if self.config.channelz_port >= 0:
            await self._start_channelz()
        self._log.info(
            "listening",
            address=f"{self.config.host}:{self.port}",
            metrics_port=self.admin_port,
            channelz_port=self.channelz_port,
            services=self.services,
        )

    async def _start_channelz(self) -> None:
        """Serve channelz apart from the callers' port: it tells of every connection."""
        admin = grpc.aio.server()
        channelz.add_channelz_servicer(admin)
        self.channelz_port = admin.add_insecure_port(
            f"{self.config.admin_host}:{self.config.channelz_port}"
        )
        await admin.start()
        self._service.on_close.append(lambda: admin.stop(None))

    def ready(self) -> None:
        """Say SERVING for the process and each of its services."""
        for name in ("", *self.services):
            self.health.set(name, serving=True)

    async def drain(self) -> None:
        """Stop taking work, finish what is in hand, close; see the module's docstring."""
        self._log.info("draining", in_flight=self.interceptor.in_flight)
        self.health.drain()
        self.interceptor.draining = True
        for begin in self._service.on_drain:
            begin()
        finished = await self.interceptor.wait_idle(self.config.drain_grace_s)
        if not finished:
            self._log.warning("drain grace over", in_flight=self.interceptor.in_flight)
        await asyncio.sleep(self.linger_s)
        await self._grpc.stop(CLOSE_GRACE_S)
        # grpcio returns before the handlers that it cancelled have let go of their backends.
        await self.interceptor.wait_idle(CLOSE_GRACE_S)
        for close in self._service.on_close:
            await close()
        self._tracing.flush()
        self._log.info("drained", complete=finished)

    async def run(self, started: Callable[[], Awaitable[None]] | None = None) -> None:
        """Start, serve until a signal, drain. `started` runs once the port is open."""
        stop = _signalled(asyncio.get_running_loop())
        await self.start()
        if started is not None:
            await started()
        # What is there by now stays: going through it again would stop calls for tens of ms.
        gc.collect()
        gc.freeze()
        await stop.wait()
        await self.drain()


def _signalled(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop


def _reflection_handlers(servicer: Any) -> dict[str, Handler]:
    return {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            reflection_pb2.ServerReflectionRequest.FromString,
            reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
    }


def main(run: Callable[[], Awaitable[None]]) -> None:
    """Run a process on uvloop where it is installed; what it cannot start with is one line."""
    # We fork only to run another program at once; gRPC's own handlers would warn each time.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        _on_loop(run)
    except CannotStart as error:
        sys.stderr.write(f"cannot start: {error}\n")
        sys.exit(2)


def _on_loop(run: Callable[[], Awaitable[None]]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(_coroutine(run))
    else:
        uvloop.run(_coroutine(run))


async def _coroutine(run: Callable[[], Awaitable[None]]) -> None:
    await run()

"""The lifecycle of the HTTP process: listen, serve, drain. Knows no route.

Drain, on the first SIGTERM or SIGINT: readiness turns 503, new requests get 503 DRAINING, streams
that follow something end, what is in hand is finished within the grace, channels close, exit 0. A
second signal exits at once.
"""

import asyncio
import logging
import os
import signal
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from gateway import contract
from gateway.app import build
from gateway.config import GatewayConfig
from gateway.contract import Mounted
from gateway.protocol import BoundedProtocol
from gateway.socket_protocol import bounded
from services.runtime import logs, metrics
from services.runtime.server import VERSION

# After the drain only the last bytes are left to send; then connections are cut.
CLOSE_GRACE_S = 1
UNREAD_MS = 120_000
"""How long a client may leave unread what was sent to it."""


class _Uvicorn(uvicorn.Server):
    """Leaves signals alone: the drain is ours."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """One listening gateway. Built inside a running loop, which its channels belong to."""

    def __init__(
        self, config: GatewayConfig, mounted: Sequence[Mounted] = contract.MOUNTED
    ) -> None:
        self.config = config
        self.gateway = build(config, mounted)
        self.port = 0
        # It tells of each WebSocket, with its query; the edge does that, and without.
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self._log = logs.get_logger()
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                self.gateway.app,
                loop="none",
                http=BoundedProtocol,
                ws=bounded(self.gateway.bodies),
                ws_max_size=config.max_body_bytes,
                ws_ping_interval=config.ping_interval_s,
                ws_ping_timeout=config.ping_interval_s,
                # What inflates can inflate to anything.
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=CLOSE_GRACE_S,
                ssl_certfile=config.tls_certificate,
                ssl_keyfile=config.tls_key,
                ssl_ca_certs=str(config.tls_client_ca) if config.tls_client_ca else None,
                ssl_cert_reqs=ssl.CERT_REQUIRED if config.tls_client_ca else ssl.CERT_NONE,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. Readiness stays 503 until every service behind answers."""
        listener = _listen(self.config.host, self.config.port)
        self.port = listener.getsockname()[1]
        self._serving = asyncio.create_task(self._uvicorn.serve(sockets=[listener]))
        admin_port = metrics.serve(
            self.config.admin_host, self.config.admin_port, "gateway", VERSION
        )
        self._log.info(
            "listening",
            address=f"{self.config.host}:{self.port}",
            metrics_port=admin_port,
            routes=len(self.gateway.table.routes),
        )

    async def drain(self) -> None:
        """Stop taking work, finish what is in hand, close; see the module's docstring."""
        in_hand = self.gateway.in_hand
        self._log.info("draining", in_hand=in_hand.count)
        self.gateway.drain()
        finished = await in_hand.wait_idle(self.config.drain_grace_s)
        if not finished:
            self._log.warning("drain grace over", in_hand=in_hand.count)
        self._uvicorn.should_exit = True
        if self._serving is not None:
            await self._serving
        await self.gateway.close()
        self._log.info("drained", complete=finished)

    async def until_signal(self) -> None:
        """Serve until a signal, then drain."""
        stop = _signalled(asyncio.get_running_loop())
        await stop.wait()
        await self.drain()


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; OSError says why there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol must be named: asyncio sets TCP_NODELAY only on sockets that say they are TCP,
    # and without it every answer waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Inherited by connections: one whose client reads nothing at all does not stay.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
        listener.bind((host.strip("[]"), port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listener


def _signalled(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop

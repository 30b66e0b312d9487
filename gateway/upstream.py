"""The services behind the gateway and their addresses: which one a call goes to. Knows no HTTP.

A service may have several addresses: each has a channel of its own, which spreads over all that
the name resolves to. Calls go round those that say of themselves that they serve, else round
those that are not known to be down; one that answers nothing is left alone for a while.
"""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from gateway.breaker import Breaker, RetryBudget
from gateway.config import GatewayConfig, listed
from gateway.contract import UPSTREAMS, Method
from gateway.errors import STATUS_DETAILS, CallFailedError, of_call
from services.runtime import standard
from services.runtime.errors import UpstreamUnavailable

_CHECK = f"/{standard.HEALTH}/Check"
_WATCH = f"/{standard.HEALTH}/Watch"
_DOWN = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)
# How long to wait before a health watch that ended is opened again.
WATCH_AGAIN_S = 1.0


class Address:
    """One address of a service: its channel, and what is known of its state."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._calls: dict[str, Any] = {}
        self.breaker = Breaker()
        self.health = ""
        """The status that it last said of itself; "" where it has said none yet."""
        self.resting_until = 0.0
        """It has refused what another may take: until then others come first."""
        self._watching: asyncio.Task[None] | None = None

    def call(self, method: Method) -> Any:
        """The callable of a method."""
        found = self._calls.get(method.path)
        if found is None:
            kinds = ("unary", "stream")
            name = f"{kinds[method.client_streaming]}_{kinds[method.server_streaming]}"
            found = self._calls[method.path] = getattr(self._channel, name)(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return found

    @property
    def is_up(self) -> bool:
        """Whether its connection is not known to be broken."""
        return self._channel.get_state() not in _DOWN

    def watch(self) -> None:
        """Follow its health from now on."""
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        watch = self._channel.unary_stream(
            _WATCH,
            request_serializer=standard.HealthCheckRequest.SerializeToString,
            response_deserializer=standard.HealthCheckResponse.FromString,
        )
        while True:
            try:
                async for response in watch(standard.HealthCheckRequest(), wait_for_ready=True):
                    self.health = _status(response)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    self.health = "SERVING"
                    return
            self.health = ""
            await asyncio.sleep(WATCH_AGAIN_S)

    async def check(self, timeout_s: float) -> str:
        """The health status of the service here, or the name of the error."""
        check = self._channel.unary_unary(
            _CHECK,
            request_serializer=standard.HealthCheckRequest.SerializeToString,
            response_deserializer=standard.HealthCheckResponse.FromString,
        )
        try:
            response = await check(standard.HealthCheckRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return _status(response)

    async def close(self) -> None:
        """Close the channel; what is in flight on it is cancelled."""
        if self._watching is not None:
            self._watching.cancel()
        await self._channel.close()


class Upstream:
    """One service and its addresses."""

    def __init__(self, name: str, channels: Sequence[grpc.aio.Channel]) -> None:
        self.name = name
        self.addresses = tuple(Address(channel) for channel in channels)
        self.budget = RetryBudget()
        self._turn = 0
        if len(self.addresses) > 1:
            for address in self.addresses:
                address.watch()

    def pick(self, tried: Collection[Address] = ()) -> Address:
        """The address whose turn it is; UpstreamUnavailable while none may be tried."""
        now = time.monotonic()
        open_ = [one for one in self.addresses if one.breaker.lets_through(now)]
        if not open_:
            until = min(one.breaker.open_until for one in self.addresses)
            raise UpstreamUnavailable(
                f"the {self.name} behind this gateway does not answer", retry_after_s=until - now
            )
        ranks = [_rank(one, tried, now) for one in open_]
        best = min(ranks)
        candidates = [one for one, rank in zip(open_, ranks, strict=True) if rank == best]
        if not tried:
            # A second try takes no turn: else one that always refuses would get every first one.
            self._turn += 1
        found = candidates[self._turn % len(candidates)]
        found.breaker.begin(now)
        return found

    async def serving(self, timeout_s: float) -> str:
        """The health status of the service: SERVING where one address says so."""
        states = await asyncio.gather(*(one.check(timeout_s) for one in self.addresses))
        return "SERVING" if "SERVING" in states else states[0]

    async def close(self) -> None:
        """Close the channels."""
        await asyncio.gather(*(address.close() for address in self.addresses))


_HEALTHS = {"SERVING": 0, "": 1}


def _rank(address: Address, tried: Collection[Address], now: float) -> tuple[bool, bool, int, bool]:
    """What is preferred comes first: untried, connected, serving, not resting."""
    health = _HEALTHS.get(address.health, 2)
    return address in tried, not address.is_up, health, now < address.resting_until


def _status(response: Any) -> str:
    return str(standard.HealthCheckResponse.ServingStatus.Name(response.status))


def connect(config: GatewayConfig) -> Mapping[str, Upstream]:
    """The upstreams of a configuration, by name. Connections open with the first call."""
    found = {}
    for name in UPSTREAMS:
        addresses = listed(getattr(config, name))
        if not addresses:
            raise ValueError(f"{name} names no address")
        found[name] = Upstream(name, [_channel(address, config) for address in addresses])
    return found


def _channel(address: str, config: GatewayConfig) -> grpc.aio.Channel:
    target = address if ":///" in address or address.startswith("unix:") else f"dns:///{address}"
    options = [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.keepalive_time_ms", round(config.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(config.keepalive_timeout_s * 1000)),
        ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}'),
        # A service that comes back should be found within seconds, not two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.enable_http_proxy", 0),
        # Inflating an answer costs more than a local network does.
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]
    if config.upstream_ca is None:
        return grpc.aio.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(root_certificates=_read(config.upstream_ca))
    return grpc.aio.secure_channel(target, credentials, options=options)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"upstream_ca: {error.strerror}") from error


def failure(error: grpc.aio.AioRpcError) -> CallFailedError:
    """A failed call as the exception that carries its google.rpc.Status."""
    trailing = dict(error.trailing_metadata() or ())
    details = trailing.get(STATUS_DETAILS)
    own = isinstance(details, bytes)
    status = of_call(error.code().name, error.details() or "", details if own else None)
    reached = own or error.code() is not grpc.StatusCode.UNAVAILABLE
    return CallFailedError(status, reached=reached, explained=own)

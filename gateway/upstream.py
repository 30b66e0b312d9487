"""Channels to the services behind the gateway, and calls through them. Knows no HTTP.

A service may have several addresses: each has a channel of its own, which spreads over all that
the name resolves to, and calls go round the channels that are not known to be down.
"""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from gateway.config import GatewayConfig, listed
from gateway.contract import UPSTREAMS, Method
from gateway.errors import STATUS_DETAILS, CallFailedError, of_call
from services.runtime import standard

_CHECK = f"/{standard.HEALTH}/Check"
_DOWN = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)


class Upstream:
    """One service and its addresses."""

    def __init__(self, name: str, channels: Sequence[grpc.aio.Channel]) -> None:
        self.name = name
        self._channels = tuple(channels)
        self._turn = itertools.count()
        self._calls: dict[tuple[int, str], Any] = {}

    def call(self, method: Method) -> Any:
        """The callable of a method, on the channel whose turn it is."""
        index = self._next()
        key = (index, method.path)
        found = self._calls.get(key)
        if found is None:
            channel = self._channels[index]
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
            found = self._calls[key] = make(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return found

    def _next(self) -> int:
        count = len(self._channels)
        first = next(self._turn) % count
        for step in range(count):
            index = (first + step) % count
            if self._channels[index].get_state() not in _DOWN:
                return index
        return first

    async def serving(self, timeout_s: float) -> str:
        """The health status of the service: SERVING where one address says so."""
        states = await asyncio.gather(
            *(self._check(channel, timeout_s) for channel in self._channels)
        )
        return "SERVING" if "SERVING" in states else states[0]

    async def _check(self, channel: grpc.aio.Channel, timeout_s: float) -> str:
        check = channel.unary_unary(
            _CHECK,
            request_serializer=standard.HealthCheckRequest.SerializeToString,
            response_deserializer=standard.HealthCheckResponse.FromString,
        )
        try:
            response = await check(standard.HealthCheckRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return str(standard.HealthCheckResponse.ServingStatus.Name(response.status))

    async def close(self) -> None:
        """Close the channels; what is in flight on them is cancelled."""
        await asyncio.gather(*(channel.close() for channel in self._channels))


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
    return CallFailedError(
        of_call(
            error.code().name,
            error.details() or "",
            details if isinstance(details, bytes) else None,
        )
    )

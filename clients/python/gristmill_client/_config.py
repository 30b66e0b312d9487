"""Where the services are and how their channels behave; opens no channel."""

from __future__ import annotations

import functools
import ipaddress
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from gristmill.classifier.v1 import classifier_service_pb2
from gristmill.generator.v1 import generator_service_pb2
from gristmill.registry.v1 import registry_service_pb2

Service = Literal["classifier", "generator", "registry"]
Metadata = tuple[tuple[str, str], ...]
Options = list[tuple[str, str | int]]

DEFAULTS: dict[Service, str] = {
    "classifier": "localhost:50052",
    "generator": "localhost:50053",
    "registry": "localhost:50051",
}
TIMEOUT_S = 30.0
GENERATE_TIMEOUT_S = 120.0
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_RETRY_BUFFER_BYTES = 4 * 1024 * 1024
_REPEATABLE = (MethodOptions.NO_SIDE_EFFECTS, MethodOptions.IDEMPOTENT)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a client is built from."""

    classifier: str
    generator: str
    registry: str
    token: str | None
    timeout_s: float
    generate_timeout_s: float
    ca_certificate: Path | None
    tls: bool
    server_name: str | None

    def address(self, service: Service) -> str:
        addresses = {
            "classifier": self.classifier,
            "generator": self.generator,
            "registry": self.registry,
        }
        return addresses[service]

    def metadata(self) -> Metadata:
        """Sent with every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None: plain text."""
        if self.ca_certificate is not None:
            return grpc.ssl_channel_credentials(self.ca_certificate.read_bytes())
        return grpc.ssl_channel_credentials() if self.tls else None


def load(
    *,
    classifier: str | None = None,
    generator: str | None = None,
    registry: str | None = None,
    token: str | None = None,
    timeout: float = TIMEOUT_S,
    generate_timeout: float = GENERATE_TIMEOUT_S,
    ca_certificate: str | Path | None = None,
    tls: bool | None = None,
    server_name: str | None = None,
) -> Config:
    """Argument, else environment variable, else default."""
    certificate = ca_certificate or os.environ.get("GRISTMILL_CA_CERTIFICATE")
    if tls is None:
        tls = os.environ.get("GRISTMILL_TLS", "").lower() in ("1", "true", "yes")
    return Config(
        classifier=classifier or _address("classifier"),
        generator=generator or _address("generator"),
        registry=registry or _address("registry"),
        token=token or os.environ.get("GRISTMILL_TOKEN") or None,
        timeout_s=timeout,
        generate_timeout_s=generate_timeout,
        ca_certificate=Path(certificate) if certificate else None,
        tls=tls,
        server_name=server_name or os.environ.get("GRISTMILL_SERVER_NAME") or None,
    )


def _address(service: Service) -> str:
    return os.environ.get(f"GRISTMILL_{service.upper()}") or DEFAULTS[service]


def target(address: str) -> str:
    """The gRPC target of an address. Raises ValueError where gRPC has no target for it.

    "host:port" and anything with a scheme ("dns:///...", "unix:...") stay as they are. Several
    addresses, "10.0.0.1:50052,10.0.0.2:50052", must be IP addresses of one family, since gRPC has
    no target that lists names; for a name that stands for several machines use "dns:///name:port".
    """
    parts = [re.sub("^localhost:", "127.0.0.1:", part.strip()) for part in address.split(",")]
    if len(parts) == 1:
        return address.strip()
    try:
        families = {ipaddress.ip_address(p.rpartition(":")[0].strip("[]")).version for p in parts}
        (family,) = families
    except ValueError as error:
        raise ValueError(
            f"several addresses must be IP addresses of one family, not {address!r}; "
            'for a name that stands for several machines use "dns:///name:port"'
        ) from error
    return f"ipv{family}:" + ",".join(parts)


def channel_options(config: Config, service: Service) -> Options:
    """The options of the channel to one service."""
    address = config.address(service)
    options: Options = [
        ("grpc.service_config", service_config(several="," in address or "dns:" in address)),
        ("grpc.primary_user_agent", f"gristmill-client/{client_version()}"),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        # What is longer cannot be repeated: enough for a full batch of texts, not for images.
        ("grpc.per_rpc_retry_buffer_size", _RETRY_BUFFER_BYTES),
        # Finds a dead peer under a silent stream; servers of ours allow a ping each 10 s.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
    if config.server_name:
        options.append(("grpc.ssl_target_name_override", config.server_name))
    return options


@functools.cache
def service_config(*, several: bool) -> str:
    """The gRPC service config: which calls gRPC itself may repeat, and when.

    Unary calls that the contract marks NO_SIDE_EFFECTS or IDEMPOTENT are repeated on UNAVAILABLE,
    in all 4 times; streams resume where they were cut, in this package. RESOURCE_EXHAUSTED is not
    listed: gRPC heeds a server's `grpc-retry-pushback-ms` only for statuses that are, so listing it
    would also repeat every refusal that carries no pushback, against a server that is full. The
    hint reaches the caller as `retry_after` instead. With several addresses calls go round robin
    over those whose grpc.health.v1 says SERVING.
    """
    config: dict[str, object] = {
        "methodConfig": [
            {
                "name": [{"service": m.containing_service.full_name, "method": m.name}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
            for m in _methods()
            if not m.client_streaming
            and not m.server_streaming
            and m.GetOptions().idempotency_level in _REPEATABLE
        ],
        "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
    }
    if several:
        config["loadBalancingConfig"] = [{"round_robin": {}}]
        config["healthCheckConfig"] = {"serviceName": ""}
    return json.dumps(config)


def _methods() -> Iterator[MethodDescriptor]:
    for file in (classifier_service_pb2, generator_service_pb2, registry_service_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def client_version() -> str:
    """The installed version of gristmill-client, or "unknown" in a bare checkout."""
    try:
        return metadata.version("gristmill-client")
    except metadata.PackageNotFoundError:
        return "unknown"

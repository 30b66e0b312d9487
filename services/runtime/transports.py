"""The transport seam: the same handlers on grpcio or on native, and a table of who can do what."""

import importlib.util
from dataclasses import dataclass
from typing import Literal

import grpc

from services.runtime.config import ServerConfig, is_loopback

Name = Literal["grpcio", "native"]


@dataclass(frozen=True, slots=True)
class Capability:
    """Something a server may be asked for, and which transport has it."""

    name: str
    grpcio: bool
    native: bool
    note: str = ""


# What a caller or an operator can tell apart. tests/integration/test_transports.py runs the rest,
# which both have, on each of them; docs/transports.md is written from this table.
CAPABILITIES: tuple[Capability, ...] = (
    Capability("unary and streaming calls", True, True),
    Capability("bidi streams", True, True, "native hands them to a grpcio server behind it"),
    Capability("status details and trailing metadata", True, True),
    Capability("deadlines and cancellation", True, True),
    Capability("message size limits", True, True),
    Capability("keepalive of silent connections", True, True),
    Capability("drain", True, True),
    Capability("TLS and mutual TLS", True, False),
    Capability("maximum connection age", True, False),
    Capability("limits on client pings", True, False, "native answers every ping"),
    Capability("retry pushback trailer", True, False, "native refuses reserved names; RetryInfo"),
    Capability("peer() on bidi streams", True, False, "the socket to the server behind it"),
    Capability(
        "compressed requests are refused",
        True,
        False,
        "native inflates gzip before it looks at the size: 1 MB may become 1 GB",
    ),
    Capability("a status for too much metadata", True, False, "native answers HTTP 431 or closes"),
    Capability("initial metadata of a failed unary call", True, False, "native drops it"),
)


# Between the last answer and the end of the connections. grpcio waits by itself until what it
# was given has left; native closes with whatever it still holds.
LINGER_S: dict[Name, float] = {"grpcio": 0.0, "native": 1.0}


def denied(config: ServerConfig) -> list[str]:
    """The settings of `config` that native cannot honour."""
    found = []
    if config.tls_certificate:
        found.append("tls_certificate")
    if config.max_connection_age_s:
        found.append("max_connection_age_s")
    return found


def choose(config: ServerConfig) -> tuple[Name, str]:
    """The transport to use and why; ValueError where the configured one cannot do it."""
    obstacles = denied(config)
    if config.transport == "grpcio":
        return "grpcio", "configured"
    installed = importlib.util.find_spec("pygrpc_native") is not None
    if config.transport == "native":
        if obstacles:
            raise ValueError(f"transport native has no {', '.join(obstacles)}")
        if not installed:
            raise ValueError("transport native needs the package pygrpc-native")
        return "native", "configured"
    if not installed:
        return "grpcio", "pygrpc-native is not installed"
    if obstacles:
        return "grpcio", f"native has no {', '.join(obstacles)}"
    if not is_loopback(config.host):
        # Anyone who can connect could send a compression bomb; grpcio inflates nothing.
        return "grpcio", "beyond loopback native has no bound on what a request inflates to"
    return "native", "installed, and every setting is within its capabilities"


def build(name: Name, config: ServerConfig) -> tuple[grpc.aio.Server, int]:
    """A server bound to the configured address, not started, and its port."""
    options = _options(name, config)
    server: grpc.aio.Server
    if name == "native":
        from services.runtime.native import Server

        server = Server(options=options)
    else:
        server = grpc.aio.server(options=options)
    address = _address(config.host, config.port)
    try:
        if config.tls_certificate:
            port = server.add_secure_port(address, _credentials(config))
        else:
            port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    if port == 0:
        raise OSError(f"cannot listen on {address}")
    return server, port


def _address(host: str, port: int) -> str:
    if host.startswith("unix:"):
        return host
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _options(name: Name, config: ServerConfig) -> list[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
        ("grpc.keepalive_time_ms", round(config.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(config.keepalive_timeout_s * 1000)),
        # grpcio waits this long, a minute if unsaid, for the answer to a ping it sent anyway.
        ("grpc.http2.ping_timeout_ms", round(config.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Silent calls are normal here: a client that pings while it waits is no attacker.
        ("grpc.http2.min_ping_interval_without_data_ms", round(config.min_ping_interval_s * 1000)),
        ("grpc.http2.max_ping_strikes", 2 if config.min_ping_interval_s else 0),
        ("grpc.so_reuseport", 0),
        # Beyond 1,000 calls that no handler has taken up yet, grpc cancels some and gives no
        # reason. Streams bound what a connection may have; admission refuses by name.
        ("grpc.server.max_pending_requests", 1_000_000),
        ("grpc.server.max_pending_requests_hard_limit", 1_000_000),
        # Bit 0 is "identity": grpcio refuses compressed requests; native inflates gzip anyway.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.enable_channelz", 1),
    ]
    if name == "grpcio" and config.max_connection_age_s:
        options += [
            ("grpc.max_connection_age_ms", round(config.max_connection_age_s * 1000)),
            ("grpc.max_connection_age_grace_ms", round(config.max_connection_age_grace_s * 1000)),
        ]
    return options


def _credentials(config: ServerConfig) -> grpc.ServerCredentials:
    if not (config.tls_certificate and config.tls_key):
        raise ValueError("TLS needs tls_certificate and tls_key")
    ca = config.tls_client_ca.read_bytes() if config.tls_client_ca else None
    return grpc.ssl_server_credentials(
        [(config.tls_key.read_bytes(), config.tls_certificate.read_bytes())],
        root_certificates=ca,
        require_client_auth=ca is not None,
    )

"""`python -m services.runtime.probe ADDRESS [SERVICE]`: is a server healthy? Exit 0 yes, 1 no.

For HEALTHCHECK: an address is asked for grpc.health.v1, an http:// one for its status. Knows no
service, and needs no token, since health is public.
"""

import argparse
import http.client
import sys
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

OPTIONS = [("grpc.enable_http_proxy", 0)]


def check_grpc(
    address: str, service: str, timeout_s: float, tls: grpc.ChannelCredentials | None = None
) -> str:
    """The health of a name, "" for the whole process: SERVING, or what else the server says."""
    channel = (
        grpc.secure_channel(address, tls, OPTIONS)
        if tls
        else grpc.insecure_channel(address, OPTIONS)
    )
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout_s
            )
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def check_http(url: str, timeout_s: float) -> str:
    """SERVING where the address answers 200, else what it answers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
    try:
        connection.request("GET", parts.path or "/")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return "SERVING" if status == http.client.OK else f"HTTP {status}"


def main(argv: list[str]) -> int:
    """Ask once."""
    parser = argparse.ArgumentParser(prog="python -m services.runtime.probe", description=__doc__)
    parser.add_argument("address", help="host:port, or http://host:port/path")
    parser.add_argument("service", nargs="?", default="", help="name to ask for, as models/iris")
    parser.add_argument("--timeout-s", type=float, default=4.0)
    parser.add_argument("--ca", type=Path, help="PEM certificates to trust; given, TLS is used")
    parser.add_argument("--certificate", type=Path, help="PEM certificate to show (mutual TLS)")
    parser.add_argument("--key", type=Path, help="PEM private key of that certificate")
    asked = parser.parse_args(argv)
    if asked.address.startswith("http://"):
        said = check_http(asked.address, asked.timeout_s)
    else:
        said = check_grpc(asked.address, asked.service, asked.timeout_s, _credentials(asked))
    sys.stdout.write(said + "\n")
    return 0 if said == "SERVING" else 1


def _credentials(asked: argparse.Namespace) -> grpc.ChannelCredentials | None:
    if asked.ca is None:
        return None
    own = [path.read_bytes() if path else None for path in (asked.key, asked.certificate)]
    return grpc.ssl_channel_credentials(asked.ca.read_bytes(), *own)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

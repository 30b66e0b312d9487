"""The one call of grpc.health.v1 that a client makes, without its generated code; knows no service.

The request is a message with an empty service name, which is no bytes at all; the answer has one
enum field.
"""

from __future__ import annotations

import grpc

from gristmill_client._config import Service
from gristmill_client._steps import Flow, call

_STATUSES = {b"": "UNKNOWN", b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}


class HealthStub:
    """As generated code would have it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.Check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=lambda message: message,
            response_deserializer=lambda message: message,
        )


def health(service: Service, timeout: float | None) -> Flow[str]:
    """How the service as a whole is, by the name of its ServingStatus."""
    answer = yield from call(service, HealthStub, lambda stub: stub.Check, b"", timeout)
    return _STATUSES.get(answer, "UNKNOWN")

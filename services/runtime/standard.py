"""The standard gRPC services where the published packages lag behind: health's List, reflection v1.

Both get their descriptors from those of the packages, changed in a pool of our own, so that
nothing is registered twice in the default pool.
"""

from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

POOL = descriptor_pool.DescriptorPool()

HEALTH = "grpc.health.v1.Health"
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
REFLECTION_V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"


def _health_with_list() -> descriptor_pb2.FileDescriptorProto:
    """grpc/health/v1/health.proto as gRFC A90 has it."""
    file = descriptor_pb2.FileDescriptorProto()
    health_pb2.DESCRIPTOR.CopyToProto(file)
    file.message_type.add(name="HealthListRequest")
    response = file.message_type.add(name="HealthListResponse")
    entry = response.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    kinds = descriptor_pb2.FieldDescriptorProto
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry.field.add(
        name="value",
        number=2,
        type=kinds.TYPE_MESSAGE,
        type_name=".grpc.health.v1.HealthCheckResponse",
        label=kinds.LABEL_OPTIONAL,
    )
    response.field.add(
        name="statuses",
        number=1,
        type=kinds.TYPE_MESSAGE,
        type_name=".grpc.health.v1.HealthListResponse.StatusesEntry",
        label=kinds.LABEL_REPEATED,
    )
    file.service[0].method.add(
        name="List",
        input_type=".grpc.health.v1.HealthListRequest",
        output_type=".grpc.health.v1.HealthListResponse",
    )
    return file


def _reflection_v1() -> descriptor_pb2.FileDescriptorProto:
    """grpc/reflection/v1/reflection.proto: v1alpha under its final name."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    renamed = file.SerializeToString()
    # The old name stands in length-prefixed strings, so the change is made field by field.
    file = descriptor_pb2.FileDescriptorProto.FromString(renamed)
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = "grpc.reflection.v1"
    for owner in _typed(file):
        for name in ("type_name", "input_type", "output_type"):
            if hasattr(owner, name):
                value = getattr(owner, name).replace(".v1alpha.", ".v1.")
                if value:
                    setattr(owner, name, value)
    return file


def _typed(file: descriptor_pb2.FileDescriptorProto) -> Iterator[Any]:
    for message in file.message_type:
        yield from message.field
    for service in file.service:
        yield from service.method


for _file in (_health_with_list(), _reflection_v1()):
    POOL.Add(_file)

HealthCheckRequest: Any
HealthCheckResponse: Any
HealthListRequest: Any
HealthListResponse: Any
HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse = (
    message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"grpc.health.v1.{name}"))
    for name in (
        "HealthCheckRequest",
        "HealthCheckResponse",
        "HealthListRequest",
        "HealthListResponse",
    )
)


class Pools:
    """Several descriptor pools, asked in turn: what reflection looks things up in."""

    def __init__(self, *pools: descriptor_pool.DescriptorPool) -> None:
        self._pools = (*pools, POOL, descriptor_pool.Default())

    def _first(self, method: str, *arguments: Any) -> Any:
        for pool in self._pools:
            try:
                return getattr(pool, method)(*arguments)
            except KeyError:
                continue
        raise KeyError(arguments[-1])

    def FindFileByName(self, name: str) -> FileDescriptor:  # noqa: N802  # protobuf's own name
        """The file of this name in the first pool that has it."""
        found: FileDescriptor = self._first("FindFileByName", name)
        return found

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802
        """The file that defines the symbol in the first pool that has it."""
        # Pools know no methods, and reflection must: what defines one is the file of its service.
        service, _, method = symbol.rpartition(".")
        try:
            found: FileDescriptor = self._first("FindFileContainingSymbol", symbol)
        except KeyError:
            owner = self._first("FindServiceByName", service)
            if method not in owner.methods_by_name:
                raise
            found = owner.file
        return found

    def FindMessageTypeByName(self, name: str) -> Any:  # noqa: N802
        """The message of this name in the first pool that has it."""
        return self._first("FindMessageTypeByName", name)

    def FindExtensionByNumber(self, message: Any, number: int) -> Any:  # noqa: N802
        """The extension of this number; its message belongs to one of the pools."""
        return message.file.pool.FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Any) -> Any:  # noqa: N802
        """The extensions of this message in its own pool."""
        return message.file.pool.FindAllExtensions(message)

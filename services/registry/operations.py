"""google.longrunning.Operations over the work of this registry.

Finalizing is the only long work yet. Its operation is named after its version and read off the
version's state, so it is there after a restart and needs no table.
"""

import re
from typing import Any

import grpc
from google.longrunning import operations_pb2
from google.protobuf import message_factory

from services.registry import converters
from services.registry.resources import VersionRecord
from services.registry.store import Store
from services.runtime.errors import OPERATION_NOT_FOUND, NotFound
from services.runtime.interceptors import Handler

_NAME = re.compile(r"operations/finalize\.([A-Za-z0-9][A-Za-z0-9._-]{0,127})\.([1-9][0-9]{0,9})")


def finalize_operation(record: VersionRecord) -> operations_pb2.Operation:
    """The operation that makes a version ready."""
    done = record.state not in ("uploading", "validating")
    operation = operations_pb2.Operation(
        name=f"operations/finalize.{record.model}.{record.version}", done=done
    )
    if done:
        operation.response.Pack(converters.version_out(record))
    return operation


SERVICE = operations_pb2.DESCRIPTOR.services_by_name["Operations"]


class OperationsServicer:
    """The methods that are built; the others answer UNIMPLEMENTED."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def GetOperation(self, request: Any, context: Any) -> operations_pb2.Operation:  # noqa: N802
        """The operation as it stands."""
        found = _NAME.fullmatch(request.name)
        if found is None:
            raise NotFound(f"there is no operation {request.name!r}", reason=OPERATION_NOT_FOUND)
        version = await self._store.version(found[1], int(found[2]))
        return finalize_operation(version)

    async def not_built(self, request: Any, context: Any) -> Any:
        """What a method answers until it is built."""
        raise NotImplementedError


def handlers(store: Store) -> dict[str, Handler]:
    """The method handlers of google.longrunning.Operations.

    The package's own add-to-server function is older than registered methods.
    """
    servicer = OperationsServicer(store)
    return {
        method.name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, method.name, servicer.not_built),
            message_factory.GetMessageClass(method.input_type).FromString,
            message_factory.GetMessageClass(method.output_type).SerializeToString,
        )
        for method in SERVICE.methods
    }

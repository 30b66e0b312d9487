"""Owns the Open Inference Protocol's message classes and method handlers; knows no model.

They come from a descriptor pool of their own: tritonclient registers the same names in the
default pool, and one process must be able to import both.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

__all__ = ["POOL", "SERVICE", "Servicer", "add_servicer", "config_pb", "method_handlers", "pb"]

_KINDS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _load() -> DescriptorPool:
    path = Path(__file__).parent / "generated" / "descriptors.binpb"
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(path.read_bytes()).file:
        pool.Add(file)
    return pool


def _module(file_name: str) -> ModuleType:
    """Holds what protoc's `_pb2` module for the file would hold."""
    file = POOL.FindFileByName(file_name)
    module = ModuleType(file_name.removesuffix(".proto").replace("/", ".") + "_pb2")
    contents = vars(module)
    contents["DESCRIPTOR"] = file
    for name, message in file.message_types_by_name.items():
        contents[name] = GetMessageClass(message)
    for name, enum in file.enum_types_by_name.items():
        contents[name] = EnumTypeWrapper(enum)
        contents.update((value.name, value.number) for value in enum.values)
    return module


POOL = _load()
SERVICE = POOL.FindServiceByName("inference.GRPCInferenceService")

if TYPE_CHECKING:
    from inference import grpc_service_pb2 as pb
    from inference import model_config_pb2 as config_pb
    from inference.grpc_service_pb2_grpc import GRPCInferenceServiceServicer as Servicer
else:
    pb = _module("inference/grpc_service.proto")
    config_pb = _module("inference/model_config.proto")
    Servicer = object


def method_handlers(servicer: object) -> dict[str, grpc.RpcMethodHandler[Message, Message]]:
    """Maps each RPC to the servicer's method of that name; raises AttributeError without one."""
    return {
        method.name: _KINDS[method.client_streaming, method.server_streaming](
            getattr(servicer, method.name),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
        for method in SERVICE.methods
    }


def add_servicer(servicer: object, server: grpc.aio.Server) -> None:
    """Does what a generated `add_GRPCInferenceServiceServicer_to_server` would."""
    handlers = method_handlers(servicer)
    generic = grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)
    server.add_generic_rpc_handlers((generic,))
    # The native transport leaves to grpcio whatever is not registered by method.
    server.add_registered_method_handlers(SERVICE.full_name, handlers)

"""The operations of the Open Inference Protocol over HTTP, as KServe and Triton have them."""

from typing import Any

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import FieldDescriptor
from gristmill.generator.v1 import generator_service_pb2 as generator_pb
from gristmill.generator.v1 import loaded_model_pb2

from gateway import contract, descriptors, wire
from gateway.contract import Method
from gateway.dialect import Exchange
from gateway.errors import Answer, CallFailedError
from gateway.oip import documented, infer
from gateway.oip.generate import (
    GENERATE_STATUSES,
)
from gateway.replies import start_of
from services.oip.contract import SERVICE, pb
from services.runtime.errors import InvalidRequest
from services.runtime.server import VERSION

Json = dict[str, Any]
EXTENSIONS = ("binary_tensor_data", "classification", "generate", "model_configuration")
MORE_EXTENSIONS = ("model_repository", "parameters", "schedule_policy", "statistics")
_WIDE = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


def _method(name: str, *, repeatable: bool = True) -> Method:
    descriptor = SERVICE.methods_by_name[name]
    return Method(
        descriptor,
        "classifier",
        f"/{SERVICE.full_name}/{name}",
        message_factory.GetMessageClass(descriptor.input_type),
        message_factory.GetMessageClass(descriptor.output_type),
        repeatable=repeatable,
    )


LIVE, READY = _method("ServerLive"), _method("ServerReady")
SERVER, MODEL = _method("ServerMetadata"), _method("ModelMetadata")
MODEL_READY, CONFIG = _method("ModelReady"), _method("ModelConfig")
STATISTICS, INDEX = _method("ModelStatistics"), _method("RepositoryIndex")
INFER = _method("ModelInfer")
LOAD, UNLOAD = _method("RepositoryModelLoad"), _method("RepositoryModelUnload")
GENERATED = contract.method("generator", "ListLoadedModels")


def error_shape(found: Answer, path: str) -> tuple[int, Json, dict[str, str]]:
    """An error as this protocol has it: a text. Generate has statuses of its own."""
    status = found.http
    if path.endswith(("/generate", "/generate_stream")):
        status = GENERATE_STATUSES.get(status, status)
    return status, {"error": found.body["error"]["message"]}, {}


async def live(exchange: Exchange) -> None:
    """GET /v2/health/live."""
    response = await exchange.ask(LIVE, pb.ServerLiveRequest())
    await _state(exchange, "live", good=response.live)


async def ready(exchange: Exchange) -> None:
    """GET /v2/health/ready."""
    response = await exchange.ask(READY, pb.ServerReadyRequest())
    await _state(exchange, "ready", good=response.ready)


async def model_ready(exchange: Exchange) -> None:
    """GET /v2/models/{model}/ready: by whichever service has it."""
    model, version = _named(exchange)
    request = pb.ModelReadyRequest(name=model, version=version)
    response = await exchange.ask(MODEL_READY, request)
    good = response.ready or any(_is(one, version) for one in await _generated(exchange, model))
    await _state(exchange, "ready", good=good)


async def server(exchange: Exchange) -> None:
    """GET /v2."""
    await exchange.reply(
        {
            "name": "gristmill",
            "version": VERSION,
            "extensions": [*EXTENSIONS, *MORE_EXTENSIONS],
        }
    )


async def model(exchange: Exchange) -> None:
    """GET /v2/models/{model}: its tensors, or those that generate stands for."""
    name, version = _named(exchange)
    try:
        response = await exchange.ask(MODEL, pb.ModelMetadataRequest(name=name, version=version))
    except CallFailedError:
        found = await _generated(exchange, name)
        if not any(_is(one, version) for one in found):
            raise
        await exchange.reply(_generating(name, found))
        return
    await exchange.reply(
        {
            "name": response.name,
            "versions": list(response.versions),
            "platform": response.platform,
            "inputs": [_tensor(one) for one in response.inputs],
            "outputs": [_tensor(one) for one in response.outputs],
        }
    )


async def config(exchange: Exchange) -> None:
    """GET /v2/models/{model}/config, in Triton's form."""
    name, version = _named(exchange)
    response = await exchange.ask(CONFIG, pb.ModelConfigRequest(name=name, version=version))
    await exchange.reply(_tree(response.config))


async def statistics(exchange: Exchange) -> None:
    """GET /v2/models/stats and /v2/models/{model}/stats."""
    name, version = _named(exchange)
    request = pb.ModelStatisticsRequest(name=name, version=version)
    await exchange.reply(_tree(await exchange.ask(STATISTICS, request)))


async def infer_(exchange: Exchange) -> None:
    """POST /v2/models/{model}/infer."""
    name, version = _named(exchange)
    body = await exchange.body()
    length = _header_length(exchange)
    if length == 0:
        metadata = await exchange.ask(MODEL, pb.ModelMetadataRequest(name=name, version=version))
        asked = infer.raw(name, version, body, metadata.inputs)
    else:
        depth = exchange.limits.max_json_depth
        asked = await wire.aside(len(body), lambda: infer.read(name, version, body, length, depth))
    response = await exchange.ask(INFER, asked.message)
    size = response.ByteSize()
    content, json_length = await wire.aside(size, lambda: infer.write(response, asked))
    fields = {"content-length": str(len(content)), "content-type": "application/json"}
    if json_length is not None:
        fields["content-type"] = "application/octet-stream"
        fields[infer.HEADER_LENGTH] = str(json_length)
    await exchange.send(start_of(200, fields))
    await exchange.send({"type": "http.response.body", "body": content})


async def index(exchange: Exchange) -> None:
    """POST /v2/repository/index."""
    asked = await exchange.json(documented.IndexRequest)
    request = pb.RepositoryIndexRequest(ready=asked.ready)
    response = await exchange.ask(INDEX, request)
    await exchange.reply([_tree(one) for one in response.models])


async def load(exchange: Exchange) -> None:
    """POST /v2/repository/models/{model}/load."""
    asked = await exchange.json(documented.RepositoryRequest)
    request = pb.RepositoryModelLoadRequest(model_name=exchange.variables["model"])
    for name, value in asked.parameters.items():
        request.parameters[name].string_param = str(value)
    await exchange.ask(LOAD, request)
    await exchange.reply({})


async def unload(exchange: Exchange) -> None:
    """POST /v2/repository/models/{model}/unload."""
    asked = await exchange.json(documented.RepositoryRequest)
    request = pb.RepositoryModelUnloadRequest(model_name=exchange.variables["model"])
    infer.add_parameters("parameters", request.parameters, asked.parameters)
    await exchange.ask(UNLOAD, request)
    await exchange.reply({})


async def _state(exchange: Exchange, name: str, *, good: bool) -> None:
    """200 or 503: clients of this protocol look at nothing else."""
    await exchange.reply({name: good}, 200 if good else 503)


def _named(exchange: Exchange) -> tuple[str, str]:
    """The model and the version of the path; "" where it names none."""
    return exchange.variables.get("model", ""), exchange.variables.get("version", "")


def _header_length(exchange: Exchange) -> int | None:
    given = exchange.headers.get(infer.HEADER_LENGTH)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 10):
        raise InvalidRequest.field(infer.HEADER_LENGTH, "must be a number of bytes")
    return int(given)


async def _generated(exchange: Exchange, name: str) -> list[Any]:
    """The versions of a model that the generator has ready; none where it does not answer."""
    try:
        response = await exchange.ask(GENERATED, generator_pb.ListLoadedModelsRequest())
    except CallFailedError:
        return []
    ready = loaded_model_pb2.LOAD_STATE_READY
    return [one for one in response.models if one.model == name and one.state == ready]


def _is(one: Any, version: str) -> bool:
    return version in ("", str(one.version))


def _generating(name: str, found: list[Any]) -> Json:
    text = {"datatype": "BYTES", "shape": [1]}
    return {
        "name": name,
        "versions": [str(one.version) for one in found],
        "platform": found[0].engine,
        "inputs": [{"name": "text_input", **text}],
        "outputs": [{"name": "text_output", **text}],
    }


def _tensor(one: Any) -> Json:
    return {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}


def _tree(message: Any) -> Json:
    """A message under the names that the protocol has; 64-bit numbers as numbers."""
    tree: Json = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _widen(tree, descriptors.of(message))
    return tree


def _widen(tree: Json, descriptor: Any) -> None:
    """64-bit numbers as numbers, where proto3 JSON writes text."""
    for name, value in tree.items():
        field = descriptor.fields_by_name[name]
        if field.message_type is not None and descriptors.is_map(field):
            inner = descriptors.map_parts(field)[1].message_type
            for one in value.values() if inner is not None else ():
                _widen(one, inner)
        elif field.message_type is not None:
            for one in value if isinstance(value, list) else [value]:
                _widen(one, field.message_type)
        elif field.cpp_type in _WIDE:
            tree[name] = [int(v) for v in value] if isinstance(value, list) else int(value)

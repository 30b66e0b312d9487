"""Checks that our Open Inference Protocol is tritonclient's, beside it and over the wire."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from google.protobuf.message import Message

from services.oip.contract import (
    SERVICE,
    add_servicer,
    config_pb,
    method_handlers,
    pb,
)

Context = grpc.aio.ServicerContext[Message, Message]

ROOT = Path(__file__).parents[2]
TRITONCLIENT = "2.73"
NOT_OFFERED = ("SystemSharedMemory", "CudaSharedMemory", "TraceSetting", "LogSettings")

OURS = "from services.oip.contract import pb, config_pb\n"
THEIRS = "from tritonclient.grpc import service_pb2, model_config_pb2\n"

DUMP = f"""{THEIRS}
import sys
from google.protobuf.descriptor_pb2 import FileDescriptorSet
files = FileDescriptorSet()
for module in (model_config_pb2, service_pb2):
    module.DESCRIPTOR.CopyToProto(files.file.add())
sys.stdout.buffer.write(files.SerializeToString())
"""

ROUND_TRIP = """
theirs = service_pb2.ModelInferRequest(
    model_name="sentiment", id="7", raw_input_contents=[bytes([1, 0, 0, 0, 120])]
)
tensor = theirs.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
tensor.parameters["binary_data_size"].int64_param = 5
theirs.parameters["timeout"].uint64_param = 2**63
theirs.outputs.add(name="scores").parameters["classification"].int64_param = 3

ours = pb.ModelInferRequest.FromString(theirs.SerializeToString())
assert ours.inputs[0].parameters["binary_data_size"].int64_param == 5
assert ours.parameters["timeout"].WhichOneof("parameter_choice") == "uint64_param"
assert service_pb2.ModelInferRequest.FromString(ours.SerializeToString()) == theirs

config = config_pb.ModelConfig(name="m", input=[{"data_type": config_pb.TYPE_FP32, "dims": [-1]}])
answer = pb.ModelConfigResponse(config=config).SerializeToString()
read = service_pb2.ModelConfigResponse.FromString(answer).config
assert read.input[0].data_type == model_config_pb2.TYPE_FP32
assert config_pb.ModelConfig.FromString(read.SerializeToString()) == config
"""

CALLS = """
import sys
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException
client = InferenceServerClient(sys.argv[1])
assert client.is_server_live()
assert client.get_model_config("m").config.max_batch_size == 8
answer = client.infer("m", [InferInput("text", [1, 0], "BYTES")], request_id="7")
assert answer.get_response().id == "7"

answers = []
client.start_stream(lambda result, error: answers.append((result.get_response().id, error)))
client.async_stream_infer("m", [], request_id="1")
client.async_stream_infer("m", [], request_id="2")
client.stop_stream()
assert answers == [("1", None), ("2", None)], answers

for missing in (client.get_server_metadata, client.get_trace_settings):
    try:
        missing()
    except InferenceServerException as error:
        assert error.status() == "StatusCode.UNIMPLEMENTED", error
    else:
        raise AssertionError(missing)
client.close()
"""


@pytest.fixture(scope="session")
def tritonclient() -> Path:
    """Gives a Python that has tritonclient, which wants an older protobuf than ours may be."""
    home = ROOT / ".cache" / "venvs" / f"tritonclient-{TRITONCLIENT}"
    python = home / "bin" / "python"
    if not python.exists():
        build_environment(home, f"tritonclient[grpc]=={TRITONCLIENT}.*", "protobuf<7")
    return python


def run(python: Path, script: str, *arguments: str) -> bytes:
    done = subprocess.run(
        [python, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def build_environment(home: Path, *requirements: str) -> None:
    """Builds beside `home` and renames, so that an interrupted build is never taken for one."""
    uv = Path(sys.executable).with_name("uv")
    draft = home.with_name(f"{home.name}.{os.getpid()}")
    subprocess.run([uv, "venv", "-q", "--relocatable", "-p", sys.executable, draft], check=True)
    subprocess.run([uv, "pip", "install", "-q", "-p", draft, *requirements], check=True)
    shutil.rmtree(home, ignore_errors=True)
    draft.rename(home)


def enum_facts(enum: EnumDescriptorProto, scope: str) -> Iterator[tuple[str, str]]:
    for value in enum.value:
        yield f"{scope}.{enum.name}.{value.name}", str(value.number)


def field_fact(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    label = FieldDescriptorProto.Label.Name(field.label)
    kind = field.type_name or FieldDescriptorProto.Type.Name(field.type)
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
    return f"{label} {kind} = {field.number} {oneof=} {field.proto3_optional=} {field.options=!s}"


def message_facts(message: DescriptorProto, scope: str) -> Iterator[tuple[str, str]]:
    name = f"{scope}.{message.name}"
    yield name, f"message options={message.options}"
    for field in message.field:
        yield f"{name}.{field.name}", field_fact(field, message)
    for nested in message.nested_type:
        yield from message_facts(nested, name)
    for enum in message.enum_type:
        yield from enum_facts(enum, name)


def facts(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """Yields every name of the file with all that a client relies on."""
    for message in file.message_type:
        yield from message_facts(message, file.package)
    for enum in file.enum_type:
        yield from enum_facts(enum, file.package)
    for service in file.service:
        for rpc in service.method:
            kind = f"{rpc.client_streaming=} {rpc.server_streaming=}"
            fact = f"{rpc.input_type} -> {rpc.output_type} {kind}"
            yield f"{file.package}.{service.name}/{rpc.name}", fact


def offered(name: str) -> bool:
    return not name.split(".")[1].removeprefix("GRPCInferenceService/").startswith(NOT_OFFERED)


def test_the_contract_is_tritonclients(tritonclient: Path) -> None:
    theirs = FileDescriptorSet.FromString(run(tritonclient, DUMP))
    ours = FileDescriptorSet()
    for module in (config_pb, pb):
        module.DESCRIPTOR.CopyToProto(ours.file.add())

    expected = {name: fact for file in theirs.file for name, fact in facts(file) if offered(name)}
    assert {name: fact for file in ours.file for name, fact in facts(file)} == expected
    assert len(SERVICE.methods) == 12
    assert "inference.ModelConfig.max_batch_size" in expected


@pytest.mark.parametrize("imports", [OURS + THEIRS, THEIRS + OURS], ids=["ours", "theirs"])
def test_both_live_in_one_process(tritonclient: Path, imports: str) -> None:
    run(tritonclient, imports + ROUND_TRIP)


async def server_live(_: pb.ServerLiveRequest, __: Context) -> pb.ServerLiveResponse:
    return pb.ServerLiveResponse(live=True)


async def model_config(request: pb.ModelConfigRequest, _: Context) -> pb.ModelConfigResponse:
    config = config_pb.ModelConfig(name=request.name, max_batch_size=8)
    return pb.ModelConfigResponse(config=config)


async def model_infer(request: pb.ModelInferRequest, _: Context) -> pb.ModelInferResponse:
    return pb.ModelInferResponse(model_name=request.model_name, id=request.id)


async def model_stream_infer(
    requests: AsyncIterator[pb.ModelInferRequest], context: Context
) -> AsyncIterator[pb.ModelStreamInferResponse]:
    async for request in requests:
        response = await model_infer(request, context)
        yield pb.ModelStreamInferResponse(infer_response=response)


async def refuse(_: Message, context: Context) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not in this test")


def servicer(**methods: object) -> SimpleNamespace:
    return SimpleNamespace(**{rpc.name: refuse for rpc in SERVICE.methods} | methods)


async def test_tritonclient_calls_what_is_mounted(tritonclient: Path) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    add_servicer(
        servicer(
            ServerLive=server_live,
            ModelConfig=model_config,
            ModelInfer=model_infer,
            ModelStreamInfer=model_stream_infer,
        ),
        server,
    )
    await server.start()
    try:
        await asyncio.to_thread(run, tritonclient, CALLS, f"127.0.0.1:{port}")
    finally:
        await server.stop(None)


def test_a_servicer_without_a_method_is_refused() -> None:
    incomplete = servicer()
    del incomplete.ModelInfer
    with pytest.raises(AttributeError, match="ModelInfer"):
        method_handlers(incomplete)


def test_the_default_pool_stays_free() -> None:
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileContainingSymbol(SERVICE.full_name)

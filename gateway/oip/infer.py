"""Inference requests and answers: JSON, with tensors in it or as bytes behind it. Calls nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from gateway.dialect import parse
from gateway.oip import tensors
from services.oip.contract import pb
from services.runtime.errors import InvalidRequest

HEADER_LENGTH = "inference-header-content-length"
BINARY, BINARY_SIZE, BINARY_OUTPUT = "binary_data", "binary_data_size", "binary_data_output"
_MAX_INT64, _MAX_UINT64 = 2**63 - 1, 2**64 - 1
Value = StrictBool | StrictInt | StrictFloat | StrictStr
Parameters = dict[str, Value]
Dimension = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Input(_Strict):
    """A tensor of a request."""

    name: StrictStr = Field(max_length=1024)
    shape: list[Dimension] = Field(max_length=tensors.MAX_DIMENSIONS)
    datatype: StrictStr = Field(max_length=16)
    parameters: Parameters = {}
    data: list[Any] | None = None


class Output(_Strict):
    """An output that is asked for."""

    name: StrictStr = Field(max_length=1024)
    parameters: Parameters = {}


class InferRequest(_Strict):
    """POST /v2/models/{model}/infer."""

    id: StrictStr = Field(default="", max_length=1024)
    parameters: Parameters = {}
    inputs: list[Input] = Field(min_length=1, max_length=64)
    outputs: list[Output] = Field(default=[], max_length=64)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as a message, and which of its outputs shall be bytes."""

    message: pb.ModelInferRequest
    binary: Mapping[str, bool]
    binary_by_default: bool

    def is_binary(self, name: str) -> bool:
        """Whether an output shall be bytes."""
        return self.binary.get(name, self.binary_by_default)


def read(model: str, version: str, body: bytes, header_length: int | None, max_depth: int) -> Asked:
    """The request in a body; InvalidRequest names what is wrong."""
    if header_length is not None and header_length > len(body):
        said = f"is {header_length}, and the body has {len(body)} bytes"
        raise InvalidRequest.field(HEADER_LENGTH, said)
    header = body if header_length is None else body[:header_length]
    rest = memoryview(body)[len(header) :]
    asked = parse(InferRequest, header, max_depth)
    message = pb.ModelInferRequest(model_name=model, model_version=version, id=asked.id)
    by_default = bool(asked.parameters.pop(BINARY_OUTPUT, False))
    add_parameters("parameters", message.parameters, asked.parameters)
    for one in asked.inputs:
        rest = _add_input(message, one, rest)
    if rest:
        raise InvalidRequest(f"{len(rest)} bytes follow the tensors")
    binary: dict[str, bool] = {}
    for output in asked.outputs:
        if BINARY in output.parameters:
            binary[output.name] = bool(output.parameters.pop(BINARY))
        wanted = message.outputs.add(name=output.name)
        add_parameters(f"outputs[{output.name}]", wanted.parameters, output.parameters)
    return Asked(message, binary, by_default)


def _add_input(message: pb.ModelInferRequest, one: Input, rest: memoryview) -> memoryview:
    """Add an input; gives back what is left of the bytes behind the header."""
    field = f"inputs[{one.name}]"
    size = one.parameters.pop(BINARY_SIZE, None)
    added = message.inputs.add(name=one.name, datatype=one.datatype, shape=one.shape)
    add_parameters(field, added.parameters, one.parameters)
    if size is None:
        if one.data is None:
            # Such as one that lies in shared memory, which the service refuses by its name.
            message.raw_input_contents.append(b"")
            return rest
        message.raw_input_contents.append(
            tensors.to_bytes(field, one.datatype, one.shape, one.data)
        )
        return rest
    if one.data is not None:
        raise InvalidRequest.field(field, f"has data and {BINARY_SIZE}")
    if type(size) is not int or not 0 <= size <= len(rest):
        said = f"is {size}, and {len(rest)} bytes are left of the body"
        raise InvalidRequest.field(f"{field}.{BINARY_SIZE}", said)
    message.raw_input_contents.append(bytes(rest[:size]))
    return rest[size:]


def add_parameters(field: str, found: Any, given: Mapping[str, bool | int | float | str]) -> None:
    """Add parameters to a message's map."""
    for name, value in given.items():
        if isinstance(value, bool):
            found[name].bool_param = value
        elif isinstance(value, float):
            found[name].double_param = value
        elif isinstance(value, str):
            found[name].string_param = value
        elif -_MAX_INT64 - 1 <= value <= _MAX_INT64:
            found[name].int64_param = value
        elif 0 <= value <= _MAX_UINT64:
            found[name].uint64_param = value
        else:
            raise InvalidRequest.field(f"{field}[{name}]", "is no 64-bit number")


def write(response: pb.ModelInferResponse, asked: Asked) -> tuple[bytes, int | None]:
    """The body of an answer, and how much of it is JSON where bytes follow."""
    outputs, behind = [], []
    for one, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        tree: dict[str, Any] = {
            "name": one.name,
            "datatype": one.datatype,
            "shape": list(one.shape),
        }
        parameters = parameters_of(one.parameters)
        if asked.is_binary(one.name):
            parameters[BINARY_SIZE] = len(raw)
            behind.append(raw)
        else:
            tree["data"] = tensors.from_bytes(one.name, one.datatype, raw)
        if parameters:
            tree["parameters"] = parameters
        outputs.append(tree)
    whole: dict[str, Any] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
        "outputs": outputs,
    }
    if response.id:
        whole["id"] = response.id
    if response.parameters:
        whole["parameters"] = parameters_of(response.parameters)
    header = json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()
    if not behind:
        return header, None
    return b"".join((header, *behind)), len(header)


def parameters_of(given: Any) -> dict[str, Any]:
    """A message's parameters as JSON."""
    found = {}
    for name, value in given.items():
        choice = value.WhichOneof("parameter_choice")
        if choice:
            found[name] = getattr(value, choice)
    return found


def raw(model: str, version: str, body: bytes, inputs: Sequence[Any]) -> Asked:
    """A body that is the only input of a model and nothing else; answered in bytes."""
    if len(inputs) != 1:
        raise InvalidRequest(f"a raw body is for models with one input; {model} has {len(inputs)}")
    one = inputs[0]
    if one.datatype == "BYTES":
        content = len(body).to_bytes(4, "little") + body
        shape = [1] * max(1, len(one.shape))
    else:
        content, shape = body, _shape(one, len(body))
    message = pb.ModelInferRequest(model_name=model, model_version=version)
    message.inputs.add(name=one.name, datatype=one.datatype, shape=shape)
    message.raw_input_contents.append(content)
    return Asked(message, {}, binary_by_default=True)


def _shape(one: Any, size: int) -> list[int]:
    """The shape that a body of this size has: one item, and at most one size that it decides."""
    shape = [1, *one.shape[1:]]
    variable = [index for index, dimension in enumerate(shape) if dimension < 0]
    if len(variable) > 1:
        raise InvalidRequest(f"a raw body does not say the shape of {one.name}")
    if variable:
        form = tensors.FORMATS.get(one.datatype, "H")
        known = tensors.size_of(form)
        for dimension in shape:
            known *= max(1, dimension)
        shape[variable[0]] = size // known
    return shape

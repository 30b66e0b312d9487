"""Tensors of a request as arrays, and arrays as tensors of a response; knows no model.

Elements come typed in `contents`, or as bytes in `raw_input_contents`: arrays are views of those.
Answers are always raw, as Triton gives them and as its clients read them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.inference import tensor_bytes
from services.inference.items import Array
from services.inference.preprocessing.preprocessor import DTYPES
from services.oip.contract import pb
from services.runtime.errors import BackendFailed, InvalidRequest, UnsupportedField

MAX_INPUTS = 64
MAX_DIMENSIONS = 16
SHARED_MEMORY = "shared_memory_"
# The field of InferTensorContents for each datatype; FP16 and BF16 have none.
FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
RAW_ONLY = ("FP16", "BF16")
# BF16 is no type of numpy: its elements come as UINT16.
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items() if name != "BF16"}


@dataclass(slots=True, eq=False)
class Tensor:
    """An array, and what its elements are: BF16 is UINT16 to numpy."""

    datatype: str
    array: Array


def read(request: pb.ModelInferRequest) -> dict[str, Tensor]:
    """The inputs of a request by name; InvalidRequest names the one that is wrong."""
    inputs, raw = request.inputs, request.raw_input_contents
    if not 0 < len(inputs) <= MAX_INPUTS:
        said = f"has {len(inputs)} tensors; 1 to {MAX_INPUTS} are taken"
        raise InvalidRequest.field("inputs", said)
    if raw and len(raw) != len(inputs):
        said = f"has {len(raw)} entries for {len(inputs)} inputs"
        raise InvalidRequest.field("raw_input_contents", said)
    found: dict[str, Tensor] = {}
    for index, tensor in enumerate(inputs):
        field = f"inputs[{tensor.name}]"
        if tensor.name in found:
            raise InvalidRequest.field(field, "is there twice")
        refuse_shared_memory(field, tensor.parameters)
        shape = _shape(field, tensor.shape)
        if not raw:
            array = _typed(field, tensor.datatype, shape, tensor.contents)
        elif tensor.HasField("contents"):
            raise InvalidRequest.field(field, "has contents beside raw_input_contents")
        else:
            array = tensor_bytes.decode(field, tensor.datatype, shape, raw[index])
        found[tensor.name] = Tensor(tensor.datatype, array)
    return found


def refuse_shared_memory(field: str, parameters: Mapping[str, pb.InferParameter]) -> None:
    """Raise UnsupportedField where elements lie, or shall be put, elsewhere."""
    for key in parameters:
        if key.startswith(SHARED_MEMORY):
            raise UnsupportedField.field(f"{field}.parameters[{key}]", "there is no shared memory")


def write(response: pb.ModelInferResponse, name: str, array: Array, declared: str = "") -> None:
    """Add an output; `declared` is what the model says that its elements are."""
    found = "BYTES" if array.dtype.kind in "SU" else _NAMES.get(array.dtype)
    if found is None:
        raise BackendFailed(f"output {name} is of {array.dtype}, which no tensor can be")
    if declared == "BF16" and found == "UINT16":
        found = declared
    response.outputs.add(name=name, datatype=found, shape=array.shape)
    response.raw_output_contents.append(tensor_bytes.encode(array))


def _shape(field: str, shape: Sequence[int]) -> list[int]:
    found = list(shape)
    if len(found) > MAX_DIMENSIONS:
        said = f"has {len(found)} dimensions, at most {MAX_DIMENSIONS} are taken"
        raise InvalidRequest.field(field, said)
    # Beside a 0 the product says nothing of the others.
    if max(found, default=0) > tensor_bytes.MAX_ELEMENTS:
        raise InvalidRequest.field(field, f"shape {found} has too many elements")
    return found


def _typed(
    field: str, datatype: str, shape: Sequence[int], contents: pb.InferTensorContents
) -> Array:
    name = FIELDS.get(datatype)
    if name is None:
        raw = datatype in RAW_ONLY
        said = f"type {datatype!r} " + ("travels in raw_input_contents" if raw else "is not known")
        raise InvalidRequest.field(field, said)
    for other, _ in contents.ListFields():
        if other.name != name:
            raise InvalidRequest.field(field, f"{datatype} travels in {name}, not {other.name}")
    values = getattr(contents, name)[:]
    if datatype == "BYTES":
        return tensor_bytes.strings(field, shape, values)
    if tensor_bytes.elements(field, shape) != len(values):
        said = f"has {len(values)} elements, not those of shape {list(shape)}"
        raise InvalidRequest.field(field, said)
    dtype = np.dtype(DTYPES[datatype])
    if dtype.kind in "iu" and values:
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        if min(values) < least or max(values) > most:
            raise InvalidRequest.field(field, f"has an element that is no {datatype}")
    return np.array(values, dtype=dtype).reshape(shape)

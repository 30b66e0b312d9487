"""The header of a safetensors file, held against the file's length. Reads no tensor."""

import struct
from typing import Any

from services.registry.checks.files import Files
from services.registry.checks.findings import RefusedError, quoted
from services.registry.checks.json_text import parse_object

RULE = "header"
MAX_TENSORS, MAX_DIMENSIONS, MAX_ELEMENTS = 200_000, 32, 1 << 60
# Bits, since some formats pack two values in a byte.
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


def check(files: Files, path: str, max_header_bytes: int) -> dict[str, str]:
    """The metadata of a file that is in order."""
    size = files.size(path)
    with files.open(path) as stream:
        head = stream.read(8)
        if len(head) < 8:
            raise RefusedError(RULE, "ends inside its header")
        (length,) = struct.unpack("<Q", head)
        if length > max_header_bytes or length > size - 8:
            raise RefusedError(RULE, f"claims a header of {length} bytes; the file has {size}")
        text = stream.read(length)
    header = parse_object(text, RULE, unique_keys=True)
    metadata = _metadata(header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise RefusedError(RULE, f"has more than {MAX_TENSORS} tensors")
    _covered([_extent(name, tensor) for name, tensor in header.items()], size - 8 - length)
    return metadata


def _metadata(given: Any) -> dict[str, str]:
    if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
        raise RefusedError(RULE, "__metadata__ must map text to text")
    return given


def _extent(name: str, tensor: Any) -> tuple[int, int, str]:
    if not isinstance(tensor, dict) or set(tensor) != {"dtype", "shape", "data_offsets"}:
        raise RefusedError(RULE, f"tensor {quoted(name)} needs dtype, shape and data_offsets")
    dtype, offsets = tensor["dtype"], tensor["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise RefusedError(RULE, f"tensor {quoted(name)}: dtype {quoted(str(dtype))} is not known")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise RefusedError(RULE, f"tensor {quoted(name)}: data_offsets must be [begin, end]")
    begin, end = offsets
    bits = _elements(name, tensor["shape"]) * BITS[dtype]
    if bits % 8 or bits // 8 != end - begin:
        said = f"tensor {quoted(name)}: its shape takes {bits / 8:g} bytes, it has {end - begin}"
        raise RefusedError(RULE, said)
    return begin, end, name


def _elements(name: str, shape: Any) -> int:
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise RefusedError(RULE, f"tensor {quoted(name)}: shape must list non-negative numbers")
    count = 1
    for length in shape:
        count *= length
        if count > MAX_ELEMENTS:
            raise RefusedError(RULE, f"tensor {quoted(name)}: its shape is too large")
    return count


def _naturals(given: Any) -> bool:
    return isinstance(given, list) and all(
        type(number) is int and 0 <= number < 1 << 63 for number in given
    )


def _covered(extents: list[tuple[int, int, str]], length: int) -> None:
    """Every byte of the data belongs to exactly one tensor."""
    position = 0
    for begin, end, name in sorted(extents):
        if begin != position:
            fault = "overlaps the one before it" if begin < position else "leaves a hole before it"
            raise RefusedError(RULE, f"tensor {quoted(name)} {fault}")
        position = end
    if position != length:
        said = f"its tensors take {position} bytes of data, the file has {length}"
        raise RefusedError(RULE, said)

"""The tensors in an ONNX file: that their data is there, all of it, and nowhere else."""

from dataclasses import dataclass, field

from services.registry.checks.files import Files, plain
from services.registry.checks.findings import RefusedError, quoted
from services.registry.checks.onnx_shapes import BITS, ENTRY, SPARSE, STRING, TENSOR
from services.registry.checks.wire import VARINT, Field, Wire

RULE, EXTERNAL_RULE = "header", "external-data"
MAX_DIMENSIONS, MAX_ELEMENTS, MAX_NUMBER_DIGITS = 64, 1 << 60, 19
EXTERNAL = 1
EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}
TYPED = {"float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data"}


@dataclass(slots=True)
class _Tensor:
    """What a TensorProto says."""

    name: str = ""
    datatype: int = 0
    dims: list[int] = field(default_factory=list)
    location: int = 0
    raw: int | None = None
    typed_bytes: int = 0
    external: list[tuple[str, str]] = field(default_factory=list)

    @property
    def called(self) -> str:
        """How a message names it."""
        return f"tensor {quoted(self.name)}"


class Tensors:
    """Checks the tensors of one model, which lies beside the files that it may name."""

    def __init__(self, wire: Wire, files: Files, path: str) -> None:
        self._wire = wire
        self._files = files
        self._path = path

    def check(self, message: Field) -> str:
        """The name of a tensor that is in order."""
        tensor = self._read(message)
        count = _elements(tensor)
        if tensor.location == EXTERNAL:
            self._outside(tensor, count)
        elif tensor.external or tensor.location:
            said = f"{tensor.called} names external data without being marked as EXTERNAL"
            raise RefusedError(EXTERNAL_RULE, said)
        else:
            _inside(tensor, count)
        return tensor.name

    def check_sparse(self, message: Field) -> str:
        """The same of a sparse one, which is named by its values."""
        name = ""
        for part in self._wire.fields(message, SPARSE):
            if part.name == "values":
                name = self.check(part)
            elif part.name == "indices":
                self.check(part)
            elif min(self._wire.integers(part, MAX_DIMENSIONS), default=0) < 0:
                raise RefusedError(RULE, "a sparse tensor has a negative dimension")
        return name

    def _read(self, message: Field) -> _Tensor:
        tensor = _Tensor()
        for part in self._wire.fields(message, TENSOR):
            if part.name == "name":
                tensor.name = self._wire.text(part)
            elif part.name == "dims":
                tensor.dims += self._wire.integers(part, MAX_DIMENSIONS)
            elif part.name == "data_type":
                tensor.datatype = part.number
            elif part.name == "data_location":
                tensor.location = part.number
            elif part.name == "raw_data":
                tensor.raw = part.end - part.begin
            elif part.name == "segment":
                raise RefusedError(RULE, "has a tensor in segments, which nobody reads")
            elif part.name == "external_data":
                tensor.external.append(self._entry(part))
            elif part.name in TYPED:
                tensor.typed_bytes += 10 if part.wire == VARINT else part.end - part.begin + 2
        return tensor

    def _entry(self, message: Field) -> tuple[str, str]:
        entry = {p.name: self._wire.text(p, 4096) for p in self._wire.fields(message, ENTRY)}
        return entry.get("key", ""), entry.get("value", "")

    def _outside(self, tensor: _Tensor, count: int) -> None:
        entries = dict(tensor.external)
        if len(entries) != len(tensor.external) or not set(entries) <= EXTERNAL_KEYS:
            said = f"{tensor.called}: external data takes {', '.join(sorted(EXTERNAL_KEYS))}, once"
            raise RefusedError(EXTERNAL_RULE, said)
        if tensor.raw is not None or tensor.typed_bytes:
            raise RefusedError(EXTERNAL_RULE, f"{tensor.called} has data both inside and outside")
        location = entries.get("location", "")
        beside = self._files.beside(self._path, location) if plain(location) else None
        if beside is None or beside == self._path:
            said = f"{tensor.called}: location {quoted(location)} must be the plain name of "
            raise RefusedError(EXTERNAL_RULE, f"{said}an artifact in the model's own folder")
        needed = _bytes(tensor, count)
        offset = _natural(entries.get("offset", "0"))
        length = _natural(entries.get("length", str(needed)))
        size = self._files.size(beside)
        if length != needed or offset + length > size:
            said = f"{tensor.called} takes {needed} bytes and claims {length} at {offset}"
            raise RefusedError(EXTERNAL_RULE, f"{said} of {quoted(location)}, which has {size}")


def _inside(tensor: _Tensor, count: int) -> None:
    if tensor.raw is None:
        # A claim of many values over little data would be believed, and allocated, by a loader.
        if count > 4 * tensor.typed_bytes:
            raise RefusedError(RULE, f"{tensor.called} claims {count} values and has too few")
    elif tensor.typed_bytes or tensor.raw != _bytes(tensor, count):
        said = f"{tensor.called} takes {_bytes(tensor, count)} bytes, its raw_data has {tensor.raw}"
        raise RefusedError(RULE, said)


def _elements(tensor: _Tensor) -> int:
    count = 1
    if len(tensor.dims) > MAX_DIMENSIONS:
        raise RefusedError(RULE, f"{tensor.called} has too many dimensions")
    for length in tensor.dims:
        if length < 0:
            raise RefusedError(RULE, f"{tensor.called} has a negative dimension")
        count *= length
        if count > MAX_ELEMENTS:
            raise RefusedError(RULE, f"{tensor.called}: its dimensions are too large")
    if tensor.datatype not in BITS and tensor.datatype != STRING:
        raise RefusedError(RULE, f"{tensor.called}: data type {tensor.datatype} is not known")
    return count


def _bytes(tensor: _Tensor, count: int) -> int:
    if tensor.datatype == STRING:
        raise RefusedError(RULE, f"{tensor.called}: texts cannot be raw or external data")
    return -(-count * BITS[tensor.datatype] // 8)


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > MAX_NUMBER_DIGITS:
        raise RefusedError(EXTERNAL_RULE, f"{quoted(text)} is no offset and no length")
    return int(text)

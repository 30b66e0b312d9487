"""The structure of an ONNX file: what it takes and gives, and that it reaches for nothing else."""

from dataclasses import dataclass, field

from services.registry.checks import onnx_shapes as shapes
from services.registry.checks.files import Files
from services.registry.checks.findings import RefusedError, quoted
from services.registry.checks.onnx_tensors import Tensors
from services.registry.checks.reading import Bytes
from services.registry.checks.wire import Field, Shape, Wire, signed
from services.registry.resources import TensorRecord

RULE, DOMAIN_RULE = "header", "onnx-domain"
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
# Its context is a file that it names in an attribute, or bytes that a device's driver executes.
FOREIGN_OPERATORS = {"EPContext"}
MAX_DEPTH, MAX_NODES, MAX_VALUES, MAX_RANK = 16, 200_000, 1_000, 64


@dataclass(slots=True)
class Header:
    """What an ONNX file says of itself."""

    inputs: list[TensorRecord] = field(default_factory=list)
    outputs: list[TensorRecord] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Inputs that are no tensors."""
    metadata: dict[str, str] = field(default_factory=dict)


def check(files: Files, path: str, max_header_bytes: int) -> Header:
    """The header of a file that is in order."""
    with files.open(path) as stream:
        wire = Wire(Bytes(stream, files.size(path)), max_header_bytes)
        return _Model(wire, Tensors(wire, files, path)).header()


class _Model:
    """One walk over one file."""

    def __init__(self, wire: Wire, tensors: Tensors) -> None:
        self._wire = wire
        self._tensors = tensors
        self._nodes = 0
        self._depth = 0

    def header(self) -> Header:
        header, graph = Header(), None
        for part in self._wire.fields(self._wire.whole(), shapes.MODEL):
            if part.name == "graph":
                graph = part
            elif part.name == "metadata_props":
                entry = self._texts(part, shapes.ENTRY)
                header.metadata[entry.get("key", "")] = entry.get("value", "")
            elif part.name == "functions":
                self._function(part)
            elif part.name == "training_info":
                self._training(part)
        if graph is None:
            raise RefusedError(RULE, "has no graph, so it is no ONNX model")
        self._graph(graph, header)
        return header

    def _texts(self, message: Field, shape: Shape) -> dict[str, str]:
        return {p.name: self._wire.text(p, 1 << 20) for p in self._wire.fields(message, shape)}

    def _domain(self, part: Field) -> None:
        # Of nodes and functions; optimizers import domains of which they use nothing.
        domain = self._wire.text(part)
        if domain not in DOMAINS:
            known = ", ".join(sorted(DOMAINS - {""}))
            said = f"uses the domain {quoted(domain)}; only operators of {known} are served"
            raise RefusedError(DOMAIN_RULE, said)

    def _training(self, message: Field) -> None:
        for part in self._wire.fields(message, shapes.TRAINING):
            if part.name in ("initialization", "algorithm"):
                self._graph(part, Header())

    def _function(self, message: Field) -> None:
        for part in self._wire.fields(message, shapes.FUNCTION):
            if part.name == "domain":
                self._domain(part)
            elif part.name == "node":
                self._node(part)
            elif part.name == "attribute_proto":
                self._attribute(part)

    def _graph(self, message: Field, header: Header) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RefusedError(RULE, f"its graphs are nested more than {MAX_DEPTH} deep")
        values: dict[str, list[Field]] = {"input": [], "output": []}
        initialized: set[str] = set()
        for part in self._wire.fields(message, shapes.GRAPH):
            if part.name == "node":
                self._node(part)
            elif part.name == "initializer":
                initialized.add(self._tensors.check(part))
            elif part.name == "sparse_initializer":
                initialized.add(self._tensors.check_sparse(part))
            elif part.name in values:
                values[part.name].append(part)
        self._values(values["input"], header.inputs, header.others, initialized)
        self._values(values["output"], header.outputs, [], set())
        self._depth -= 1

    def _node(self, message: Field) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise RefusedError(RULE, f"has more than {MAX_NODES} nodes")
        for part in self._wire.fields(message, shapes.NODE):
            if part.name == "domain":
                self._domain(part)
            elif part.name == "attribute":
                self._attribute(part)
            elif part.name == "op_type" and self._wire.text(part) in FOREIGN_OPERATORS:
                said = "holds code compiled for a device (EPContext); export the plain model"
                raise RefusedError(DOMAIN_RULE, said)

    def _attribute(self, message: Field) -> None:
        for part in self._wire.fields(message, shapes.ATTRIBUTE):
            if part.name in ("t", "tensors"):
                self._tensors.check(part)
            elif part.name in ("sparse_tensor", "sparse_tensors"):
                self._tensors.check_sparse(part)
            elif part.name in ("g", "graphs"):
                self._graph(part, Header())

    def _values(
        self, found: list[Field], tensors: list[TensorRecord], others: list[str], known: set[str]
    ) -> None:
        """The tensors among these inputs or outputs, each of which has a name of its own."""
        if len(found) > MAX_VALUES + len(known):
            raise RefusedError(RULE, f"has more than {MAX_VALUES} inputs or outputs")
        names: set[str] = set()
        for message in found:
            name, tensor = self._value(message)
            if not name or name in names:
                raise RefusedError(RULE, f"the name {quoted(name)} is there twice, or empty")
            names.add(name)
            if name in known:
                continue
            if tensor is None:
                others.append(name)
            else:
                tensors.append(tensor)

    def _value(self, message: Field) -> tuple[str, TensorRecord | None]:
        name, found = "", None
        for part in self._wire.fields(message, shapes.VALUE):
            if part.name == "name":
                name = self._wire.text(part)
            elif part.name == "type":
                found = part
        if found is None:
            return name, None
        for part in self._wire.fields(found, shapes.TYPE):
            if part.name == "tensor_type":
                return name, self._tensor(name, part)
        return name, None

    def _tensor(self, name: str, message: Field) -> TensorRecord | None:
        datatype, shape = 0, list[int]()
        for part in self._wire.fields(message, shapes.TENSOR_TYPE):
            if part.name == "elem_type":
                datatype = part.number
            else:
                dims = list(self._wire.fields(part, shapes.TENSOR_SHAPE))
                shape = [self._length(dim) for dim in dims[: MAX_RANK + 1]]
        if len(shape) > MAX_RANK:
            raise RefusedError(RULE, f"{quoted(name)} has more than {MAX_RANK} dimensions")
        if datatype not in shapes.DATATYPES:
            return None
        return TensorRecord(name=name, datatype=shapes.DATATYPES[datatype], shape=tuple(shape))

    def _length(self, message: Field) -> int:
        for part in self._wire.fields(message, shapes.DIMENSION):
            if part.name == "dim_value" and signed(part.number) >= 0:
                return part.number
        return -1

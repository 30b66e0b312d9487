"""The inputs and outputs that a model has in this protocol, and how a request fits them.

A model that takes texts or images is offered as tensors of BYTES, one element for each item; any
other as its own tensors. Its own tensors are always taken too. The first dimension counts items.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from services.classifier.classifier import Classifier
from services.classifier.oip import parameters
from services.classifier.oip.tensors import Tensor, refuse_shared_memory
from services.inference.backend import TensorSpec
from services.inference.items import Array, ImageItem, Item, TensorsItem, TextItem, TextPairItem
from services.inference.manifest import Input
from services.oip.contract import pb
from services.runtime.errors import InvalidRequest

MAX_ITEMS = 4096
CLASSIFICATION = "classification"
ITEMS = (-1, 1)
"""One element for each item."""
OFFERED = {
    "text": (TensorSpec("text", "BYTES", ITEMS),),
    "text_pair": (TensorSpec("text", "BYTES", ITEMS), TensorSpec("text_pair", "BYTES", ITEMS)),
    "image": (TensorSpec("image", "BYTES", ITEMS),),
}
Arrays = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Output:
    """An output that a caller wants; as its best `classes` where those are not 0."""

    name: str
    datatype: str
    classes: int = 0


class Signature:
    """Of one version of a model."""

    def __init__(
        self,
        declared: Input | None,
        own: Sequence[TensorSpec],
        runner_outputs: Sequence[TensorSpec],
    ) -> None:
        kind = declared.kind if declared else "tensors"
        self.own = {spec.name: spec for spec in own}
        if declared and kind == "float_features" and declared.names:
            self.own = {
                s.name: TensorSpec(s.name, s.datatype, (-1, len(declared.names))) for s in own
            }
        offered = OFFERED.get(kind, tuple(self.own.values()))
        self.offered = {spec.name: spec for spec in offered}
        self._make: Callable[[Arrays], Sequence[Item]] = MAKERS.get(kind, _tensors)
        self.outputs = {spec.name: spec for spec in runner_outputs}
        self._all = [Output(spec.name, spec.datatype) for spec in runner_outputs]

    def items(self, given: Mapping[str, Tensor]) -> Sequence[Item]:
        """The items of a request; InvalidRequest where it does not fit the model."""
        if given.keys() == self.offered.keys():
            specs, make = self.offered, self._make
        elif given.keys() == self.own.keys():
            specs, make = self.own, _tensors
        else:
            either = " or ".join(map(_names, filter(None, self._forms())))
            raise InvalidRequest.field("inputs", f"the model takes {either}, not {_names(given)}")
        counts = {_count(specs[name], tensor) for name, tensor in given.items()}
        count = counts.pop()
        if counts:
            said = f"have {sorted({count, *counts})} items: not as many each"
            raise InvalidRequest.field("inputs", said)
        if not 0 < count <= MAX_ITEMS:
            raise InvalidRequest.field("inputs", f"have {count} items; 1 to {MAX_ITEMS} are taken")
        return make({name: tensor.array for name, tensor in given.items()})

    def _forms(self) -> list[Mapping[str, TensorSpec]]:
        return [self.offered] if self.own == self.offered else [self.offered, self.own]

    def wanted(
        self, requested: Sequence[pb.ModelInferRequest.InferRequestedOutputTensor]
    ) -> Sequence[Output]:
        """The outputs that a request asks for: all of them where it names none."""
        if not requested:
            return self._all
        found: dict[str, Output] = {}
        for one in requested:
            field = f"outputs[{one.name}]"
            spec = self.outputs.get(one.name)
            if spec is None:
                raise InvalidRequest.field(field, f"the model gives {_names(self.outputs)}")
            if one.name in found:
                raise InvalidRequest.field(field, "is asked for twice")
            found[one.name] = Output(
                spec.name, spec.datatype, _classes(field, spec, one.parameters)
            )
        return list(found.values())


_KNOWN: WeakKeyDictionary[Classifier, Signature] = WeakKeyDictionary()


def of(runner: Classifier) -> Signature:
    """The signature of what runs a version: made once."""
    found = _KNOWN.get(runner)
    if found is None:
        backend = runner.backend
        found = _KNOWN[runner] = Signature(runner.manifest.input, backend.inputs, backend.outputs)
    return found


def _classes(field: str, spec: TensorSpec, given: parameters.Given) -> int:
    refuse_shared_memory(field, given)
    if CLASSIFICATION not in given:
        return 0
    classes = parameters.number(CLASSIFICATION, given[CLASSIFICATION])
    if not classes:
        raise InvalidRequest.field(f"{field}.parameters[{CLASSIFICATION}]", "must be at least 1")
    if spec.datatype == "BYTES":
        raise InvalidRequest.field(field, "is of BYTES, which have no best")
    return classes


def _count(spec: TensorSpec, tensor: Tensor) -> int:
    """How many items are in a tensor; InvalidRequest where it is not as the model takes it."""
    if tensor.datatype != spec.datatype:
        said = f"the model takes {spec.datatype}, this is {tensor.datatype}"
        raise InvalidRequest.field(f"inputs[{spec.name}]", said)
    shape, wanted = tensor.array.shape, spec.shape
    exact = len(shape) == len(wanted) and shape[1:] == wanted[1:]
    if not exact and not _fits(shape, wanted):
        said = f"the model takes shape {list(wanted)}, this is {list(shape)}"
        raise InvalidRequest.field(f"inputs[{spec.name}]", said)
    return int(shape[0])


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if wanted is ITEMS and len(shape) == 1:
        return True
    return len(shape) == len(wanted) and all(
        want in (-1, have) for want, have in zip(wanted[1:], shape[1:], strict=True)
    )


def _tensors(arrays: Arrays) -> Sequence[Item]:
    """Rows, which are views."""
    if len(arrays) > 1:
        count = len(next(iter(arrays.values())))
        return [
            TensorsItem({name: array[index, ...] for name, array in arrays.items()})
            for index in range(count)
        ]
    ((name, array),) = arrays.items()
    rows = array if array.ndim > 1 else [array[index, ...] for index in range(len(array))]
    return [TensorsItem({name: row}) for row in rows]


def _texts(arrays: Arrays) -> Sequence[Item]:
    return [TextItem(text) for text in _decoded("text", arrays)]


def _text_pairs(arrays: Arrays) -> Sequence[Item]:
    first, second = _decoded("text", arrays), _decoded("text_pair", arrays)
    return [TextPairItem(*pair) for pair in zip(first, second, strict=True)]


def _images(arrays: Arrays) -> Sequence[Item]:
    return [ImageItem(data) for data in arrays["image"].ravel().tolist()]


def _decoded(name: str, arrays: Arrays) -> list[str]:
    found = []
    for index, data in enumerate(arrays[name].ravel().tolist()):
        try:
            found.append(data.decode())
        except UnicodeDecodeError as error:
            said = "is not UTF-8"
            raise InvalidRequest.field(f"inputs[{name}][{index}]", said) from error
    return found


def _names(named: Mapping[str, object]) -> str:
    return ", ".join(sorted(named)) or "nothing"


MAKERS: dict[str, Callable[[Arrays], Sequence[Item]]] = {
    "text": _texts,
    "text_pair": _text_pairs,
    "image": _images,
}

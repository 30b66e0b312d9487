"""Raw tensors: held against the model's inputs and passed on without a copy.

Type and shape must be the model's; the numbers are the caller's affair, NaN included. BF16 comes as
UINT16, and BYTES as objects that are bytes.
"""

from collections.abc import Sequence

from services.inference.backend import TensorSpec
from services.inference.items import Array, Encoded, Item, TensorsItem
from services.inference.preprocessing.preprocessor import DTYPES, dtype_of
from services.runtime.errors import GristmillError, InvalidRequest, UnsupportedField

# Each is decoded once to see that it can be.
CHEAP_STRINGS = 4096


class TensorsPreprocessor:
    """Every input of the model by its name; what has another shape never shares a batch."""

    def __init__(self, inputs: Sequence[TensorSpec], instead: str = "") -> None:
        self._specs = {spec.name: spec for spec in inputs}
        self._types = {spec.name: dtype_of(spec) for spec in inputs}
        self._fixed = all(-1 not in spec.shape[1:] for spec in inputs)
        self._strings = any(spec.datatype == "BYTES" for spec in inputs)
        self._instead = instead
        self.fill: dict[str, int] = {}

    def is_cheap(self, items: Sequence[Item]) -> bool:
        """Unless there are many strings: numbers are only looked at."""
        if not self._strings:
            return True
        given = [item.tensors.values() for item in items if isinstance(item, TensorsItem)]
        return sum(array.size for arrays in given for array in arrays) <= CHEAP_STRINGS

    def encode(
        self, items: Sequence[Item], *, refuse_longer: bool = False
    ) -> list[Encoded | GristmillError]:
        """The tensors, checked."""
        return [self.one(item) for item in items]

    def one(self, item: Item) -> Encoded | GristmillError:
        """One item, checked."""
        if not isinstance(item, TensorsItem):
            kinds = f"{self._instead} or tensors" if self._instead else "tensors"
            return UnsupportedField.field("content", f"this model takes {kinds}")
        given = item.tensors
        if "" in given and len(given) == len(self._specs) == 1:
            given = dict.fromkeys(self._specs, given[""])
        if given.keys() != self._specs.keys():
            said = f"needs {sorted(self._specs)}, has {sorted(given)}"
            return InvalidRequest.field("tensors", said)
        for name, array in given.items():
            if said := self._wrong(name, array):
                return InvalidRequest.field(f"tensors[{name}]", said)
        group = None if self._fixed else tuple(given[name].shape for name in self._specs)
        return Encoded(given, 1, group=group)

    def _wrong(self, name: str, array: Array) -> str:
        spec = self._specs[name]
        if array.dtype != self._types[name]:
            return f"the model takes {spec.datatype}, this is {_named(array)}"
        wanted = spec.shape[1:]
        fits = len(wanted) == array.ndim and all(
            want in (-1, have) for want, have in zip(wanted, array.shape, strict=True)
        )
        if not fits:
            return f"the model takes shape {list(wanted)}, this is {list(array.shape)}"
        return _not_text(array) if spec.datatype == "BYTES" else ""


def _named(array: Array) -> str:
    """Its type as the protocol names it."""
    return next((name for name, kind in DTYPES.items() if array.dtype == kind), str(array.dtype))


def _not_text(array: Array) -> str:
    """Runtimes take strings of Unicode only."""
    for value in array.flat:
        try:
            value.decode()
        except UnicodeDecodeError:
            return "an element is no UTF-8, and the model takes text"
    return ""

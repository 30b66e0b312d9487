"""What a backend is: something that turns a padded batch into outputs. Imports nothing of ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, type (as the Open Inference Protocol names it) and shape of a tensor; -1 is any."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Instance(Protocol):
    """One executor, called by one thread at a time."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """The outputs of a batch; each has the batch dimension of the inputs first."""
        ...


@runtime_checkable
class Preparing(Instance, Protocol):
    """An instance that can move a batch to its device while another is computed there.

    Whoever does not ask it to loses only that: `run` takes a batch as it is, too.
    """

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Begin to move a batch; what this returns is for `run` of any instance of the backend.

        Does not wait for the device; may be called on any thread, also while `run` works. What is
        prepared and then not run is simply dropped. Raises on a batch that `run` would refuse.
        """
        ...


class Backend(Protocol):
    """A model in memory."""

    name: str
    version: str
    """Of the runtime that executes it."""
    device: str
    threads: int
    """CPU threads of each instance."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def instance(self) -> Instance:
        """One more executor of the model."""
        ...

    def close(self) -> None:
        """Give up memory and device."""
        ...

"""ONNX Runtime: a session for each instance, so that instances do not share a thread pool."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from services.inference.backend import Instance, TensorSpec

DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "BYTES",
}


class OnnxInstance:
    """One session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """The outputs by name."""
        values = self._session.run(None, dict(inputs))
        return dict(zip(self._outputs, values, strict=True))


class OnnxBackend:
    """A model file, and as many sessions over it as instances are asked for."""

    name = "onnxruntime"
    version: str = ort.__version__

    def __init__(self, path: Path, instances: int = 1, providers: tuple[str, ...] = ()) -> None:
        self._path = path
        self.threads = max(1, (os.cpu_count() or 1) // instances)
        self._providers = list(providers or ("CPUExecutionProvider",))
        first = self._session()
        self._ready: list[Any] = [first]
        self.device = "cpu" if self._providers[0] == "CPUExecutionProvider" else "cuda:0"
        self.inputs = tuple(_spec(value) for value in first.get_inputs())
        self.outputs = tuple(_spec(value) for value in first.get_outputs())

    def _session(self) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # A pool that spins while it waits would take the core from the other instances.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        return ort.InferenceSession(str(self._path), options, providers=self._providers)

    def instance(self) -> Instance:
        """One more session; the first is the one that was opened to read the signature."""
        return OnnxInstance(self._ready.pop() if self._ready else self._session())

    def close(self) -> None:
        """Forget the sessions; ONNX Runtime frees them with their last reference."""
        self._ready.clear()


def _spec(value: Any) -> TensorSpec:
    shape = tuple(d if isinstance(d, int) else -1 for d in value.shape)
    return TensorSpec(value.name, DATATYPES.get(value.type, value.type), shape)

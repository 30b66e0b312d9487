"""ONNX Runtime: sessions over a model file, on a CPU or on a GPU.

Instances of one thread share a session, which then has no pool to fight over and keeps the weights
once; instances of several threads have a session each.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from services.inference.backend import Instance, TensorSpec
from services.inference.fingerprint import cores
from services.inference.manifest import OnnxOptions
from services.runtime.errors import InvalidRequest

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
CPU = "CPUExecutionProvider"
ON_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
LEVELS = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
# More sessions at once only divide the cores further, and each batch waits longer for its share.
MOST_INSTANCES = 4
Arrays = Mapping[str, NDArray[Any]]


class OnnxInstance:
    """A session, run from and to numpy."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]
        self._strings = [i.name for i in session.get_inputs() if i.type == "tensor(string)"]

    def run(self, inputs: Arrays) -> Arrays:
        """The outputs by name."""
        values = self._session.run(None, self._given(inputs))
        return dict(zip(self._outputs, values, strict=True))

    def _given(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """The inputs as the session takes them."""
        return {
            name: _text(array) if name in self._strings else array for name, array in inputs.items()
        }


class BoundInstance(OnnxInstance):
    """A session whose inputs and outputs are bound to the memory of its device."""

    def __init__(self, session: Any, device: str) -> None:
        super().__init__(session)
        self._device, _, number = device.partition(":")
        self._number = int(number or 0)

    def run(self, inputs: Arrays) -> Arrays:
        """The outputs by name: one copy to the device, one back, none inside the graph."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            value = ort.OrtValue.ortvalue_from_numpy(
                np.ascontiguousarray(array), self._device, self._number
            )
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, self._device, self._number)
        self._session.run_with_iobinding(binding)
        return dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))


class OnnxBackend:
    """A model file, and as many executors over it as are asked for.

    Raises InvalidRequest for an execution provider that is not here: ONNX Runtime itself would go
    on with the next one and say nothing.
    """

    name = "onnxruntime"
    version: str = ort.__version__

    def __init__(
        self,
        path: Path,
        instances: int = 1,
        providers: Sequence[str] = (),
        options: OnnxOptions | None = None,
    ) -> None:
        self._path = path
        self._options = options or OnnxOptions()
        self._providers = list(self._options.providers or providers or (CPU,))
        _refuse_absent(self._providers)
        self.device = self._device()
        share = max(1, int(cores()) // max(1, instances))
        self.threads = self._options.intra_op_num_threads or share
        first = self._session()
        self._ready: list[Any] = [first]
        self._shared = first if self.threads == 1 and self.device == "cpu" else None
        self.inputs = tuple(_spec(value) for value in first.get_inputs())
        self.outputs = tuple(_spec(value) for value in first.get_outputs())

    def _device(self) -> str:
        if self._providers[0] not in ON_GPU:
            return "cpu"
        return f"cuda:{self._provider_options(self._providers[0]).get('device_id', '0')}"

    def _provider_options(self, provider: str) -> dict[str, str]:
        return self._options.provider_options.get(provider, {})

    def _session(self) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        parallel = self._options.execution_mode == "parallel"
        options.inter_op_num_threads = max(2, self.threads) if parallel else 1
        options.graph_optimization_level = LEVELS[self._options.graph_optimization_level]
        if parallel:
            options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        options.log_severity_level = 3
        # A pool that spins while it waits would take the core from the other instances.
        entries = {"session.intra_op.allow_spinning": "0"} | self._options.session_config
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        providers = [(name, self._provider_options(name)) for name in self._providers]
        return ort.InferenceSession(str(self._path), options, providers=providers)

    def instance(self) -> Instance:
        """One more executor; the first has the session that was opened to read the signature."""
        session = self._shared or (self._ready.pop() if self._ready else self._session())
        # ONNX Runtime binds no text.
        texts = any(spec.datatype == "BYTES" for spec in (*self.inputs, *self.outputs))
        bound = self.device != "cpu" and not texts
        return BoundInstance(session, self.device) if bound else OnnxInstance(session)

    def close(self) -> None:
        """Forget the sessions; ONNX Runtime frees them with their last reference."""
        self._ready.clear()
        self._shared = None


def instances_for(providers: Sequence[str], options: OnnxOptions) -> int:
    """How many batches run at once where nobody said: on a CPU one for each of a few cores."""
    chosen = options.providers or providers or (CPU,)
    if chosen[0] in ON_GPU or options.intra_op_num_threads > 1:
        return 1
    return max(1, min(int(cores()), MOST_INSTANCES))


def _refuse_absent(providers: Sequence[str]) -> None:
    available = ort.get_available_providers()
    if absent := [name for name in providers if name not in available]:
        said = f"{', '.join(absent)} not in this ONNX Runtime, which has {', '.join(available)}"
        raise InvalidRequest.field("onnxruntime.providers", said)


def _text(values: NDArray[Any]) -> NDArray[Any]:
    """Bytes as text: given bytes, ONNX Runtime would write out their Python form."""
    found = np.empty(values.shape, dtype=np.object_)
    for at, value in np.ndenumerate(values):
        found[at] = value.decode() if isinstance(value, bytes) else value
    return found


def _spec(value: Any) -> TensorSpec:
    shape = tuple(d if isinstance(d, int) else -1 for d in value.shape)
    return TensorSpec(value.name, DATATYPES.get(value.type, value.type), shape)

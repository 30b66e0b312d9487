"""PyTorch: one module in memory, which all instances call; on a CPU, or on an NVIDIA GPU.

A model is a Hugging Face folder with safetensors, a TorchScript archive (.pt) or one of
torch.export (.pt2). Knows no tokenizer, no queue and no label.

PyTorch counts CPU threads for each thread that calls it: an instance sets its own count in
whichever thread it is run, so that models and instances do not take each other's cores.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.inference.backend import Instance
from services.inference.backends import pytorch_packing
from services.inference.backends.pytorch_cuda import Cuda
from services.inference.backends.pytorch_gpu import Gpu, GpuInstance, Mover
from services.inference.backends.pytorch_program import DTYPES, Program, packed_tensors, tensor
from services.inference.backends.pytorch_shapes import Sizes
from services.inference.fingerprint import cores
from services.inference.manifest import Manifest
from services.runtime.errors import FailedPrecondition, InvalidRequest

MASK = "attention_mask"
FOLDER, SCRIPT, EXPORT = (".safetensors", ".safetensors.index.json"), ".pt", ".pt2"


class PyTorchInstance:
    """One executor on a CPU."""

    def __init__(self, program: Program, threads: int) -> None:
        self._program: Program | None = program
        self._threads = threads

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """The outputs by name."""
        program = self._program
        if program is None:
            raise RuntimeError("the model is closed")
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        # Where nothing is padded, one call for all rows is faster than one for each.
        padded = program.unpadded and not inputs[MASK].all()
        packed = pytorch_packing.pack(inputs, program.counts_from) if padded else None
        with torch.inference_mode():
            if packed is None:
                outputs = program({name: tensor(rows) for name, rows in inputs.items()})
            else:
                outputs = program.packed(*packed_tensors(packed, "cpu"))
        return {name: values.numpy() for name, values in outputs.items()}

    def close(self) -> None:
        """Give up the model."""
        self._program = None


class PyTorchBackend:
    """A model in memory, and as many instances over it as are asked for.

    `device` is "cpu", "cuda:0" or the like; empty: a GPU where there is one.
    """

    name = "pytorch"
    version = str(torch.__version__)

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        instances: int = 1,
        device: str = "",
        gpu: Gpu | None = None,
    ) -> None:
        """`gpu` is for whoever brings a device of their own in place of the one named."""
        options, declared = manifest.pytorch, manifest.input
        self.device = gpu.name if gpu else _device(device)
        self.threads = options.threads or max(1, int(cores()) // instances)
        self._manifest = manifest
        self._made: list[PyTorchInstance | GpuInstance] = []
        self._gpu = gpu
        self._mover: Mover | None = None
        program = self._opened(folder)
        self.inputs, self.outputs = program.inputs, program.outputs
        if self.device != "cpu":
            self._to_gpu(program, declared.max_tokens if declared and declared.has_tokens else 0)
        program.leave_out_padding(wanted=options.unpadded, device=self.device)
        self._program: Program | None = program

    def _opened(self, folder: Path) -> Program:
        """The model on the CPU, by the ending of its file."""
        name = self._manifest.files["model"]
        # Transformers and what it brings are for folders alone, and slow to import.
        if name.endswith(FOLDER):
            from services.inference.backends.pytorch_folder import FolderProgram

            return FolderProgram(self._manifest, folder)
        if name.endswith((SCRIPT, EXPORT)):
            from services.inference.backends.pytorch_archives import ExportedProgram, ScriptProgram

            made = ExportedProgram if name.endswith(EXPORT) else ScriptProgram
            return made(self._manifest, folder / name)
        said = f"must end in {', '.join(FOLDER)}, {SCRIPT} or {EXPORT}"
        raise InvalidRequest.field("model.yaml: files.model", said)

    def _to_gpu(self, program: Program, max_tokens: int) -> None:
        """Move it, once it is known what no batch may hold: a GPU does not survive the attempt."""
        for spec in self.inputs:
            whole = spec.datatype.startswith(("INT", "UINT"))
            if whole and spec.name != MASK and spec.name not in program.bounds:
                said = f"a GPU needs it for {spec.name}: the first value that the model lacks, or 0"
                raise InvalidRequest.field("model.yaml: pytorch.bounds", said)
        if max_tokens:
            _try_longest(program, max_tokens)
        self._gpu = self._gpu or Cuda(self.device)
        self._gpu.load(program)
        self._mover = Mover(self._gpu, program, self._sizes(max_tokens), max_tokens)

    def _sizes(self, max_tokens: int) -> Sizes:
        """Without graphs every batch keeps its size, without a mask its length."""
        options, batching = self._manifest.pytorch, self._manifest.batching
        if not options.cuda_graphs:
            return Sizes()
        masked = any(spec.name == MASK for spec in self.inputs)
        return Sizes.of(
            batching.max_batch_size,
            batching.preferred_batch_sizes,
            options.length_buckets,
            max_tokens if masked else 0,
        )

    def instance(self) -> Instance:
        """One more executor of the same weights."""
        if self._program is None:
            raise RuntimeError("the model is closed")
        made: PyTorchInstance | GpuInstance
        if self._gpu is None or self._mover is None:
            made = PyTorchInstance(self._program, self.threads)
        else:
            options = self._manifest.pytorch
            graphs = options.max_cuda_graphs if options.cuda_graphs else 0
            made = GpuInstance(self._gpu, self._program, self._mover, graphs)
        self._made.append(made)
        return made

    def close(self) -> None:
        """Give up the weights, of which the instances have no copy, and on a GPU all memory."""
        for made in self._made:
            made.close()
        self._made.clear()
        if self._program:
            self._program.close()
        self._program = None
        if self._gpu and self._mover:
            self._mover.close()
            self._gpu.close()
        self._gpu, self._mover = None, None


def _device(wanted: str) -> str:
    """The device by its full name."""
    if not wanted:
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return wanted
    index = {"cuda": "0"}.get(wanted, wanted.removeprefix("cuda:"))
    if not index.isdecimal():
        raise InvalidRequest.field("device", f"{wanted!r} is neither cpu nor cuda:N")
    if int(index) >= torch.cuda.device_count():
        raise FailedPrecondition(f"there is no device cuda:{index} here")
    return f"cuda:{index}"


def _try_longest(program: Program, max_tokens: int) -> None:
    """Run a row of `max_tokens` on the CPU, where a position that the model lacks only raises."""
    # Not the padding's id, over which some models do not count.
    row = np.full((1, max_tokens), 0 if program.fill.get("input_ids") else 1, np.int64)
    batch = {spec.name: row if spec.name == "input_ids" else row * 0 for spec in program.inputs}
    batch[MASK] = row * 0 + 1
    types = {spec.name: DTYPES[spec.datatype] for spec in program.inputs}
    try:
        with torch.inference_mode():
            program({name: tensor(batch[name]).to(types[name]) for name in types})
    except Exception as error:
        said = f"the model does not run on {max_tokens} tokens: {error}"
        raise InvalidRequest.field("model.yaml: input.max_tokens", said) from error

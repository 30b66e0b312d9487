"""A Hugging Face classifier in PyTorch, exported as ONNX.

Imported only where torch is: nothing else of the suite needs it. Knows no tokenizer and no figure.
"""

import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from services.inference.backends import pytorch_folder
from services.inference.backends.pytorch_program import tensor
from services.inference.manifest import Manifest
from services.runtime.errors import FailedPrecondition

MAX_BATCH = 4096
# Protobuf ends at 2 GiB; from here on the weights lie in a file beside the graph.
EXTERNAL_BYTES = 2**30
VERSIONS = {"torch": str(torch.__version__), "transformers": pytorch_folder.VERSION}


class Transformer:
    """A model in memory that runs as a backend's instance does, padded and in float32."""

    def __init__(self, folder: Path) -> None:
        self.threads = torch.get_num_threads()
        model = pytorch_folder.load(Manifest.read(folder), folder)
        self.inputs, self.outputs = pytorch_folder.signature(model)
        self._module = pytorch_folder.Logits(model).eval()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """The logits of a batch."""
        with torch.inference_mode():
            logits = self._module(*self._tensors(inputs))
        return {"logits": logits.numpy()}

    def choose_threads(self, batch: Mapping[str, NDArray[Any]]) -> None:
        """Run on one thread or on one for each core, whichever takes less time here.

        Where cores are shared with others, threads that wait for each other are much slower.
        """
        times: dict[int, float] = {}
        for threads in {1, max(1, os.cpu_count() or 1)}:
            torch.set_num_threads(threads)
            self.run(batch)
            started = time.perf_counter()
            self.run(batch)
            times[threads] = time.perf_counter() - started
        self.threads = min(times, key=lambda threads: times[threads])
        torch.set_num_threads(self.threads)

    def export(self, path: Path, example: Mapping[str, NDArray[Any]], max_tokens: int) -> None:
        """Write it as ONNX with any batch and any length up to `max_tokens`.

        Raises FailedPrecondition where the exporter cannot, as for more tokens than positions.
        """
        batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
        sequence = torch.export.Dim("sequence", min=1, max=max_tokens)
        names = [spec.name for spec in self.inputs]
        size = sum(p.numel() * p.element_size() for p in self._module.parameters())
        try:
            with warnings.catch_warnings():
                # The exporter warns of its own parts.
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    self._module,
                    self._tensors(example),
                    str(path),
                    input_names=names,
                    output_names=["logits"],
                    dynamic_shapes={name: {0: batch, 1: sequence} for name in names},
                    dynamo=True,
                    external_data=size > EXTERNAL_BYTES,
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            cause = error.__cause__ or error
            raise FailedPrecondition(f"the model cannot be exported: {cause}") from error

    def _tensors(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[Any, ...]:
        return tuple(tensor(inputs[spec.name]) for spec in self.inputs)

"""A Hugging Face classifier in PyTorch: loaded without a hub and without code of its own; exported.

Imported only where torch is: nothing else of the suite needs it. Knows no tokenizer and no figure.
"""

import inspect
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from services.inference.backend import TensorSpec
from services.runtime.errors import FailedPrecondition, InvalidRequest

MAX_BATCH = 4096
# Protobuf ends at 2 GiB; from here on the weights lie in a file beside the graph.
EXTERNAL_BYTES = 2**30
DATATYPE = "INT64"
VERSIONS = {"torch": str(torch.__version__), "transformers": str(transformers.__version__)}

transformers.utils.logging.disable_progress_bar()


class _Logits(torch.nn.Module):  # type: ignore[misc]  # torch is not installed where types are checked
    """The model with its logits as its one output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Any, attention_mask: Any, token_type_ids: Any | None = None
    ) -> Any:
        given = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **given).logits


class Transformer:
    """A model in memory that runs as a backend's instance does."""

    def __init__(self, folder: Path) -> None:
        self.threads = torch.get_num_threads()
        model = _loaded(folder).eval()
        names = ["input_ids", "attention_mask"]
        # With one type there is nothing to tell apart, and the model supplies it by itself.
        typed = "token_type_ids" in inspect.signature(model.forward).parameters
        if typed and getattr(model.config, "type_vocab_size", 0) > 1:
            names.append("token_type_ids")
        self._module = _Logits(model).eval()
        self.inputs = tuple(TensorSpec(name, DATATYPE, (-1, -1)) for name in names)
        self.outputs = (TensorSpec("logits", "FP32", (-1, int(model.config.num_labels))),)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """The logits of a batch."""
        with torch.inference_mode():
            logits = self._module(*self._tensors(inputs))
        return {"logits": logits.float().numpy()}

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
        arrays = (np.ascontiguousarray(inputs[spec.name]) for spec in self.inputs)
        return tuple(torch.from_numpy(array) for array in arrays)


def _loaded(folder: Path) -> Any:
    """The model with all of its weights; InvalidRequest where the folder has no such model."""
    try:
        model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InvalidRequest.field("config.json", str(error)) from error
    # What is missing would be filled with random numbers.
    if missing := sorted(report["missing_keys"]):
        raise InvalidRequest.field("weights", f"lack {', '.join(missing[:5])}")
    return model

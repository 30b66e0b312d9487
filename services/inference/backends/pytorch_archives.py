"""Models that PyTorch saved whole: TorchScript (.pt) and torch.export (.pt2). Knows no batch.

Both run what is in the file, TorchScript as code: they are for those who trust its author.
"""

from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from services.inference.backend import TensorSpec
from services.inference.backends.pytorch_program import DATATYPES, DTYPES, Segments, Tensors, named
from services.inference.manifest import Image, Manifest
from services.runtime.errors import InvalidRequest

TOKENS = ("input_ids", "attention_mask", "token_type_ids")
INPUTS = "model.yaml: pytorch.inputs"
# Rows and sizes that a TorchScript model is tried with, where it may have any.
TRIED = ((2, 32), (3, 40))


class Archive:
    """A saved model: its function, and what it takes and gives."""

    unpadded = False
    counts_from: int | None = None
    fill: Mapping[str, int] = {}
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(self, manifest: Manifest) -> None:
        options = manifest.pytorch
        if options.dtype != "float32":
            said = "is for Hugging Face folders: an archive keeps the types it was saved with"
            raise InvalidRequest.field("model.yaml: pytorch.dtype", said)
        self.bounds: Mapping[str, int] = options.bounds
        self._names = options.outputs
        self._module: Any = None

    def _run(self, tensors: Tensors) -> Any:
        raise NotImplementedError

    def __call__(self, tensors: Tensors) -> Tensors:
        """The outputs of a batch."""
        return named(self._run(tensors), self._names)

    def packed(self, tensors: Tensors, segments: Segments) -> Tensors:
        """Never: nothing is known of its attention."""
        raise NotImplementedError

    def close(self) -> None:
        """Give up the weights."""
        self._module = None

    def leave_out_padding(self, *, wanted: bool | None, device: str) -> None:
        """Refuse it where it is wanted: that needs a Hugging Face folder."""
        if wanted:
            said = "needs a Hugging Face folder: nothing is known of an archive's attention"
            raise InvalidRequest.field("model.yaml: pytorch.unpadded", said)


class ScriptProgram(Archive):
    """TorchScript, called by position."""

    def __init__(self, manifest: Manifest, path: Path) -> None:
        super().__init__(manifest)
        self._path = path
        self.to("cpu")
        self.inputs = _script_inputs(self._module, manifest)
        self.outputs = self._tried(manifest)

    def to(self, device: str) -> None:
        """Read it again: its constants lie where they are read to."""
        self._module = torch.jit.load(str(self._path), map_location=device).eval()

    def _run(self, tensors: Tensors) -> Any:
        return self._module(*(tensors[spec.name] for spec in self.inputs))

    def _tried(self, manifest: Manifest) -> tuple[TensorSpec, ...]:
        """What it gives for two sizes; what differs between them may be anything."""
        declared = manifest.input
        most = declared.max_tokens if declared and declared.has_tokens else max(max(TRIED))
        found = [self._given(rows, min(size, most)) for rows, size in TRIED]
        return _batched(_common(*pair) for pair in zip(*found, strict=True))

    def _given(self, rows: int, size: int) -> list[TensorSpec]:
        batch = {
            spec.name: torch.ones(
                [rows, *(size if one == -1 else one for one in spec.shape[1:])],
                dtype=DTYPES[spec.datatype],
            )
            for spec in self.inputs
        }
        try:
            with torch.inference_mode():
                return [_spec(*pair) for pair in self(batch).items()]
        except (RuntimeError, ValueError, TypeError) as error:
            # TorchScript's errors end with what is wrong, after all that led there.
            why = str(error).strip().splitlines()[-1]
            said = f"the model does not run on {rows} rows of size {size}: {why}"
            raise InvalidRequest.field(INPUTS, said) from error


class ExportedProgram(Archive):
    """What torch.export saved, called as it was exported."""

    def __init__(self, manifest: Manifest, path: Path) -> None:
        super().__init__(manifest)
        self._program = torch.export.load(str(path))
        values = {node.name: node.meta.get("val") for node in self._program.graph.nodes}
        names = self._program.graph_signature.user_inputs
        positional, keywords = self._program.call_spec.in_spec.children()
        self._keywords = tuple(keywords.context or ())
        plain = all(isinstance(values.get(name), torch.Tensor) for name in names)
        if not plain or positional.num_leaves + len(self._keywords) != len(names):
            raise InvalidRequest.field("model", "takes something else than tensors by name")
        own = [one.name for one in manifest.pytorch.inputs] or names
        if len(own) != len(names):
            raise InvalidRequest.field(INPUTS, f"names {len(own)}, the model takes {len(names)}")
        self.inputs = _batched(
            _spec(mine, values[name]) for mine, name in zip(own, names, strict=True)
        )
        leaves = [values[name] for name in self._program.graph_signature.user_outputs]
        form = self._program.call_spec.out_spec.unflatten(leaves)
        self.outputs = _batched(_spec(*pair) for pair in named(form, self._names).items())
        self._use()

    def to(self, device: str) -> None:
        """Move it to a device."""
        from torch.export.passes import move_to_device_pass

        self._program = move_to_device_pass(self._program, device)
        self._use()

    def _use(self) -> None:
        self._module = self._program.module()

    def close(self) -> None:
        """Give up the weights one by one: what holds them holds itself."""
        for module in self._module.modules():
            module._parameters.clear()
            module._buffers.clear()
        self._program.state_dict.clear()
        self._program.constants.clear()
        self._module = self._program = None

    def _run(self, tensors: Tensors) -> Any:
        values = [tensors[spec.name] for spec in self.inputs]
        split = len(values) - len(self._keywords)
        keywords = dict(zip(self._keywords, values[split:], strict=True))
        return self._module(*values[:split], **keywords)


def _script_inputs(module: Any, manifest: Manifest) -> tuple[TensorSpec, ...]:
    """What the manifest says, else the names of `forward` and what the kind of input tells."""
    if given := manifest.pytorch.inputs:
        return _batched(TensorSpec(one.name, one.datatype, one.shape) for one in given)
    arguments = module.forward.schema.arguments[1:]
    required = [one.name for one in arguments if not one.has_default_value()]
    declared = manifest.input
    if declared and declared.has_tokens:
        names = [one.name for one in takewhile(lambda one: one.name in TOKENS, arguments)]
        if names and set(required) <= set(names):
            return tuple(TensorSpec(name, "INT64", (-1, -1)) for name in names)
    elif declared and len(required) == 1:
        if declared.kind == "float_features":
            return (TensorSpec(required[0], "FP32", (-1, len(declared.names) or -1)),)
        if declared.image:
            return (TensorSpec(required[0], "FP32", (-1, *_image_shape(declared.image))),)
    said = f"is required: the file only says {module.forward.schema}"
    raise InvalidRequest.field(INPUTS, said)


def _image_shape(image: Image) -> tuple[int, ...]:
    channels = 1 if image.channels == "grayscale" else 3
    size = (image.height, image.width)
    return (channels, *size) if image.layout == "NCHW" else (*size, channels)


def _spec(name: str, value: Any) -> TensorSpec:
    """A tensor's own; a size that is a symbol may be anything."""
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(name, DATATYPES.get(value.dtype, str(value.dtype)), shape)


def _common(one: TensorSpec, other: TensorSpec) -> TensorSpec:
    sizes = zip(one.shape, other.shape, strict=True)
    return TensorSpec(one.name, one.datatype, tuple(a if a == b else -1 for a, b in sizes))


def _batched(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """As they are; InvalidRequest where one is not of any number of rows."""
    found = tuple(specs)
    for spec in found:
        if spec.shape[:1] != (-1,):
            said = f"{spec.name} is {list(spec.shape)}: the first dimension must be any batch"
            raise InvalidRequest.field("model", said)
    return found

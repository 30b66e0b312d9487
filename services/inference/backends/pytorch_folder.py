"""A Hugging Face classifier from its folder: safetensors alone, no hub, no code of its own.

Knows no device but the one it is told, no batch and no tokenizer.
"""

import inspect
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from services.inference.backend import TensorSpec
from services.inference.backends import pytorch_unpadded
from services.inference.backends.pytorch_program import DTYPES, Segments, Tensors
from services.inference.manifest import Manifest
from services.runtime.errors import GristmillError, InvalidRequest

VERSION = str(transformers.__version__)
CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
# What would have attention fetched from a hub as code, or the outputs take another form.
DROPPED = re.compile(
    r"_?(attn|experts)_implementation.*|use_kernels|auto_map"
    r"|output_(attentions|hidden_states)|return_dict"
)
# Transformers patches torch's initialisers, for all threads, while it makes a model.
_loading = threading.Lock()

transformers.utils.logging.disable_progress_bar()


class Logits(torch.nn.Module):  # type: ignore[misc]  # torch is not installed where types are checked
    """The model with its logits as its one output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Any, attention_mask: Any, token_type_ids: Any | None = None
    ) -> Any:
        """[rows, labels]."""
        given = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **given).logits


class FolderProgram:
    """A classifier of Hugging Face's, in the type that the manifest wants."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self.model = load(manifest, folder)
        self.inputs, self.outputs = signature(self.model)
        cast(self.model, manifest.pytorch.dtype)
        config = self.model.config
        self.fill: Mapping[str, int] = {"input_ids": getattr(config, "pad_token_id", None) or 0}
        bounds = {"input_ids": int(self.model.get_input_embeddings().num_embeddings)}
        if "token_type_ids" in {spec.name for spec in self.inputs}:
            bounds["token_type_ids"] = int(config.type_vocab_size)
        self.bounds: Mapping[str, int] = bounds
        self.unpadded = False
        self.counts_from: int | None = None

    def __call__(self, tensors: Tensors) -> Tensors:
        """The logits of a padded batch."""
        return {"logits": self.model(**tensors).logits.float()}

    def packed(self, tensors: Tensors, segments: Segments) -> Tensors:
        """The logits of a packed batch."""
        return {"logits": self.model(**tensors, segments=segments).logits.float()}

    def to(self, device: str) -> None:
        """Move it to a device."""
        self.model.to(device)

    def leave_out_padding(self, *, wanted: bool | None, device: str) -> None:
        """Unless it is not wanted, try whether packed batches give the same answers."""
        if wanted is False:
            return
        said, self.counts_from = pytorch_unpadded.install(self.model, self, device)
        self.unpadded = not said
        if wanted and said:
            raise InvalidRequest.field("model.yaml: pytorch.unpadded", said)

    def close(self) -> None:
        """Give up the weights."""
        self.model = None


def load(manifest: Manifest, folder: Path) -> Any:
    """The model in float32 with all of its weights; InvalidRequest where there is no such model."""
    try:
        with _loading, _staged(manifest, folder) as place:
            # In float32 whatever is wanted: meanwhile any other type would be the default of all
            # threads, and change what other models compute.
            model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
                place,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (GristmillError, MemoryError):
        raise
    except Exception as error:
        # Whatever a configuration can hold, Transformers raises as many kinds of errors.
        raise InvalidRequest.field("model files", str(error)) from error
    # What is missing would be filled with random numbers.
    if missing := sorted(report["missing_keys"]):
        raise InvalidRequest.field("weights", f"lack {', '.join(missing[:5])}")
    return model.eval()


@contextmanager
def _staged(manifest: Manifest, folder: Path) -> Iterator[Path]:
    """A folder with nothing but the configuration and the weights, under the names looked for."""
    model = manifest.files["model"]
    config = json.loads((folder / manifest.files.get("config", CONFIG)).read_text("utf-8"))
    with TemporaryDirectory(prefix="gristmill-") as name:
        place = Path(name)
        (place / CONFIG).write_text(json.dumps(_harmless(config)), "utf-8")
        named = {WEIGHTS: model}
        if model.endswith(".index.json"):
            shards = json.loads((folder / model).read_text("utf-8"))["weight_map"].values()
            named = {INDEX: model, **{str(shard): str(shard) for shard in shards}}
        for link, file in named.items():
            if Path(file).name != file or not (folder / file).is_file():
                raise InvalidRequest.field("model.yaml: files", f"{file!r} is not in the folder")
            (place / link).symlink_to((folder / file).resolve())
        yield place


def _harmless(said: Any) -> Any:
    if isinstance(said, Mapping):
        return {key: _harmless(value) for key, value in said.items() if not DROPPED.fullmatch(key)}
    return said


def signature(model: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What it takes, any number of rows of any length, and what it gives."""
    names = ["input_ids", "attention_mask"]
    # With one type there is nothing to tell apart, and the model supplies it by itself.
    typed = "token_type_ids" in inspect.signature(model.forward).parameters
    if typed and getattr(model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    outputs = (TensorSpec("logits", "FP32", (-1, int(model.config.num_labels))),)
    return tuple(TensorSpec(name, "INT64", (-1, -1)) for name in names), outputs


def cast(model: Any, dtype: str) -> None:
    """Weights of another type, as loading in that type would have made them.

    What is computed and not stored stays exact, as do the weights that the model says must.
    """
    if dtype == "float32":
        return
    short = DTYPES[{"bfloat16": "BF16", "float16": "FP16"}[dtype]]
    exact = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == "float16":
        exact |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, module in model.named_modules():
        computed = module._non_persistent_buffers_set
        held = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        for own, value in ((own, value) for own, value in held if own not in computed):
            if value.is_floating_point() and not exact & {own, *name.split(".")}:
                value.data = value.data.to(short)

"""What the tests have done by the worker's own environment, which has torch: a line of JSON each.

`python torch_side.py tiny FOLDER TOKENIZER + convert FOLDER OUT TOLERANCE + warm FOLDER` and so on,
in the repository; the functions below say what there is.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
import yaml

from services.inference.manifest import FILE_NAME, SCHEMA, Manifest
from services.runtime.errors import GristmillError
from services.work.convert import convert
from services.work.warm import warm


def tiny(folder: str, tokenizer: str) -> dict[str, Any]:
    """A BERT with random weights that differ enough for its answers to."""
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=30522,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=160,
        num_labels=3,
        initializer_range=0.2,
    )
    _save(transformers.BertForSequenceClassification(config), Path(folder), Path(tokenizer), 128)
    return {}


def head(encoder: str, folder: str) -> dict[str, Any]:
    """A real encoder with a classifier of three labels on its pooled first token."""
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        encoder, num_labels=3, local_files_only=True
    )
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    _save(model, Path(folder), Path(encoder) / "tokenizer.json", 256)
    return {}


def _save(model: Any, folder: Path, tokenizer: Path, max_tokens: int) -> None:
    model.save_pretrained(folder)
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    files = {"model": "model.safetensors", "config": "config.json", "tokenizer": "tokenizer.json"}
    said = {
        "schema": SCHEMA,
        "name": "m",
        "task": "classification",
        "backend": "pytorch",
        "files": files,
        "input": {"kind": "text", "max_tokens": max_tokens},
        "output": {"labels": ["a", "b", "c"]},
        "metrics": {"accuracy": 0.5},
        "lineage": {"made": "by a test"},
    }
    (folder / FILE_NAME).write_text(yaml.safe_dump(said))


def converted(folder: str, out: str, tolerance: str) -> dict[str, Any]:
    """What a conversion to ONNX gave."""
    Path(out).mkdir()
    heard: list[float] = []
    made = convert(Path(folder), Path(out), "onnx", float(tolerance), lambda d, _: heard.append(d))
    return asdict(made) | {"heard": heard}


def warmed(folder: str) -> dict[str, Any]:
    """What the model takes and gives."""
    return asdict(warm(Path(folder), Manifest.read(Path(folder))))


def headless(folder: str, new: str) -> dict[str, Any]:
    """The same folder without the weights of the classifier."""
    shutil.copytree(folder, new)
    weights = Path(new) / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    kept = {name: value for name, value in tensors.items() if not name.startswith("classifier.")}
    safetensors.torch.save_file(kept, weights, metadata={"format": "pt"})
    return {}


WORK: dict[str, Callable[..., dict[str, Any]]] = {
    "tiny": tiny,
    "head": head,
    "headless": headless,
    "convert": converted,
    "warm": warmed,
}


def main() -> None:
    """Do what the arguments say, step by step."""
    for step in " ".join(sys.argv[1:]).split(" + "):
        name, *rest = step.split()
        try:
            said = WORK[name](*rest)
        except GristmillError as error:
            said = {"error": type(error).__name__, "message": error.message}
        sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()

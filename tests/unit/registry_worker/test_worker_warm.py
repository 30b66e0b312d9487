"""A model is loaded and asked once: what it takes and gives, or what is wrong with it."""

from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.inference.backend import TensorSpec
from services.inference.manifest import Manifest
from services.runtime.errors import (
    WORKER_MISSING,
    BackendFailed,
    FailedPrecondition,
    InvalidRequest,
)
from services.work import warm as module
from services.work.warm import warm
from tests.unit.inference.pictures import by_channel
from tests.unit.registry_worker.folders import built, declare, linear, two_tensors


def warmed(folder: Path) -> Any:
    """What the folder's model takes and gives."""
    return warm(folder, Manifest.read(folder))


def test_a_vector_model(tmp_path: Path) -> None:
    found = warmed(linear(tmp_path, np.eye(3)))
    assert found.inputs == [TensorSpec("features", "FP32", (-1, 3))]
    assert found.outputs == [TensorSpec("logits", "FP32", (-1, 3))]
    assert found.labels_width == 3


def test_a_text_model() -> None:
    found = warmed(built("sentiment"))
    names = [spec.name for spec in found.inputs]
    assert names == ["input_ids", "attention_mask", "token_type_ids"]
    assert found.labels_width == 2


def test_an_image_model(tmp_path: Path) -> None:
    found = warmed(by_channel(tmp_path))
    assert found.inputs == [TensorSpec("pixels", "FP32", (-1, 3, 20, 30))]
    assert found.labels_width == 3


def test_a_model_of_tensors(tmp_path: Path) -> None:
    found = warmed(two_tensors(tmp_path))
    assert [spec.name for spec in found.inputs] == ["table", "weight"]
    assert found.labels_width == 3


def test_more_tokens_than_the_model_has_positions(tmp_path: Path) -> None:
    for name in ("model.onnx", "tokenizer.json"):
        (tmp_path / name).symlink_to(built("sentiment") / name)
    files = {"model": "model.onnx", "tokenizer": "tokenizer.json"}
    declare(tmp_path, files=files, input={"kind": "text", "max_tokens": 513}, output={})
    with pytest.raises(InvalidRequest, match=r"max_tokens: the model does not run on 513 tokens"):
        warmed(tmp_path)


def test_a_language_model_makes_tokens() -> None:
    assert warmed(built("smollm2")).labels_width is None


def test_labels_must_be_as_many_as_the_model_gives(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="names 3 labels, but the model gives 2"):
        warmed(linear(tmp_path, np.ones((3, 2))))
    assert warmed(linear(tmp_path, np.ones((3, 2)), output={})).labels_width == 2


def test_answers_must_be_finite(tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match="not finite"):
        warmed(linear(tmp_path, np.full((3, 3), np.nan)))


@pytest.mark.parametrize(
    ("manifest", "package"),
    [
        ({"backend": "pytorch"}, "torch"),
        ({"backend": "onnxruntime"}, "onnxruntime"),
        ({"backend": "onnxruntime"}, "PIL"),
        ({"backend": None, "task": "generation", "engine": "vllm"}, "vllm"),
        ({"backend": None, "task": "generation", "engine": "openvino-genai"}, "openvino_genai"),
    ],
)
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: dict[str, Any], package: str
) -> None:
    spec = ModuleSpec("there", None)
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else spec)
    declare(tmp_path, **manifest)
    with pytest.raises(FailedPrecondition, match=f"package {package}, which this worker") as raised:
        warmed(tmp_path)
    assert raised.value.reason_given == WORKER_MISSING

"""Int8 of an ONNX model: measured against its source, refused beyond the tolerance."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.inference.backends.onnx import OnnxBackend
from services.inference.items import Encoded
from services.inference.manifest import Manifest
from services.runtime.errors import BackendFailed, FailedPrecondition, InvalidRequest
from services.work import compare, quantize
from services.work.convert import MODEL, convert
from tests.unit.registry_worker.folders import Heard, built, linear

WEIGHTS = np.random.default_rng(4).normal(size=(32, 3))


def made(
    tmp_path: Path, folder: Path, tolerance: float = 0.1, kind: Any = "onnx-int8-dynamic"
) -> Any:
    """What converting a folder gives, in `out`."""
    (tmp_path / "out").mkdir()
    return convert(folder, tmp_path / "out", kind, tolerance, Heard())


def test_what_is_made_is_measured(tmp_path: Path) -> None:
    folder = linear(tmp_path / "m", WEIGHTS, metrics={"accuracy": 1.0}, notes="Mine.")
    found = made(tmp_path, folder)
    assert found.files == ["model.onnx", "model.yaml"]
    figures = found.metrics
    assert 0 < figures["difference_mean"] < figures["difference_max"] < 0.1
    assert figures["logits_difference_max"] > figures["difference_max"] / 10
    assert 0.9 < figures["top1_agreement"] <= 1
    speedup = figures["result_items_per_s"] / figures["source_items_per_s"]
    assert figures["speedup"] == pytest.approx(speedup)
    assert found.facts["scales"] in ("tensor", "channel")
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.metrics["difference_max"] == pytest.approx(figures["difference_max"], rel=1e-4)
    assert "accuracy" not in manifest.metrics
    assert manifest.notes.startswith("Mine. Converted (onnx-int8-dynamic)")
    assert manifest.lineage["conversion"] == "onnx-int8-dynamic"


def test_neighbours_matter_and_the_manifest_says_how_much(tmp_path: Path) -> None:
    moved = made(tmp_path, linear(tmp_path / "m", WEIGHTS)).metrics["neighbour_difference_max"]
    tolerance = Manifest.read(tmp_path / "out").output.batch_tolerance
    assert 1e-4 < moved <= tolerance <= 1.2 * moved
    # Seen from outside: a neighbour of another range moves the answer, in int8 and only there.
    rng = np.random.default_rng(8)
    batch = rng.normal(size=(2, 32)).astype(np.float32)
    batch[1] *= 3
    for folder, matters in ((tmp_path / "m", False), (tmp_path / "out", True)):
        instance = OnnxBackend(folder / MODEL).instance()
        alone = instance.run({"features": batch[:1]})["logits"][0]
        together = instance.run({"features": batch})["logits"][0]
        assert bool(np.abs(alone - together).max() > 1e-4) is matters


def test_too_far_from_the_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"differs by 0\.\d+ .* tolerance of 1e-06"):
        made(tmp_path, linear(tmp_path / "m", WEIGHTS), 1e-6)
    assert not (tmp_path / "out" / "model.yaml").exists()


@pytest.mark.parametrize(
    ("kind", "manifest", "error", "said"),
    [
        ("onnx", {}, FailedPrecondition, "Hugging Face"),
        ("onnx-int8-dynamic", {"backend": "pytorch"}, FailedPrecondition, "onnxruntime"),
        ("int4", {}, InvalidRequest, "'int4' is not known"),
    ],
)
def test_another_kind_of_source_is_refused(
    tmp_path: Path, kind: str, manifest: dict[str, str], error: Any, said: str
) -> None:
    with pytest.raises(error, match=said):
        made(tmp_path, linear(tmp_path / "m", WEIGHTS, **manifest), kind=kind)


def test_outputs_of_different_shapes_do_not_agree() -> None:
    wide = compare.Answers([np.zeros((1, 3))], [])
    with pytest.raises(BackendFailed, match=r"\(1, 3\).*\(1, 2\)"):
        compare.agreement(wide, compare.Answers([np.zeros((1, 2))], []))


def test_the_built_vector_model_converts(tmp_path: Path) -> None:
    found = made(tmp_path, built("iris"))
    assert found.metrics["top1_agreement"] > 0.9
    items = [Encoded({"features": np.full(4, n, np.float32)}, 1) for n in range(16)]
    instance = OnnxBackend(built("iris") / MODEL).instance()
    rounding = compare.neighbour_difference(instance, items, {}, multi_label=False)
    assert rounding < 1e-6, "float32 does not know its neighbours"


def test_weights_beyond_what_a_file_holds_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "EXTERNAL_BYTES", 0)
    wide = np.random.default_rng(4).normal(size=(2048, 3))
    found = made(tmp_path, linear(tmp_path / "m", wide), 1.0)
    assert found.files == ["model.onnx", "model.onnx.data", "model.yaml"]

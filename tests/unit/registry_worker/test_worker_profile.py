"""A profile has every point that fits the model, grows with the work, and tells its progress."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from services.inference.backend import TensorSpec
from services.inference.fingerprint import fingerprint
from services.inference.items import Encoded, ImageItem, Item, TextPairItem
from services.inference.loading import load
from services.inference.manifest import Manifest
from services.inference.preprocessing import TensorsPreprocessor
from services.inference.preprocessing.preprocessor import DTYPES
from services.runtime.errors import InvalidRequest
from services.work import profile as module
from services.work import samples
from services.work.profile import profile
from tests.unit.inference.pictures import by_channel
from tests.unit.registry_worker.folders import Heard, built, declare, linear, lines, two_tensors


def test_a_text_model() -> None:
    folder, heard = built("sentiment"), Heard()
    found = profile(folder, [4, 1, 1], [32, 8, 9999], heard)
    assert [(p.batch_size, p.length) for p in found.points] == [(1, 8), (4, 8), (1, 32), (4, 32)]
    times = {(p.batch_size, p.length): p.p50_us for p in found.points}
    assert times[(4, 32)] > times[(1, 8)] > 0
    assert all(p.p50_us <= p.p95_us for p in found.points)
    assert found.metrics.keys() == {
        f"{name}_ms_batch_{size}" for name in ("p50", "p95") for size in (1, 4)
    }
    assert found.metrics["p50_ms_batch_4"] == times[(4, 32)] / 1000
    loaded = load(Manifest.read(folder), folder)
    assert found.fingerprint == fingerprint(loaded.backend, len(loaded.instances))
    fractions = [fraction for fraction, _ in heard]
    assert fractions == sorted(fractions)
    assert 1 < len(heard) <= len(found.points)


def test_a_vector_model_has_one_length(tmp_path: Path) -> None:
    folder = linear(tmp_path, np.ones((5, 2)), output={}, batching={"instances": 2})
    found = profile(folder, [3], [16, 64], Heard())
    assert [(p.batch_size, p.length) for p in found.points] == [(3, 1)]
    assert "2 x " in found.fingerprint


def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, tuple[int, ...]]]:
    """The shapes of every batch that is measured."""
    shapes: list[dict[str, tuple[int, ...]]] = []
    times = module._times_us

    def noting(instance: Any, batch: Any) -> Any:
        shapes.append({name: array.shape for name, array in batch.items()})
        return times(instance, batch)

    monkeypatch.setattr(module, "_times_us", noting)
    return shapes


def test_a_model_without_tokens_keeps_its_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = seen(monkeypatch)
    for folder in (by_channel(tmp_path / "i"), two_tensors(tmp_path / "t")):
        found = profile(folder, [2, 3], [16, 64], Heard())
        assert [(p.batch_size, p.length) for p in found.points] == [(2, 1), (3, 1)]
    assert shapes == [
        {"pixels": (2, 3, 20, 30)},
        {"pixels": (3, 3, 20, 30)},
        {"table": (2, 1, 3), "weight": (2, 1)},
        {"table": (3, 1, 3), "weight": (3, 1)},
    ]


@pytest.mark.parametrize(
    ("sizes", "lengths", "field"), [([0], [], "batch_sizes"), ([1], [257, 0], "lengths")]
)
def test_nothing_to_measure_is_refused(sizes: list[int], lengths: list[int], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        profile(built("sentiment"), sizes, lengths, Heard())


def test_samples_are_the_folders_own_where_it_has_some(tmp_path: Path) -> None:
    folder = linear(tmp_path, np.ones((5, 2)))
    loaded = load(Manifest.read(folder), folder)
    seeded = samples.items(folder, Manifest.read(folder), loaded.backend.inputs)
    assert len(samples.encoded(loaded.preprocessor, seeded)) == samples.MADE
    own = lines(folder / samples.FILE_NAME, {"features": [1, 2, 3, 4, 5], "label": 1})
    (only,) = samples.items(folder, Manifest.read(folder), loaded.backend.inputs)
    assert samples.encoded(loaded.preprocessor, [only])[0].inputs["features"].tolist() == [
        1, 2, 3, 4, 5
    ]  # fmt: skip
    lines(own, {"features": [1, 2]})
    short = samples.items(folder, Manifest.read(folder), loaded.backend.inputs)
    with pytest.raises(InvalidRequest, match=r"samples\.jsonl: line 1: .*needs 5 numbers"):
        samples.encoded(loaded.preprocessor, short)
    for bad in ("{", '{"words": 1}', ""):
        own.write_text(bad)
        with pytest.raises(InvalidRequest, match=r"samples\.jsonl"):
            samples.items(folder, Manifest.read(folder), loaded.backend.inputs)


def made(folder: Path) -> tuple[list[Item], list[Encoded]]:
    """The samples of a folder that brings none, and what they become."""
    manifest = Manifest.read(folder)
    loaded = load(manifest, folder)
    try:
        items = samples.items(folder, manifest, loaded.backend.inputs)
        assert len(items) == samples.MADE
        return items, samples.encoded(loaded.preprocessor, items)
    finally:
        loaded.backend.close()


def test_images_are_made_for_an_image_model(tmp_path: Path) -> None:
    items, found = made(by_channel(tmp_path))
    files = [item.data for item in items if isinstance(item, ImageItem)]
    assert len(set(files)) == len(items)
    assert files == [item.data for item in made(tmp_path)[0] if isinstance(item, ImageItem)]
    with Pillow.open(io.BytesIO(files[0])) as image:
        assert (image.format, image.size) == ("JPEG", (60, 40))
    assert {one.inputs["pixels"].shape for one in found} == {(3, 20, 30)}


def test_tensors_are_made_for_a_model_of_tensors(tmp_path: Path) -> None:
    items, found = made(two_tensors(tmp_path))
    assert {one.inputs["table"].shape for one in found} == {(1, 3)}
    assert {one.group for one in found} == {found[0].group}
    again = made(tmp_path)[1]
    assert np.array_equal(found[7].inputs["table"], again[7].inputs["table"])
    assert len({one.inputs["weight"].item() for one in found}) == len(items)


@pytest.mark.parametrize("datatype", DTYPES)
def test_a_tensor_is_made_of_every_type(tmp_path: Path, datatype: str) -> None:
    declare(tmp_path, input={"kind": "tensors"})
    specs = [TensorSpec("x", datatype, (-1, -1, 4)), TensorSpec("y", datatype, (-1,))]
    items = samples.items(tmp_path, Manifest.read(tmp_path), specs)
    shapes = {
        n: a.shape for n, a in samples.encoded(TensorsPreprocessor(specs), items)[0].inputs.items()
    }
    assert shapes == {"x": (1, 4), "y": ()}


def test_large_samples_are_few(tmp_path: Path) -> None:
    declare(tmp_path, input={"kind": "tensors"})
    spec = TensorSpec("x", "UINT8", (-1, samples.MAX_NUMBERS // 2))
    assert len(samples.items(tmp_path, Manifest.read(tmp_path), [spec])) == 2


def test_the_built_in_texts_are_of_many_lengths(tmp_path: Path) -> None:
    declare(tmp_path, input={"kind": "text_pair"})
    pairs = samples.items(tmp_path, Manifest.read(tmp_path), ())
    texts = [pair.first for pair in pairs if isinstance(pair, TextPairItem)]
    words = [len(text.split()) for text in texts]
    assert (len(set(texts)), min(words), max(words)) == (64, 3, 120)

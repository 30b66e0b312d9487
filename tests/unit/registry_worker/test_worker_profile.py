"""A profile has every point that fits the model, grows with the work, and tells its progress."""

from pathlib import Path

import numpy as np
import pytest

from services.inference.fingerprint import fingerprint
from services.inference.items import TextPairItem
from services.inference.loading import load
from services.inference.manifest import Manifest
from services.runtime.errors import InvalidRequest
from services.work import samples
from services.work.profile import profile
from tests.unit.registry_worker.folders import Heard, built, declare, linear, lines


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
    assert found.fingerprint == fingerprint(loaded.backend, 1)
    fractions = [fraction for fraction, _ in heard]
    assert fractions == sorted(fractions)
    assert 1 < len(heard) <= len(found.points)


def test_a_vector_model_has_one_length(tmp_path: Path) -> None:
    folder = linear(tmp_path, np.ones((5, 2)), output={}, batching={"instances": 2})
    found = profile(folder, [3], [16, 64], Heard())
    assert [(p.batch_size, p.length) for p in found.points] == [(3, 1)]
    assert "2 x " in found.fingerprint


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
    assert len(samples.encoded(loaded.preprocessor, seeded)) == samples.VECTORS
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


def test_the_built_in_texts_are_of_many_lengths(tmp_path: Path) -> None:
    declare(tmp_path, input={"kind": "text_pair"})
    pairs = samples.items(tmp_path, Manifest.read(tmp_path), ())
    texts = [pair.first for pair in pairs if isinstance(pair, TextPairItem)]
    words = [len(text.split()) for text in texts]
    assert (len(set(texts)), min(words), max(words)) == (64, 3, 120)

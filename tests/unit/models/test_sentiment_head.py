"""head.json survives a round trip, stays small, and carries what model.yaml quotes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

from models.build import write_manifest
from models.sentiment.head import HEAD_PATH, Head, HeadFile, Tap, load_head, rounded, save_head
from models.sentiment.recipe import manifest as sentiment_manifest
from models.sentiment.recipe import write_tokenizer


def test_a_saved_head_is_read_back_exactly(tmp_path: Path) -> None:
    taps = (Tap("a", "mean"), Tap("b", "cls"))
    head = rounded(Head(taps, np.linspace(-1.23456789, 2.0, 8), 0.123456789, 1.23456))
    written = HeadFile(head, {"accuracy": 0.9}, {"sentences": 3.0}, {"fine": 0.8})
    save_head(written, tmp_path / "head.json")
    read = load_head(tmp_path / "head.json")
    assert read.head.taps == taps
    assert (read.head.bias, read.head.temperature) == (head.bias, head.temperature)
    np.testing.assert_array_equal(read.head.weights, head.weights)
    assert (read.metrics, read.neighbours, read.probes) == (
        written.metrics,
        written.neighbours,
        written.probes,
    )


def test_temperature_softens_and_logits_sum_to_zero() -> None:
    features = np.array([[2.0, 0.0], [-1.0, 3.0]])
    sharp = Head((Tap("a", "mean"),), np.array([1.0, 0.5]), 0.1, 1.0).logits(features)
    soft = Head((Tap("a", "mean"),), np.array([1.0, 0.5]), 0.1, 2.0).logits(features)
    np.testing.assert_allclose(sharp[:, 1] - sharp[:, 0], features @ [1.0, 0.5] + 0.1)
    np.testing.assert_allclose(soft * 2, sharp)
    np.testing.assert_allclose(sharp.sum(axis=1), 0, atol=1e-12)


def test_the_committed_head_is_small_and_good_enough() -> None:
    assert HEAD_PATH.stat().st_size <= 40_000
    file = load_head()
    assert file.metrics["accuracy"] >= 0.81
    assert file.head.weights.shape == (384 * len(file.head.taps),)
    assert file.neighbours["label_flips_32"] == 0


def test_the_manifest_is_plain_yaml_with_floats_for_metrics(tmp_path: Path) -> None:
    write_manifest(sentiment_manifest(load_head()), tmp_path)
    manifest = yaml.safe_load((tmp_path / "model.yaml").read_text(encoding="utf-8"))
    assert manifest["schema"] == "gristmill.dev/model/v1"
    assert manifest["output"] == {"labels": ["negative", "positive"], "multi_label": False}
    assert all(isinstance(value, float) for value in manifest["metrics"].values())
    assert all(isinstance(value, str) for value in manifest["lineage"].values())


def test_the_tokenizer_loses_only_padding_and_truncation(tmp_path: Path) -> None:
    source = {"version": "1.0", "truncation": {"max_length": 128}, "padding": {}, "model": "é"}
    (tmp_path / "in.json").write_text(json.dumps(source), encoding="utf-8")
    write_tokenizer(tmp_path / "in.json", tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written == {**source, "truncation": None, "padding": None}

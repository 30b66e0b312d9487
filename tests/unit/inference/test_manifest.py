"""`model.yaml`: what it may say, and that anything else is the author's error, said in words."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.manifest import FILE_NAME, SCHEMA, Batching, Manifest
from services.runtime.errors import InvalidRequest

LEAST: dict[str, Any] = {
    "schema": SCHEMA,
    "name": "m",
    "task": "classification",
    "files": {"model": "model.onnx"},
}
FULL = """
schema: gristmill.dev/model/v1
name: sentiment.v2_small-en
task: classification
description: Says how it feels.
license: Apache-2.0
backend: onnxruntime
files: {model: model.onnx, tokenizer: tokenizer.json}
input: {kind: text, max_tokens: 256}
output: {labels: [negative, positive], multi_label: true}
batching:
  max_batch_size: 16
  max_batch_tokens: 512
  max_queue_delay_ms: 1.5
  max_overtakes: 0
  instances: 2
  max_queue_items: 100
  max_queue_bytes: 1000000
metrics: {accuracy: 0.91}
lineage: {dataset: "sha256:00"}
notes: None.
"""

SIZE = {"width": 224, "height": 224}


def picture(**how: Any) -> dict[str, Any]:
    """The input of an image model."""
    return {"input": {"kind": "image", "image": SIZE | how}}


def parse(**changes: Any) -> Manifest:
    """The least manifest with some fields changed."""
    return Manifest.parse(yaml.safe_dump(LEAST | changes))


def test_every_field_is_read() -> None:
    manifest = Manifest.parse(FULL)
    assert (manifest.name, manifest.task) == ("sentiment.v2_small-en", "classification")
    assert manifest.input is not None
    assert (manifest.input.kind, manifest.input.max_tokens) == ("text", 256)
    assert (manifest.output.labels, manifest.output.multi_label) == (("negative", "positive"), True)
    assert manifest.files == {"model": "model.onnx", "tokenizer": "tokenizer.json"}
    batching = Batching(
        max_batch_size=16,
        max_batch_tokens=512,
        max_queue_delay_ms=1.5,
        max_overtakes=0,
        instances=2,
        max_queue_items=100,
        max_queue_bytes=1_000_000,
    )
    assert manifest.batching == batching


def test_an_idle_instance_waits_for_nothing_unless_told() -> None:
    assert parse().batching.max_queue_delay_ms == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": "gristmill.dev/model/v2"}, "schema"),
        ({"name": "-m"}, "name"),
        ({"name": "a" * 129}, "name"),
        ({"name": "m\n"}, "name"),
        ({"task": "regression"}, "task"),
        ({"files": {}}, "files"),
        ({"backend": "pickle"}, "backend"),
        ({"input": {"kind": "video"}}, "input.kind"),
        ({"input": {"kind": "text", "max_tokens": 0}}, "input.max_tokens"),
        ({"batching": {"max_batch_size": 0}}, "batching.max_batch_size"),
        ({"batching": {"max_queue_delay_ms": -1}}, "batching.max_queue_delay_ms"),
        ({"batching": {"max_queue_delay_ms": float("nan")}}, "batching.max_queue_delay_ms"),
        ({"batching": {"max_batchsize": 4}}, "batching.max_batchsize"),
        ({"unknown": 1}, "unknown"),
        ({"output": {"labels": [False, True]}}, "output.labels"),
        ({"input": {"kind": "image"}}, "image is required"),
        ({"input": {"kind": "text", "image": SIZE}}, "image is not for kind text"),
        ({"input": {"kind": "tensors", "image": SIZE}}, "image is not for kind tensors"),
        (picture(width=0), "input.image.width"),
        (picture(height=8193), "input.image.height"),
        (picture(mean=[0.5]), "mean needs 3 numbers for rgb, has 1"),
        (picture(std=[1, 1, 1], channels="grayscale"), "std needs 1 numbers for grayscale"),
        (picture(mean=[0, 0, float("nan")]), "input.image.mean.2"),
        (picture(std=[1, 1, 0]), "input.image.std.2"),
        (picture(scale=0), "input.image.scale"),
        (picture(scale=float("inf")), "input.image.scale"),
        (picture(crop_share=0.5), "crop_share is not for resize stretch"),
        (picture(crop_share=1.5, resize="crop"), "input.image.crop_share"),
        (picture(resize="tile"), "input.image.resize"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(**changes)
    (violation,) = raised.value.violations
    assert violation.field == FILE_NAME
    assert said in violation.description


@pytest.mark.parametrize(("channels", "depth"), [("rgb", 3), ("bgr", 3), ("grayscale", 1)])
def test_an_image_has_a_number_for_each_channel(channels: str, depth: int) -> None:
    declared = parse(**picture(channels=channels, mean=[0.5] * depth, std=[2] * depth)).input
    assert declared is not None
    assert declared.image is not None
    assert declared.image.depth == depth
    assert declared.image.mean == (0.5,) * depth


@pytest.mark.parametrize("kind", ["text", "text_pair", "float_features", "tensors"])
def test_only_texts_have_tokens(kind: str) -> None:
    declared = parse(input={"kind": kind}).input
    assert declared is not None
    assert declared.has_tokens == (kind in ("text", "text_pair"))


@pytest.mark.parametrize(
    "name",
    ["../m.onnx", "/etc/passwd", "a/b", "a\\b", "..", ".", ".hidden", "", "m\n", "m\0", "a" * 257],
)
def test_a_file_outside_the_folder_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        parse(files={"model": name})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "just words",
        "a: [",
        "\0",
        "!!python/object/apply:os.system [id]",
        "date: 2001-99-99",
        "x: !!int 'x'",
        "x: !!timestamp 'x'",
        "? [a]\n: b",
        "[" * 500,
    ],
)
def test_what_is_no_manifest_is_refused_in_words(text: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        Manifest.parse(text)
    assert raised.value.message.startswith(f"{FILE_NAME}: ")


@given(st.text())
@settings(deadline=None)
def test_no_text_breaks_the_parser(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Manifest.parse(text)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        Manifest.read(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InvalidRequest):
        Manifest.read(tmp_path)
    (tmp_path / FILE_NAME).write_text(FULL)
    assert Manifest.read(tmp_path) == Manifest.parse(FULL)

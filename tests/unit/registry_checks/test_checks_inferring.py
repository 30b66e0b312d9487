"""The manifest that files imply, word for word; and that of the built models."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from services.inference.manifest import FILE_NAME, Manifest
from services.registry.checks import Policy, Report, check
from services.registry.resources import Task
from tests.unit.registry_checks.corpus import (
    CLASSIFIER,
    GENERATOR,
    GOOD,
    LLAMA,
    Files,
    as_json,
    entry,
    gguf,
    onnx_file,
    safetensors,
    text_onnx,
    value,
    write,
)

CACHE = Path(os.environ.get("GRISTMILL_CACHE") or Path.home() / ".cache" / "gristmill")
BUILT: dict[str, Task] = {
    "sentiment": "classification",
    "iris": "classification",
    "smollm2": "generation",
}


def report(folder: Path, files: Files, task: Task = "classification") -> Report:
    found = check(folder, write(folder, files), "m", task, Policy())
    if found.manifest_text is not None:
        assert Manifest.parse(found.manifest_text) == found.manifest
    return found


def inferred(folder: Path, files: Files, task: Task = "classification") -> Manifest:
    """The manifest of files that imply one."""
    found = report(folder, files, task)
    assert found.rejections == ()
    assert found.manifest is not None
    return found.manifest


def test_the_text_is_readable_and_always_the_same(tmp_path: Path) -> None:
    files = {
        "model.onnx": text_onnx(),
        "tokenizer.json": b"{}",
        "config.json": as_json(
            {"id2label": {"1": "yes", "0": "no"}, "max_position_embeddings": 64}
        ),
    }
    assert report(tmp_path, files).manifest_text == (
        "schema: gristmill.dev/model/v1\n"
        "name: m\n"
        "task: classification\n"
        "backend: onnxruntime\n"
        "files:\n"
        "  model: model.onnx\n"
        "  tokenizer: tokenizer.json\n"
        "input:\n"
        "  kind: text\n"
        "  max_tokens: 64\n"
        "output:\n"
        "  labels:\n"
        "  - 'no'\n"
        "  - 'yes'\n"
        "  multi_label: false\n"
    )
    assert report(tmp_path, dict(reversed(files.items()))) == report(tmp_path, files)


def test_a_language_model_of_one_file(tmp_path: Path) -> None:
    assert report(tmp_path, {"a.gguf": gguf()}, "generation").manifest_text == (
        "schema: gristmill.dev/model/v1\n"
        "name: m\n"
        "task: generation\n"
        "engine: openvino-genai\n"
        "files:\n"
        "  model: a.gguf\n"
        "limits:\n"
        "  max_context_tokens: 4096\n"
    )


def test_vectors_are_named_by_the_config_or_by_number(tmp_path: Path) -> None:
    made = inferred(tmp_path, {"model.onnx": onnx_file()})
    assert made.input is not None
    assert (made.input.kind, made.input.names) == ("float_features", ("f0", "f1", "f2", "f3"))
    names = ["a", "b", "c", "d"]
    files = {"model.onnx": onnx_file(), "config.json": as_json({"feature_names": names})}
    made = inferred(tmp_path, files)
    assert made.input is not None
    assert list(made.input.names) == names


def test_several_labels_at_once(tmp_path: Path) -> None:
    config = as_json({"problem_type": "multi_label_classification"})
    made = inferred(tmp_path, {"model.onnx": onnx_file(), "config.json": config})
    assert made.output.multi_label
    assert made.output.labels == ()


@pytest.mark.parametrize(
    ("config", "tokenizer", "tokens"),
    [
        ({"max_position_embeddings": 514}, {"model_max_length": 512}, 512),
        ({"max_position_embeddings": 128}, {"model_max_length": int(1e30)}, 128),
        ({}, {"model_max_length": 64}, 64),
        ({"max_position_embeddings": -1}, {"model_max_length": 1e30}, 512),
        ({"max_position_embeddings": True}, {}, 512),
    ],
)
def test_the_longest_text_is_what_model_and_tokenizer_take(
    config: dict[str, Any], tokenizer: dict[str, Any], tokens: int, tmp_path: Path
) -> None:
    files = {
        "model.onnx": text_onnx(),
        "tokenizer.json": b"{}",
        "config.json": as_json(config),
        "tokenizer_config.json": as_json(tokenizer),
    }
    made = inferred(tmp_path, files)
    assert made.input is not None
    assert made.input.max_tokens == tokens


def test_a_folder_of_a_classifier(tmp_path: Path) -> None:
    made = inferred(tmp_path, GOOD["classifier folder"][1])
    assert (made.backend, made.engine) == ("pytorch", None)
    assert made.output.labels == ("no", "yes")
    assert made.input is not None
    assert (made.input.kind, made.input.max_tokens) == ("text", 128)
    assert made.files == {
        "model": "model.safetensors",
        "config": "config.json",
        "tokenizer": "tokenizer.json",
    }


def test_a_folder_of_shards(tmp_path: Path) -> None:
    shards = {f"model-{n}.safetensors": safetensors() for n in (1, 2)}
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {"config.json": as_json(GENERATOR), **shards}
    found = report(tmp_path, files, "generation")
    assert [r.rule for r in found.rejections] == ["manifest-needed"]
    files["model.safetensors.index.json"] = as_json(index)
    made = inferred(tmp_path, files, "generation")
    assert (made.engine, made.files["model"]) == ("vllm", "model.safetensors.index.json")
    assert made.limits.max_context_tokens == 4096


def test_a_long_context_is_cut(tmp_path: Path) -> None:
    long = entry("llama.context_length", 4, b"\0\0\0\x40")
    made = inferred(tmp_path, {"a.gguf": gguf((LLAMA[0], long))}, "generation")
    assert made.limits.max_context_tokens == 131_072


@pytest.mark.parametrize("name", GOOD)
def test_a_model_of_another_task_is_refused(name: str, tmp_path: Path) -> None:
    task, files = GOOD[name]
    other: Task = "generation" if task == "classification" else "classification"
    assert "task" in {r.rule for r in report(tmp_path, files, other).rejections}


@pytest.mark.parametrize(
    "files",
    [
        {"model.onnx": onnx_file(), "a.gguf": gguf()},
        {"model.onnx": onnx_file(inputs=[value("x"), value("y")])},
        {"model.onnx": onnx_file(inputs=[value("x", shape=("n", "k"))])},
        {"model.onnx": onnx_file(inputs=[value("x", TensorProto.DOUBLE)])},
        {"model.onnx": text_onnx()},
        {"model.onnx": text_onnx("input_ids", "pixels"), "tokenizer.json": b"{}"},
        {"sub/model.onnx": onnx_file()},
        {"a.gguf": gguf((LLAMA[0],))},
        {"a b.onnx": onnx_file()},
        {"model.onnx": onnx_file(), "config.json": as_json({"feature_names": ["a"]})},
        {"model.onnx": onnx_file(), "config.json": as_json({"id2label": ["a"]})},
        {"model.safetensors": safetensors()},
        {"model.safetensors": safetensors(), "config.json": as_json(CLASSIFIER)},
    ],
)
def test_what_cannot_be_known_is_asked_for(files: Files, tmp_path: Path) -> None:
    found = report(tmp_path, files)
    assert [(r.path, r.rule) for r in found.rejections] == [(FILE_NAME, "manifest-needed")]
    assert "add " in found.rejections[0].message
    assert found.manifest is None
    assert found.signature is None


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=st.lists(st.text(max_size=12), max_size=5), names=st.lists(st.text(), max_size=4))
def test_any_labels_and_names_come_back(
    labels: list[str], names: list[str], tmp_path: Path
) -> None:
    said = {"id2label": {str(n): label for n, label in enumerate(labels)}, "feature_names": names}
    files = {"model.onnx": onnx_file(), "config.json": as_json(said)}
    found = report(tmp_path, files)
    if len(names) == 4 and found.rejections == ():
        assert found.manifest is not None
        assert found.manifest.output.labels == tuple(labels)
    else:
        assert [r.rule for r in found.rejections] == ["manifest-needed"]


def built(folder: Path, model: str, *left_out: str) -> tuple[list[str], Manifest]:
    """The files that `python -m models build` made, linked; and its manifest."""
    source = CACHE / "models" / model
    if not (source / FILE_NAME).is_file():
        raise AssertionError(f"{source} is not there: run `make models` first")
    paths = [path.name for path in source.iterdir() if path.name not in (".build.json", *left_out)]
    for path in paths:
        (folder / path).write_bytes((source / path).read_bytes())
    return paths, Manifest.read(source)


@pytest.mark.parametrize("model", BUILT)
def test_the_built_models_pass(model: str, tmp_path: Path) -> None:
    paths, manifest = built(tmp_path, model)
    found = check(tmp_path, paths, model, BUILT[model], Policy())
    assert (found.rejections, found.manifest, found.manifest_text) == ((), manifest, None)
    assert found.signature is not None
    assert found.signature.labels == manifest.output.labels
    assert bool(found.signature.inputs) == (manifest.task == "classification")


@pytest.mark.parametrize("model", BUILT)
def test_the_built_models_imply_their_manifests(model: str, tmp_path: Path) -> None:
    """All but what no file says: labels, names and how long a text may be."""
    paths, manifest = built(tmp_path, model, FILE_NAME)
    found = check(tmp_path, paths, model, BUILT[model], Policy())
    assert found.rejections == ()
    made = found.manifest
    assert made is not None
    assert found.manifest_text is not None
    assert Manifest.parse(found.manifest_text) == made
    for name in ("name", "task", "backend", "engine", "files", "limits"):
        assert getattr(made, name) == getattr(manifest, name), name
    if made.input is not None and manifest.input is not None:
        assert made.input.kind == manifest.input.kind
        assert len(made.input.names) == len(manifest.input.names)
    assert (made.input is None) == (manifest.input is None)

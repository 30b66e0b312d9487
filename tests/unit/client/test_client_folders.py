"""Folders without a manifest, uploads that others disturb, versions that lost their bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from gristmill_client import (
    Conflict,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    OperationState,
)
from gristmill_client._files import local_files
from gristmill_client._inferring import infer_name, infer_task
from gristmill_client._push import _upload
from gristmill_client._steps import Pause

from tests.unit.client.conftest import Twin
from tests.unit.client.fake_registry import FakeRegistry, Faults
from tests.unit.client.fakes import serving
from tests.unit.registry.wire import RegistryProcess

Make = Callable[..., Twin]


def test_a_folder_without_a_manifest_becomes_a_version(
    twin: Make, process: RegistryProcess, bare: Path, named: str
) -> None:
    client = twin(registry=process.target)
    models = client.client.models
    heard: list[OperationState[object]] = []
    version = client.run(models.push(bare, name=named, on_check=heard.append))
    assert (version.model, version.version, version.state) == (named, 1, "READY")
    assert {a.path for a in version.artifacts} == {"model.onnx", "model.yaml"}
    assert heard[-1].done
    assert heard[-1].kind == "finalize"
    # What the registry added does not make the folder another content.
    assert client.run(models.push(bare, name=named)).version == 1


def test_examples_alone_are_a_dataset(
    twin: Make, process: RegistryProcess, tmp_path: Path, named: str
) -> None:
    folder = tmp_path / named
    folder.mkdir()
    (folder / "data.jsonl").write_text('{"features": [1, 2], "label": "a"}\n')
    client = twin(registry=process.target)
    version = client.run(client.client.models.push(folder))
    assert version.model == named
    assert client.run(client.client.models.get(named)).task == "dataset"


def test_a_real_rejection_says_why(
    twin: Make, process: RegistryProcess, bare: Path, named: str
) -> None:
    (bare / "model.onnx").write_bytes(b"not a model")
    client = twin(registry=process.target)
    with pytest.raises(FailedPrecondition, match=r"REJECTED: model\.onnx"):
        client.run(client.client.models.push(bare, name=named))


def test_a_task_that_the_manifest_denies_is_refused(bare: Path, twin: Make) -> None:
    (bare / "model.yaml").write_text(
        "schema: gristmill.dev/model/v1\nname: m\ntask: classification\n"
    )
    client = twin(registry="127.0.0.1:1")
    with pytest.raises(InvalidRequest, match="task: classification`, not generation"):
        client.run(client.client.models.push(bare, task="generation"))


@pytest.mark.parametrize(
    ("files", "task"),
    [
        (("model.gguf",), "generation"),
        (("model.onnx", "tokenizer.json"), "classification"),
        (("model.onnx", "data.jsonl"), "classification"),
        (("data.jsonl",), "dataset"),
        (("model.safetensors", "ForCausalLM"), "generation"),
        (("model.safetensors", "ForSequenceClassification"), "classification"),
    ],
)
def test_files_tell_the_task(tmp_path: Path, files: tuple[str, ...], task: str) -> None:
    for name in files:
        if name.startswith("For"):
            config = {"architectures": [f"Llama{name}"]}
            (tmp_path / "config.json").write_text(json.dumps(config))
        else:
            (tmp_path / name).write_bytes(b"")
    assert infer_task(tmp_path) == task


def test_a_folder_that_tells_nothing_says_what_it_lacks(tmp_path: Path, twin: Make) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "config.json").write_text("[]")
    client = twin(registry="127.0.0.1:1")
    with pytest.raises(InvalidRequest, match=r"lacks a \*\.onnx"):
        client.run(client.client.models.push(tmp_path, name="m"))
    with pytest.raises(InvalidRequest, match="not a folder"):
        client.run(client.client.models.push(tmp_path / "nothing"))


def test_a_folder_with_no_fitting_name_needs_one(tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    with pytest.raises(InvalidRequest, match="--name"):
        infer_name(folder)


def test_an_upload_that_another_one_disturbs_is_tried_again(bare: Path) -> None:
    (file,) = local_files(bare)
    flow = _upload("models/m/versions/1", file, lambda durable: None)
    next(flow)
    for _ in range(8):
        assert isinstance(flow.throw(Conflict("another upload has the bytes")), Pause)
        next(flow)
    with pytest.raises(Conflict):
        flow.throw(Conflict("another upload has the bytes"))


def test_a_check_that_takes_too_long_goes_on_without_us(twin: Make, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    registry = FakeRegistry(faults=Faults(finalize_polls=1_000_000))
    with serving(registry.register) as address:
        client = twin(registry=address)
        with pytest.raises(DeadlineExceeded, match="gristmill ops operations/"):
            client.run(client.client.models.push(tmp_path, name="m", timeout=0.2))


def test_a_version_that_lost_its_bytes_is_repaired(
    twin: Make, process: RegistryProcess, bare: Path, named: str, tmp_path: Path
) -> None:
    client = twin(registry=process.target)
    models = client.client.models
    (bare / "extra.txt").write_text(named)
    version = client.run(models.push(bare, name=named))
    (lost,) = [a for a in version.artifacts if a.path == "extra.txt"]
    blob = process.data / "artifacts" / "blobs" / lost.sha256[:2] / lost.sha256
    blob.chmod(0o600)
    blob.write_text("x" * lost.size_bytes)
    with pytest.raises(DataLoss):
        client.run(models.pull(named, tmp_path / "to", version=1))
    assert client.run(models.version(named, 1)).state == "QUARANTINED"

    (bare / "extra.txt").write_text("something else")
    with pytest.raises(InvalidRequest, match=r"lacks the very content of extra\.txt"):
        client.run(models.repair(bare, named, 1))
    (bare / "extra.txt").write_text(named)
    assert client.run(models.repair(bare, named, 1)).state == "READY"
    assert client.run(models.repair(bare, named, 1)).state == "READY"  # nothing left to do
    client.run(models.pull(named, tmp_path / "to", version=1))
    assert (tmp_path / "to" / "extra.txt").read_text() == named

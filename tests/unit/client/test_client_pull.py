"""A pull gives exactly the bytes of the version, or nothing, and goes on after a cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gristmill_client import DataLoss, NotFound, Progress, Unavailable

from tests.unit.client.conftest import Twin
from tests.unit.client.fake_registry import FakeRegistry, Faults
from tests.unit.client.fakes import serving

FILES = {"model.yaml": b"schema: x\n", "model.onnx": bytes(range(250)) * 20, "empty/file.txt": b""}


def present(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_the_version(twin: Callable[..., Twin], tmp_path: Path) -> None:
    registry = FakeRegistry()
    registry.add_version("sentiment", FILES)
    heard: list[Progress] = []
    with serving(registry.register) as address:
        client = twin(registry=address)
        version = client.run(
            client.client.models.pull("sentiment", tmp_path / "to", on_progress=heard.append)
        )
    assert version.version == 1
    assert present(tmp_path / "to") == set(FILES)
    for path, data in FILES.items():
        assert (tmp_path / "to" / path).read_bytes() == data
    assert heard[-1].all_done_bytes == heard[-1].all_size_bytes == version.size_bytes


def test_a_cut_download_goes_on_where_it_was(twin: Callable[..., Twin], tmp_path: Path) -> None:
    registry = FakeRegistry(faults=Faults(download_cuts=2))
    registry.add_version("sentiment", {"model.onnx": FILES["model.onnx"]})
    with serving(registry.register) as address:
        client = twin(registry=address)
        client.run(client.client.models.pull("sentiment", tmp_path))
    assert registry.download_offsets == [0, 1000, 2000]
    assert (tmp_path / "model.onnx").read_bytes() == FILES["model.onnx"]


def test_a_later_pull_goes_on_where_an_earlier_one_was_cut(
    twin: Callable[..., Twin], tmp_path: Path
) -> None:
    registry = FakeRegistry()
    version = registry.add_version("sentiment", {"model.onnx": FILES["model.onnx"]})
    partial = tmp_path / f".model.onnx.{version.artifacts[0].sha256[:16]}.partial"
    partial.write_bytes(FILES["model.onnx"][:3000])
    with serving(registry.register) as address:
        client = twin(registry=address)
        client.run(client.client.models.pull("sentiment", tmp_path))
    assert registry.download_offsets == [3000]
    assert present(tmp_path) == {"model.onnx"}


def test_bytes_of_an_earlier_pull_that_are_wrong_are_fetched_anew(
    twin: Callable[..., Twin], tmp_path: Path
) -> None:
    registry = FakeRegistry()
    version = registry.add_version("sentiment", {"model.onnx": FILES["model.onnx"]})
    partial = tmp_path / f".model.onnx.{version.artifacts[0].sha256[:16]}.partial"
    partial.write_bytes(b"torn" * 500)
    with serving(registry.register) as address:
        client = twin(registry=address)
        client.run(client.client.models.pull("sentiment", tmp_path))
    assert registry.download_offsets == [2000, 0]
    assert (tmp_path / "model.onnx").read_bytes() == FILES["model.onnx"]


def test_a_wrong_digest_raises_and_leaves_no_file(
    twin: Callable[..., Twin], tmp_path: Path
) -> None:
    registry = FakeRegistry(faults=Faults(flip_bytes=True))
    registry.add_version("sentiment", {"model.onnx": FILES["model.onnx"]})
    with serving(registry.register) as address:
        client = twin(registry=address)
        with pytest.raises(DataLoss, match=r"model\.onnx"):
            client.run(client.client.models.pull("sentiment", tmp_path))
    assert present(tmp_path) == set()


def test_a_wrong_digest_leaves_the_file_that_was_there(
    twin: Callable[..., Twin], tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"the old one")
    registry = FakeRegistry(faults=Faults(flip_bytes=True))
    registry.add_version("sentiment", {"model.onnx": FILES["model.onnx"]})
    with serving(registry.register) as address:
        client = twin(registry=address)
        with pytest.raises(DataLoss):
            client.run(client.client.models.pull("sentiment", tmp_path))
    assert (tmp_path / "model.onnx").read_bytes() == b"the old one"


def test_files_that_are_there_are_not_fetched_again(
    twin: Callable[..., Twin], tmp_path: Path
) -> None:
    registry = FakeRegistry()
    registry.add_version("sentiment", FILES)
    with serving(registry.register) as address:
        client = twin(registry=address)
        client.run(client.client.models.pull("sentiment", tmp_path))
        registry.download_offsets.clear()
        client.run(client.client.models.pull("sentiment", tmp_path))
    assert not registry.download_offsets


def test_a_chosen_version_is_pulled(twin: Callable[..., Twin], tmp_path: Path) -> None:
    registry = FakeRegistry()
    registry.add_version("sentiment", {"words.txt": b"first"})
    registry.add_version("sentiment", {"words.txt": b"second"})
    with serving(registry.register) as address:
        client = twin(registry=address)
        client.run(client.client.models.pull("sentiment", tmp_path, version=1))
        assert (tmp_path / "words.txt").read_bytes() == b"first"
        client.run(client.client.models.pull("sentiment", tmp_path, alias="live"))
        assert (tmp_path / "words.txt").read_bytes() == b"second"


@pytest.mark.parametrize("path", ["../escape", "/etc/passwd", "a/../../b", "c:\\x", ".hidden", ""])
def test_a_path_that_would_leave_the_folder_is_refused(
    twin: Callable[..., Twin], tmp_path: Path, path: str
) -> None:
    registry = FakeRegistry()
    registry.add_version("sentiment", {path: b"x"})
    with serving(registry.register) as address:
        client = twin(registry=address)
        with pytest.raises(DataLoss, match="path"):
            client.run(client.client.models.pull("sentiment", tmp_path / "to"))
    assert present(tmp_path) == set()


def test_more_bytes_than_declared_are_refused(twin: Callable[..., Twin], tmp_path: Path) -> None:
    registry = FakeRegistry()
    version = registry.add_version("sentiment", {"model.onnx": FILES["model.onnx"]})
    version.artifacts[0].size_bytes = 1500
    with serving(registry.register) as address:
        client = twin(registry=address)
        with pytest.raises(DataLoss, match="more bytes"):
            client.run(client.client.models.pull("sentiment", tmp_path))
    assert present(tmp_path) == set()


def test_a_registry_that_stays_away_leaves_what_came_for_later(
    twin: Callable[..., Twin], tmp_path: Path
) -> None:
    registry = FakeRegistry()
    registry.add_version("sentiment", {"model.onnx": FILES["model.onnx"]})
    registry.chunk_bytes = 0
    with serving(registry.register) as address:
        client = twin(registry=address)
        with pytest.raises(NotFound):
            client.run(client.client.models.pull("elsewhere", tmp_path))
    client = twin(registry=address)
    with pytest.raises(Unavailable):
        client.run(client.client.models.pull("sentiment", tmp_path))
    assert present(tmp_path) == set()

"""A stamp vouches for exactly the files that were there when it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.stamp import STAMP, is_intact, write_stamp


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"weights")
    (tmp_path / "model.yaml").write_text("name: m\n")
    write_stamp(tmp_path, "fingerprint")
    return tmp_path


def test_a_stamped_folder_is_intact(folder: Path) -> None:
    assert is_intact(folder, "fingerprint")
    assert is_intact(folder, "fingerprint", verify=True)
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "model.yaml", STAMP}


def test_another_fingerprint_means_another_build(folder: Path) -> None:
    assert not is_intact(folder, "other")


def test_a_changed_size_is_seen_and_a_changed_byte_only_by_verify(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"weighty")
    assert is_intact(folder, "fingerprint")
    assert not is_intact(folder, "fingerprint", verify=True)
    (folder / "model.onnx").write_bytes(b"longer weights")
    assert not is_intact(folder, "fingerprint")


def test_files_may_neither_be_missing_nor_extra(folder: Path) -> None:
    (folder / "extra").touch()
    assert not is_intact(folder, "fingerprint")
    (folder / "extra").unlink()
    (folder / "model.yaml").unlink()
    assert not is_intact(folder, "fingerprint")


@pytest.mark.parametrize("stamp", ["", "[]", "{}", '{"fingerprint": "fingerprint", "files": 3}'])
def test_a_broken_stamp_vouches_for_nothing(folder: Path, stamp: str) -> None:
    (folder / STAMP).write_text(stamp)
    assert not is_intact(folder, "fingerprint")


def test_no_folder_is_not_intact(tmp_path: Path) -> None:
    assert not is_intact(tmp_path / "absent", "fingerprint")

"""Names and kinds of files: only regular files below the folder are ever opened."""

import os
from pathlib import Path

import pytest

from services.registry.checks import Policy, Report, check
from services.registry.checks.files import admitted
from tests.unit.registry_checks.corpus import MANIFEST, onnx_file, write

GOOD = {"model.yaml": MANIFEST, "model.onnx": onnx_file()}


def report(folder: Path, *paths: str) -> Report:
    return check(folder, [*write(folder, GOOD), *paths], "m", "classification", Policy())


@pytest.mark.parametrize(
    "path",
    [
        *("", "/etc/passwd", "../x", "a/../../x", "a/./b", "a//b", "a/", ".", ".."),
        *("a\0b", "a\nb", "a\x1bb", "a\\b", "a\u202eb", "a\ud800b", "x" * 1025),
    ],
)
def test_a_path_that_is_not_plain_is_refused(path: str, tmp_path: Path) -> None:
    (found,) = report(tmp_path, path).rejections
    assert found.rule == "path"
    assert found.path.isprintable()
    found.model_dump_json()


def test_a_link_is_refused_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_bytes(b'{"auto_map": {}}')
    folder = tmp_path / "version"
    folder.mkdir()
    (folder / "config.json").symlink_to(tmp_path / "secret.json")
    (found,) = report(folder, "config.json").rejections
    assert (found.path, found.rule) == ("config.json", "path")
    assert "link" in found.message


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.json").write_bytes(b"{}")
    folder = tmp_path / "version"
    folder.mkdir()
    (folder / "sub").symlink_to(tmp_path / "other")
    rules = {(r.path, r.rule) for r in report(folder, "sub/x.json").rejections}
    assert rules == {("sub/x.json", "path"), ("sub", "path")}


def test_devices_and_folders_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    rules = [(r.path, r.rule) for r in report(tmp_path, "pipe", "folder").rejections]
    assert rules == [("pipe", "path"), ("folder", "path")]


def test_what_is_missing_and_what_is_twice(tmp_path: Path) -> None:
    found = report(tmp_path, "gone.json", "model.onnx").rejections
    assert [(r.path, r.rule) for r in found] == [("gone.json", "path"), ("model.onnx", "path")]
    assert "no such file" in found[0].message
    assert "twice" in found[1].message


def test_what_is_there_and_not_listed_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"sub/config.json": b"{}"})
    (found,) = report(tmp_path).rejections
    assert (found.path, found.rule) == ("sub/config.json", "path")


def test_too_many_files(tmp_path: Path) -> None:
    found = check(tmp_path, ["x"] * 10_001, "m", "classification", Policy())
    assert found.rejections[0].rule == "path"


def test_every_reason_is_given_at_once(tmp_path: Path) -> None:
    write(tmp_path, {"weights.pt": b"", "config.json": b"{", "a.gguf": b""})
    found = report(tmp_path, "weights.pt", "config.json", "a.gguf")
    assert [r.rule for r in found.rejections] == ["pickle-refused", "json", "header"]
    assert found.manifest is not None


def test_a_file_that_became_a_link_is_not_opened(tmp_path: Path) -> None:
    write(tmp_path, {"secret": b"x", "version/a": b"y"})
    files, _ = admitted(tmp_path / "version", ["a"])
    (tmp_path / "version" / "a").unlink()
    (tmp_path / "version" / "a").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        files.open("a")

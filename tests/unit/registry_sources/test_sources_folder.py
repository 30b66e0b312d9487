"""Models in a folder of this machine: nothing outside it, whatever lies in it."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from services.registry.sources.folder import FolderSource
from services.registry.sources.source import SourceFile
from services.runtime.errors import FailedPrecondition, GristmillError, NotFound
from tests.unit.registry_sources.fetched import fetched, nothing

SECRET = b"not yours"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one model, and a secret beside the root."""
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "model.onnx").write_bytes(SECRET)
    model = tmp_path / "root" / "team" / "iris"
    (model / "sub").mkdir(parents=True)
    (model / "model.onnx").write_bytes(b"weights" * 1000)
    (model / "sub" / "empty.json").write_bytes(b"")
    (model / ".git").mkdir()
    (model / ".git" / "config").symlink_to(tmp_path / "secret")
    return tmp_path / "root"


@pytest.fixture
def source(root: Path) -> FolderSource:
    """The source over the root."""
    return FolderSource(root)


async def test_all_regular_files_come(source: FolderSource, tmp_path: Path) -> None:
    listing = await source.list("team/iris", "")
    assert [(f.path, f.size_bytes) for f in listing.files] == [
        ("model.onnx", 7000),
        ("sub/empty.json", 0),
    ]
    assert await fetched(source, listing, tmp_path / "got") == {
        "model.onnx": b"weights" * 1000,
        "sub/empty.json": b"",
    }


async def test_it_goes_on_where_the_target_ends(source: FolderSource, tmp_path: Path) -> None:
    listing = await source.list("team/iris", "")
    target, told = tmp_path / "target", []
    target.write_bytes(b"weights" * 600)
    await source.fetch(listing, listing.files[0], target, told.append)
    assert target.read_bytes() == b"weights" * 1000
    assert told == [4200, 7000]


async def test_a_target_that_is_too_long_begins_anew(source: FolderSource, tmp_path: Path) -> None:
    listing = await source.list("team/iris", "")
    (tmp_path / "target").write_bytes(b"x" * 8000)
    await source.fetch(listing, listing.files[0], tmp_path / "target", nothing)
    assert (tmp_path / "target").read_bytes() == b"weights" * 1000


async def test_a_target_that_is_a_link_is_refused(source: FolderSource, tmp_path: Path) -> None:
    listing = await source.list("team/iris", "")
    (tmp_path / "target").symlink_to(tmp_path / "secret")
    with pytest.raises(GristmillError):
        await source.fetch(listing, listing.files[0], tmp_path / "target", nothing)
    assert (tmp_path / "secret").read_bytes() == SECRET


@pytest.mark.parametrize("path", ["nothing", "team/nothing", "team/iris/nothing"])
async def test_what_is_not_there_is_not_found(source: FolderSource, path: str) -> None:
    with pytest.raises(NotFound, match=path):
        await source.list(path, "")


def _file_link(root: Path) -> None:
    (root / "team/iris/link.json").symlink_to(root.parent / "secret")


def _inner_link(root: Path) -> None:
    (root / "team/iris/link.json").symlink_to("model.onnx")


def _dangling_link(root: Path) -> None:
    (root / "team/iris/link.json").symlink_to("nothing")


def _folder_link(root: Path) -> None:
    (root / "team/iris/linked").symlink_to(root.parent / "outside")


def _fifo(root: Path) -> None:
    os.mkfifo(root / "team/iris/pipe")


def _socket(root: Path) -> None:
    here = os.getcwd()
    os.chdir(root / "team/iris")
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("s")
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    "evil", [_file_link, _inner_link, _dangling_link, _folder_link, _fifo, _socket]
)
async def test_what_is_no_file_and_no_folder_is_refused(
    source: FolderSource, root: Path, evil: Callable[[Path], None]
) -> None:
    evil(root)
    with pytest.raises(FailedPrecondition, match="no regular file") as refused:
        await source.list("team/iris", "")
    assert str(root) not in refused.value.message


@pytest.mark.parametrize("path", ["linked", "team/linked", "team/linked/sub"])
async def test_a_link_on_the_way_is_refused(source: FolderSource, root: Path, path: str) -> None:
    (root / "linked").symlink_to(root.parent / "outside")
    (root / "team/linked").symlink_to("iris")
    with pytest.raises(FailedPrecondition, match="symbolic link") as refused:
        await source.list(path, "")
    assert str(root) not in refused.value.message


async def test_a_path_that_is_a_file_is_refused(source: FolderSource) -> None:
    with pytest.raises(FailedPrecondition, match="no folder"):
        await source.list("team/iris/model.onnx", "")


async def test_a_file_that_became_a_link_is_refused(
    source: FolderSource, root: Path, tmp_path: Path
) -> None:
    listing = await source.list("team/iris", "")
    (root / "team/iris/model.onnx").unlink()
    (root / "team/iris/model.onnx").symlink_to(tmp_path / "secret")
    with pytest.raises(FailedPrecondition, match="symbolic link"):
        await source.fetch(listing, listing.files[0], tmp_path / "target", nothing)
    assert not (tmp_path / "target").exists()


async def test_a_folder_that_became_a_link_is_refused(
    source: FolderSource, root: Path, tmp_path: Path
) -> None:
    listing = await source.list("team/iris", "")
    (root / "team/iris").rename(tmp_path / "moved")
    (root / "team/iris").symlink_to(tmp_path / "moved")
    with pytest.raises(FailedPrecondition, match="symbolic link"):
        await source.fetch(listing, listing.files[0], tmp_path / "target", nothing)


@pytest.mark.parametrize("path", ["../../../secret", "/etc/passwd", "sub/../../../../secret"])
async def test_a_listing_with_another_path_gets_nothing(
    source: FolderSource, tmp_path: Path, path: str
) -> None:
    """It is not trusted to have been checked: what lies there is not the file that was listed."""
    listing = await source.list("team/iris", "")
    with pytest.raises(GristmillError):
        await source.fetch(listing, SourceFile(path=path, size_bytes=9), tmp_path / "t", nothing)
    assert not (tmp_path / "t").exists()


async def test_a_fifo_in_place_of_a_file_does_not_wait(
    source: FolderSource, root: Path, tmp_path: Path
) -> None:
    listing = await source.list("team/iris", "")
    (root / "team/iris/model.onnx").unlink()
    os.mkfifo(root / "team/iris/model.onnx")
    with pytest.raises(FailedPrecondition, match="changed"):
        await source.fetch(listing, listing.files[0], tmp_path / "target", nothing)


async def test_a_file_that_changed_is_refused(
    source: FolderSource, root: Path, tmp_path: Path
) -> None:
    listing = await source.list("team/iris", "")
    (root / "team/iris/model.onnx").write_bytes(b"another" * 1000)
    with pytest.raises(FailedPrecondition, match="changed"):
        await source.fetch(listing, listing.files[0], tmp_path / "target", nothing)


async def test_folders_in_one_another_are_bounded(source: FolderSource, root: Path) -> None:
    (root / "team/iris" / "/".join("d" * 40)).mkdir(parents=True)
    with pytest.raises(FailedPrecondition, match="32 folders"):
        await source.list("team/iris", "")


async def test_a_name_that_is_no_text_can_still_be_listed(source: FolderSource, root: Path) -> None:
    """The choice refuses it by name."""
    (root / "team/iris" / os.fsdecode(b"\xff\n.onnx")).write_bytes(b"")
    listing = await source.list("team/iris", "")
    assert "\\udcff\n.onnx" in {file.path for file in listing.files}


async def test_no_handle_is_left_open(source: FolderSource, root: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    listing = await source.list("team/iris", "")
    await fetched(source, listing, tmp_path / "got")
    _file_link(root)
    for path in ("team/iris", "nothing", "team/iris/model.onnx/x"):
        with pytest.raises(GristmillError):
            await source.list(path, "")
    assert len(os.listdir("/proc/self/fd")) == before

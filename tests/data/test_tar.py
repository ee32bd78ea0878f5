"""Tars: members by offset, compressed ones unpacked once."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import pickle
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustcli.core.errors import RunError, UsageError
from robustcli.data.archives import is_tar, list_tar
from robustcli.data.dataset import Dataset, FileRef
from robustcli.data.decode import decode
from robustcli.data.listing import FileListing, list_folder
from robustcli.data.named_datasets import data_home
from robustcli.data.sources import Classes, open_dataset

MakeTar = Callable[..., Path]
NAMES = ["./cat/a.jpg", "cat/b.jpg", "dog/c.JPEG", "dog/._c.JPEG", "notes.txt"]


@pytest.mark.parametrize("file", ["photos.tar", "photos.tar.gz", "photos.tgz"])
def test_members_lie_where_the_listing_says(make_tar: MakeTar, file: str) -> None:
    path = make_tar(NAMES, file)
    entries = list_tar(path).files
    assert [entry.relative for entry in entries] == ["cat/a.jpg", "cat/b.jpg", "dog/c.JPEG"]
    with tarfile.open(path) as archive:
        for entry in entries:
            member = archive.extractfile(str(entry.member))
            assert member is not None
            with entry.path.open("rb") as plain:
                plain.seek(entry.offset)
                assert plain.read(entry.size) == member.read()


def test_a_plain_tar_is_read_in_place(make_tar: MakeTar) -> None:
    path = make_tar(NAMES)
    assert {entry.path for entry in list_tar(path).files} == {path}
    assert not data_home().joinpath("unpacked").exists()


def test_a_compressed_tar_is_unpacked_once_and_anew_when_it_changed(make_tar: MakeTar) -> None:
    path = make_tar(NAMES, "photos.tar.gz")
    first = list_tar(path).files[0].path
    assert first.parent == data_home() / "unpacked"
    written = first.stat().st_mtime_ns
    assert list_tar(path).files[0].path == first
    assert first.stat().st_mtime_ns == written
    os.utime(path, (1, 1))
    assert list_tar(path).files[0].path != first


@pytest.mark.parametrize("share", [0.2, 0.6])
@pytest.mark.parametrize("file", ["photos.tar", "photos.tar.gz"])
def test_a_broken_download_is_an_error(make_tar: MakeTar, file: str, share: float) -> None:
    path = make_tar([f"cat/{i}.jpg" for i in range(20)], file)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share) - 7])
    with pytest.raises(UsageError, match=r"cannot be read as a tar archive\.\nThe error is: "):
        list_tar(path)
    assert not list(data_home().glob("unpacked/*.tar"))


def test_something_else_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"not packed at all")
    with pytest.raises(UsageError, match=r"`.*x\.tar\.gz` cannot be read as a tar archive"):
        list_tar(tmp_path / "x.tar.gz")


def test_names_of_tars() -> None:
    assert is_tar(Path("a.TAR"))
    assert is_tar(Path("a.tar.gz"))
    assert not is_tar(Path("a.zip"))


def test_ten_thousand_members_are_listed_in_seconds(shared: Path) -> None:
    start = time.process_time()
    entries = list_tar(shared / "cifar10_jpeg" / "test.tar.gz").files
    assert time.process_time() - start < 5
    assert len(entries) == 10_000
    assert isinstance(entries[0], FileRef)


def _decoded(index: Dataset) -> list[int]:
    return [int(decode(sample.image).sum()) for sample in index.samples]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_index_of_a_tar_works_in_other_processes(make_tar: MakeTar, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this platform")
    index = open_dataset(str(make_tar(NAMES)), Classes("cifar10"))
    assert pickle.loads(pickle.dumps(index)) == index
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_decoded, (index,)) == _decoded(index)


def test_members_decode_like_files(make_tar: MakeTar, photos: Callable[..., Path]) -> None:
    folder = photos("cat/a.jpg", "dog/b.jpg")
    tar = make_tar(["cat/a.jpg", "dog/b.jpg"])
    for inside, outside in zip(
        open_dataset(str(tar), Classes("cifar10")).samples,
        open_dataset(str(folder), Classes("cifar10")).samples,
        strict=True,
    ):
        assert (inside.image_id, inside.target) == (outside.image_id, outside.target)
        assert inside.image.read() == outside.image.read()
        np.testing.assert_array_equal(decode(inside.image), decode(outside.image))


LEFTOVERS = (
    *(".ipynb_checkpoints/0-checkpoint.png", "cat/.ipynb_checkpoints/1.png", "cat/._0.png"),
    *("__MACOSX/cat/_0.png", "dog/@eaDir/0.jpg/thumb.jpg", "dog/.hidden/deep/x.png"),
)
"""Files named like images that never count; `Thumbs.db` and `desktop.ini` are not named so."""


def _packed(folder: Path, tar: Path) -> Path:
    with tarfile.open(tar, "w") as archive:
        archive.add(folder, folder.name)
    return tar


def _images(listing: FileListing, prefix: str = "") -> dict[str, bytes]:
    return {file.relative.removeprefix(prefix): file.read() for file in listing.files}


def test_leftovers_never_count_in_a_folder_or_its_tar(
    photos: Callable[..., Path], tmp_path: Path
) -> None:
    root = photos("cat/a.jpg", "dog/b.gif", "cat/c.JPG", *LEFTOVERS)
    for name in ("Thumbs.db", "cat/desktop.ini", "dog/.DS_Store"):
        (root / name).write_bytes(b"x")
    folder, tar = list_folder(root), list_tar(_packed(root, tmp_path / "x.tar"))
    assert sorted(_images(folder)) == ["cat/a.jpg", "cat/c.JPG", "dog/b.gif"]
    assert _images(tar, "data/") == _images(folder)
    assert folder.leftovers == sorted(LEFTOVERS)
    assert tar.leftovers == [f"data/{name}" for name in sorted(LEFTOVERS)]
    (note,) = folder.notes(root)
    assert note == (
        f"Skipped in `{root}`: 6 files with suffixes of images (hidden files or files of other "
        "programs), such as `.ipynb_checkpoints/0-checkpoint.png`."
    )


def test_links_in_a_tar_are_the_same_images_as_in_the_folder(
    photos: Callable[..., Path], tmp_path: Path
) -> None:
    root = photos("cat/a.jpg", "cat/b.jpg", "deep/dog/c.jpg")
    os.link(root / "cat" / "a.jpg", root / "cat" / "hard.jpg")
    (root / "cat" / "soft.jpg").symlink_to("b.jpg")
    (root / "dog").symlink_to("deep/dog")
    (root / "cat" / "far.jpg").symlink_to("../dog/c.jpg")
    (root / "chain.jpg").symlink_to("cat/soft.jpg")
    (root / "deep" / "loop").symlink_to("..")
    folder, tar = list_folder(root), list_tar(_packed(root, tmp_path / "x.tar"))
    assert len(folder.files) == 8
    assert _images(tar, "data/") == _images(folder)
    assert not tar.unreached


def _jpeg(name: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (5, 4), (len(name), 90, 90)).save(content, "JPEG")
    return content.getvalue()


def _member(archive: tarfile.TarFile, name: str, kind: bytes, target: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    archive.addfile(member)


def test_nothing_outside_of_the_archive_is_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(_jpeg("secret"))
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("cat/a.jpg", "../up.jpg", "cat/../../up2.jpg", "/rooted/b.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(_jpeg(name))
            archive.addfile(member, io.BytesIO(_jpeg(name)))
        _member(archive, "cat/absolute.jpg", tarfile.SYMTYPE, str(secret))
        _member(archive, "cat/relative.jpg", tarfile.SYMTYPE, "../../secret.jpg")
        _member(archive, "cat/hard.jpg", tarfile.LNKTYPE, "../secret.jpg")
        _member(archive, "cat/nothing.jpg", tarfile.SYMTYPE, "missing.jpg")
        _member(archive, "cat/circle.jpg", tarfile.SYMTYPE, "circle2.jpg")
        _member(archive, "cat/circle2.jpg", tarfile.SYMTYPE, "circle.jpg")
        _member(archive, "cat/pipe.jpg", tarfile.FIFOTYPE)
    listing = list_tar(tmp_path / "x.tar")
    assert sorted(_images(listing)) == ["cat/a.jpg", "rooted/b.jpg"]
    assert listing.unreached == [
        *("../up.jpg", "cat/../../up2.jpg", "cat/absolute.jpg", "cat/circle.jpg"),
        *("cat/circle2.jpg", "cat/hard.jpg", "cat/nothing.jpg", "cat/pipe.jpg", "cat/relative.jpg"),
    ]
    (note,) = listing.notes(tmp_path / "x.tar")
    assert "9 files with suffixes of images (links with a target outside of the archive" in note


def test_of_two_members_of_one_name_the_last_counts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for content in (b"old", b"newer"):
            member = tarfile.TarInfo("cat/a.jpg")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert _images(list_tar(tmp_path / "x.tar")) == {"cat/a.jpg": b"newer"}


def test_a_data_home_that_cannot_be_written_is_not_a_damaged_tar(
    make_tar: MakeTar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tar(NAMES, "photos.tar.gz")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ROBUST_HOME", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"(?s)data home: cannot write .*ROBUST_HOME") as caught:
        list_tar(path)
    assert "damaged" not in str(caught.value)
    assert "tar archive" not in str(caught.value)


def test_a_full_data_home_is_not_a_damaged_tar(
    make_tar: MakeTar, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: io.BufferedWriter, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = make_tar(NAMES, "photos.tar.gz")
    opened = Path.open

    class Full(io.BytesIO):
        write = full  # type: ignore[assignment]

    def open_full(self: Path, mode: str = "r", *rest: object, **named: object) -> object:
        return Full() if self.name.endswith(".tmp") else opened(self, mode)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(
        RunError, match=r"(?s)The error of the file system is: No space left.*ROBUST_HOME"
    ):
        list_tar(path)


def test_a_long_name_is_decompressed(make_tar: MakeTar) -> None:
    path = make_tar(NAMES, "p" * 240 + ".tar.gz")
    assert len(list_tar(path).files) == 3

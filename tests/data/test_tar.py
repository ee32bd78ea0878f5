"""Tars: members by offset, compressed ones unpacked once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robustcli.core.errors import UsageError
from robustcli.data.decode import decode, read_bytes
from robustcli.data.home import data_home
from robustcli.data.index import ImageIndex
from robustcli.data.listing import Entry
from robustcli.data.open import open_index
from robustcli.data.tar import is_tar, list_tar

MakeTar = Callable[..., Path]
NAMES = ["./cat/a.jpg", "cat/b.jpg", "dog/c.JPEG", "dog/._c.JPEG", "notes.txt"]


@pytest.mark.parametrize("file", ["photos.tar", "photos.tar.gz", "photos.tgz"])
def test_members_lie_where_the_listing_says(make_tar: MakeTar, file: str) -> None:
    path = make_tar(NAMES, file)
    entries = list_tar(path).entries
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
    assert {entry.path for entry in list_tar(path).entries} == {path}
    assert not data_home().joinpath("unpacked").exists()


def test_a_compressed_tar_is_unpacked_once_and_anew_when_it_changed(make_tar: MakeTar) -> None:
    path = make_tar(NAMES, "photos.tar.gz")
    first = list_tar(path).entries[0].path
    assert first.parent == data_home() / "unpacked"
    written = first.stat().st_mtime_ns
    assert list_tar(path).entries[0].path == first
    assert first.stat().st_mtime_ns == written
    os.utime(path, (1, 1))
    assert list_tar(path).entries[0].path != first


@pytest.mark.parametrize("share", [0.2, 0.6])
@pytest.mark.parametrize("file", ["photos.tar", "photos.tar.gz"])
def test_a_broken_download_is_an_error(make_tar: MakeTar, file: str, share: float) -> None:
    path = make_tar([f"cat/{i}.jpg" for i in range(20)], file)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share) - 7])
    with pytest.raises(UsageError, match=r"cannot be read as a tar archive\.\nReading it says: "):
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
    entries = list_tar(shared / "cifar10_jpeg" / "test.tar.gz").entries
    assert time.process_time() - start < 5
    assert len(entries) == 10_000
    assert isinstance(entries[0], Entry)


def _decoded(index: ImageIndex) -> list[int]:
    return [int(decode(image).sum()) for image in index.images]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_index_of_a_tar_works_in_other_processes(make_tar: MakeTar, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this platform")
    index = open_index(str(make_tar(NAMES)), model_label_space="cifar10")
    assert pickle.loads(pickle.dumps(index)) == index
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_decoded, (index,)) == _decoded(index)


def test_members_decode_like_files(make_tar: MakeTar, photos: Callable[..., Path]) -> None:
    folder = photos("cat/a.jpg", "dog/b.jpg")
    tar = make_tar(["cat/a.jpg", "dog/b.jpg"])
    for inside, outside in zip(
        open_index(str(tar), model_label_space="cifar10").images,
        open_index(str(folder), model_label_space="cifar10").images,
        strict=True,
    ):
        assert (inside.image_id, inside.target) == (outside.image_id, outside.target)
        assert read_bytes(inside) == read_bytes(outside)
        np.testing.assert_array_equal(decode(inside), decode(outside))

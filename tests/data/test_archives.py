"""Zips, tars, WebDataset shards, Tiny ImageNet: read like the folder in them."""

from __future__ import annotations

import bz2
import errno
import io
import json
import lzma
import multiprocessing
import os
import pickle
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from robustcli.core.errors import RunError, UsageError
from robustcli.data.archives import is_tar, list_tar, list_zip
from robustcli.data.dataset import Dataset, FileRef
from robustcli.data.decode import UnreadableImage, decode, image_size
from robustcli.data.labels import read_label_space
from robustcli.data.layouts import shards
from robustcli.data.listing import FileListing, list_folder
from robustcli.data.named_datasets import data_home
from robustcli.data.sources import Classes, open_dataset
from tests.data.conftest import jpeg
from tests.data.published_files import tar_of

NAMES = ["cat/a.jpg", "cat/b.jpg", "dog/c.JPEG", "dog/._c.JPEG", "notes.txt"]
WNIDS = read_label_space("imagenet-1k").ids


def write_zip(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def files():
    return {name: jpeg(name) for name in NAMES}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_has_what_its_folder_has(tmp_path, files, method):
    path = write_zip(tmp_path / "photos.zip", files, method)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder")
    inside = {f.relative: f for f in list_zip(path).files}
    unpacked = {f.relative: f for f in list_folder(tmp_path / "folder").files}
    assert inside.keys() == unpacked.keys() == {"cat/a.jpg", "cat/b.jpg", "dog/c.JPEG"}
    for name, file in inside.items():
        assert file.read() == files[name]
        assert file.length == len(files[name])
        assert image_size(file) == image_size(unpacked[name])
    sets = [open_dataset(str(p), Classes("cifar10")) for p in (path, tmp_path / "folder")]
    assert sets[0].digest == sets[1].digest
    assert sets[0].contents == sets[1].contents


def test_local_headers_of_another_length_than_the_directorys_are_followed(tmp_path, files):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            with archive.open(name, "w", force_zip64=True) as file:  # 20 more bytes, there only
                file.write(content)
    assert {f.relative: f.read() for f in list_zip(path).files} == {
        name: files[name] for name in NAMES[:3]
    }


def test_members_outside_and_links_of_a_zip(tmp_path, files):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/a.jpg", files["cat/a.jpg"])
        archive.writestr("../out.jpg", files["cat/b.jpg"])
        links = {"in": "a.jpg", "etc": "/etc/passwd", "up": "../../x.jpg", "self": "self.jpg"}
        for name, target in ((f"cat/{name}.jpg", target) for name, target in links.items()):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o120777 << 16
            archive.writestr(info, target)
    listing = list_zip(path)
    assert {f.relative: f.read() for f in listing.files} == {
        "cat/a.jpg": files["cat/a.jpg"],
        "cat/in.jpg": files["cat/a.jpg"],
    }
    assert listing.unreached == ["../out.jpg", "cat/etc.jpg", "cat/self.jpg", "cat/up.jpg"]


def test_a_zip_of_windows_may_have_backslashes_between_folders(tmp_path, files):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, "dog/d.heic": b"x"}.items():
            info = zipfile.ZipInfo(name.replace("/", "\\"))
            info.create_system = 0
            archive.writestr(info, content)
    listing = list_zip(path)
    assert {f.relative: f.read() for f in listing.files} == {
        name: files[name] for name in NAMES[:3]
    }
    assert listing.unsupported == ["dog/d.heic"]


def changed_directory(path, offset, value):
    """Writes `value` into the central directory entry of a zip with one member."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + offset : entry + offset + len(value)] = value
    path.write_bytes(content)


def test_a_member_that_would_fill_the_memory_is_refused(tmp_path):
    path = write_zip(tmp_path / "bomb.zip", {"cat/a.bmp": bytes(10_000)})
    changed_directory(path, 24, struct.pack("<I", 2**31))
    with pytest.raises(UsageError, match=r"would unpack to 2,147,483,648 bytes"):
        list_zip(path)


def test_a_member_longer_than_it_says_is_never_unpacked_further(tmp_path):
    path = write_zip(tmp_path / "bomb.zip", {"cat/a.bmp": bytes(10_000_000)})
    changed_directory(path, 24, struct.pack("<I", 1000))
    with pytest.raises(UnreadableImage, match="its length differs"):
        decode(list_zip(path).files[0])


def test_encrypted_and_rarely_packed_members_are_refused(tmp_path, files):
    path = write_zip(tmp_path / "locked.zip", {"a.jpg": files["cat/a.jpg"]})
    changed_directory(path, 8, struct.pack("<H", 1))
    with pytest.raises(UsageError, match="is encrypted"):
        list_zip(path)
    with pytest.raises(UsageError, match=r"compression type 14"):
        list_zip(write_zip(tmp_path / "x.zip", files, zipfile.ZIP_LZMA))


@pytest.mark.parametrize("end", [0, 30, -30])
def test_a_zip_that_breaks_off_is_an_error(tmp_path, files, end):
    path = write_zip(tmp_path / "photos.zip", files)
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(UsageError, match="cannot be read as a zip archive"):
        list_zip(path)


def test_damaged_deflated_bytes_are_an_unreadable_image(tmp_path):
    path = write_zip(tmp_path / "photos.zip", {"cat/a.bmp": bytes(range(256)) * 40})
    file = list_zip(path).files[0]
    content = bytearray(path.read_bytes())
    content[file.offset : file.offset + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match="damaged in its archive"):
        decode(file)


@pytest.mark.parametrize("suffix", [".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".TAR.XZ"])
def test_compressed_tars_have_what_the_plain_one_has(tmp_path, files, suffix):
    plain = write_tar(tmp_path / "photos.tar", files)
    content = plain.read_bytes()
    path = tmp_path / f"packed{suffix}"
    if "zst" in suffix:
        path.write_bytes(pa.Codec("zstd").compress(content, asbytes=True))
    else:
        path.write_bytes((bz2 if "b" in suffix else lzma).compress(content))
    expected = {f.relative: f.read() for f in list_tar(plain).files}
    assert {f.relative: f.read() for f in list_tar(path).files} == expected
    assert len(expected) == 3
    full = path.read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(full[: len(full) // 2])
    with pytest.raises(UsageError, match="cannot be read as a tar archive"):
        list_tar(tmp_path / f"cut{suffix}")


def test_ranges_of_shards_are_expanded_in_order():
    assert [str(p) for p in shards("a-{08..11}.tar")] == [f"a-{n:02d}.tar" for n in range(8, 12)]
    assert [str(p) for p in shards("a-{8..10}.tar")] == ["a-8.tar", "a-9.tar", "a-10.tar"]
    assert len(shards("{0..1}/a-{000..002}.tar")) == 6
    with pytest.raises(UsageError, match="not a range of shards"):
        shards("a-{5..2}.tar")


@pytest.fixture
def three_shards(tmp_path):
    for shard in range(3):
        content = {}
        for index in range(2):
            key = f"{shard}{index}"
            content[f"{key}.jpg"] = jpeg(key)
            if shard == 2:
                content[f"{key}.json"] = json.dumps({"label": 7, "width": 8}).encode()
            else:
                content[f"{key}.cls"] = f"{shard * 2 + index}\n".encode()
        write_tar(tmp_path / f"val-{shard:06d}.tar", content)
    return str(tmp_path / "val-{000000..000002}.tar")


def test_shards_are_one_data_set(three_shards):
    dataset = open_dataset(three_shards, Classes("cifar10", "cifar10"))
    assert [(s.image_id, s.target) for s in dataset.samples] == [
        ("val-000000/00.jpg", 0), ("val-000000/01.jpg", 1),
        ("val-000001/10.jpg", 2), ("val-000001/11.jpg", 3),
        ("val-000002/20.jpg", 7), ("val-000002/21.jpg", 7),
    ]  # fmt: skip
    for sample in dataset.samples:
        assert sample.image.read() == jpeg(sample.image_id[-6:-4])
        assert decode(sample.image).shape[2] == 3
    with pytest.raises(UsageError, match=r"numbers|label space"):
        open_dataset(three_shards, Classes("cifar10"))  # numbers, and not all of them


def test_shards_of_one_name_are_refused(tmp_path):
    for folder in "01":
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "s.tar", {"a.jpg": jpeg("a"), "a.cls": b"1"})
    with pytest.raises(UsageError, match=r"names of shards .* more than once\.\n.*0/s\.tar.*1/s"):
        open_dataset(str(tmp_path) + "/{0..1}/s.tar", Classes("cifar10", "cifar10"))


def test_images_of_a_shard_that_are_no_sample_are_reported(tmp_path):
    content = {"a.jpg": jpeg("a"), "a.cls": b"1", "b.0.jpg": jpeg("b"), "b.0.cls": b"1"}
    write_tar(tmp_path / "s-0.tar", content)
    dataset = open_dataset(str(tmp_path / "s-{0..0}.tar"), Classes("cifar10", "cifar10"))
    assert [sample.image_id for sample in dataset.samples] == ["s-0/a.jpg"]
    assert any("1 image with further dots in the name" in note for note in dataset.notes)
    write_tar(tmp_path / "s-0.tar", {name: content[name] for name in ("b.0.jpg", "b.0.cls")})
    with pytest.raises(UsageError, match=r"contain no images\.\n.*1 image with further dots"):
        open_dataset(str(tmp_path / "s-{0..0}.tar"), Classes("cifar10", "cifar10"))


def test_missing_shards_are_named(three_shards, tmp_path):
    (tmp_path / "val-000001.tar").unlink()
    with pytest.raises(UsageError, match=r"1 of the 3 shards[\s\S]*`val-000001\.tar`"):
        open_dataset(three_shards, Classes("cifar10", "cifar10"))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"a.jpg": b"x"}, r"no `\.cls` or `\.json`"),
        ({"a.jpg": b"x", "a.png": b"x", "a.cls": b"1"}, "has 2 images"),
        ({"a.jpg": b"x", "a.json": b"{"}, "cannot be read"),
        ({"a.jpg": b"x", "a.json": b'{"width": 3}'}, "has no `cls`"),
        ({"a.jpg": b"x", "a.json": b"[1]"}, "has no `cls`"),
    ],
)
def test_unclear_keys_of_shards_are_named(tmp_path, content, named):
    write_tar(tmp_path / "s-0.tar", content)
    with pytest.raises(UsageError, match=named):
        open_dataset(str(tmp_path / "s-{0..0}.tar"), Classes("cifar10", "cifar10"))


@pytest.fixture(params=["folder", "zip", "outer"])
def tiny(request, tmp_path):
    lines = ["val_0.JPEG\tn02124075\t0\t32\t44\t62", "val_1.JPEG\tn01443537\t1\t2\t3\t4"]
    content = {
        **{f"train/{w}/images/{w}_{i}.JPEG": jpeg(f"{w}{i}")
           for w in ("n01443537", "n02124075") for i in range(2)},
        "train/n01443537/n01443537_boxes.txt": b"n01443537_0.JPEG\t0\t1\t2\t3",
        "val/images/val_0.JPEG": jpeg("v0"), "val/images/val_1.JPEG": jpeg("v1"),
        "val/val_annotations.txt": "\n".join(lines).encode(),
        "test/images/test_0.JPEG": jpeg("t0"),
        "wnids.txt": b"n02124075\nn01443537", "words.txt": b"n02124075\tEgyptian cat",
    }  # fmt: skip
    inside = {f"tiny-imagenet-200/{name}": value for name, value in content.items()}
    if request.param == "zip":
        return write_zip(tmp_path / "tiny-imagenet-200.zip", inside)
    for name, value in inside.items():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(value)
    return tmp_path / "tiny-imagenet-200" if request.param == "folder" else tmp_path


def test_tiny_imagenet_has_its_classes_and_splits(tiny):
    dataset = open_dataset(str(tiny), Classes("imagenet-1k"))
    known = {s.image_id: (WNIDS[s.target], s.split) for s in dataset.samples}
    assert known == {
        **{f"train/{w}/images/{w}_{i}.JPEG": (w, "train")
           for w in ("n01443537", "n02124075") for i in range(2)},
        "val/images/val_0.JPEG": ("n02124075", "val"),
        "val/images/val_1.JPEG": ("n01443537", "val"),
    }  # fmt: skip
    assert dataset.evaluated == "val"
    custom = open_dataset(str(tiny), Classes())
    assert custom.classes.ids == ("n01443537", "n02124075")
    assert np.array_equal([s.target for s in custom.samples if s.split == "val"], [1, 0])


def test_a_validation_image_without_annotation_is_named(tmp_path):
    path = write_zip(tmp_path / "tiny.zip", {
        "train/n01443537/images/a.JPEG": jpeg("a"), "val/images/v.JPEG": jpeg("v"),
        "val/val_annotations.txt": b"w.JPEG\tn01443537\t0\t0\t1\t1",
    })  # fmt: skip
    with pytest.raises(UsageError, match=r"Without a class: `val/images/v\.JPEG`"):
        open_dataset(str(path), Classes("imagenet-1k"))


# Tars: members by offset, compressed ones unpacked once.


MakeTar = Callable[..., Path]


@pytest.mark.parametrize("file", ["photos.tar", "photos.tar.gz", "photos.tgz"])
def test_members_lie_where_the_listing_says(make_tar: MakeTar, file: str) -> None:
    path = make_tar([f"./{NAMES[0]}", *NAMES[1:]], file)
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


LEFTOVERS = (
    *(".ipynb_checkpoints/0-checkpoint.png", "cat/.ipynb_checkpoints/1.png", "cat/._0.png"),
    *("__MACOSX/cat/_0.png", "dog/@eaDir/0.jpg/thumb.jpg", "dog/.hidden/deep/x.png"),
)
"""Files named like images that never count; `Thumbs.db` and `desktop.ini` are not named so."""


def _images(listing: FileListing, prefix: str = "") -> dict[str, bytes]:
    return {file.relative.removeprefix(prefix): file.read() for file in listing.files}


def test_leftovers_never_count_in_a_folder_or_its_tar(
    photos: Callable[..., Path], tmp_path: Path
) -> None:
    root = photos("cat/a.jpg", "dog/b.gif", "cat/c.JPG", *LEFTOVERS)
    for name in ("Thumbs.db", "cat/desktop.ini", "dog/.DS_Store"):
        (root / name).write_bytes(b"x")
    folder, tar = list_folder(root), list_tar(tar_of(root, tmp_path / "x.tar", "w"))
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
    folder, tar = list_folder(root), list_tar(tar_of(root, tmp_path / "x.tar", "w"))
    assert len(folder.files) == 8
    assert _images(tar, "data/") == _images(folder)
    assert not tar.unreached


def _member(archive: tarfile.TarFile, name: str, kind: bytes, target: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    archive.addfile(member)


def test_nothing_outside_of_the_archive_is_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg("secret"))
    names = ("cat/a.jpg", "../up.jpg", "cat/../../up2.jpg", "/rooted/b.jpg")
    write_tar(tmp_path / "x.tar", {name: jpeg(name) for name in names})
    with tarfile.open(tmp_path / "x.tar", "a") as archive:
        _member(archive, "cat/absolute.jpg", tarfile.SYMTYPE, str(secret))
        _member(archive, "cat/relative.jpg", tarfile.SYMTYPE, "../../secret.jpg")
        _member(archive, "cat/hard.jpg", tarfile.LNKTYPE, "../secret.jpg")
        _member(archive, "cat/nothing.jpg", tarfile.SYMTYPE, "missing.jpg")
        _member(archive, "cat/circle.jpg", tarfile.SYMTYPE, "circle2.jpg")
        _member(archive, "cat/circle2.jpg", tarfile.SYMTYPE, "circle.jpg")
        _member(archive, "cat/pipe.jpg", tarfile.FIFOTYPE)
        _member(archive, "dev/character.jpg", tarfile.CHRTYPE)
        _member(archive, "dev/block.jpg", tarfile.BLKTYPE)
    listing = list_tar(tmp_path / "x.tar")
    assert sorted(_images(listing)) == ["cat/a.jpg", "rooted/b.jpg"]
    assert listing.unreached == [
        *("../up.jpg", "cat/../../up2.jpg", "cat/absolute.jpg", "cat/circle.jpg"),
        *("cat/circle2.jpg", "cat/hard.jpg", "cat/nothing.jpg", "cat/pipe.jpg", "cat/relative.jpg"),
        *("dev/block.jpg", "dev/character.jpg"),
    ]
    (note,) = listing.notes(tmp_path / "x.tar")
    assert "11 files with suffixes of images (links with a target outside of the archive" in note


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

"""Damaged and hostile tar and zip archives: no access outside of them, no endless reading."""

from __future__ import annotations

import io
import random
import stat
import tarfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.data.archives import list_tar, list_zip
from robustcli.data.listing import FileListing, list_folder
from tests.data.conftest import jpeg

PHOTO = jpeg("photo")
SECONDS = 3
LINK, FOLDER = tarfile.SYMTYPE, tarfile.DIRTYPE
FILE = tarfile.REGTYPE
Entry = tuple[str, bytes, str]
DEEP = "a/" * 3000 + "x.jpg"
# Each folder has two links to the one below: 2 to the power of 24 paths to one photo.
MULTIPLIED: list[Entry] = [("d0/x.jpg", FILE, ""), *(
    (f"d{n + 1}/{side}", LINK, f"../d{n}") for n in range(24) for side in "ab"
)]  # fmt: skip
# Each link goes through the next one twice.
CROSSING: list[Entry] = [("e/x.jpg", FILE, ""), *(
    (f"l{n}", LINK, f"l{n + 1}/m{n + 1}/m{n + 1}") for n in range(40)
), *((f"e/m{n}", LINK, f"../l{n + 1}") for n in range(41)), ("l40", LINK, "e"),
    ("y.jpg", LINK, "l0")]  # fmt: skip


def write_tar(path: Path, entries: Sequence[Entry], **pax: str) -> Path:
    """Writes a tar of photos, links and folders."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, target in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = len(PHOTO) if kind == FILE else 0
            info.pax_headers = {key.replace("__", "."): value for key, value in pax.items()}
            archive.addfile(info, io.BytesIO(PHOTO))
    return path


def write_zip(path: Path, entries: Sequence[Entry], method: int = zipfile.ZIP_STORED) -> Path:
    """Writes a zip of photos and links."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, kind, target in entries:
            info = zipfile.ZipInfo(name)
            mode = stat.S_IFLNK if kind == LINK else stat.S_IFREG
            info.external_attr, info.compress_type = (mode | 0o644) << 16, method
            archive.writestr(info, target.encode() if kind == LINK else PHOTO)
    return path


def list_quickly(path: Path) -> FileListing:
    """Returns the listing; fails if it takes long."""
    started_at = time.process_time()
    try:
        return list_zip(path) if path.suffix == ".zip" else list_tar(path)
    finally:
        assert time.process_time() - started_at < SECONDS


OUTSIDE_ENTRIES: list[Entry] = [
    ("../../up.jpg", FILE, ""), ("in/../../up.jpg", FILE, ""), ("link.jpg", LINK, "/etc/passwd"),
    ("up.jpg", LINK, "../../../etc/passwd"), ("loop.jpg", LINK, "loop.jpg"), (DEEP, FILE, ""),
    ("in/photo.jpg", FILE, ""),
]  # fmt: skip


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_nothing_outside_is_reached(tmp_path: Path, suffix: str) -> None:
    write_archive = write_zip if suffix == "zip" else write_tar
    listing = list_quickly(write_archive(tmp_path / f"set.{suffix}", OUTSIDE_ENTRIES))
    assert [file.relative for file in listing.files] == ["in/photo.jpg"]
    assert listing.files[0].read() == PHOTO
    assert len(listing.unreached) == len(OUTSIDE_ENTRIES) - 1
    assert all(len(note) < 1000 for note in listing.notes(tmp_path))


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_links_that_multiply_are_refused(tmp_path: Path, suffix: str) -> None:
    write_archive = write_zip if suffix == "zip" else write_tar
    with pytest.raises(UsageError, match="1,000 links point to it"):
        list_quickly(write_archive(tmp_path / f"set.{suffix}", MULTIPLIED))
    assert list_quickly(write_archive(tmp_path / f"twisted.{suffix}", CROSSING)).unreached


def test_links_that_multiply_in_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d0").mkdir()
    for n in range(24):
        (tmp_path / f"d{n + 1}").mkdir()
        for side in "ab":
            (tmp_path / f"d{n + 1}" / side).symlink_to(f"../d{n}")
    with pytest.raises(UsageError, match="1,000 links point to it"):
        list_folder(tmp_path)


def test_a_folder_deeper_than_calls_may_nest_is_refused(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(210):
        folder = folder / "a"
    folder.mkdir(parents=True)
    with pytest.raises(UsageError, match="nested in more than 200"):
        list_folder(tmp_path)


PAX = {
    "no number": {"size": "abc"}, "negative": {"size": "-5"}, "overflow": {"size": "9" * 30},
    "sparse": {"GNU__sparse__major": "1", "GNU__sparse__minor": "0",
               "GNU__sparse__realsize": "999999999999"},
}  # fmt: skip


@pytest.mark.parametrize("header", PAX)
def test_headers_that_lie_are_an_error(tmp_path: Path, header: str) -> None:
    with pytest.raises(UsageError, match="cannot be read as a tar archive"):
        list_quickly(write_tar(tmp_path / "set.tar", [("x.jpg", FILE, "")], **PAX[header]))


PLAIN: list[Entry] = [(f"{name}.jpg", FILE, "") for name in "abcdefgh"]


def test_a_damaged_header_does_not_end_an_archive(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "set.tar", PLAIN)
    with tarfile.open(path) as archive:
        start = archive.getmember("c.jpg").offset
    content = bytearray(path.read_bytes())
    content[start] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"the header at byte {start}: bad checksum"):
        list_quickly(path)


@pytest.mark.parametrize("blocks", [1, 2, 8])
def test_zeros_inside_an_archive_do_not_end_it(tmp_path: Path, blocks: int) -> None:
    path = write_tar(tmp_path / "set.tar", PLAIN)
    with tarfile.open(path) as archive:
        start = archive.getmember("b.jpg").offset
    content = path.read_bytes()
    zeros = bytes(blocks * tarfile.BLOCKSIZE)
    path.write_bytes(content[:start] + zeros + content[start + len(zeros) :])
    with pytest.raises(UsageError, match=f"ends at byte {start}, but other data follow"):
        list_quickly(path)


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_joined_archives_are_refused_because_one_would_be_lost(tmp_path: Path, suffix: str) -> None:
    write_archive = write_zip if suffix == "zip" else write_tar
    path = write_archive(tmp_path / f"set.{suffix}", PLAIN)
    assert len(list_quickly(path).files) == len(PLAIN)
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(UsageError, match="several archives"):
        list_quickly(path)


def test_a_zip_that_unpacks_itself_is_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", PLAIN)
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    listing = list_quickly(path)
    assert [file.read() for file in listing.files] == [PHOTO] * len(PLAIN)


def test_links_of_a_zip_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("x.jpg")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, b"\xff\xfe/etc")
    with pytest.raises(UsageError, match="cannot be read as a zip archive"):
        list_quickly(path)


def test_of_members_with_one_name_the_last_counts_and_folders_give_way(tmp_path: Path) -> None:
    entries = [("x.jpg", FILE, ""), ("x.jpg", FOLDER, ""), ("x.jpg/y.jpg", FILE, ""),
               ("x.jpg", FILE, "")]  # fmt: skip
    listing = list_quickly(write_tar(tmp_path / "set.tar", entries))
    assert [file.relative for file in listing.files] == ["x.jpg"]


def test_changed_bytes_give_a_listing_or_an_error(tmp_path: Path) -> None:
    entries = [("a/x.jpg", FILE, ""), ("a/y.jpg", LINK, "x.jpg"), ("b", LINK, "a"),
               ("z.jpg", FILE, "")]  # fmt: skip
    bases = [
        write_tar(tmp_path / "base.tar", entries), write_zip(tmp_path / "base.zip", entries),
        write_zip(tmp_path / "packed.zip", entries, zipfile.ZIP_DEFLATED),
        write_tar(tmp_path / "pax.tar", entries, comment="x" * 200),
    ]  # fmt: skip
    counts = {"listed": 0, "refused": 0}
    for n in range(400):
        generator, base = random.Random(f"archive {n}"), bases[n % len(bases)]
        content = bytearray(base.read_bytes())
        for _ in range(generator.randint(1, 6)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        path = tmp_path / f"changed{base.suffix}"
        path.write_bytes(
            content[: generator.choice([None, None, generator.randrange(len(content))])]
        )
        try:
            listing = list_quickly(path)
        except UsageError:
            counts["refused"] += 1
            continue
        counts["listed"] += 1
        for file in listing.files:
            try:
                file.read()
            except OSError:
                continue
    assert min(counts.values()) > 60

"""Downloads: checked, continued, alone, and never over the network when that is forbidden."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from filelock import FileLock

from robustcli.core.errors import RunError, UsageError
from robustcli.data import download, named_datasets
from robustcli.data.archives import list_tar
from robustcli.data.download import (
    InterruptedTransferError,
    PartialDownload,
    continue_download,
    fetch_dataset,
    fetch_file,
    hash_path,
    unpack,
)
from robustcli.data.named_datasets import (
    DATASETS,
    NamedDataset,
    data_home,
    find_named,
    lock_on_this_machine,
)
from robustcli.data.sources import Classes, open_dataset
from tests.data.published_files import cifar_images, tar_of, write_cifar10


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "file.bin"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_published_hash_is_checked_and_returned(served: Any, target: Path) -> None:
    known = _sha256(served.content)
    assert fetch_file(served.url, target, sha256=known.upper(), offline=False) == known
    assert target.read_bytes() == served.content
    assert not hash_path(target).exists()
    assert sorted(p.name for p in target.parent.iterdir()) == ["file.bin", "file.bin.lock"]


def test_what_is_there_is_not_downloaded_again(served: Any, target: Path) -> None:
    fetch_file(served.url, target, sha256=None, offline=False)
    fetch_file(served.url, target, sha256=None, offline=True)
    assert len(served.requests) == 1


def test_the_first_download_is_trusted_and_remembered(served: Any, target: Path) -> None:
    first = fetch_file(served.url, target, sha256=None, offline=False)
    assert hash_path(target).read_text() == first + "\n"
    target.write_bytes(b"changed")
    with pytest.raises(
        RunError, match=rf"not have the expected contents\.\nExpected SHA-256 {first}"
    ):
        fetch_file(served.url, target, sha256=None, offline=False)
    target.unlink()
    served.content = b"changed on the server"
    with pytest.raises(RunError, match="download was deleted"):
        fetch_file(served.url, target, sha256=None, offline=False)


def test_a_wrong_file_is_not_kept(served: Any, target: Path) -> None:
    got = _sha256(served.content)
    with pytest.raises(
        RunError,
        match=rf"Expected SHA-256 {'0' * 64}, got {got}\.\nThe partial download was deleted",
    ):
        fetch_file(served.url, target, sha256="0" * 64, offline=False)
    assert not list(target.parent.glob("file.bin*[!k]"))


def test_broken_off_says_so_and_the_next_call_continues(served: Any, target: Path) -> None:
    served.cut = 5000
    message = r"Cannot download `file\.bin` from http://.*\n.*\nRepeat the command, which continues"
    with pytest.raises(RunError, match=message):
        fetch_file(served.url, target, sha256=None, offline=False)
    assert not target.exists()
    path = fetch_file(served.url, target, sha256=None, offline=False)
    assert path == _sha256(served.content)
    assert served.requests[1] == "bytes=5000-"


@pytest.mark.parametrize("url", ["{}/missing", "http://127.0.0.1:9/closed"])
def test_servers_that_do_not_answer(served: Any, target: Path, url: str) -> None:
    with pytest.raises(RunError, match="Cannot download"):
        fetch_file(url.format(served.url), target, sha256=None, offline=False)


def test_offline_forbids_the_network(served: Any, target: Path) -> None:
    message = r"`file\.bin` is not on this machine, and `--offline` forbids.*\n.*\nOmit"
    with pytest.raises(UsageError, match=message):
        fetch_file(served.url, target, sha256=None, offline=True)
    assert served.requests == []


@pytest.mark.parametrize("offline", [False, True])
def test_a_folder_that_cannot_be_written(tmp_path: Path, offline: bool) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"Cannot write to `.*file`\.\n.*\nSet `ROBUST_HOME`"):
        fetch_file("http://x", tmp_path / "file" / "x.bin", sha256=None, offline=offline)


def test_bundled_and_unknown_names_need_no_download() -> None:
    assert fetch_dataset("cifar10_mini", offline=True).name == "cifar10-mini.tar"
    with pytest.raises(UsageError, match="Did you mean `imagenet-sample`"):
        fetch_dataset("imagenet-sampel")


def test_a_set_is_fetched_unpacked_and_opened(
    served: Any, make_tar: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["top-1234/n01440764_tench.JPEG", "top-1234/n01494475_hammerhead.JPEG"]
    served.content = make_tar(names, "archive.tar.gz").read_bytes()
    sample = replace(named_datasets.DATASETS[1], url=served.url, images=2)
    monkeypatch.setattr(named_datasets, "DATASETS", (named_datasets.DATASETS[0], sample))
    path = fetch_dataset("imagenet-sample")
    assert path == data_home() / "datasets" / "imagenet-sample.tar" == fetch_dataset(sample.name)
    assert len(served.requests) == 1
    assert not list(path.parent.glob("*.gz"))
    index = open_dataset("imagenet-sample", Classes("imagenet-1k"))
    assert [(i.image_id, i.target) for i in index.samples] == [
        ("n01440764_tench.JPEG", 0),
        ("n01494475_hammerhead.JPEG", 4),
    ]
    assert index.demonstration


@pytest.fixture
def cifar10(served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NamedDataset:
    """The data set `cifar10` of 40 images, on a server of this machine, with its true hash."""
    folder = write_cifar10(tmp_path / "made", cifar_images(30), [i % 10 for i in range(30)])
    served.content = tar_of(folder, tmp_path / "made.tar.gz").read_bytes()
    entry = find_named("cifar10")
    assert entry is not None
    entry = replace(entry, url=served.url, sha256=_sha256(served.content), images=40)
    others = tuple(d for d in DATASETS if d.name != "cifar10")
    monkeypatch.setattr(named_datasets, "DATASETS", (*others, entry))
    return entry


def test_data_with_a_published_hash_are_downloaded_when_they_are_named(
    served: Any, cifar10: NamedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    served.cut = 5000  # the first transfer breaks
    with pytest.raises(RunError, match=r"Cannot download `cifar10\.tar\.gz`.*\n.*\nRepeat"):
        open_dataset("cifar10", Classes("cifar10"))
    dataset = open_dataset("CIFAR10", Classes("cifar10"))
    assert served.requests == [None, "bytes=5000-"]
    assert [s.image_id for s in dataset.samples][::20] == ["test/0000", "test/0020"]
    assert (len(dataset.samples), dataset.evaluated, dataset.name) == (40, "test", "cifar10")
    assert not dataset.demonstration
    assert dataset.classes.name == "cifar10"
    assert "Downloading `cifar10`" in caplog.text
    open_dataset("cifar10", Classes("cifar10", offline=True))
    assert len(served.requests) == 2
    home = data_home() / "datasets"
    assert sorted(p.name for p in home.iterdir() if p.suffix != ".lock") == ["cifar10.tar"]


def test_offline_says_where_the_archive_belongs(served: Any, cifar10: NamedDataset) -> None:
    with pytest.raises(
        UsageError, match=r"`--offline` forbids downloads\.\n.*\n.*cifar10\.tar\.gz`"
    ):
        open_dataset("cifar10", Classes("cifar10", offline=True))
    assert served.requests == []
    packed = data_home() / "datasets" / "cifar10.tar.gz"
    packed.parent.mkdir(parents=True, exist_ok=True)
    packed.write_bytes(served.content)  # as the message says
    assert len(open_dataset("cifar10", Classes("cifar10", offline=True)).samples) == 40


def test_an_archive_with_another_hash_is_not_used(
    served: Any, cifar10: NamedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.content = served.content[:-8] + bytes(8)
    with pytest.raises(RunError, match=r"`cifar10\.tar\.gz` does not have the expected contents"):
        open_dataset("cifar10", Classes("cifar10"))
    assert not list((data_home() / "datasets").glob("*.tar*[!k]"))


def test_file_systems_without_locks_let_everybody_work(
    served: Any, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(self: FileLock) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "_acquire", no_locks)
    assert fetch_file(served.url, target, sha256=None, offline=False) == _sha256(served.content)


def test_the_lock_is_given_back_after_an_error(target: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), lock_on_this_machine(target):
            raise ZeroDivisionError


@pytest.fixture
def part(tmp_path: Path) -> PartialDownload:
    return PartialDownload(tmp_path / "file.part")


def _broken_off(served: Any, part: PartialDownload, after: int) -> None:
    served.cut = after
    message = f"ended after {after} of {len(served.content)} bytes"
    with pytest.raises(InterruptedTransferError, match=message):
        continue_download(served.url, part)


def test_continued_where_it_broke_off(served: Any, part: PartialDownload) -> None:
    _broken_off(served, part, 1000)
    assert part.path.read_bytes() == served.content[:1000]
    continue_download(served.url, part)
    assert part.path.read_bytes() == served.content
    assert served.requests == [None, "bytes=1000-"]
    part.discard()
    continue_download(served.url, part)
    assert part.path.read_bytes() == served.content
    assert served.requests[2:] == [None]


def test_another_version_is_never_appended(served: Any, part: PartialDownload) -> None:
    _broken_off(served, part, 1000)
    served.content, served.etag = bytes(2000), '"v2"'
    continue_download(served.url, part)
    assert part.path.read_bytes() == bytes(2000)


def test_a_server_without_ranges_starts_anew(served: Any, part: PartialDownload) -> None:
    _broken_off(served, part, 1000)
    served.ranges = False
    continue_download(served.url, part)
    assert part.path.read_bytes() == served.content


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_was_killed_before_the_rename_is_not_repeated(
    served: Any, target: Path, published: bool, ranges: bool
) -> None:
    part, sha256 = PartialDownload(target.with_name("file.bin.part")), _sha256(served.content)
    target.parent.mkdir()
    part.path.write_bytes(served.content)
    part.version_path.write_text(served.etag, encoding="utf-8")
    served.ranges, served.cut = ranges, 0
    found = fetch_file(served.url, target, sha256=sha256 if published else None, offline=False)
    assert found == sha256
    assert target.read_bytes() == served.content
    assert len(served.requests) == 1
    assert not part.version_path.exists()


def test_a_complete_download_without_a_version_is_recognised_by_its_published_hash(
    served: Any, target: Path
) -> None:
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(served.content)
    fetch_file(served.url, target, sha256=_sha256(served.content), offline=False)
    assert (target.read_bytes(), served.requests) == (served.content, [])


def test_a_file_that_changed_to_the_size_of_the_part_is_not_kept(served: Any, target: Path) -> None:
    part = PartialDownload(target.with_name("file.bin.part"))
    target.parent.mkdir()
    part.path.write_bytes(bytes(len(served.content)))
    part.version_path.write_text('"v0"', encoding="utf-8")
    assert fetch_file(served.url, target, sha256=None, offline=False) == _sha256(served.content)


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_reliable_mark_nothing_is_continued(
    served: Any, part: PartialDownload, etag: str | None
) -> None:
    served.etag = etag
    _broken_off(served, part, 1000)
    assert part.size == 0
    continue_download(served.url, part)
    assert part.path.read_bytes() == served.content
    assert served.requests == [None, None]


def test_a_part_that_is_too_long_is_dropped(served: Any, part: PartialDownload) -> None:
    part.path.write_bytes(bytes(len(served.content) + 1))
    part.version_path.write_text('"v1"')
    continue_download(served.url, part)
    assert part.path.read_bytes() == served.content


def test_two_machines_that_write_to_one_file_write_the_same_bytes(
    served: Any, part: PartialDownload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network folder locks do not exclude: the other one is ahead, then this one goes on."""
    copy = download._copy

    def after_another(response: Any, out: Any) -> None:
        with part.path.open("r+b") as other:
            other.seek(1000)
            other.write(served.content[1000:5000])
        copy(response, out)

    _broken_off(served, part, 1000)
    monkeypatch.setattr(download, "_copy", after_another)
    continue_download(served.url, part)
    assert part.path.read_bytes() == served.content


def _always_locked(self: FileLock) -> None:
    self._context.lock_file_fd = os.open(self.lock_file, os.O_RDWR | os.O_CREAT)


def test_locks_that_exclude_nobody_do_no_harm_to_two_downloads(
    served: Any, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileLock, "_acquire", _always_locked)
    outcomes = list[object]()

    def download_it() -> None:
        try:
            outcomes.append(fetch_file(served.url, target, sha256=None, offline=False))
        except RunError as error:  # the other one has just moved the file to its name
            outcomes.append(error)

    both = [threading.Thread(target=download_it) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert _sha256(served.content) in outcomes
    assert fetch_file(served.url, target, sha256=None, offline=True) == _sha256(served.content)


@pytest.mark.parametrize("begun", ["finished", "shorter"])
def test_a_continued_download_writes_no_hole_into_the_file_of_a_faster_process(
    served: Any, target: Path, monkeypatch: pytest.MonkeyPatch, begun: str
) -> None:
    """The other process finishes or restarts the file just before the first write."""
    part = PartialDownload(target.with_name(target.name + ".part"))
    target.parent.mkdir(parents=True)
    _broken_off(served, part, 1000)
    check = download._check_answer

    def after_another(response: Any, start: int, path: Path) -> None:
        check(response, start, path)
        part.path.unlink()
        if begun == "finished":
            target.write_bytes(served.content)
        else:
            part.path.write_bytes(served.content[:10])

    with monkeypatch.context() as patched:
        patched.setattr(download, "_check_answer", after_another)
        if begun == "finished":
            fetch_file(served.url, target, sha256=None, offline=False)
        else:
            with pytest.raises(RunError, match="Repeat the command"):
                fetch_file(served.url, target, sha256=None, offline=False)
    fetch_file(served.url, target, sha256=None, offline=False)
    assert target.read_bytes() == served.content


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_folder_whose_system_call_refuses_locks_makes_nobody_wait(
    target: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The oldest filelock that is supported would wait for ever, and others leave files behind."""
    fcntl = pytest.importorskip("fcntl", reason="Windows has other locks")

    def refuse(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with lock_on_this_machine(target), lock_on_this_machine(target):
            pass


def test_a_longer_file_that_another_machine_writes_is_noticed(
    served: Any, part: PartialDownload, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = download._copy

    def after_another(response: Any, out: Any) -> None:
        with part.path.open("ab") as other:
            other.write(bytes(len(served.content)))
        copy(response, out)

    _broken_off(served, part, 1000)
    with monkeypatch.context() as patched:
        patched.setattr(download, "_copy", after_another)
        with pytest.raises(InterruptedTransferError, match="another process is writing to"):
            continue_download(served.url, part)
    continue_download(served.url, part)
    assert part.path.read_bytes() == served.content


def test_a_refusal_keeps_what_is_there(served: Any, part: PartialDownload) -> None:
    _broken_off(served, part, 1000)
    with pytest.raises(HTTPError, match="404"):
        continue_download(served.url + "missing", part)
    assert part.size == 1000


SAMPLE = replace(DATASETS[1], images=2)
NAMES = ["top/n01440764_tench.JPEG", "top/n01494475_hammerhead.JPEG"]


def test_the_tar_takes_the_place_of_the_download(
    make_tar: Callable[..., Path], tmp_path: Path
) -> None:
    packed = make_tar(NAMES, "archive.tar.gz")
    unpack(SAMPLE, packed, tmp_path / "set.tar")
    assert not packed.exists()
    assert len(list_tar(tmp_path / "set.tar").files) == 2


@pytest.mark.parametrize(
    ("names", "cut", "message"),
    [
        (NAMES[:1], None, "Expected an archive of 2 images; it contains 1 image"),
        (NAMES, 200, "Expected an archive of 2 images; it is damaged"),
    ],
)
def test_something_else_is_thrown_away(
    make_tar: Callable[..., Path], tmp_path: Path, names: list[str], cut: int | None, message: str
) -> None:
    packed = make_tar(names, "archive.tar.gz")
    packed.write_bytes(packed.read_bytes()[:cut])
    remembered = tmp_path / "archive.tar.gz.sha256"
    remembered.touch()
    with pytest.raises(RunError, match=message):
        unpack(SAMPLE, packed, tmp_path / "set.tar")
    assert not packed.exists()
    assert not remembered.exists()
    assert not (tmp_path / "set.tar").exists()

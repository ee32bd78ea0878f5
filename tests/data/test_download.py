"""Downloads: checked, continued, alone, and never over the network when that is forbidden."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robustcli.core.errors import RunError, UsageError
from robustcli.data import datasets
from robustcli.data.download import data_home, fetch_dataset, fetch_file, hash_path
from robustcli.data.open import open_index


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
    with pytest.raises(RunError, match=rf"not the file it should be\.\nExpected SHA-256 {first}"):
        fetch_file(served.url, target, sha256=None, offline=False)
    target.unlink()
    served.content = b"changed on the server"
    with pytest.raises(RunError, match="Nothing was kept"):
        fetch_file(served.url, target, sha256=None, offline=False)


def test_a_wrong_file_is_not_kept(served: Any, target: Path) -> None:
    got = _sha256(served.content)
    with pytest.raises(RunError, match=rf"Expected SHA-256 {'0' * 64}, got {got}\.\nNothing was"):
        fetch_file(served.url, target, sha256="0" * 64, offline=False)
    assert not list(target.parent.glob("file.bin*[!k]"))


def test_broken_off_says_so_and_the_next_call_continues(served: Any, target: Path) -> None:
    served.cut = 5000
    message = r"Cannot download `file\.bin` from http://.*\n.*\nRepeat the command: it continues"
    with pytest.raises(RunError, match=message):
        fetch_file(served.url, target, sha256=None, offline=False)
    assert not target.exists()
    found = fetch_file(served.url, target, sha256=None, offline=False)
    assert found == _sha256(served.content)
    assert served.requests[1] == "bytes=5000-"


@pytest.mark.parametrize("url", ["{}/missing", "http://127.0.0.1:9/closed"])
def test_servers_that_do_not_answer(served: Any, target: Path, url: str) -> None:
    with pytest.raises(RunError, match="Cannot download"):
        fetch_file(url.format(served.url), target, sha256=None, offline=False)


def test_offline_forbids_the_network(served: Any, target: Path) -> None:
    message = r"`file\.bin` is not on this machine, and `--offline` forbids.*\n.*\nLeave out"
    with pytest.raises(UsageError, match=message):
        fetch_file(served.url, target, sha256=None, offline=True)
    assert served.requests == []


def test_two_at_once_download_once(served: Any, target: Path) -> None:
    threads = [
        threading.Thread(
            target=fetch_file, args=(served.url, target), kwargs={"sha256": None, "offline": False}
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(served.requests) == 1
    assert target.read_bytes() == served.content


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"Cannot write to `.*file`.*\n.*\nSet `ROBUST_HOME`"):
        fetch_file("http://x", tmp_path / "file" / "x.bin", sha256=None, offline=False)


def test_bundled_sets_need_no_download() -> None:
    assert fetch_dataset("cifar10_mini", offline=True).name == "cifar10-mini.tar"


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean `imagenet-sample`"):
        fetch_dataset("imagenet-sampel")


def test_a_set_is_fetched_unpacked_and_opened(
    served: Any, make_tar: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["top-1234/n01440764_tench.JPEG", "top-1234/n01494475_hammerhead.JPEG"]
    served.content = make_tar(names, "archive.tar.gz").read_bytes()
    sample = replace(datasets.DATASETS[1], url=served.url, images=2)
    monkeypatch.setattr(datasets, "DATASETS", (datasets.DATASETS[0], sample))
    path = fetch_dataset("imagenet-sample")
    assert path == data_home() / "datasets" / "imagenet-sample.tar" == fetch_dataset(sample.name)
    assert len(served.requests) == 1
    assert not list(path.parent.glob("*.gz"))
    index = open_index("imagenet-sample", model_label_space="imagenet-1k")
    assert [(i.image_id, i.target) for i in index.images] == [
        ("n01440764_tench.JPEG", 0),
        ("n01494475_hammerhead.JPEG", 4),
    ]
    assert index.demonstration

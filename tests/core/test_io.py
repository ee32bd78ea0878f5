"""Durable writes, tried with what really goes wrong: kills, full disks, wrong folders, races."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robustcli.core import io
from robustcli.core.errors import RunError
from robustcli.core.io import identity_of_names, read_csv, replacing, write_bytes, write_text
from robustcli.reports.pages import to_csv

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.bin"
    path.write_bytes(b"old")
    return path


def only(path: Path) -> bool:
    """Whether nothing lies beside `path`."""
    return [p.name for p in path.parent.iterdir()] == [path.name]


def test_new_content_replaces_old(file: Path) -> None:
    write_bytes(file, b"new")
    assert file.read_bytes() == b"new"
    assert only(file)


def test_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "rows.txt"
    write_text(path, "Größe\n")
    assert path.read_bytes() == "Größe\n".encode()
    assert only(path)


def test_the_file_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new.bin"
    with replacing(path) as beside:
        beside.write_bytes(b"part")
        assert not path.exists()
        assert beside.parent == path.parent, "a rename is atomic on one file system only"
    assert path.read_bytes() == b"part"


def test_an_exception_in_the_middle_leaves_the_old_content(file: Path) -> None:
    def stop(path: Path) -> None:
        with replacing(path) as beside:
            beside.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop(file)
    assert file.read_bytes() == b"old"
    assert only(file)


def test_kill_9_in_the_middle_leaves_the_old_content(file: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from robustcli.core.io import replacing\n"
        "with replacing(Path(sys.argv[1])) as beside:\n"
        "    beside.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    child = subprocess.run([sys.executable, "-c", code, str(file)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert file.read_bytes() == b"old"
    write_bytes(file, b"new")
    assert file.read_bytes() == b"new"


def test_content_reaches_the_disk_before_the_name_and_the_name_before_the_return(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_rename)
    write_bytes(file, b"new")
    assert steps == ["file", "rename", "folder"]


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `os` does on Windows, as far as durable writes see it: a stand-in, no Windows."""
    opened = os.open

    def refuse_folders(path: Path, flags: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        assert flags & os.O_RDWR, "what is open for reading alone cannot be flushed"
        return opened(path, flags)

    monkeypatch.setattr(io, "_WINDOWS", True)
    monkeypatch.setattr(io.os, "open", refuse_folders)


@pytest.mark.usefixtures("windows")
def test_windows_opens_no_folders_and_flushes_what_is_open_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "a" / "rows.bin"
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert only(path)


def open_elsewhere(monkeypatch: pytest.MonkeyPatch, times: int) -> list[float]:
    """Lets a rename fail so many times, as on Windows while another process reads the file."""
    replace, waited = Path.replace, []

    def refuse(self: Path, target: Path) -> Path:
        if len(waited) < times:
            raise PermissionError(13, "Access is denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(io.time, "sleep", waited.append)
    return waited


@pytest.mark.usefixtures("windows")
def test_a_file_that_is_open_elsewhere_is_replaced_a_moment_later(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = open_elsewhere(monkeypatch, 3)
    write_bytes(file, b"new")
    assert file.read_bytes() == b"new"
    assert 0 < sum(waited) < 1


@pytest.mark.usefixtures("windows")
def test_a_file_that_stays_open_elsewhere_keeps_the_old_content_and_says_so(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = open_elsewhere(monkeypatch, 1000)
    with pytest.raises(RunError, match=r"Cannot write `.*rows\.bin`\.\n.*Access is denied"):
        write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert only(file)
    assert 1 < sum(waited) < 5


def test_elsewhere_a_refused_rename_is_refused_at_once(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = open_elsewhere(monkeypatch, 1)
    with pytest.raises(RunError, match="Cannot write"):
        write_bytes(file, b"new")
    assert waited == []


def write_through(path: Path, device: Path) -> None:
    """Writes to `path` where `device` stands for the disk."""
    with replacing(path) as beside:
        beside.symlink_to(device)
        beside.write_bytes(b"x" * 10)


@needs_full
def test_a_full_disk_keeps_the_old_content_and_says_so(file: Path) -> None:
    message = (
        r"(?s)Cannot write `.*rows\.bin`\.\n.*No space left on device.*free space.*"
        r"repeat the command: finished results are"
    )
    with pytest.raises(RunError, match=message):
        write_through(file, FULL)
    assert file.read_bytes() == b"old"
    assert only(file)


@pytest.mark.parametrize("below", ["file/x", "file/a/b/x"])
def test_a_folder_that_is_a_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match=r"Cannot write `.*x`\.\nThe error of the file system is: "):
        write_bytes(tmp_path / below, b"x")
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="The error of the file system is: File name too long"):
        write_bytes(tmp_path / ("x" * 300), b"x")


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127 + "x", "x" * 221, "x.parquet"])
def test_a_name_of_any_length_that_the_disk_takes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert only(path)


def test_two_long_names_do_not_meet_in_one_temporary_file(tmp_path: Path) -> None:
    first, second = (tmp_path / ("x" * 254 + end) for end in "ab")
    with replacing(first) as one, replacing(second) as other:
        assert one != other
        assert one.name.startswith(".x")
        assert one.name.endswith(".tmp"), "leftovers of killed processes are found by this ending"
        one.write_bytes(b"a")
        other.write_bytes(b"b")
    assert (first.read_bytes(), second.read_bytes()) == (b"a", b"b")


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "rows.bin" / "inner").mkdir(parents=True)
    with pytest.raises(RunError, match="Cannot write"):
        write_bytes(tmp_path / "rows.bin", b"x")
    assert only(tmp_path / "rows.bin")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "rows.bin", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "rows.bin").stat().st_mode) == mode


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_text(pipe, "numbers")
    reader.join(10)
    assert read == [b"numbers"]
    assert pipe.is_fifo()
    ends = os.pipe()  # as from `>(...)` in a shell
    write_text(Path(f"/dev/fd/{ends[1]}"), "numbers")
    assert os.read(ends[0], 100) == b"numbers"
    for end in ends:
        os.close(end)


def test_readers_and_writers_at_once_see_whole_files_only(file: Path) -> None:
    whole = {b"old", *(bytes([n]) * 50_000 for n in range(4))}
    seen: set[bytes] = set()

    def write(content: bytes) -> None:
        for _ in range(25):
            write_bytes(file, content)

    threads = [threading.Thread(target=write, args=(bytes([n]) * 50_000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.add(file.read_bytes())
    assert seen <= whole
    assert file.read_bytes() in whole - {b"old"}
    assert only(file)


def test_a_table_has_the_numbers_that_were_written(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).random(1000)
    pd.DataFrame({"number": numbers}).to_csv(tmp_path / "table.csv", index=False)
    assert (read_csv(tmp_path / "table.csv")["number"] == numbers).all()


def test_a_table_has_the_names_that_were_written(tmp_path: Path) -> None:
    names = ["007", "1e5", "null", "nan", "", "=a", "'=a", "'a", "x"]
    for part in (names, names[:2]):
        table = pd.DataFrame({"model": part, "number": range(len(part))})
        write_text(tmp_path / "table.csv", to_csv(table))
        result = read_csv(tmp_path / "table.csv", names=("model", "mode"))
        assert result["model"].tolist() == part
        assert result["number"].tolist() == table["number"].tolist()


NFC, NFD = (unicodedata.normalize(form, "ä.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("seen", "equal"),
    [
        (str, set()),  # Linux
        (str.casefold, {("a.png", "A.png")}),  # exFAT
        (lambda name: unicodedata.normalize("NFC", name).casefold(),  # APFS
         {("a.png", "A.png"), (NFC, NFD)}),
    ],
)  # fmt: skip
def test_names_that_a_file_system_takes_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Callable[[str], str],
    equal: set[tuple[str, str]],
) -> None:  # fmt: skip
    def exists(path: Path) -> bool:
        return seen(path.name) in {seen(other.name) for other in path.parent.iterdir()}

    monkeypatch.setattr(Path, "exists", exists)
    identity = identity_of_names(tmp_path / "new" / "folder")
    for pair in [("a.png", "A.png"), (NFC, NFD), ("a.png", "b.png")]:
        one, other = (identity(tmp_path / name) for name in pair)
        assert (one == other) is (pair in equal), pair
    assert list(tmp_path.iterdir()) == []

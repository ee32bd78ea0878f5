"""Run folders: one process at a time, one set of settings, and a status that is true."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Literal

import pytest

from robustcli.cli.failures import keep_traceback
from robustcli.core import rundir
from robustcli.core.errors import RunError, UsageError
from robustcli.core.rundir import (
    OWNER_FOLDER,
    RECORD_FILE,
    BaseRunRecord,
    RunKind,
    changed_fields,
    check_folder,
    has_record,
    owned,
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(rundir, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(rundir, "SILENCE_SECONDS", 0.5)


def leave_owner(run, **changes):
    """Leaves the owner's file of another process."""
    (run / OWNER_FOLDER).mkdir(parents=True, exist_ok=True)
    path = run / OWNER_FOLDER / "000001.json"
    path.write_text(json.dumps(asdict(replace(rundir.this_process(), **changes))))
    return path


def test_a_second_process_is_refused_with_who_works_there_and_what_to_do(tmp_path):
    with (
        owned(tmp_path),
        pytest.raises(
            RunError, match=rf"(?s)Process {os.getpid()} on this machine.*kill {os.getpid()}"
        ),
        owned(tmp_path),
    ):
        pass


def test_the_next_one_takes_a_released_folder_at_once(tmp_path):
    for _ in range(12):
        with owned(tmp_path):
            pass
    numbers = sorted(int(path.stem) for path in (tmp_path / OWNER_FOLDER).glob("*.json"))
    assert numbers[-1] == 12
    assert len(numbers) <= 8, "files of earlier owners are removed"


def test_a_killed_process_on_this_machine_has_left_the_folder(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from robustcli.core.rundir import owned\n"
        "with owned(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"Process {child.pid}"), owned(tmp_path):
        pass
    child.kill()
    child.communicate()
    heard = []
    with owned(tmp_path, heard.append):
        assert heard == [], "nobody waits for signs of life"


def test_another_process_with_a_recycled_id_is_no_owner(tmp_path):
    leave_owner(tmp_path, started="long ago")
    with owned(tmp_path):
        pass


def test_an_owner_on_another_machine_lives_as_long_as_it_touches_its_file(tmp_path):
    path, stop, heard = leave_owner(tmp_path, machine="other", host="other"), threading.Event(), []

    def beat():
        while not stop.wait(0.05):
            os.utime(path, (0, time.monotonic()))  # whatever its clock says

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(RunError, match="on other"), owned(tmp_path, heard.append):
        pass
    stop.set()
    thread.join()
    assert "cannot be checked from this machine" in heard[0]
    with owned(tmp_path):
        assert (tmp_path / OWNER_FOLDER / "000002.json").exists()


def test_a_file_that_was_cut_off_belongs_to_nobody_who_lives(tmp_path):
    leave_owner(tmp_path).write_text('{"host": ')
    with owned(tmp_path):
        pass


def test_of_many_that_start_at_once_exactly_one_gets_the_folder(tmp_path):
    leave_owner(tmp_path, pid=2**22 + 1, started="dead")
    taken, refused_, barrier = [], [], threading.Barrier(8)

    def take():
        barrier.wait()
        try:
            with owned(tmp_path):
                taken.append(1)
                done.wait(20)
        except RunError:
            refused_.append(1)
            if len(refused_) == 7:
                done.set()

    done = threading.Event()
    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(taken), len(refused_)) == (1, 7)


def test_a_process_that_was_taken_over_notices_before_it_writes(tmp_path):
    with owned(tmp_path) as mine:
        mine.check()
        (tmp_path / OWNER_FOLDER / "000002.json").write_text("{}")
        deadline = time.monotonic() + 10
        while not mine._lost.is_set() and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(RunError, match="has taken over"):
            mine.check()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into every folder")
def test_a_read_only_folder_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="Permission denied"), owned(tmp_path / "run"):
        pass
    tmp_path.chmod(0o700)


# Opening, continuing, refusing, discarding and closing.


class Note(BaseRunRecord):
    """The record of a made-up command."""

    status: Literal["running", "complete", "partial", "failed"]
    lr: float = 0.1
    count: int = 0


NOTES = RunKind(
    Note,
    "a note",
    "robust note",
    ("pages",),
    ("note.txt", "part-*/note.txt"),
    lambda old, new: changed_fields(old, new, {"lr": "`--lr`"}),
    lambda old, new: {"count": old.count + new.count},
    temporary=("scratch",),
    interrupted="partial",
)
WHEN = datetime(2026, 1, 1, tzinfo=UTC)


def note(**said):
    usual = {"command": "first", "status": "running", "created": WHEN, "updated": WHEN}
    return Note(**(usual | said))


def test_a_run_that_begins_is_written_and_read_back(tmp_path):
    assert not has_record(tmp_path)
    assert NOTES.open(tmp_path, note(), fresh=False) == note()
    assert has_record(tmp_path)
    assert NOTES.read(tmp_path) == note()


def test_a_continued_run_keeps_its_beginning_and_every_command_once(tmp_path):
    NOTES.open(tmp_path, note(count=1), fresh=False)
    for command in ("second", "second"):
        new = note(command=command, created=datetime(2027, 1, 1, tzinfo=UTC), count=1)
        NOTES.open(tmp_path, new, fresh=False)
    found = NOTES.read(tmp_path)
    assert (found.command, found.created, found.count) == ("first\nsecond", WHEN, 3)


def test_other_settings_are_refused_by_flag_and_nothing_is_written(tmp_path):
    NOTES.open(tmp_path, note(), fresh=False)
    before = (tmp_path / RECORD_FILE).read_bytes()
    with pytest.raises(UsageError, match="contains a note with other settings") as caught:
        NOTES.open(tmp_path, note(lr=0.2), fresh=False)
    assert caught.value.why == "`--lr` was 0.1, now it is 0.2."
    assert "`--fresh`" in caught.value.todo
    with pytest.raises(UsageError, match="Its part is torn"):
        NOTES.open(
            tmp_path,
            note(),
            fresh=False,
            further_differences=lambda old: iter(["Its part is torn."]),
        )
    assert (tmp_path / RECORD_FILE).read_bytes() == before


def test_long_values_are_shortened(tmp_path):
    old, new = note(command="a" * 200), note(command="b" * 200)
    (text,) = changed_fields(old, new, {"command": "`--text`"})
    assert text == f"`--text` was {'a' * 77}..., now it is {'b' * 77}...."


def test_a_record_of_another_kind_is_named(tmp_path):
    (tmp_path / RECORD_FILE).write_text('{"kind": "train"}')
    with pytest.raises(UsageError, match="is not the record of a note") as caught:
        NOTES.open(tmp_path, note(), fresh=False)
    assert "`robust note`" in caught.value.todo
    with pytest.raises(UsageError, match="is not a run"):
        NOTES.read(tmp_path / "nowhere")


def test_fresh_discards_what_belongs_to_the_run_and_nothing_else(tmp_path):
    ours = ("pages/1.txt", "scratch/x", "note.txt", "part-1/note.txt")
    mine = ("error-analysis.txt", "part-1/mine.txt", "mine.txt")
    for name in (*ours, *mine):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    NOTES.open(tmp_path, note(), fresh=False)
    with pytest.raises(ValueError, match="boom") as caught, NOTES.held(tmp_path):
        raise ValueError("boom")
    traceback = keep_traceback(caught.value)
    assert traceback is not None
    assert traceback.parent == tmp_path
    NOTES.open(tmp_path, note(lr=5), fresh=True)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert {name for name in left if not name.startswith(OWNER_FOLDER)} == {RECORD_FILE, *mine}
    assert NOTES.read(tmp_path).lr == 5


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "failed"), (KeyboardInterrupt, "partial")]
)
def test_the_status_says_what_ended_the_run(tmp_path, error, status):
    NOTES.open(tmp_path, note(), fresh=False)
    with pytest.raises(error), NOTES.closing(tmp_path):
        raise error
    assert NOTES.read(tmp_path).status == status
    with NOTES.closing(tmp_path) as ending:
        assert NOTES.read(tmp_path).status == status
        ending.status = "partial"
    assert NOTES.read(tmp_path).status == "partial"
    with NOTES.closing(tmp_path):
        NOTES.update(tmp_path, count=7)
    found = NOTES.read(tmp_path)
    assert (found.status, found.count) == ("complete", 7)
    assert found.updated > WHEN


def test_half_written_files_of_a_killed_process_go(tmp_path):
    kept, left = [tmp_path / "run.json", tmp_path / "pages" / "1.txt"], []
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
        left.append(path.with_name(f".{path.name}.1-2.tmp"))
        left[-1].write_text("x")
    with NOTES.held(tmp_path):
        assert [path.exists() for path in (*kept, *left)] == [True, True, False, False]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Cannot write"), NOTES.held(tmp_path / "file" / "run"):
        pass


def test_a_folder_with_somebodys_files_is_no_place_for_a_run(tmp_path):
    check_folder(tmp_path / "new")
    (tmp_path / ".hidden").write_text("")
    check_folder(tmp_path)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="is not empty and contains no run"):
        check_folder(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        check_folder(tmp_path / "thesis.tex")
    NOTES.write(tmp_path, note())
    check_folder(tmp_path)

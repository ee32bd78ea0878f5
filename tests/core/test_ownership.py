"""One process works in a run's folder at a time, on any file system and by any clock."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from robustcli.core import ownership
from robustcli.core.errors import RunError
from robustcli.core.ownership import FOLDER, owned


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(ownership, "SILENCE_SECONDS", 0.5)


def leave_owner(run, **changes):
    """Leaves the owner's file of another process."""
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    path = run / FOLDER / "000001.json"
    path.write_text(json.dumps(asdict(replace(ownership._this_process(), **changes))))
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
    numbers = sorted(int(path.stem) for path in (tmp_path / FOLDER).glob("*.json"))
    assert numbers[-1] == 12
    assert len(numbers) <= 8, "files of earlier owners are removed"


def test_a_killed_process_on_this_machine_has_left_the_folder(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from robustcli.core.ownership import owned\n"
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
    started = time.monotonic()
    with owned(tmp_path):
        assert time.monotonic() - started < 0.4, "nobody waits for signs of life"


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
    assert "cannot be seen from here" in heard[0]
    with owned(tmp_path):
        assert (tmp_path / FOLDER / "000002.json").exists()


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
        (tmp_path / FOLDER / "000002.json").write_text("{}")
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

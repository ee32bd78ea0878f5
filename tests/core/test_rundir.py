"""Run folders: one set of settings, and a status that is true."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import Literal

import pytest

from robustcli.cli.failures import keep_traceback
from robustcli.core.errors import RunError, UsageError
from robustcli.core.io import replacing
from robustcli.core.ownership import OWNER_FOLDER
from robustcli.core.rundir import (
    RECORD_FILE,
    BaseRunRecord,
    RunKind,
    changed_fields,
    check_folder,
    has_record,
)
from robustcli.tasks.record import PreprocessingRecord


class Note(BaseRunRecord):
    """The record of a made-up command."""

    kind: Literal["note"] = "note"
    status: Literal["running", "complete", "partial", "failed"]
    lr: float = 0.1
    count: int = 0
    preprocessing: PreprocessingRecord | None = None


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


def test_shortened_values_still_differ(tmp_path):
    old, new = note(command="a" * 100 + "b"), note(command="a" * 100 + "c")
    (text,) = changed_fields(old, new, {"command": "`--text`"})
    assert text == f"`--text` was ...{'a' * 20}b, now it is ...{'a' * 20}c."
    of_preprocessing = {"resize": 32, "crop": 32, "interpolation": "bilinear", "mean": (0.5,) * 3}
    old, new = (PreprocessingRecord(**of_preprocessing, std=(std,) * 3) for std in (0.25, 0.5))
    model = {"preprocessing": "`--std`"}
    (text,) = changed_fields(note(preprocessing=old), note(preprocessing=new), model)
    assert text == "`--std` was std=(0.25, 0.25, 0.25), now it is std=(0.5, 0.5, 0.5)."


def test_a_record_of_another_kind_is_named(tmp_path):
    contents = [
        ({"kind": "train"}, "a training", "`--model`"),
        ({"kind": "explanation"}, "an explanation", "`robust report`"),
        ({"transforms": []}, "an evaluation", "`robust explain`"),
        ({"kind": "seeds", "seed": 4}, "several seeds", "seed-4`"),
        ({"kind": "finetune", "modes": ["full", "freeze"]}, "a fine-tuning", "full`"),
    ]
    for record, name, todo in contents:
        (tmp_path / RECORD_FILE).write_text(json.dumps(record))
        with pytest.raises(UsageError, match=f"contains {name}, not a note") as caught:
            NOTES.open(tmp_path, note(), fresh=False)
        assert todo in caught.value.todo
    (tmp_path / RECORD_FILE).write_text('{"kind": "letter"}')
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
    ("option", "name"),
    [
        ("--weights", "note.txt"),
        ("--weights", "pages/a"),
        ("--weights", ""),
        ("--data", "pages"),
    ],
)
def test_fresh_never_deletes_what_the_command_reads(tmp_path, option, name):
    (tmp_path / "pages").mkdir()
    for file in ("note.txt", "pages/a", RECORD_FILE):
        (tmp_path / file).write_text("{}")
    with pytest.raises(UsageError, match="--fresh") as raised:
        NOTES.check_kept(tmp_path, [(option, tmp_path / name)])
    assert f"`{tmp_path / name}`" in raised.value.what
    assert option in raised.value.what


def test_fresh_may_read_other_files_and_data_around_the_run(tmp_path):
    run = tmp_path / "run"
    (run / "pages").mkdir(parents=True)
    (run / "own.pt").write_text("")
    kept = [("--weights", run / "own.pt"), ("--data", tmp_path), ("--data", "cifar10-mini")]
    NOTES.check_kept(run, [*kept, ("--weights", None), ("--weights", tmp_path / "missing.pt")])


def test_fresh_removes_a_link_to_results_and_keeps_its_target(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for folder in (run, elsewhere):
        folder.mkdir()
    (elsewhere / "1.txt").write_text("x")
    (run / "pages").symlink_to(elsewhere)
    NOTES.open(run, note(), fresh=True)
    assert not (run / "pages").is_symlink()
    assert (elsewhere / "1.txt").read_text() == "x"


def test_fresh_fails_if_results_cannot_be_removed(tmp_path, monkeypatch):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "1.txt").write_text("x")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    with pytest.raises(RunError, match=r"`.*1\.txt` cannot be removed.*(?s:.*)`--out`"):
        NOTES.open(tmp_path, note(), fresh=True)


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


def test_half_written_files_of_killed_processes_go(tmp_path):
    """Those of a live process stay: it may be a worker of the killed one."""
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    (tmp_path / "pages").mkdir()
    with replacing(tmp_path / "pages" / "1.txt") as temporary:
        temporary.write_text("x")
        mine = f"-{os.getpid()}-"
        ended = temporary.with_name(temporary.name.replace(mine, f"-{child.pid}-"))
        foreign = temporary.with_name(".a.0123abcd-1-1.tmp")
        old_foreign = temporary.with_name(f".b.0123abcd{mine}1.tmp")
        user = temporary.with_name(".user.tmp")
        for path in (ended, foreign, old_foreign, user):
            path.write_text("x")
        os.utime(old_foreign, (time.time() - 3600,) * 2)
        with NOTES.held(tmp_path):
            assert sorted((tmp_path / "pages").iterdir()) == sorted([temporary, foreign, user])
    assert (tmp_path / "pages" / "1.txt").read_text() == "x"


def test_paths_that_are_not_utf_8_are_escaped_in_records_and_refused_as_folders(tmp_path):
    NOTES.write(tmp_path, note(command="robust note d\udce9ta"))
    assert NOTES.read(tmp_path).command == r"robust note d\udce9ta"
    run = tmp_path / "r\udcff"
    with pytest.raises(UsageError, match=r"r\\udcff` is not valid UTF-8"), NOTES.held(run):
        pass
    assert not run.exists()


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

"""Numbers of processes, and the left-overs of dead ones."""

import os
import time

from robustcli.evaluation.slots import taken_slot


def leftover(run):
    path = run / "predictions" / ".block-000001.parquet.77-1.tmp"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (time.time() - 5, time.time() - 5))
    return path


def test_numbers_are_distinct_and_free_again(tmp_path):
    with taken_slot(tmp_path) as first, taken_slot(tmp_path) as second:
        assert (first, second) == (0, 1)
    with taken_slot(tmp_path) as third:
        assert third == 0


def test_left_overs_are_removed_by_whoever_is_alone(tmp_path):
    path = leftover(tmp_path)
    with taken_slot(tmp_path):
        assert not path.exists()


def test_files_of_a_living_process_stay(tmp_path):
    with taken_slot(tmp_path):
        path = leftover(tmp_path)
        with taken_slot(tmp_path) as second:
            assert second == 1
            assert path.exists()


def test_files_written_after_the_look_stay(tmp_path):
    path = leftover(tmp_path)
    os.utime(path, (time.time() + 60, time.time() + 60))
    with taken_slot(tmp_path):
        assert path.exists()

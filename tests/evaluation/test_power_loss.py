"""Files are flushed to disk before they get their final names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from robustcli.evaluation.evaluate import evaluate
from robustcli.reports.render import render
from robustcli.training.engine import run_training
from tests.evaluation.photos import config, make_photos
from tests.training.images import write_photos
from tests.training.runs import tiny_classifier

Event = tuple[str, Path]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Records every flush of a file or folder and every rename, in order."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc/self/fd (Linux)")
    recorded_events: list[Event] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        recorded_events.append(("flushed", Path(f"/proc/self/fd/{descriptor}").readlink()))

    def note_replace(self: Path, target: Path) -> Path:
        recorded_events.append(("renamed from", self.resolve()))
        recorded_events.append(("renamed to", Path(target).resolve()))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    return recorded_events


def _evaluation(folder: Path) -> Path:
    return render_of(evaluate(config(make_photos(folder / "photos"), folder / "run")))


def render_of(run: Path) -> Path:
    render(run)
    return run


def _training(folder: Path) -> Path:
    return run_training(tiny_classifier(write_photos(folder / "paints", 4), folder / "run"))


def flushed_before_named(path: Path, events: list[Event]) -> bool:
    """Returns whether each rename to `path` comes after its flush and before that of its folder."""
    places = [n for n, event in enumerate(events) if event == ("renamed to", path)]
    for place in places:
        temporary_file = events[place - 1][1]
        if ("flushed", temporary_file) not in events[:place]:
            return False
        if ("flushed", path.parent) not in events[place:]:
            return False
    return bool(places)


@pytest.mark.parametrize("make", [_evaluation, _training])
def test_files_of_a_run_reach_the_disk_before_they_get_their_names(
    tmp_path: Path, events: list[Event], make: Callable[[Path], Path]
) -> None:
    run = make(tmp_path).resolve()
    files = [path for path in run.rglob("*") if path.is_file()]
    # TensorBoard's log is not a result, and `.owner` only names the process at work.
    notes = [p for p in files if "tensorboard" in p.parts or p.name.startswith(".")]
    unsafe = [p for p in files if p not in notes and not flushed_before_named(p, events)]
    assert not unsafe
    assert len(files) - len(notes) > 8

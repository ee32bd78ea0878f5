"""Which task models are for."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import resolve
from robustcli.core.errors import UsageError
from robustcli.evaluation import look_up
from robustcli.evaluation.look_up import task_of
from robustcli.tasks.classification import ClassificationTask
from robustcli.tasks.segmentation import SegmentationTask


def test_the_models_decide():
    assert isinstance(task_of([resolve("vmamba-pico")]), ClassificationTask)
    assert isinstance(task_of([resolve("unet"), resolve("otsu")]), SegmentationTask)


@pytest.mark.parametrize("names", [("vmamba-pico", "unet"), ("unet", "vmamba-pico")])
def test_both_in_one_run_are_refused(names):
    with pytest.raises(
        UsageError, match="A classifier and a segmenter do not go into one run"
    ) as e:
        task_of([resolve(name) for name in names])
    assert "`vmamba-pico` needs images with classes, `unet` images with masks" in e.value.why


def test_two_runs_whose_folders_have_one_name_are_both_named(tmp_path, monkeypatch):
    """As the seeds of two trainings, or one mode of two fine-tunings, have."""
    monkeypatch.chdir(tmp_path)
    for place in ("first/seed-0", "second/seed-0"):
        Path(place).mkdir(parents=True)
    requests = [ModelRequest("first/seed-0"), ModelRequest("second/seed-0")]
    with pytest.raises(UsageError, match="2 runs are called `seed-0`: `first/seed-0`, `second"):
        look_up._check_distinct(("seed-0", "seed-0"), requests)
    with pytest.raises(UsageError, match="`--model seed-0` was given twice"):
        look_up._check_distinct(("seed-0", "seed-0"), requests[:1] * 2)

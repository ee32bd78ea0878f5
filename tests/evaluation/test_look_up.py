"""The task is determined by the models."""

from __future__ import annotations

import pytest

from robustcli.adapters.load import resolve
from robustcli.core.errors import UsageError
from robustcli.evaluation.look_up import task_of
from robustcli.tasks.classification import ClassificationTask
from robustcli.tasks.segmentation import SegmentationTask


def test_the_models_determine_the_task():
    assert isinstance(task_of([resolve("vmamba-pico")]), ClassificationTask)
    assert isinstance(task_of([resolve("unet"), resolve("otsu")]), SegmentationTask)


@pytest.mark.parametrize("names", [("vmamba-pico", "unet"), ("unet", "vmamba-pico")])
def test_both_in_one_run_are_refused(names):
    with pytest.raises(
        UsageError, match="A classifier and a segmenter cannot be evaluated in the same run"
    ) as e:
        task_of([resolve(name) for name in names])
    assert (
        "`vmamba-pico` needs images with classes, and `unet` needs images with masks" in e.value.why
    )

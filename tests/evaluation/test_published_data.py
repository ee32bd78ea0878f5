"""Evaluations of data sets in the layouts of their publishers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.record import read_record
from robustcli.evaluation.store import Store
from robustcli.reports.evaluation_page import evaluation_report
from robustcli.transforms.base import CLEAN
from tests.data.published_files import CIFAR10, cifar_images, write_cifar10
from tests.evaluation.photos import CLASSES, config, make_photos
from tests.training.runs import Recorder

TEST, LABELS = cifar_images(20, seed=9), [i % 10 for i in range(20)]


def test_cifar_is_evaluated_on_its_test_images_like_the_same_images_in_folders(tmp_path):
    folder = write_cifar10(tmp_path, TEST, LABELS)
    for number, (pixels, label) in enumerate(zip(TEST, LABELS, strict=True)):
        target = tmp_path / "folders" / CIFAR10[label] / f"{number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
    listener = Recorder()
    run = run_evaluation(config(folder, tmp_path / "run"), listener)
    folder_run = run_evaluation(config(tmp_path / "folders", tmp_path / "same"))
    assert "Only the 20 test images of the 30 images of `cifar-10-batches-py`" in "".join(
        listener.lines
    )
    assert read_record(run).split == "test"
    rows, folder_rows = (Store(r).rows("vmamba-pico", CLEAN, "cls") for r in (run, folder_run))
    ours = dict(zip(rows["image_id"].str[-4:], rows["prediction"], strict=True))
    theirs = dict(zip(folder_rows["image_id"].str[-8:-4], folder_rows["prediction"], strict=True))
    assert ours == theirs
    assert len(ours) == 20
    np.testing.assert_array_equal(table(run)["top1"].iloc[0], table(folder_run)["top1"].iloc[0])


@pytest.mark.parametrize(("split", "images"), [("train", 10), ("test", 20), ("all", 30)])
def test_a_published_split_can_be_chosen(tmp_path, split, images):
    folder = write_cifar10(tmp_path, TEST, LABELS)
    run = run_evaluation(config(folder, tmp_path / "run", split=split))
    assert read_record(run).dataset.images == images


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # than the machine has cores
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_raw_pixels_reach_the_models_through_any_number_of_workers(tmp_path, workers):
    folder = write_cifar10(tmp_path, TEST, LABELS)
    run_without_workers = run_evaluation(config(folder, tmp_path / "alone"))
    run = run_evaluation(config(folder, tmp_path / "run", workers=workers))
    assert table(run).equals(table(run_without_workers))


def test_a_split_does_not_go_with_data_without_parts(tmp_path):
    photos = make_photos(tmp_path / "photos")
    with pytest.raises(UsageError, match="`--split test` cannot be used with `photos`"):
        run_evaluation(config(photos, tmp_path / "run", split="test"))
    assert not (tmp_path / "run").exists()


def test_answers_among_the_classes_of_the_data_are_recorded_and_never_mixed(tmp_path):
    photos = make_photos(tmp_path / "photos")
    run = run_evaluation(config(photos, tmp_path / "run", answers="present"))
    classes = [CIFAR10.index(name) for name in CLASSES]
    assert read_record(run).dataset.answers == sorted(classes)
    rows = Store(run).rows("vmamba-pico", CLEAN, "cls")
    assert set(rows["prediction"]) <= set(classes)
    assert rows["top5"].map(len).eq(4).all()
    text = evaluation_report(run).markdown
    assert "Models predict only the 4 classes of the data" in text
    with pytest.raises(UsageError, match=r"Models could predict other classes.*--answers"):
        run_evaluation(config(photos, tmp_path / "run"))

"""Evaluations of data sets in the layouts of their publishers.

With LAION-C's superclasses, the prediction is the superclass with the highest mean.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import robustcli
from robustcli.core.errors import UsageError
from robustcli.data.natural_shifts import laion_c
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.record import read_record
from robustcli.evaluation.store import Store
from robustcli.reports.evaluation_page import evaluation_report
from robustcli.transforms.base import CLEAN, Cell
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


def test_raw_pixels_reach_the_models_through_workers(tmp_path):
    folder = write_cifar10(tmp_path, TEST, LABELS)
    run_without_workers = run_evaluation(config(folder, tmp_path / "alone"))
    run = run_evaluation(config(folder, tmp_path / "run", workers=2))
    assert table(run).equals(table(run_without_workers))


def test_a_split_does_not_go_with_data_without_parts(tmp_path):
    photos = make_photos(tmp_path / "photos")
    with pytest.raises(UsageError, match="`--split test` cannot be used with `photos`"):
        run_evaluation(config(photos, tmp_path / "run", split="test"))
    assert not (tmp_path / "run").exists()


def test_a_split_of_a_table_is_evaluated(tmp_path):
    photos = make_photos(tmp_path / "photos")
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    rows = [f"{n},{n.split('/')[0]},{'train' if i % 2 else 'test'}" for i, n in enumerate(names)]
    (photos / "m.csv").write_text("\n".join(["path,label,split", *rows]))
    run = run_evaluation(config(photos / "m.csv", tmp_path / "run", split="test"))
    rows = Store(run).rows("vmamba-pico", CLEAN, "cls")
    assert sorted(rows["image_id"]) == names[::2]
    with pytest.raises(UsageError, match=r"`--split val` selects no images.*\n.*test, train"):
        run_evaluation(config(photos / "m.csv", tmp_path / "other", split="val"))


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


PREPROCESSING = {"resize": 8, "crop": 8, "mean": (0, 0, 0), "std": (1, 1, 1)}


class Colours(nn.Module):
    """Returns logits of 1,000 classes that are linear in the mean colour."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 1000)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(3)
            self.head.weight.copy_(4 * torch.randn(1000, 3, generator=generator))

    def forward(self, x):
        return self.head(x.mean((2, 3)))


def colour(number, level):
    return np.random.default_rng((number, level)).integers(0, 256, 3).astype(np.uint8)


def write_level(folder, level):
    for number, name in enumerate(laion_c().space.ids):
        (folder / name).mkdir(parents=True)
        pixels = np.tile(colour(number, level), (8, 8, 1))
        Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def network():
    return Colours().eval()


def expected_predictions(network, level):
    """Computes the mean probability over the classes of each superclass, as its authors do."""
    predictions = {}
    for number in range(16):
        image = torch.tensor(colour(number, level) / 255, dtype=torch.float32).view(1, 3, 1, 1)
        with torch.no_grad():
            probabilities = network(image).double().softmax(1)[0].numpy()
        means = np.array([probabilities[list(indices)].mean() for indices in laion_c().members])
        predictions[number] = int(means.argmax()), means / means.sum()
    return predictions


def test_published_intensities_are_transforms_answered_with_superclasses(tmp_path, network):
    clean = write_level(tmp_path / "clean", 0)
    for level in (1, 4):
        write_level(tmp_path / "laion-c" / "mosaic" / f"intensity_level_{level}", level)
    run = robustcli.evaluate(
        network, str(clean), ["published_mosaic"], out=tmp_path / "run",
        published=[tmp_path / "laion-c"], preprocessing=PREPROCESSING,
        label_space="imagenet-1k", workers=0, device="cpu",
    )  # fmt: skip
    record = read_record(tmp_path / "run")
    assert record.dataset.label_space == "laion-c"
    assert record.dataset.members == [list(indices) for indices in laion_c().members]
    name = record.models[0].name
    for cell in (CLEAN, Cell("published_mosaic", 1), Cell("published_mosaic", 4)):
        rows = Store(tmp_path / "run").rows(name, cell, "cls").sort_values("target")
        expected = expected_predictions(network, cell.severity)
        assert rows["prediction"].tolist() == [expected[n][0] for n in range(16)]
        np.testing.assert_allclose(
            rows["target_probability"], [expected[n][1][n] for n in range(16)], rtol=1e-5
        )
        np.testing.assert_allclose(
            rows["probability"], [expected[n][1].max() for n in range(16)], rtol=1e-5
        )
        assert rows["top5"].map(len).eq(5).all()
    assert "published_mosaic" in str(run.table())


def test_a_run_with_other_superclasses_is_not_continued(tmp_path, network):
    from robustcli.tasks.record import dataset_differences

    folder = write_level(tmp_path / "clean", 0)
    options = {"preprocessing": PREPROCESSING, "label_space": "imagenet-1k", "workers": 0}
    robustcli.evaluate(network, str(folder), ["identity"], out=tmp_path / "run", **options)
    record = read_record(tmp_path / "run").dataset
    other_record = record.model_copy(update={"members": [[1, 2]] * 16})
    assert list(dataset_differences(record, record, "")) == []
    assert any("superclasses" in line for line in dataset_differences(record, other_record, ""))


def test_models_of_other_classes_do_not_get_superclasses(tmp_path):
    folder = write_level(tmp_path / "clean", 0)
    with pytest.raises(UsageError, match="cifar10"):
        robustcli.evaluate(
            "vmamba-pico", str(folder), ["identity"], out=tmp_path / "run", workers=0
        )

"""Real weights on real images, compared with published numbers and with distances of pixels."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import robustcli
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.data.masks import decode_pair
from robustcli.data.sources import Classes, Masks, open_dataset

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")


@needs_shared
@pytest.mark.slow  # 30 seconds
def test_mobilenet_has_452_of_500(tmp_path):
    """Published with the weights: 90.4 % on this sample. ImageFolder's indices would give 0."""
    run = robustcli.evaluate(
        "mobilenetv2_100",
        SHARED / "imagenet_sample" / "val",
        "identity",
        out=tmp_path / "run",
        weights=SHARED / "weights" / "mobilenetv2_100_timm_from_tf2ptq.pth",
        model_args={"pad_type": "same"},
        preprocessing={
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "resize": 256,
            "crop": 224,
            "interpolation": "bilinear",
        },
        workers=1,
    )
    row = run.table().iloc[0]
    assert (row["correct"], row["n"]) == (452, 500)
    assert "452 of 500" not in run.path.name
    assert "90.4 (87.5" in run.report().read_text(encoding="utf-8")


@needs_shared
def test_the_sample_has_other_indices_than_its_folders_have_places():
    index = open_dataset(str(SHARED / "imagenet_sample" / "val"), Classes("imagenet-1k"))
    folders = sorted({ref.image_id.split("/")[0] for ref in index.samples})
    by_place = {folder: place for place, folder in enumerate(folders)}
    equal_samples = [r for r in index.samples if by_place[r.image_id.split("/")[0]] == r.target]
    assert len(folders) == 500
    assert len(equal_samples) < 10


def test_vmamba_pico_stands_as_documented(tmp_path):
    """The first row of the README's table, from the bundled weights and images."""
    run = robustcli.evaluate("vmamba-pico", None, "fliplr", out=tmp_path / "run", workers=0)
    # Rounding on another processor may change an image or two.
    assert run.table()["correct"].tolist() == pytest.approx([751, 768], abs=2)
    assert run.record.dataset.demonstration


def test_resnet_pico_stands_as_in_the_gallery(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "gallery.json").read_text("utf-8")
    rows = [row for row in json.loads(text)["demo"]["scores"] if row["label"] == "resnet-pico"]
    expected = {row["transform"]: row["correct"] for row in rows}
    run = robustcli.evaluate("resnet-pico", None, "identity", out=tmp_path / "run", workers=0)
    # Rounding on another processor may change an image or two.
    assert run.table()["correct"].tolist() == pytest.approx([expected["identity"]], abs=2)


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["vmamba-pico", "resnet-pico"])
def test_a_bundled_classifier_has_its_recorded_accuracy_on_the_whole_test_set(name, tmp_path):
    facts = json.loads((files("robustcli") / "assets" / f"{name}.json").read_text("utf-8"))
    data = SHARED / "cifar10_jpeg" / "test.tar.gz"
    run = robustcli.evaluate(name, data, "identity", out=tmp_path / "run")
    expected = [10_000 * facts["test_top1"]]
    assert run.table()["correct"].tolist() == pytest.approx(expected, abs=5)


def near(mask):
    """The pixels at most 3 pixels from a pixel of `mask`."""
    height, width = mask.shape
    padded = np.pad(mask, 3)
    offsets = [(y, x) for y in range(7) for x in range(7) if (y - 3) ** 2 + (x - 3) ** 2 <= 9]
    return np.any([padded[y : y + height, x : x + width] for y, x in offsets], axis=0)


@needs_shared
@pytest.mark.usefixtures("blank_figures")
def test_relaxed_numbers_of_the_test_tiles(tmp_path):
    roads = SHARED / "massachusetts_roads"
    run = robustcli.evaluate("otsu", roads, "identity", out=tmp_path, split="test", workers=0)
    row, otsu = run.table().iloc[0], load(ModelRequest("otsu"), "seg")
    hits, all_pixels = np.zeros(2), np.zeros(2)
    for pair in open_dataset(str(roads), Masks(surveyed=False)).samples:
        if pair.split == "test":
            image, truth = decode_pair(pair)
            predicted = otsu.predict([image])[0]
            pairs = ((predicted, truth), (truth, predicted))
            hits += [(first & near(second)).sum() for first, second in pairs]
            all_pixels += [first.sum() for first, _ in pairs]
    assert (row["n"], row["groups"]) == (9, 5)
    assert row["relaxed_precision"] == pytest.approx(hits[0] / all_pixels[0])
    assert row["relaxed_recall"] == pytest.approx(hits[1] / all_pixels[1])
    assert row["relaxed_recall_low"] < row["relaxed_recall"] < row["relaxed_recall_high"]
    page = run.report().read_text(encoding="utf-8")
    assert f"| {row['relaxed_precision']:.3f} (" in page
    assert "V. Mnih, Machine Learning for Aerial Image Labeling" in page

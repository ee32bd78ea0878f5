"""Relaxed precision and recall on the released roads, compared with SciPy's distances."""

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

import robustcli
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.data.masks import decode_pair
from robustcli.data.sources import Masks, open_dataset

ROADS = Path(__file__).parents[2].parent / "shared" / "data" / "massachusetts_roads"


@pytest.mark.skipif(not ROADS.is_dir(), reason="needs ../shared")
def test_relaxed_numbers_of_the_test_tiles(tmp_path):
    run = robustcli.evaluate("otsu", ROADS, "identity", out=tmp_path, split="test", workers=0)
    row, otsu = run.table().iloc[0], load(ModelRequest("otsu"), "seg")
    near, all_pixels = np.zeros(2), np.zeros(2)
    for pair in open_dataset(str(ROADS), Masks(surveyed=False)).samples:
        if pair.split == "test":
            image, truth = decode_pair(pair)
            predicted = otsu.predict([image])[0]
            pairs = ((predicted, truth), (truth, predicted))
            near += [(distance_transform_edt(~second)[first] <= 3).sum() for first, second in pairs]
            all_pixels += [first.sum() for first, _ in pairs]
    assert (row["n"], row["groups"]) == (9, 5)
    assert row["relaxed_precision"] == pytest.approx(near[0] / all_pixels[0])
    assert row["relaxed_recall"] == pytest.approx(near[1] / all_pixels[1])
    assert row["relaxed_recall_low"] < row["relaxed_recall"] < row["relaxed_recall_high"]
    page = run.report().read_text(encoding="utf-8")
    assert f"| {row['relaxed_precision']:.3f} (" in page
    assert "V. Mnih, Machine Learning for Aerial Image Labeling" in page

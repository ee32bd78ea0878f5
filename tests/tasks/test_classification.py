"""What a classifier's batch holds: images transformed and fitted, in the right order."""

from __future__ import annotations

import numpy as np
import pytest

from robustcli.data.decode import decode
from robustcli.data.sources import Classes, open_dataset
from robustcli.transforms.registry import image_seed, resolve_transforms
from tests.evaluation.photos import LARGE, SMALL, make_photos, source


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = make_photos(tmp_path_factory.mktemp("photos"))
    return open_dataset(str(folder), Classes("cifar10"))


def test_what_is_sent_is_transform_then_resize(index, tmp_path):
    batch = next(b for b in source(index, tmp_path, "affine") if b.cell.transform == "affine")
    ref = index.samples[0]
    seed = image_seed(0, "affine", 0, ref.image_id)
    affine = resolve_transforms(["affine"], None)[1].transform
    expected = SMALL.apply(affine.apply(decode(ref.image), seed=seed, severity=0))
    assert np.array_equal(batch.inputs.views[SMALL.view][0].numpy().transpose(1, 2, 0), expected)


def test_at_crop_is_resize_then_transform_and_measures_each_view(index, tmp_path):
    batches = list(source(index, tmp_path, "affine", at_crop=True))
    batch = next(b for b in batches if b.cell.transform == "affine")
    ref = index.samples[0]
    seed = image_seed(0, "affine", 0, ref.image_id)
    affine = resolve_transforms(["affine"], None)[1].transform
    expected = affine.apply(LARGE.apply(decode(ref.image)), seed=seed, severity=0)
    assert np.array_equal(batch.inputs.views[LARGE.view][0].numpy().transpose(1, 2, 0), expected)
    assert set(batch.measures) == {SMALL.view, LARGE.view}

"""Curves on a network whose right map is known, shuffled weights, where pixels move to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import UsageError
from robustcli.data.dataset import FileRef, Sample
from robustcli.explanation import input_methods
from robustcli.explanation.block import CURVE_STEPS, blur, insertion_and_deletion
from robustcli.explanation.input_methods import integrated_gradients
from robustcli.explanation.network import ExplainedNetwork
from robustcli.explanation.views import Geometry, boxed_region, moved_places, read_boxes
from robustcli.metrics.explanation_scores import map_correlation
from robustcli.transforms.registry import image_seed, resolve_transforms
from tests.explanation.networks import explained


class Left(nn.Module):
    """Two classes; the first one's logit counts the bright pixels of the left half."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x[:, 0, :, : x.shape[3] // 2].flatten(1).sum(1)
        return torch.stack([count, torch.zeros_like(count)], 1)


def test_curves_follow_the_pixels_that_count():
    # 4 x 4 pixels of value 1; the left 8 count. Steps of 2 pixels.
    photo = torch.ones(1, 3, 4, 4)
    right_map = torch.zeros(1, 4, 4)
    right_map[:, :, :2] = 1
    network, target = explained(Left(), mean=(0.5, 0.5, 0.5)), torch.tensor([0])
    insertion, deletion = insertion_and_deletion(network, photo, target, right_map, batch_size=3)
    removed = torch.tensor([min(2 * step, 8) for step in range(CURVE_STEPS + 1)])
    assert torch.allclose(deletion[0], (8.0 - removed).sigmoid(), atol=1e-6)
    assert torch.allclose(insertion[0], torch.full((9,), 8.0).sigmoid())  # blurring ones gives ones
    wrong = 1 - right_map
    _, late = insertion_and_deletion(network, photo, target, wrong, batch_size=3)
    kept = torch.tensor([8.0, 8, 8, 8, 8, 6, 4, 2, 0])
    assert torch.allclose(late[0], kept.sigmoid(), atol=1e-6)
    assert deletion.mean() < late.mean()


def test_insertion_starts_from_the_blurred_photo():
    photo = torch.zeros(1, 3, 32, 32)
    photo[:, :, 12:20, 4:12] = 4
    network, target = explained(Left()), torch.tensor([1])
    insertion, _ = insertion_and_deletion(network, photo, target, photo[:, 0], batch_size=4)
    first = network.probability(blur(photo), target)
    assert torch.allclose(insertion[:, 0], first)
    assert torch.allclose(insertion[:, -1], network.probability(photo, target))
    # The kernel is normalised and edges are repeated: a constant stays, a total inside too.
    assert torch.allclose(blur(torch.ones(1, 2, 5, 7)), torch.ones(1, 2, 5, 7))
    assert float(blur(photo).sum()) == pytest.approx(float(photo.sum()), rel=1e-4)


def test_maps_of_a_trained_network_change_with_shuffled_weights(monkeypatch):
    monkeypatch.setattr(input_methods, "PATH_POINTS", 16)
    model = load(ModelRequest("vmamba-pico"), "cls")
    network = ExplainedNetwork(
        model.network.requires_grad_(False), torch.device("cpu"), "cls", "vmamba", ("",) * 10
    )
    photos = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([3, 5])
    other = network.shuffled(7)
    for (name, before), after in zip(
        network.module.named_parameters(), other.module.parameters(), strict=True
    ):
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values), name
    again = network.shuffled(7)
    assert all(
        torch.equal(a, b)
        for a, b in zip(other.module.parameters(), again.module.parameters(), strict=True)
    )
    maps, shuffled = (
        integrated_gradients(first, photos, targets, batch_size=16).maps.numpy()
        for first in (network, other)
    )
    for trained, random in zip(maps, shuffled, strict=True):
        similarity = map_correlation(trained, random)
        assert similarity is not None
        assert abs(similarity) < 0.3
        assert map_correlation(trained, trained) == pytest.approx(1)


def smooth_photo(path: Path, height: int = 90, width: int = 120) -> Sample:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + c) + np.cos(y / 7 - c) + x / 60 + y / 45 for c in range(3)]
    pixels = np.stack(waves, 2)
    pixels = (255 * (pixels - pixels.min()) / np.ptp(pixels)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return Sample(FileRef(path.name, path), 0, "g")


@pytest.mark.parametrize("at_crop", [False, True])
@pytest.mark.parametrize("name", ["fliplr", "flipud", "affine", "crop", "perspective"])
def test_places_say_where_pixels_came_from(tmp_path, name, at_crop):
    sample = smooth_photo(tmp_path / "photo.png")
    preprocessing = Preprocessing(64, 56)
    _, cell = resolve_transforms([name], None)
    places = moved_places(sample, cell, Geometry(preprocessing, None, at_crop), seed=3)
    pixels = np.asarray(Image.open(sample.image.path))
    seed = image_seed(3, name, 0, sample.image_id)
    clean = preprocessing.apply(pixels)
    if at_crop:
        moved = cell.transform.apply(clean, seed=seed, severity=0)
    else:
        moved = preprocessing.apply(cell.transform.apply(pixels, seed=seed, severity=0))
    clean, moved = clean.astype(int), moved.astype(int)
    seen = places >= 0
    error, *shifted = (
        np.abs(np.roll(clean, by, (0, 1)).reshape(-1, 3)[places[seen]] - moved[seen]).mean()
        for by in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
    )
    assert seen.mean() > 0.5
    assert error < 0.8 * min(shifted)  # interpolated, but right to less than a pixel


def test_boxes_become_regions_of_the_view(tmp_path):
    sample = smooth_photo(tmp_path / "photo.png")  # 120 x 90 pixels
    file = tmp_path / "boxes.csv"
    file.write_text("image_id,left,top,right,bottom\nphoto.png,60,0,120,45\nother.png,0,0,1,1\n")
    boxes = read_boxes(file, ["photo.png"], print)
    geometry = Geometry(Preprocessing(45, 45), None, False)  # to 60 x 45, then the middle 45
    region = boxed_region(sample, boxes, geometry)
    rows, columns = np.nonzero(region)
    assert (rows.min(), rows.max(), columns.max()) == (0, 21, 44)
    assert columns.min() == 22  # 30 of 60, less the 8 that the crop cuts (7.5 rounded to even)
    assert boxed_region(replace(sample, image=FileRef("x", tmp_path)), boxes, geometry) is None
    for text, error in (
        ("photo.png,9,0,5,4", "Row 1 of .* is not a valid box"),
        ("x,0,0,2,2", "no box of"),
    ):
        file.write_text(f"image_id,left,top,right,bottom\n{text}\n")
        with pytest.raises(UsageError, match=error):
            read_boxes(file, ["photo.png"], print)


def test_pixels_of_other_transforms_stay():
    _, cell = resolve_transforms(["invert"], None)
    sample = Sample(FileRef("x", Path("nowhere")), 0, "g")
    assert moved_places(sample, cell, Geometry(Preprocessing(8, 8), None, False), 0) is None

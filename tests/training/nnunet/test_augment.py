"""nnU-Net's augmentation: what it may change, and that labels follow the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from robustcli.training.nnunet.augment import Augmentation
from robustcli.training.nnunet.cutting import loader_patch

PATCH = (48, 48)
SIZE = loader_patch(PATCH)


def scene(classes: int = 1) -> tuple[Tensor, Tensor]:
    """A smooth image that is brightest in the middle of each class's disc, and its labels."""
    rows, columns = torch.meshgrid(*(torch.arange(s) for s in SIZE), indexing="ij")
    labels = torch.zeros(SIZE, dtype=torch.int64)
    image = torch.zeros(3, *SIZE)
    for number in range(1, classes + 1):
        distance = (rows - 28).square() + (columns - 18 * number).square()
        labels[distance < 49] = number
        image += 4 * torch.exp(-distance / 60)
    return image, labels


def draws(count: int, classes: int = 1) -> list[tuple[Tensor, Tensor]]:
    augmentation, (image, labels) = Augmentation(PATCH), scene(classes)
    return [augmentation(image, labels, seed=seed) for seed in range(count)]


def test_the_same_seed_gives_the_same_patch_whatever_came_before() -> None:
    augmentation, (image, labels) = Augmentation(PATCH), scene()
    first = [augmentation(image, labels, seed=seed) for seed in range(20)]
    fresh = Augmentation(PATCH)
    for seed in reversed(range(20)):
        again = fresh(image, labels, seed=seed)
        assert torch.equal(again[0], first[seed][0])
        assert torch.equal(again[1], first[seed][1])
    assert len({one.numpy().tobytes() for one, _ in first}) > 10


def drawn_from() -> str:
    """NumPy's global generator, which MONAI might use."""
    return str(np.random.get_state())  # noqa: NPY002


def test_it_ignores_and_leaves_the_global_generators() -> None:
    augmentation, (image, labels) = Augmentation(PATCH), scene()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.random.get_rng_state(), drawn_from()
    found = [augmentation(image, labels, seed=seed)[0] for seed in range(20)]
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert drawn_from() == before[1]
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert all(
        torch.equal(a, augmentation(image, labels, seed=seed)[0]) for seed, a in enumerate(found)
    )


def test_what_comes_out_is_plain_and_of_the_patchs_size() -> None:
    for image, labels in draws(10, classes=2):
        assert (type(image), type(labels)) == (Tensor, Tensor)
        assert (image.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert (tuple(image.shape), tuple(labels.shape)) == ((3, *PATCH), PATCH)
        assert image.is_contiguous()
        assert image.isfinite().all()
        assert set(labels.unique().tolist()) <= {0, 1, 2}


def centre(weights: Tensor) -> Tensor:
    places = torch.stack(
        torch.meshgrid(*(torch.arange(float(s)) for s in weights.shape), indexing="ij")
    )
    return (places * weights).sum((1, 2)) / weights.sum()


def test_the_labels_move_with_the_image() -> None:
    for image, labels in draws(60):
        bright = image.mean(0)
        middle = bright > bright.min() + 0.6 * (bright.max() - bright.min())
        assert (centre(middle.float()) - centre((labels > 0).float())).norm() < 2.5


def test_each_class_keeps_its_own_place() -> None:
    for _, labels in draws(40, classes=2):
        gap = centre((labels == 1).float()) - centre((labels == 2).float())
        assert 18 / 1.4 - 3 <= gap.norm() <= 18 / 0.7 + 3


def test_about_two_in_three_keep_their_grid_and_are_the_middle_up_to_flips() -> None:
    """(1 - .2) * (1 - .2) = .64 are neither turned nor scaled."""
    _, labels = scene()
    top, left = ((s - p) // 2 for s, p in zip(SIZE, PATCH, strict=True))
    middle = labels[top : top + PATCH[0], left : left + PATCH[1]]
    flips = [middle, middle.flip(0), middle.flip(1), middle.flip(0, 1)]
    kept = [any(torch.equal(moved, f) for f in flips) for _, moved in draws(200)]
    assert 0.54 <= sum(kept) / 200 <= 0.74


def test_areas_scale_between_the_squares_of_the_limits() -> None:
    _, labels = scene()
    area = int((labels > 0).sum())
    ratios = [int((moved > 0).sum()) / area for _, moved in draws(200)]
    assert 1 / 1.4**2 * 0.9 <= min(ratios) <= 0.75
    assert 1.5 <= max(ratios) <= 1 / 0.7**2 * 1.1


def test_flips_can_be_left_out() -> None:
    augmentation, (image, _) = Augmentation(PATCH, ()), scene()
    corner = torch.zeros(SIZE, dtype=torch.int64)
    corner[10:14, 10:14] = 1
    found = [augmentation(image, corner, seed=seed)[1] for seed in range(80)]
    kept = found[0]
    assert any(torch.equal(f, kept) for f in found[1:])
    assert not any(torch.equal(f, kept.flip(1)) for f in found)


def test_a_patch_without_foreground_stays_so() -> None:
    image, labels = Augmentation(PATCH)(scene()[0], torch.zeros(SIZE, dtype=torch.int64), seed=3)
    assert not labels.any()
    assert image.shape == (3, *PATCH)


def test_about_a_quarter_of_the_patches_is_left_as_it_was_but_for_flips() -> None:
    """All steps spare a patch with .64 * .9 * (1 - .2*.875) * .85 * .85 * ... = about .2."""
    image, labels = scene()
    top, left = ((s - p) // 2 for s, p in zip(SIZE, PATCH, strict=True))
    middle = image[:, top : top + PATCH[0], left : left + PATCH[1]]
    flips = [middle, middle.flip(1), middle.flip(2), middle.flip(1, 2)]
    augmentation = Augmentation(PATCH)
    kept = [
        any(torch.allclose(augmentation(image, labels, seed=seed)[0], f) for f in flips)
        for seed in range(200)
    ]
    share = 0.64 * 0.9 * (1 - 0.2 * 0.875) * 0.85**2 * (1 - 0.25 * 0.875) * 0.9 * 0.7
    assert sum(kept) / 200 == pytest.approx(share, abs=0.08)

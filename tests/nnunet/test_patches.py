"""Batches of patches, which only depend on their identity, and their augmentation."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.intensity.array import RandScaleIntensity
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from torch import Tensor

from robustcli.core.errors import UsageError
from robustcli.nnunet.normalisation import Channel, fit
from robustcli.nnunet.patches import (
    Augmentation,
    Patches,
    PerChannel,
    Phase,
    Sampling,
    TurnAndScale,
    _intensity,
    choose_corner,
    cut,
    foreground_pixel,
    is_forced,
    largest_angle,
    loader_patch,
    plain,
)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("patch", "size"),
    [
        ((512, 512), (602, 602)),  # the specification's example
        ((256, 256), (301, 301)),
        ((384, 640), (631, 752)),  # 15 degrees: 384 cos + 640 sin = 536.6, over .85
        ((320, 448), (527, 527)),  # any angle, as at 90 degrees
    ],
)
def test_the_margin_for_rotation_and_scaling(patch: tuple[int, int], size: tuple[int, int]) -> None:
    assert loader_patch(patch) == size


def corners(shape: tuple[int, int], size: int, final: int) -> set[int]:
    rng = generator()
    drawn = [choose_corner(shape, (size, size), (final, final), None, rng) for _ in range(2000)]
    return {row for row, _ in drawn}


def test_without_margin_every_place_inside_is_drawn_and_none_else() -> None:
    assert corners((20, 20), 16, 16) == set(range(5))


def test_the_margin_may_lie_outside() -> None:
    # 4 pixels of margin, 2 on each side: from -2 to 20 + 2 - 20
    assert corners((20, 20), 20, 16) == set(range(-2, 3))


def test_a_small_image_is_padded_on_both_sides() -> None:
    assert corners((9, 9), 16, 16) == {-4, -3}
    assert corners((10, 10), 16, 16) == {-3}


def test_a_patch_lies_around_its_centre_but_not_above_or_left_of_the_lowest_place() -> None:
    rng = generator()
    size, final = (16, 16), (16, 16)
    assert choose_corner((40, 40), size, final, (20, 30), rng) == (12, 22)
    assert choose_corner((40, 40), size, final, (2, 39), rng) == (0, 31)  # beyond: padded, as there


def test_outside_of_the_image_pixels_are_zero_after_normalisation() -> None:
    image = generator().integers(0, 255, (6, 5, 3), dtype=np.uint8)
    labels = generator().integers(0, 3, (6, 5))
    normaliser = fit(image, [Channel()] * 3)
    pixels, truth = cut(image, labels, normaliser, (-2, 1), (10, 3))
    assert pixels.shape == (3, 10, 3)
    assert truth.dtype == torch.int64
    assert not pixels[:, :2].any()
    assert not pixels[:, 8:].any()
    assert not truth[:2].any()
    whole = normaliser(image)
    assert np.array_equal(pixels[:, 2:8].numpy(), whole[:, :, 1:4])
    assert np.array_equal(truth[2:8].numpy(), labels[:, 1:4])


def test_a_patch_beside_the_image_is_all_padding_on_that_side() -> None:
    image = np.full((4, 4, 1), 9, np.uint8)
    pixels, truth = cut(image, np.ones((4, 4), bool), fit(image, [Channel("none")]), (2, 2), (4, 4))
    assert pixels[0].numpy().tolist() == [[9, 9, 0, 0]] * 2 + [[0] * 4] * 2
    assert truth.numpy().tolist() == [[1, 1, 0, 0]] * 2 + [[0] * 4] * 2


def test_classes_are_drawn_evenly_however_small() -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[:10], labels[15, 15], labels[19] = 1, 2, 9
    rng = generator()
    drawn = [foreground_pixel(labels, 9, forced=True, rng=rng) for _ in range(400)]
    found = [labels[place] for place in drawn if place is not None]
    assert len(found) == 400
    assert set(found) == {1, 2}
    assert 150 < found.count(2) < 250


def test_no_pixel_where_none_is_needed_or_none_is_there() -> None:
    rng = generator()
    assert foreground_pixel(np.ones((3, 3), bool), None, forced=False, rng=rng) is None
    assert foreground_pixel(np.zeros((3, 3), bool), None, forced=True, rng=rng) is None
    assert foreground_pixel(np.full((3, 3), 2), 2, forced=False, rng=rng) is None


def test_patches_lie_around_annotated_pixels_where_not_all_are() -> None:
    labels = np.full((9, 9), 2)
    labels[4, 7] = 0
    assert foreground_pixel(labels, 2, forced=False, rng=generator()) == (4, 7)


SAMPLING = Sampling((16, 16), 6, 0.33, (Channel(),) * 3, seed=0)
WITH_FOREGROUND = (1, 3)


def load(index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Image `index` of 5; those with foreground have one pixel of it, so that chance misses it."""
    image = np.random.default_rng(index).integers(0, 255, (60, 50 + index, 3), dtype=np.uint8)
    mask = np.zeros(image.shape[:2], bool)
    if index in WITH_FOREGROUND:
        mask[10 * index, 12 * index] = True
    return image, mask


def patches(phase: Phase = "val", **changes: object) -> Patches:
    return Patches(load, 5, WITH_FOREGROUND, replace(SAMPLING, **changes), phase)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "forced"), [(12, 4), (6, 2), (2, 1), (3, 1), (49, 16), (1, 0), (4, 1)]
)
def test_the_last_third_of_a_batch_is_forced(batch: int, forced: int) -> None:
    """`round` rounds halves to even, as upstream; 12 * .67 = 8.04 are free."""
    places = [is_forced(place, batch, 0.33) for place in range(batch)]
    assert places == [False] * (batch - forced) + [True] * forced


def test_forced_patches_show_foreground_in_their_middle() -> None:
    for epoch in range(20):
        for place in (4, 5):
            patch = patches().patch(epoch, 0, place)
            assert patch.forced
            assert patch.index in WITH_FOREGROUND
            assert patch.labels[8, 8] == 1 or patch.labels.any()


def test_the_others_come_from_all_images_and_seldom_show_any() -> None:
    free = [patches().patch(epoch, 0, place) for epoch in range(40) for place in range(4)]
    assert not any(patch.forced for patch in free)
    assert {patch.index for patch in free} == set(range(5))
    assert sum(bool(patch.labels.any()) for patch in free) < 25


@pytest.mark.parametrize("phase", ["train", "val"])
def test_order_and_what_came_before_change_nothing(phase: Phase) -> None:
    one, other = patches(phase), patches(phase)
    identities = [(e, i, p) for e in range(2) for i in range(2) for p in range(6)]
    forwards = {identity: one.patch(*identity) for identity in identities}
    for identity in reversed(identities):
        again = other.patch(*identity)
        assert torch.equal(again.image, forwards[identity].image)
        assert torch.equal(again.labels, forwards[identity].labels)
    free = [patch.image for patch in forwards.values() if not patch.forced]
    assert len({image.numpy().tobytes() for image in free}) == len(free)


def test_a_batch_is_its_patches() -> None:
    images, labels = patches("train").batch(3, 7)
    assert images.shape == (6, 3, 16, 16)
    assert labels.shape == (6, 16, 16)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(images[5], patches("train").patch(3, 7, 5).image)


def test_the_seed_and_the_phase_are_part_of_the_identity() -> None:
    base = patches().patch(0, 0, 0).image
    assert not torch.equal(base, patches(seed=1).patch(0, 0, 0).image)
    drawn = [
        (patches("val").patch(e, 0, 0).index, patches("train").patch(e, 0, 0).index)
        for e in range(20)
    ]
    assert any(val != train for val, train in drawn)


def test_a_patch_is_normalised_with_the_whole_images_numbers() -> None:
    patch = patches().patch(0, 0, 0)
    image, _ = load(patch.index)
    values = (image[..., 0] - image[..., 0].mean()) / image[..., 0].std()
    windows = np.lib.stride_tricks.sliding_window_view(values, (16, 16))
    distance = np.abs(windows - patch.image[0].numpy()).max((2, 3))
    assert distance.min() < 1e-5


def test_an_image_smaller_than_the_patch_is_padded() -> None:
    small = Patches(
        lambda _: (np.full((5, 7, 3), 200, np.uint8), np.ones((5, 7), bool)),
        1, (0,), replace(SAMPLING, channels=(Channel("rgb_to_0_1"),) * 3), "val",
    )  # fmt: skip
    patch = small.patch(0, 0, 0)
    assert int(patch.labels.sum()) == 35
    assert torch.equal(patch.image[0] > 0, patch.labels > 0)
    assert patch.image.max() == pytest.approx(200 / 255)


def test_images_without_any_foreground_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"(?s)The train images cannot be used for training\..*5 im"
    ):
        Patches(load, 5, (), SAMPLING, "train")
    with pytest.raises(UsageError, match="The val images cannot be used for training"):
        Patches(load, 0, (), SAMPLING, "val")


# Augmentation: rotation and scaling against SciPy, and how often they happen.


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


@cache
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
    for image, labels in draws(40, classes=2):
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
    for image, labels in draws(200):
        bright = image.mean(0)
        middle = bright > bright.min() + 0.6 * (bright.max() - bright.min())
        assert (centre(middle.float()) - centre((labels > 0).float())).norm() < 2.5


def test_each_class_keeps_its_own_place() -> None:
    for _, labels in draws(40, classes=2):
        gap = centre((labels == 1).float()) - centre((labels == 2).float())
        assert 18 / 1.4 - 3 <= gap.norm() <= 18 / 0.7 + 3


def test_areas_scale_between_the_squares_of_the_limits() -> None:
    _, labels = scene()
    area = int((labels > 0).sum())
    ratios = [int((moved > 0).sum()) / area for _, moved in draws(200)]
    assert 1 / 1.4**2 * 0.9 <= min(ratios) <= 0.75
    assert 1.5 <= max(ratios) <= 1 / 0.7**2 * 1.1


def test_a_patch_without_foreground_stays_so() -> None:
    image, labels = Augmentation(PATCH)(scene()[0], torch.zeros(SIZE, dtype=torch.int64), seed=3)
    assert not labels.any()
    assert image.shape == (3, *PATCH)


def test_about_a_quarter_of_the_patches_is_left_as_it_was_but_for_flips() -> None:
    """All steps spare a patch with .64 * .9 * (1 - .2*.875) * .85 * .85 * ... = about .2."""
    image, _ = scene()
    top, left = ((s - p) // 2 for s, p in zip(SIZE, PATCH, strict=True))
    middle = image[:, top : top + PATCH[0], left : left + PATCH[1]]
    flips = [middle, middle.flip(1), middle.flip(2), middle.flip(1, 2)]
    kept = [any(torch.allclose(drawn, f) for f in flips) for drawn, _ in draws(200)]
    share = 0.64 * 0.9 * (1 - 0.2 * 0.875) * 0.85**2 * (1 - 0.25 * 0.875) * 0.9 * 0.7
    assert sum(kept) / 200 == pytest.approx(share, abs=0.08)


def scaled(seed: int, prob: float, channel_prob: float) -> torch.Tensor:
    each = PerChannel(RandScaleIntensity(0.5, prob=1.0), prob=prob, channel_prob=channel_prob)
    each.set_random_state(seed=seed)
    return each(torch.ones(4, 3, 3))


def test_each_channel_has_draws_of_its_own() -> None:
    assert len(scaled(0, 1.0, 1.0)[:, 0, 0].unique()) == 4


def test_channels_are_touched_by_chance() -> None:
    touched = torch.stack([scaled(seed, 1.0, 0.5)[:, 0, 0] != 1 for seed in range(100)])
    assert 0.4 < touched.float().mean() < 0.6
    assert 0 < touched.all(1).sum() < 20


def test_a_sample_is_touched_by_chance() -> None:
    touched = [bool((scaled(seed, 0.3, 1.0) != 1).any()) for seed in range(200)]
    assert 40 <= sum(touched) <= 80


def test_the_seed_alone_decides() -> None:
    found = [scaled(seed, 0.8, 0.5) for seed in (1, 2, 3, 1, 2, 3)]
    assert all(torch.equal(a, b) for a, b in zip(found[:3], found[3:], strict=True))
    assert not torch.equal(found[0], found[1])


def test_plain_takes_the_metadata_off() -> None:
    for tensor in (torch.ones(2), MetaTensor(torch.ones(2))):
        assert type(plain(tensor)) is torch.Tensor
        assert torch.equal(plain(tensor), torch.ones(2))


SIZE_SPATIAL, PATCH_SPATIAL = (56, 61), (48, 52)


@pytest.mark.parametrize(
    ("patch", "degrees"), [((512, 512), 180), ((320, 480), 180), ((384, 640), 15), ((64, 16), 15)]
)
def test_long_patches_are_turned_a_little_only(patch: tuple[int, int], degrees: float) -> None:
    assert largest_angle(patch) == degrees


class Told(np.random.RandomState):
    """A generator that says what it is told."""

    def __init__(self, *says: float) -> None:
        super().__init__(0)
        self.says = iter(says)

    def rand(self, *_: int) -> float:  # type: ignore[override]
        return next(self.says)

    def uniform(self, *_: object) -> float:  # type: ignore[override]
        return next(self.says)


def moved(image: torch.Tensor, *says: float) -> tuple[torch.Tensor, torch.Tensor]:
    step = TurnAndScale(PATCH_SPATIAL)
    step.set_random_state(state=Told(*says))
    return step(image, image)


@pytest.mark.parametrize(("angle", "scale"), [(0.7, None), (None, 1.3), (-2.5, 0.75)])
def test_is_one_resampling_about_the_middle(angle: float | None, scale: float | None) -> None:
    """As SciPy's: a cubic spline for the image, linear for the labels, 0 outside."""
    image = torch.randn(2, *SIZE_SPATIAL, generator=torch.Generator().manual_seed(0))
    turn = (0.9,) if angle is None else (0.1, angle)
    zoom = (0.9,) if scale is None else (0.1, 0.3, scale)
    pixels, labels = moved(image, *turn, *zoom)
    cos, sin = math.cos(angle or 0), math.sin(angle or 0)
    matrix = np.array([[cos, -sin], [sin, cos]]) * (scale or 1)
    offset = (np.array(SIZE_SPATIAL) - 1) / 2 - matrix @ (np.array(PATCH_SPATIAL) - 1) / 2
    for channel in range(2):
        for found, order, mode in ((pixels, 3, "constant"), (labels, 1, "grid-constant")):
            expected = affine_transform(
                image[channel].numpy(), matrix, offset, PATCH_SPATIAL, order=order, mode=mode
            )
            assert np.abs(found[channel].numpy() - expected).max() < 1e-3


def test_what_is_seen_grows_with_the_scale() -> None:
    image = torch.zeros(1, *SIZE_SPATIAL)
    image[:, 18:38, 20:41] = 1
    smaller, larger = (moved(image, 0.9, 0.1, 0.3, scale)[1].sum() for scale in (1.4, 0.7))
    assert smaller == pytest.approx(420 / 1.4**2, rel=0.02)
    assert larger == pytest.approx(420 / 0.7**2, rel=0.02)


def test_else_it_is_the_middle_untouched() -> None:
    image = torch.randn(1, *SIZE_SPATIAL)
    assert torch.equal(moved(image, 0.9, 0.9)[0], image[:, 4:52, 4:56])


def test_each_happens_to_one_in_five_by_itself_and_within_its_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The resampling draws nothing, so that its result is not needed."""
    monkeypatch.setattr("robustcli.nnunet.patches.Affine", lambda **_: lambda pixels, **_: pixels)
    image = torch.zeros(1, 64, 16)
    seen: list[tuple[float, float]] = []

    class Spy(TurnAndScale):
        def _happens(self) -> bool:
            happens = super()._happens()
            chances.append(happens)
            return happens

    chances: list[bool] = []
    step = Spy((64, 16))
    step.set_random_state(seed=0)
    for _ in range(1000):
        step(image, image)
        seen.append((float(chances[-2]), float(chances[-1])))
    turned, scaled = np.array(seen).T
    assert 0.16 < turned.mean() < 0.24
    assert 0.16 < scaled.mean() < 0.24
    assert 0.02 < (turned * scaled).mean() < 0.07
    scales = np.array([step._scale() for _ in range(2000)])
    assert scales.min() == pytest.approx(0.7, abs=0.01)
    assert scales.max() == pytest.approx(1.4, abs=0.01)
    assert 0.46 < (scales < 1).mean() < 0.54


def test_intensities_change_with_the_ranges_and_probabilities_of_upstream() -> None:
    noise, blur, brightness, contrast, coarse, inverted, gamma = cast("Any", _intensity())
    assert (noise.prob, noise.std, noise.sample_std) == (0.1, 0.1, True)
    assert (brightness.prob, brightness.factors, brightness.channel_wise) == (
        0.15, (-0.25, 0.25), True,
    )  # fmt: skip
    per_channel = [(t.prob, t._channel_prob) for t in (blur, contrast, coarse, inverted, gamma)]
    assert per_channel == [(0.2, 0.5), (0.15, 1.0), (0.25, 0.5), (0.1, 1.0), (0.3, 1.0)]
    assert (blur._transform.sigma_x, blur._transform.sigma_y) == ((0.5, 1.0), (0.5, 1.0))
    assert (contrast._transform.factors, contrast._transform.preserve_range) == (
        (-0.25, 0.25), True,
    )  # fmt: skip
    assert (coarse._transform.zoom_range, coarse._transform.downsample_mode) == (
        (0.5, 1.0), "nearest",
    )  # fmt: skip
    for change, inverts in ((inverted, True), (gamma, False)):
        assert (change._transform.gamma, change._transform.retain_stats) == ((0.7, 1.5), True)
        assert change._transform.invert_image == inverts
    flips = cast("Any", Augmentation((8, 8))._flips)
    assert [(flip.prob, flip.flipper.spatial_axis) for flip in flips] == [(0.5, 0), (0.5, 1)]

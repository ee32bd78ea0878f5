"""nnU-Net's normalisation of an image."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import zscore

from robustcli.core.errors import UsageError
from robustcli.nnunet.normalisation import Channel, Intensities, NnUNetInference, fit

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def test_each_channel_has_its_own_way() -> None:
    channels = (Channel(), Channel("rgb_to_0_1"), Channel("none"))
    found = NnUNetInference(channels).normalised(IMAGE)
    assert (found.shape, found.dtype) == ((9, 7, 3), np.float32)
    red = IMAGE[..., 0].astype(float)
    np.testing.assert_allclose(found[..., 0], (red - red.mean()) / red.std(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[..., 1], IMAGE[..., 1] / 255, rtol=1e-6)
    np.testing.assert_array_equal(found[..., 2], IMAGE[..., 2])


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(UsageError, match="The image has 3 channels"):
        NnUNetInference((Channel(),)).normalised(IMAGE)


def photo(channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(3, 200, (7, 5, channels), dtype=np.uint8)


def normal(image: NDArray[np.uint8], *channels: Channel) -> NDArray[np.float32]:
    return fit(image, channels)(image)


def test_z_scores_are_scipys_per_channel() -> None:
    image = photo()
    found = normal(image, *[Channel()] * 3)
    expected = zscore(image.astype(float).reshape(-1, 3)).reshape(7, 5, 3)
    assert found.dtype == np.float32
    assert found.shape == (3, 7, 5)
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-5)


def test_the_other_schemes_by_hand() -> None:
    image = np.array([[[10, 10, 10, 10], [50, 50, 50, 50], [90, 90, 90, 90]]], np.uint8)
    ct = Channel("ct", intensities=Intensities(40, 20, 20, 80))
    channels = Channel("rgb_to_0_1"), Channel("none"), Channel("rescale_0_1"), ct
    np.testing.assert_allclose(
        normal(image, *channels)[:, 0].astype(float),
        [[10 / 255, 50 / 255, 90 / 255], [10.0, 50, 90], [0, 0.5, 1], [-1, 0.5, 2]],
        atol=1e-6,
    )


@pytest.mark.parametrize("scheme", ["zscore", "rescale_0_1"])
def test_an_image_of_one_value_is_zero(scheme: str) -> None:
    assert not normal(np.full((3, 3, 1), 77, np.uint8), Channel(scheme)).any()


def test_a_part_is_normalised_with_the_whole_images_numbers() -> None:
    image = photo()
    normaliser = fit(image, [Channel(), Channel("rescale_0_1"), Channel("none")])
    part = normaliser(image, (slice(2, 5), slice(0, 3)))
    assert np.array_equal(part, normaliser(image)[:, 2:5, :3])


def test_black_border_neither_counts_nor_changes_where_the_plan_says_so() -> None:
    image = np.zeros((6, 6, 1), np.uint8)
    image[1:5, 1:5, 0] = np.arange(16).reshape(4, 4) + 10
    image[2, 2] = 0  # a hole inside is inside
    found = normal(image, Channel(inside_only=True))[0]
    np.testing.assert_allclose(
        found[1:5, 1:5], zscore(image[1:5, 1:5, 0].astype(float), axis=None), atol=1e-5
    )
    found[1:5, 1:5] = 0
    assert not found.any()


def test_a_black_image_is_all_inside() -> None:
    assert not normal(np.zeros((2, 2, 1), np.uint8), Channel(inside_only=True)).any()


def test_a_wrong_number_of_channels_and_missing_intensities() -> None:
    with pytest.raises(UsageError, match=r"The image has 3 channels\.\nThe normalisation is for 1"):
        fit(photo(), [Channel()])
    with pytest.raises(UsageError, match="`foreground_intensity_properties_per_channel`"):
        fit(photo(1), [Channel("ct")])

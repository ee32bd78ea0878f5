"""nnU-Net's inference: normalisation, flips, and the places and weights of windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import zscore
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.nnunet.inference import Mirrored, covered_evenly, gaussian_weights, window_starts
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


class Ramp(nn.Module):
    """Scores that depend on the place: the input times a ramp that rises to the lower right."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(float(x[0, 0].numel())).view(x.shape[2:])


def test_is_the_mean_over_the_flips_turned_back() -> None:
    x = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    ramp = torch.arange(12.0).view(3, 4)
    both = (ramp + ramp.flip(0) + ramp.flip(1) + ramp.flip(0, 1)) / 4
    assert torch.allclose(Mirrored(Ramp(), (0, 1))(x), x * both)
    assert torch.allclose(Mirrored(Ramp(), (1,))(x), x * (ramp + ramp.flip(1)) / 2)
    assert torch.equal(Mirrored(Ramp(), ())(x), Ramp()(x))


@pytest.mark.parametrize(("axes", "passes"), [((), 1), ((0,), 2), ((0, 1), 4), ((1, 0, 1), 4)])
def test_costs_a_pass_per_combination(axes: tuple[int, ...], passes: int) -> None:
    seen = []
    network = nn.Identity()
    network.register_forward_hook(lambda *_: seen.append(1))
    Mirrored(network, axes)(torch.zeros(1, 1, 2, 2))
    assert len(seen) == passes


def test_a_network_that_does_not_care_keeps_its_scores() -> None:
    torch.manual_seed(0)
    network, x = nn.Conv2d(3, 2, 1), torch.randn(1, 3, 5, 6)
    assert torch.allclose(Mirrored(network, (0, 1))(x), network(x), atol=1e-6)


def test_of_several_outputs_the_first_counts() -> None:
    class Deep(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x, x[..., ::2, ::2]]

    x = torch.randn(1, 2, 4, 4)
    assert torch.allclose(Mirrored(Deep(), (0, 1))(x), x)


def test_an_axis_that_an_image_lacks() -> None:
    with pytest.raises(UsageError, match=r"Axis 2 cannot be mirrored\.\nAn image has the axes 0"):
        Mirrored(nn.Identity(), (0, 1, 2))


CPU = torch.device("cpu")


# By nnU-Net v2.1.2's own `compute_steps_for_sliding_window`.
@pytest.mark.parametrize(
    ("side", "window", "starts"),
    [
        (64, 64, [0]),
        (65, 64, [0, 1]),
        (110, 64, [0, 23, 46]),
        (320, 128, [0, 64, 128, 192]),
        (331, 128, [0, 51, 102, 152, 203]),
        (500, 256, [0, 122, 244]),
    ],
)
def test_windows_lie_at_even_distances(side: int, window: int, starts: list[int]) -> None:
    assert window_starts(side, window, 0.5) == starts


def test_pixels_weigh_as_in_nnunet() -> None:
    weights = gaussian_weights((8, 8))
    middle = torch.tensor(  # by nnU-Net v2.1.2's own `compute_gaussian((8, 8))`
        [3.3546e-4, 1.1109e-2, 0.135335, 0.606531, 1.0, 0.606531, 0.135335, 1.1109e-2]
    )
    torch.testing.assert_close(weights[4], middle, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(weights, weights.T)
    assert weights[0, 0] > 0
    assert gaussian_weights((256, 256)).min() > 0  # the curve ends four deviations from its middle


def test_windows_with_two_sides_are_those_of_nnunet() -> None:
    """By nnU-Net v2.1.2's algorithm, with loops and SciPy's two-dimensional filter."""
    window, size = (8, 12), (21, 30)
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(2))

    def predict(pixels: Tensor) -> Tensor:
        return pixels.cumsum(2).cumsum(3)[:, :2]

    impulse = np.zeros(window)
    impulse[window[0] // 2, window[1] // 2] = 1
    weights = gaussian_filter(impulse, [side / 8 for side in window], 0, mode="constant", cval=0)
    weights /= weights.max()
    weights[weights == 0] = weights[weights != 0].min()
    np.testing.assert_allclose(gaussian_weights(window), weights, rtol=1e-6)
    total, norm = np.zeros((2, *size)), np.zeros(size)
    for top in (0, 3, 6, 10, 13):
        for left in (0, 6, 12, 18):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            total[:, rows, columns] += predict(images[:, :, rows, columns])[0].numpy() * weights
            norm[rows, columns] += weights
    found = covered_evenly(images, window, predict, overlap=0.5, batch=5, device=CPU)
    np.testing.assert_allclose(found[0], total / norm, rtol=1e-5)


def test_scores_are_averaged_by_weight() -> None:
    images = torch.rand(2, 3, 12, 21, generator=torch.Generator().manual_seed(0))

    def predict(pixels: Tensor) -> Tensor:
        """Says of each window what nothing but its first pixel decides."""
        assert len(pixels) <= 3
        return pixels[:, :1, :1, :1].expand(-1, 1, 8, 8)

    found = covered_evenly(images, (8, 8), predict, overlap=0.5, batch=3, device=CPU)
    weights = gaussian_weights((8, 8))
    for number, y, x in [(0, 0, 0), (0, 5, 6), (1, 11, 20), (1, 7, 13)]:
        heard = [
            (weights[y - top, x - left], images[number, 0, top, left])
            for top in (0, 4)
            for left in (0, 3, 6, 10, 13)
            if 0 <= y - top < 8 and 0 <= x - left < 8
        ]
        mean = sum(w * said for w, said in heard) / sum(w for w, _ in heard)
        assert found[number, 0, y, x] == pytest.approx(float(mean), rel=1e-5)


def test_what_every_window_says_alike_stands() -> None:
    images = torch.rand(1, 3, 31, 17, generator=torch.Generator().manual_seed(1))
    found = covered_evenly(images, (16, 16), lambda x: x[:, 1:2], overlap=0.5, batch=4, device=CPU)
    torch.testing.assert_close(found, images[:, 1:2])

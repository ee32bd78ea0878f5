"""A model's view of a photo, pixel for pixel as torchvision and timm make it with PIL."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from robustcli.adapters.preprocessing import INTERPOLATIONS, Preprocessing
from robustcli.core.errors import UsageError

# Height and width: landscape, portrait, square, odd, smaller than the crop in one or both sides.
SIZES = [(48, 80), (80, 48), (64, 64), (37, 61), (61, 37), (20, 90), (91, 15), (7, 5), (1, 1)]


def photo(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng((height, width)).integers(0, 256, (height, width, 3), np.uint8)


def by_torchvision(image: NDArray[np.uint8], own: Preprocessing) -> NDArray[np.uint8]:
    steps: list[object] = [CenterCrop(own.crop)]
    if own.resize is not None:
        size = own.resize if own.mode == "center" else (own.resize, own.resize)
        steps.insert(0, Resize(size, InterpolationMode(own.interpolation)))
    return np.asarray(Compose(steps)(Image.fromarray(image)))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("resize", "crop"), [(36, 32), (35, 30), (32, 33), (40, 40), (None, 32)])
def test_as_torchvision(
    size: tuple[int, int], resize: int | None, crop: int, interpolation: str
) -> None:
    own = Preprocessing(resize, crop, interpolation)
    view = own.apply(photo(*size))
    assert view.shape == (crop, crop, 3)
    np.testing.assert_array_equal(view, by_torchvision(photo(*size), own))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("crop", [32, 29])
def test_squash_as_torchvision(size: tuple[int, int], crop: int) -> None:
    own = Preprocessing(32, crop, "bicubic", mode="squash")
    np.testing.assert_array_equal(own.apply(photo(*size)), by_torchvision(photo(*size), own))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_as_timm(interpolation: str, crop_pct: float, mode: str) -> None:
    theirs = create_transform(
        (3, 56, 56), interpolation=interpolation, crop_pct=crop_pct, crop_mode=mode, normalize=False
    )
    own = Preprocessing(int(56 / crop_pct), 56, interpolation, mode=mode)
    for size in ((90, 133), (133, 90), (60, 60), (41, 300)):
        expected = theirs(Image.fromarray(photo(*size))).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(own.apply(photo(*size)), expected)


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = photo(32, 32)
    for interpolation in INTERPOLATIONS:
        view = Preprocessing(32, 32, interpolation).apply(image)
        np.testing.assert_array_equal(view, image)


def test_the_view_is_one_block_of_memory_of_its_own() -> None:
    image = photo(40, 60)
    view = Preprocessing(None, 16).apply(image)
    assert view.flags.c_contiguous
    assert not np.shares_memory(view, image)


def test_views_are_called_by_what_decides_the_pixels() -> None:
    own = Preprocessing(256, 224, "bicubic")
    assert own.view == "center256-bicubic-crop224"
    assert own.view == Preprocessing(256, 224, mean=(0, 0, 0), std=(1, 1, 1)).view
    assert Preprocessing(None, 32).view == "as-is-crop32"
    others = [Preprocessing(255, 224), Preprocessing(256, 223), Preprocessing(256, 224, "nearest"),
              Preprocessing(256, 224, mode="squash")]  # fmt: skip
    assert len({own.view, *(other.view for other in others)}) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"interpolation": "cubic"},
            r"`--interpolation cubic` is unknown\.\nIt is one of nearest, b",
        ),
        ({"crop": 0}, "`--resize` and `--crop` are pixels, at least 1"),
        ({"resize": 0}, "`--resize` and `--crop` are pixels, at least 1"),
        ({"std": (0.5, 0.0, 0.5)}, r"`--std` must be above zero.*\nGot \(0\.5, 0\.0, 0\.5\)"),
        ({"std": (0.5, -1, 0.5)}, "`--std` must be above zero"),
        ({"std": (0.5, float("nan"), 0.5)}, "`--mean` and `--std` are numbers.*\nGot.*nan"),
        ({"mean": (float("inf"), 0, 0)}, "`--mean` and `--std` are numbers"),
    ],
)
def test_settings_that_make_no_view(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocessing(**{"resize": 36, "crop": 32, **change})

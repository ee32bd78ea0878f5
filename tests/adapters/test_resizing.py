"""Resizing and cropping in one step against Pillow's resize and a crop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from robustcli.adapters import resizing
from robustcli.adapters.preprocessing import INTERPOLATIONS, Preprocessing

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "imagenet_sample" / "val"


def _with_pillow(image: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Torchvision's Resize and CenterCrop on a Pillow image."""
    from torchvision.transforms import v2

    assert preprocessing.resize is not None
    height, width = image.shape[:2]
    size = preprocessing.resized(width, height)
    resized = Image.fromarray(image).resize(size, INTERPOLATIONS[preprocessing.interpolation])
    return np.asarray(v2.CenterCrop(preprocessing.crop)(resized))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_pixels_are_pillows(interpolation: str) -> None:
    """Larger and smaller, wide and high, with a crop inside and around the resized image."""
    rng = np.random.default_rng(4)
    quick = 0
    for _ in range(60):
        height, width = (int(side) for side in rng.integers(20, 130, 2))
        resize = int(rng.integers(16, 90))
        preprocessing = Preprocessing(
            resize, max(1, int(resize * rng.uniform(0.6, 1.1))), interpolation
        )
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image.flags.writeable = False
        view = preprocessing.apply(image)
        np.testing.assert_array_equal(view, _with_pillow(image, preprocessing))
        assert view.flags.c_contiguous
        quick += _is_quick(image, preprocessing)
    assert (quick > 10) == (interpolation in ("bilinear", "bicubic"))


def _is_quick(image: NDArray[np.uint8], preprocessing: Preprocessing) -> bool:
    size = preprocessing.resized(image.shape[1], image.shape[0])
    resampling = INTERPOLATIONS[preprocessing.interpolation]
    view = resizing.resized_centre(image, size, preprocessing.crop, resampling)
    return view is not None


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_twice_as_high_as_wide_and_squashed_ones_are_pillows(interpolation: str) -> None:
    rng = np.random.default_rng(5)
    for shape in ((97, 269), (57, 263), (119, 249), (60, 118)):
        for mode in ("center", "squash"):
            for turned in (shape, shape[::-1]):
                image = rng.integers(0, 256, (*turned, 3), dtype=np.uint8)
                preprocessing = Preprocessing(40, 36, interpolation, mode=mode)
                np.testing.assert_array_equal(
                    preprocessing.apply(image), _with_pillow(image, preprocessing)
                )


def test_extreme_values_are_clipped_as_pillow_does() -> None:
    """Bicubic weights below zero overshoot at edges between black and white."""
    image = (np.indices((90, 120)).sum(0) // 7 % 2 * 255).astype(np.uint8)
    image = np.repeat(image[..., None], 3, axis=2)
    for resize in (37, 200):
        preprocessing = Preprocessing(resize, 32)
        view = preprocessing.apply(image)
        np.testing.assert_array_equal(view, _with_pillow(image, preprocessing))


def test_a_pillow_with_other_pixels_resizes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(6).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    preprocessing = Preprocessing(40, 36)
    monkeypatch.setattr(resizing, "_is_pillows", lambda _: False)
    assert not _is_quick(image, preprocessing)
    np.testing.assert_array_equal(preprocessing.apply(image), _with_pillow(image, preprocessing))


def test_what_is_returned_is_no_view_of_the_image() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    for preprocessing in (Preprocessing(32, 32), Preprocessing(None, 32)):
        assert not np.shares_memory(preprocessing.apply(image), image)


@pytest.mark.slow
def test_every_size_of_the_photos_is_pillows() -> None:
    """In every run: `test_pixels_are_pillows`."""
    if not PHOTOS.is_dir():
        pytest.skip("needs the real photos of ../shared")
    sizes = {}
    for file in sorted(PHOTOS.glob("*/*.JPEG")):
        with Image.open(file) as image:
            sizes.setdefault(image.size, image.convert("RGB"))
    for rgb in sizes.values():
        photo = np.asarray(rgb)
        for preprocessing in (Preprocessing(256, 224), Preprocessing(248, 224, "bilinear")):
            np.testing.assert_array_equal(
                preprocessing.apply(photo), _with_pillow(photo, preprocessing)
            )

"""Compiled loops against the functions that they replace, and their transforms against imgaug."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from robustcli.transforms import exact_kernels, imagenet_c
from robustcli.transforms.imagenet_c import IMAGENET_C
from robustcli.transforms.paper21 import PAPER21

RNG_IMAGE = np.random.default_rng(3).integers(0, 256, (41, 36, 3), dtype=np.uint8)
PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "imagenet_sample" / "val"
PIECEWISE = next(t for t in PAPER21 if t.name == "piecewise_affine")
QUICK = [t for t in IMAGENET_C if t.corruption in imagenet_c._accelerated()]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("factor", [1.0, 1.01, 1.13, 2.5, 3, 4.5])
def test_zoom_is_scipys(dtype: type, factor: float) -> None:
    from scipy.ndimage import zoom

    for shape in ((40, 33, 3), (33, 47, 1)):
        image = np.random.default_rng(0).random(shape).astype(dtype)
        expected = zoom(image, (factor, factor, 1), order=1)
        result = exact_kernels.zoomed(image, factor)
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


def test_sampling_is_scipys_inside_at_and_far_beyond_the_edges() -> None:
    from scipy.ndimage import map_coordinates

    rng = np.random.default_rng(1)
    image = rng.random((23, 31, 3)).astype(np.float32)
    rows, columns = rng.uniform(-90, 120, (2, 6000, 1))
    rows[:4000], columns[:4000] = rng.uniform(-2, 25, (4000, 1)), rng.uniform(-2, 33, (4000, 1))
    rows[:900], columns[500:1500] = np.round(rows[:900]), np.round(columns[500:1500])
    coordinates = rows, columns, np.arange(6000).reshape(-1, 1) % 3
    expected = map_coordinates(image, coordinates, order=1, mode="reflect")
    result = exact_kernels.sampled(image, coordinates)
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)


def test_hsv_is_scikit_images() -> None:
    from skimage.color import hsv2rgb, rgb2hsv

    rng = np.random.default_rng(2)
    image = rng.random((30, 40, 3))
    image[:10] = np.round(image[:10] * 3) / 3  # greys, and two channels that are both the largest
    np.testing.assert_array_equal(exact_kernels.hsv(image), rgb2hsv(image))
    colours = rng.random((30, 40, 3))
    colours[0], colours[1, :, 0], colours[2, :, 1] = 1, 1, 0
    np.testing.assert_array_equal(exact_kernels.rgb(colours), hsv2rgb(colours))


@pytest.mark.parametrize("angle", [-130, -90, -45, -10, 0, 30, 45])
@pytest.mark.parametrize("kind", ["colour", "layer"])
def test_motion_blur_is_that_of_imagecorruptions(angle: int, kind: str) -> None:
    from imagecorruptions import corruptions

    image: NDArray[Any] = RNG_IMAGE if kind == "colour" else RNG_IMAGE[..., 0] / 255
    for radius, sigma in ((10, 3), (20, 15)):  # the second leaves the image
        np.testing.assert_array_equal(
            imagenet_c._motion_blur(image, radius, sigma, angle),
            corruptions._motion_blur(image, radius, sigma, angle),
        )


def _photos(size: tuple[int, int] | None) -> list[NDArray[np.uint8]]:
    if not PHOTOS.is_dir():
        pytest.skip("needs the real photos of ../shared")
    from PIL import Image

    photos = list[NDArray[np.uint8]]()
    for file in sorted(PHOTOS.glob("*/*.JPEG"))[30::120]:
        with Image.open(file) as image:
            photo = image.convert("RGB")
        photos.append(np.array(photo.resize(size) if size else photo))
    return photos


@pytest.mark.parametrize("corruption", ["fog", *imagenet_c._PIXELWISE])
@pytest.mark.parametrize("shape", [(33, 150, 3), (150, 33, 3)])
def test_corruptions_in_small_chunks_are_those_of_the_package(
    shape: tuple[int, ...], corruption: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgaug.augmenters import imgcorruptlike

    monkeypatch.setattr(imagenet_c, "_AT_ONCE", 700)
    image = np.random.default_rng(3).integers(256, size=shape, dtype=np.uint8)
    expected = getattr(imgcorruptlike, f"apply_{corruption}")(image, severity=4, seed=5)
    quick = next(one for one in QUICK if one.corruption == corruption)
    np.testing.assert_array_equal(quick.apply(image, seed=5, severity=4), expected)


def test_noise_of_a_large_photo_needs_little_memory() -> None:
    image = np.full((1000, 4000, 3), 90, np.uint8)
    imagenet_c._corrupted("gaussian_noise", image[:40], 3, 7)  # imports
    tracemalloc.start()
    try:
        imagenet_c._corrupted("gaussian_noise", image, 3, 7)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6  # the result 12 MB and chunks; imagecorruptions needs 288 MB


def test_fog_of_a_large_photo_needs_little_memory() -> None:
    image = np.full((300, 4000, 3), 90, np.uint8)
    tracemalloc.start()
    try:
        imagenet_c._fog(image, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Half of the noise (4096 x 4096) 34 MB, the result 4 MB, chunks; imagecorruptions needs 400 MB.
    assert peak < 85e6


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), None])
@pytest.mark.parametrize("one", QUICK, ids=lambda one: str(one.name))
def test_quick_corruptions_of_photos_are_those_of_the_package(one: Any, size: Any) -> None:
    """In every run: `test_imagenet_c.py`."""
    from imgaug.augmenters import imgcorruptlike

    function = getattr(imgcorruptlike, f"apply_{one.corruption}")
    for number, photo in enumerate(_photos(size)):
        for severity in one.severities:
            changed = one.apply(photo, seed=number, severity=severity)
            np.testing.assert_array_equal(changed, function(photo, severity=severity, seed=number))


def test_the_package_itself_stays_as_it_is() -> None:
    from imagecorruptions import corruptions

    before = dict(vars(corruptions))
    for one in QUICK:
        one.apply(RNG_IMAGE, seed=1, severity=2)
    changed = {name for name, value in vars(corruptions).items() if before.get(name) is not value}
    assert changed <= {"clipped_zoom"}  # imgaug replaces this one


def _imgaug_piecewise(
    image: NDArray[np.uint8], mask: NDArray[np.int32], seed: int, severity: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    import imgaug.augmenters as iaa
    from imgaug.augmentables.segmaps import SegmentationMapsOnImage

    scale = PIECEWISE.parameters(severity)["scale"]
    augmenter = iaa.PiecewiseAffine(tuple(scale["range"]) if severity == 0 else scale, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        labels = SegmentationMapsOnImage(mask, shape=image.shape)
        changed, moved = augmenter(image=image, segmentation_maps=labels)
    return changed, moved.get_arr()


def _check_piecewise(image: NDArray[np.uint8], seed: int, severity: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 9, image.shape[:2], dtype=np.int32)
    expected, expected_mask = _imgaug_piecewise(image, mask, seed, severity)
    changed, moved = PIECEWISE.apply_with_mask(image, mask, seed=seed, severity=severity)
    np.testing.assert_array_equal(changed, expected)
    np.testing.assert_array_equal(moved, expected_mask)


@pytest.mark.parametrize(
    "shape", [(1, 9), (2, 2), (2, 7), (3, 6), (5, 2), (7, 4), (14, 28), (36, 35), (59, 30)]
)
def test_piecewise_affine_is_imgaugs_at_any_size(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    for severity in range(6):
        _check_piecewise(image, int(rng.integers(2**62)), severity)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), None])
def test_piecewise_affine_of_photos_is_imgaugs(size: Any) -> None:
    """In every run: `test_piecewise_affine_is_imgaugs_at_any_size`."""
    for number, photo in enumerate(_photos(size)):
        for severity in range(6):
            _check_piecewise(photo, 10 * number + severity, severity)


def test_images_too_large_for_a_kept_mesh_are_warped_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = PIECEWISE.apply(RNG_IMAGE, seed=5, severity=5)
    monkeypatch.setattr("robustcli.transforms.paper21._CACHED_PIXELS", 0)
    np.testing.assert_array_equal(PIECEWISE.apply(RNG_IMAGE, seed=5, severity=5), expected)

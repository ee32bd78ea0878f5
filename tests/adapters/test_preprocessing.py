"""Resize and crop, in one step as by Pillow, units of mean and std, greyscale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from robustcli.adapters import preprocessing as preprocessing_module
from robustcli.adapters.preprocessing import INTERPOLATIONS, Preprocessing, grey, overridden
from robustcli.core.errors import UsageError
from robustcli.training.lit_module import luma

# Height and width: landscape, portrait, square, odd, smaller than the crop in one or both sides.
SIZES = [(48, 80), (80, 48), (64, 64), (37, 61), (61, 37), (20, 90), (91, 15), (7, 5), (1, 1)]


def photo(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng((height, width)).integers(0, 256, (height, width, 3), np.uint8)


def by_torchvision(image: NDArray[np.uint8], ours: Preprocessing) -> NDArray[np.uint8]:
    steps: list[object] = [CenterCrop(ours.crop)]
    if ours.resize is not None:
        size = ours.resize if ours.mode == "center" else (ours.resize, ours.resize)
        steps.insert(0, Resize(size, InterpolationMode(ours.interpolation)))
    return np.asarray(Compose(steps)(Image.fromarray(image)))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("resize", "crop"), [(36, 32), (35, 30), (32, 33), (64, 64), (None, 32)])
def test_as_torchvision(
    size: tuple[int, int], resize: int | None, crop: int, interpolation: str
) -> None:
    preprocessing = Preprocessing(resize, crop, interpolation)
    view = preprocessing.apply(photo(*size))
    assert view.shape == (crop, crop, 3)
    np.testing.assert_array_equal(view, by_torchvision(photo(*size), preprocessing))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_as_timm(interpolation: str, crop_pct: float, mode: str) -> None:
    theirs = create_transform(
        (3, 56, 56), interpolation=interpolation, crop_pct=crop_pct, crop_mode=mode, normalize=False
    )
    preprocessing = Preprocessing(int(56 / crop_pct), 56, interpolation, mode=mode)
    for size in ((90, 133), (133, 90), (60, 60), (41, 300)):
        expected = theirs(Image.fromarray(photo(*size))).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(preprocessing.apply(photo(*size)), expected)


def test_the_view_is_one_block_of_memory_of_its_own() -> None:
    for image, preprocessing in (
        (photo(40, 60), Preprocessing(None, 16)),
        (photo(32, 32), Preprocessing(32, 32)),
        (photo(32, 32), Preprocessing(None, 32)),
    ):
        view = preprocessing.apply(image)
        assert view.flags.c_contiguous
        assert not np.shares_memory(view, image)


def test_views_are_called_by_what_decides_the_pixels() -> None:
    preprocessing = Preprocessing(256, 224, "bicubic")
    assert preprocessing.view == "center256-bicubic-crop224"
    assert preprocessing.view == Preprocessing(256, 224, mean=(0, 0, 0), std=(1, 1, 1)).view
    assert Preprocessing(None, 32).view == "as-is-crop32"
    others = [Preprocessing(255, 224), Preprocessing(256, 223), Preprocessing(256, 224, "nearest"),
              Preprocessing(256, 224, mode="squash"), OWN.of_channels(1)]  # fmt: skip
    assert len({preprocessing.view, *(other.view for other in others)}) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"interpolation": "cubic"},
            r"`--interpolation cubic` is unknown\.\nExpected one of nearest, b",
        ),
        ({"crop": 0}, "`--resize` and `--crop` must be at least 1 pixel"),
        ({"resize": 0}, "`--resize` and `--crop` must be at least 1 pixel"),
        ({"crop": 13_378}, r"`--crop` is too large: 13,378 pixels.*\n.*limited to 13,377"),
        ({"resize": 10**6, "mode": "squash"}, "`--resize` is too large: 1,000,000 pixels"),
        ({"std": (0.5, 0.0, 0.5)}, r"`--std` must be above zero.*\nGot \(0\.5, 0\.0, 0\.5\)"),
        ({"std": (0.5, -1, 0.5)}, "`--std` must be above zero"),
        ({"std": (0.5, float("nan"), 0.5)}, "`--mean` and `--std` must be numbers.*\nGot.*nan"),
        ({"mean": (float("inf"), 0, 0)}, "`--mean` and `--std` must be numbers"),
    ],
)
def test_settings_that_make_no_view(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocessing(**{"resize": 36, "crop": 32, **change})


OWN = Preprocessing(256, 224)


def test_units_of_255_are_read_and_announced_and_those_of_one_kept() -> None:
    settings = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    changed, notes = overridden(OWN, settings)
    assert changed == OWN  # to the bit, so that the run is the same one
    assert len(notes) == 2
    assert "`--mean` is interpreted in units of 0 to 255: 0.485,0.456,0.406" in notes[0]
    changed, notes = overridden(OWN, {"mean": (0, 0, 0), "std": (1, 1, 1), "crop": 32})
    assert (changed.mean, changed.std, changed.crop, notes) == ((0.0,) * 3, (1.0,) * 3, 32, ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": (123.0, 116, 103), "std": (1.0, 1, 1)}, "not in the same units"),
        ({"mean": (0.4, 116, 0.4)}, "units of `--mean .*` are ambiguous"),
        ({"mean": (2.0, 2, 2)}, "are ambiguous"),
        ({"mean": (300.0, 2, 2)}, "out of range"),
        ({"mean": (-0.1, 0.2, 0.2)}, "out of range"),
        ({"mean": (float("nan"), 0.2, 0.2)}, "is not a number"),
        ({"std": (0.0, 0.2, 0.2)}, "above zero in every channel"),
        ({"std": (-58.0, 57, 57)}, "above zero in every channel"),
        ({"mean": (0.5, 0.5)}, "has 2 numbers(.|\n)*Pass 3"),
        ({"mean": (0.5,)}, "has 1 numbers"),
    ],
)
def test_values_that_cannot_be_meant(changes: dict[str, tuple[float, ...]], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        overridden(OWN, changes)


def test_one_number_for_a_greyscale_network() -> None:
    single = OWN.of_channels(1)
    changed, _ = overridden(single, {"mean": (127.5,), "std": (127.5,)})
    assert (changed.mean, changed.std) == ((0.5,), (0.5,))
    with pytest.raises(UsageError, match="has 3 numbers"):
        overridden(single, {"mean": (0.5, 0.5, 0.5)})


def test_every_configuration_of_timm_is_read() -> None:
    for name in timm.list_pretrained():
        config = timm.get_pretrained_cfg(name)
        custom = OWN.of_channels(len(config.mean))
        _, notes = overridden(custom, {"mean": config.mean, "std": config.std})
        assert notes == (), name


def test_greyscale_is_pillows_in_evaluation_and_training() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).convert("L"))
    assert (grey(image)[:, :, 0] == expected).all()
    assert grey(image).flags.writeable  # torch warns of tensors over anything else
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    assert (luma(batch)[0, 0].numpy() == expected).all()
    soft = luma(batch.float() / 255)[0, 0].numpy() * 255
    assert np.abs(soft - expected).max() < 0.51


PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "imagenet_sample" / "val"


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
        np.testing.assert_array_equal(view, by_torchvision(image, preprocessing))
        assert view.flags.c_contiguous
        quick += _is_quick(image, preprocessing)
    assert (quick > 10) == (interpolation in ("bilinear", "bicubic"))


def _is_quick(image: NDArray[np.uint8], preprocessing: Preprocessing) -> bool:
    size = preprocessing.resized(image.shape[1], image.shape[0])
    resampling = INTERPOLATIONS[preprocessing.interpolation]
    view = preprocessing_module.resized_centre(image, size, preprocessing.crop, resampling)
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
                    preprocessing.apply(image), by_torchvision(image, preprocessing)
                )


def test_extreme_values_are_clipped_as_pillow_does() -> None:
    """Bicubic weights below zero overshoot at edges between black and white."""
    image = (np.indices((90, 120)).sum(0) // 7 % 2 * 255).astype(np.uint8)
    image = np.repeat(image[..., None], 3, axis=2)
    for resize in (37, 200):
        preprocessing = Preprocessing(resize, 32)
        view = preprocessing.apply(image)
        np.testing.assert_array_equal(view, by_torchvision(image, preprocessing))


@pytest.mark.parametrize(("height", "width"), [(1, 50), (50, 1), (3, 71), (200, 9), (2, 3)])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (40, 64)])
def test_of_very_long_images_only_the_centre_is_resized(
    height: int, width: int, resize: int, crop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to one step of rounding: bilinear values are between those of the image in any order."""
    image = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    preprocessing = Preprocessing(resize, crop, "bilinear")
    expected = preprocessing.apply(image).astype(int)
    monkeypatch.setattr(preprocessing_module, "_MOST_RESIZED", 0)
    assert np.abs(preprocessing.apply(image) - expected).max() <= 1


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_line_of_pixels_does_not_fill_the_memory(interpolation: str) -> None:
    """Resized to 256 x 12,800,000 pixels, it would take 13 GB."""
    image = np.repeat(np.arange(50_000, dtype=np.uint8)[None, :, None], 3, axis=2)
    view = Preprocessing(256, 224, interpolation).apply(image)
    assert view.shape == (224, 224, 3)
    assert set(view.ravel()) <= {*range(24_999 % 256 - 2, 24_999 % 256 + 4)}


def test_a_pillow_with_other_pixels_resizes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(6).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    preprocessing = Preprocessing(40, 36)
    monkeypatch.setattr(preprocessing_module, "_is_pillows", lambda _: False)
    assert not _is_quick(image, preprocessing)
    np.testing.assert_array_equal(preprocessing.apply(image), by_torchvision(image, preprocessing))


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
                preprocessing.apply(photo), by_torchvision(photo, preprocessing)
            )

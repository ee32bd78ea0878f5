"""Against imgaug called directly, with the table of the specification written out once more."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imgaug.augmenters as iaa
import numpy as np
import pytest
from imgaug.parameters import Choice
from numpy.typing import NDArray

from robustcli.core.errors import RunError
from robustcli.transforms.paper21 import PAPER21, Augmented
from tests.transforms.conftest import errors_by_severity

BY_NAME = {transform.name: transform for transform in PAPER21}


def _affine(scale: Any, shift: Any, rotate: Any, shear: Any, seed: int) -> Any:
    return iaa.Affine(
        scale={"x": scale, "y": scale},
        translate_percent={"x": shift, "y": shift},
        rotate=rotate,
        shear=shear,
        seed=seed,
    )


# name: (full range, severity 3 or None), each from a seed
Made = Callable[[int], Any]
SPEC: dict[str, tuple[Made, Made | None]] = {
    "additive_gaussian_noise": (
        lambda s: iaa.AdditiveGaussianNoise(scale=(0, 0.2 * 255), seed=s),
        lambda s: iaa.AdditiveGaussianNoise(scale=30.6, seed=s),
    ),
    "affine": (
        lambda s: _affine((0.8, 1.2), (-0.2, 0.2), (-25, 25), (-8, 8), s),
        lambda s: _affine([0.88, 1.12], [-0.12, 0.12], [-15.0, 15.0], [-4.8, 4.8], s),
    ),
    "crop": (
        lambda s: iaa.Crop(percent=(0, 0.1), seed=s),
        lambda s: iaa.Crop(percent=0.06, seed=s),
    ),
    "hue_and_saturation": (
        lambda s: iaa.AddToHueAndSaturation((-50, 50), per_channel=True, seed=s),
        lambda s: iaa.AddToHueAndSaturation([-30, 30], per_channel=True, seed=s),
    ),
    "crop_and_pad": (
        lambda s: iaa.CropAndPad(percent=(-0.25, 0.25), seed=s),
        lambda s: iaa.CropAndPad(percent=Choice([-0.15, 0.15]), seed=s),
    ),
    "cutout": (lambda s: iaa.Cutout(nb_iterations=2, seed=s), None),
    "dropout": (lambda s: iaa.Dropout(p=(0, 0.2), seed=s), lambda s: iaa.Dropout(p=0.12, seed=s)),
    "edge_detect": (
        lambda s: iaa.EdgeDetect(alpha=(0, 1), seed=s),
        lambda s: iaa.EdgeDetect(alpha=0.6, seed=s),
    ),
    "emboss": (
        lambda s: iaa.Emboss(alpha=(0, 1), strength=(0.5, 1.5), seed=s),
        lambda s: iaa.Emboss(alpha=0.6, strength=1.1, seed=s),
    ),
    "piecewise_affine": (
        lambda s: iaa.PiecewiseAffine(scale=(0.01, 0.05), seed=s),
        lambda s: iaa.PiecewiseAffine(scale=0.034, seed=s),
    ),
    "salt": (lambda s: iaa.Salt(0.1, seed=s), None),
    "fast_snowy_landscape": (
        lambda s: iaa.FastSnowyLandscape(
            lightness_threshold=(100, 255), lightness_multiplier=(1, 4), seed=s
        ),
        lambda s: iaa.FastSnowyLandscape(lightness_threshold=193, lightness_multiplier=2.8, seed=s),
    ),
    "fliplr": (lambda s: iaa.Fliplr(1.0, seed=s), None),
    "gaussian_blur": (
        lambda s: iaa.GaussianBlur(sigma=(0, 3), seed=s),
        lambda s: iaa.GaussianBlur(sigma=1.8, seed=s),
    ),
    "grayscale": (
        lambda s: iaa.Grayscale(alpha=(0, 1), seed=s),
        lambda s: iaa.Grayscale(alpha=0.6, seed=s),
    ),
    "invert": (lambda s: iaa.Invert(1.0, seed=s), None),
    "linear_contrast": (
        lambda s: iaa.LinearContrast((0.4, 1.6), seed=s),
        lambda s: iaa.LinearContrast([0.64, 1.36], seed=s),
    ),
    "multiply": (
        lambda s: iaa.Multiply((0.5, 1.5), seed=s),
        lambda s: iaa.Multiply([0.7, 1.3], seed=s),
    ),
    "multiply_per_channel": (
        lambda s: iaa.Multiply((0.5, 1.5), per_channel=True, seed=s),
        lambda s: iaa.Multiply([0.7, 1.3], per_channel=True, seed=s),
    ),
    "perspective": (
        lambda s: iaa.PerspectiveTransform(scale=(0.01, 0.15), seed=s),
        lambda s: iaa.PerspectiveTransform(scale=0.094, seed=s),
    ),
    "flipud": (lambda s: iaa.Flipud(1.0, seed=s), None),
}


def _direct(made: Made, seed: int, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return np.asarray(made(seed)(image=image))


def test_the_table_is_whole_and_in_order() -> None:
    assert [item.name for item in PAPER21] == list(SPEC)
    assert all(item.assumed and item.ranged and item.family == "paper21" for item in PAPER21)


@pytest.mark.parametrize("name", SPEC)
def test_full_range_is_imgaug_itself(name: str, picture: NDArray[np.uint8]) -> None:
    for seed in (0, 1, 2**40 + 17, 2**64 - 1):
        changed = BY_NAME[name].apply(picture, seed=seed, severity=0)
        np.testing.assert_array_equal(changed, _direct(SPEC[name][0], seed, picture))


@pytest.mark.parametrize("name", SPEC)
def test_severity_3_is_imgaug_itself(name: str, picture: NDArray[np.uint8]) -> None:
    made = SPEC[name][1]
    assert BY_NAME[name].severities == ((1, 2, 3, 4, 5) if made else ())
    for seed in (1, 2, 3) if made else ():
        changed = BY_NAME[name].apply(picture, seed=seed, severity=3)
        np.testing.assert_array_equal(changed, _direct(made, seed, picture))


def test_geometric_are_those_that_move_pixels() -> None:
    moving = {"affine", "crop", "crop_and_pad", "piecewise_affine", "perspective"}
    assert {item.name for item in PAPER21 if item.geometric} == moving | {"fliplr", "flipud"}


@pytest.mark.parametrize(
    "case", [t for t in PAPER21 if t.severities], ids=lambda transform: str(transform.name)
)
def test_an_image_suffers_more_with_severity(
    case: Augmented, photos: list[NDArray[np.uint8]]
) -> None:
    errors = errors_by_severity(case, photos, seeds=4)
    assert errors == sorted(errors)
    assert errors[4] > 2 * errors[0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (3, 500), (500, 1), (2, 3)])
def test_tiny_and_thin_images_are_transformed(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for item in PAPER21:
        for severity in item.available():
            changed = item.apply(image, seed=5, severity=severity)
            assert (changed.shape, changed.dtype) == (image.shape, np.uint8), item.name


def test_an_image_too_long_for_opencv_is_named() -> None:
    image = np.zeros((1, 40_000, 3), np.uint8)
    with pytest.raises(RunError, match=r"`affine` cannot be applied to an image of 40000x1 pixels"):
        BY_NAME["affine"].apply(image, seed=0, severity=0)


DOCS = Path(__file__).parents[2] / "docs" / "transforms.md"


@pytest.mark.parametrize("case", PAPER21, ids=lambda transform: str(transform.name))
def test_the_documentation_states_the_parameters(case: Augmented) -> None:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    head = f"| `{case.name}` | `{case.augmenter}` | {_in_words(case.parameters(0))} |"
    assert any(line.startswith(head) for line in lines), head
    for parameter in _varying(case):
        values = [_in_words(case.parameters(s)[parameter]) for s in case.severities]
        row = f"| `{case.name}` | {parameter} | {' | '.join(values)} |"
        assert row in lines, row


def _varying(first: Augmented) -> list[str]:
    if not first.severities:
        return []
    weak, strong = first.parameters(1), first.parameters(5)
    return [parameter for parameter in weak if weak[parameter] != strong[parameter]]


def _in_words(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if "range" in value:
        return " to ".join(_in_words(bound) for bound in value["range"])
    if "one_of" in value:
        return " or ".join(_in_words(bound) for bound in value["one_of"])
    if value.keys() == {"x", "y"}:
        return f"x and y: {_in_words(value['x'])}"
    return ", ".join(f"{name} {_in_words(part)}" for name, part in value.items())

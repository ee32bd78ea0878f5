"""The corruptions of ImageNet-C against the package that defines them."""

from __future__ import annotations

import numpy as np
import pytest
from imgaug.augmenters import imgcorruptlike
from numpy.typing import NDArray

from robustcli.transforms.imagenet_c import IMAGENET_C, Corruption
from tests.transforms.conftest import errors_by_severity

# Steps at which the published constants do not make an image differ more from the clean one:
# glass_blur takes fewer passes, snow larger flakes, frost a fainter photo under as much ice, and
# saturate turns from too little colour to too much.
MILDER = {"glass_blur": {1, 3}, "snow": {2}, "frost": {3}, "saturate": {2}}
EACH = pytest.mark.parametrize(
    "corruption", IMAGENET_C, ids=lambda corruption: str(corruption.name)
)


@EACH
def test_pixels_are_those_of_imgcorruptlike(corruption: Corruption) -> None:
    """Also where an image is smaller than a blur is long, and for arrays that cannot be written."""
    function = getattr(imgcorruptlike, f"apply_{corruption.corruption}")
    image = np.random.default_rng(3).integers(0, 256, (41, 36, 3), dtype=np.uint8)
    writeable = image.copy()
    image.flags.writeable = False
    for severity in corruption.severities:
        assert corruption.parameters(severity) == {"severity": severity}
        for seed in (9, 2**32 - 1):
            expected = function(writeable, severity=severity, seed=seed)
            changed = corruption.apply(image, seed=2**40 + seed, severity=severity)
            np.testing.assert_array_equal(changed, expected)


@EACH
def test_an_image_suffers_more_with_severity(
    corruption: Corruption, photos: list[NDArray[np.uint8]]
) -> None:
    errors = errors_by_severity(corruption, photos, seeds=2)
    milder = MILDER.get(corruption.corruption, set())
    for severity in {1, 2, 3, 4} - milder:
        assert errors[severity - 1] <= errors[severity], (corruption.name, severity)
    assert errors[4] > errors[0]


@pytest.mark.parametrize("shape", [(32, 32), (375, 500)])
def test_any_size_works_quietly(shape: tuple[int, int], capsys: pytest.CaptureFixture[str]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for item in IMAGENET_C:
        changed = item.apply(image, seed=1, severity=5)
        assert (changed.shape, changed.dtype) == (image.shape, np.uint8)
        assert (changed != image).any()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("value", [0, 255])
def test_an_image_of_one_colour_is_no_trouble(value: int) -> None:
    image = np.full((33, 40, 3), value, np.uint8)
    for item in IMAGENET_C:
        for seed in range(5):
            assert item.apply(image, seed=seed, severity=2).shape == image.shape


@EACH
def test_small_images_are_mirrored_out_and_cut_back(corruption: Corruption) -> None:
    image = np.random.default_rng(1).integers(0, 256, (20, 50, 3), dtype=np.uint8)
    mirrored = np.concatenate([image, image[:7:-1]])
    assert mirrored.shape == (32, 50, 3)
    changed = corruption.apply(image, seed=4, severity=3)
    np.testing.assert_array_equal(changed, corruption.apply(mirrored, seed=4, severity=3)[:20])
    for tiny in (image[:1, :1], image[:3], image[:, :1]):
        assert corruption.apply(tiny, seed=4, severity=5).shape == tiny.shape


def test_spatter_without_a_drop_is_black_as_in_imagecorruptions_and_quiet() -> None:
    """The package divides by zero; its warnings are errors in tests."""
    spatter = next(item for item in IMAGENET_C if item.corruption == "spatter")
    image = np.full((32, 32, 3), 200, np.uint8)
    changed = [spatter.apply(image, seed=seed, severity=1) for seed in range(200)]
    assert 0 < sum(not pixels.any() for pixels in changed) < 20


def test_the_19_of_the_benchmark_in_its_order() -> None:
    names, _ = imgcorruptlike.get_corruption_names("common")
    more, _ = imgcorruptlike.get_corruption_names("validation")
    assert [item.corruption for item in IMAGENET_C] == [*names, *more]
    assert [item.name for item in IMAGENET_C] == [f"c_{name}" for name in (*names, *more)]

    assert all(item.available() == (1, 2, 3, 4, 5) for item in IMAGENET_C)
    assert not any(item.assumed for item in IMAGENET_C)
    assert [item.corruption for item in IMAGENET_C if item.geometric] == ["elastic_transform"]

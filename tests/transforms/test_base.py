"""The contract that every transform keeps: pure, seeded, shape and dtype, clear errors."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from robustcli.core.errors import UsageError
from robustcli.transforms.base import Span, Transform, has_span, settings_at
from robustcli.transforms.imagenet_c import IMAGENET_C
from robustcli.transforms.paper21 import PAPER21
from robustcli.transforms.registry import (
    TransformCell,
    image_seed,
    resolve_transforms,
    transforms,
)

EVERYTHING = resolve_transforms(["all"], [0, 1, 5])

DIGESTS = """
import hashlib, json, sys
import numpy as np
from robustcli.transforms.registry import image_seed, resolve_transforms
np.random.seed(int(sys.argv[1]))
image = np.frombuffer(bytes.fromhex(sys.stdin.read()), np.uint8).reshape(48, 64, 3)
cells = resolve_transforms(["all"], [0, 1, 5])
np.random.default_rng(int(sys.argv[1])).shuffle(cells)
print(json.dumps({
    f"{c.transform.name} {c.severity}": hashlib.sha256(c.transform.apply(
        image, seed=image_seed(0, c.transform.name, c.severity, "a.jpg"), severity=c.severity
    )).hexdigest() for c in cells}))
"""


def _digest(cell: TransformCell, image: NDArray[np.uint8], seed: int) -> str:
    changed = cell.transform.apply(image, seed=seed, severity=cell.severity)
    return hashlib.sha256(changed).hexdigest()


def _digests_elsewhere(image: NDArray[np.uint8], order: int) -> dict[str, str]:
    # Older libraries raise DeprecationWarning for each other; here in pytest it is an error.
    warnings = ("-W", "error", "-W", "default::DeprecationWarning")
    command = [sys.executable, *warnings, "-c", DIGESTS, str(order)]
    done = subprocess.run(
        command, input=image.tobytes().hex(), capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def test_pixels_do_not_depend_on_order_or_process(picture: NDArray[np.uint8]) -> None:
    here = {
        f"{cell.transform.name} {cell.severity}": _digest(
            cell, picture, image_seed(0, cell.transform.name, cell.severity, "a.jpg")
        )
        for cell in EVERYTHING
    }
    assert _digests_elsewhere(picture, 1) == here
    assert len(here) == 1 + 21 + 16 * 2 + 19 * 2


def test_pixels_do_not_depend_on_threads_or_neighbours(picture: NDArray[np.uint8]) -> None:
    names = ["affine", "cutout", "multiply_per_channel", "piecewise_affine", "c_snow", "c_spatter"]
    work = [(cell, seed) for cell in resolve_transforms(names, None) for seed in range(6)]
    alone = [_digest(cell, picture, seed) for cell, seed in work]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda item: _digest(item[0], picture, item[1]), reversed(work)))
    assert together[::-1] == alone


def test_global_generators_stay_as_they_are(picture: NDArray[np.uint8]) -> None:
    import imgaug.random

    imgaug.random.seed(7)
    before = np.random.get_state()[1:3], imgaug.random.get_global_rng().state  # noqa: NPY002
    for cell in EVERYTHING:
        cell.transform.apply(picture, seed=1, severity=cell.severity)
    after = np.random.get_state()[1:3], imgaug.random.get_global_rng().state  # noqa: NPY002
    np.testing.assert_equal(after, before)


def test_every_cell_keeps_shape_and_input() -> None:
    image = np.random.default_rng(1).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    image.flags.writeable = False
    for cell in EVERYTHING:
        changed = cell.transform.apply(image, seed=2**64 - 1, severity=cell.severity)
        assert (changed.shape, changed.dtype) == (image.shape, np.uint8), cell.transform.name
        assert changed.flags.c_contiguous
        assert changed.flags.writeable
        assert not np.shares_memory(changed, image)


def test_seed_matters_where_there_is_chance(picture: NDArray[np.uint8]) -> None:
    without = {"identity", "fliplr", "flipud", "invert"}
    without |= {f"c_{item}" for item in ("contrast", "brightness", "saturate", "pixelate")}
    without |= {f"c_{item}" for item in ("jpeg_compression", "defocus_blur", "zoom_blur")}
    without |= {"c_gaussian_blur"}
    same = {
        cell.transform.name
        for cell in resolve_transforms(["all"], None)
        if len({_digest(cell, picture, seed) for seed in range(5)}) == 1
    }
    assert same == without


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(wrong: NDArray[np.uint8]) -> None:
    with pytest.raises(UsageError, match=r"`fliplr` does not support this `image`") as error:
        resolve_transforms(["fliplr"], None)[1].transform.apply(wrong, seed=0, severity=0)
    assert f"it is {wrong.dtype} of shape {wrong.shape}" in error.value.why


def test_a_severity_that_is_not_there_is_refused(picture: NDArray[np.uint8]) -> None:
    flip, fog = (resolve_transforms([name], None)[1].transform for name in ("fliplr", "c_fog"))
    with pytest.raises(UsageError, match=r"`fliplr` has no severity 2.\nIts only severity is 0"):
        flip.apply(picture, seed=0, severity=2)
    with pytest.raises(UsageError, match=r"`c_fog` has no severity 0.\n.* are 1, 2, 3, 4, 5"):
        fog.parameters(0)


def test_parameters_are_json() -> None:
    for cell in EVERYTHING:
        stated = cell.transform.parameters(cell.severity)
        assert json.loads(json.dumps(stated)) == stated


CHEAP = [t for t in transforms() if t.name not in ("piecewise_affine", "c_zoom_blur")]


@settings(max_examples=60, deadline=None)
@given(
    transform=st.sampled_from(CHEAP),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**64 - 1),
)
def test_masks_of_any_size_follow(transform: Transform, height: int, width: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    image = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = draw.integers(0, 9, (height, width), dtype=np.uint8)
    kept = image.copy(), mask.copy()
    severity = transform.available()[-1]
    changed, moved = transform.apply_with_mask(image, mask, seed=seed, severity=severity)
    np.testing.assert_array_equal(changed, transform.apply(image, seed=seed, severity=severity))
    assert (moved.shape, moved.dtype) == (changed.shape[:2], mask.dtype)
    assert set(np.unique(moved)) <= {0, *np.unique(mask)}
    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(mask, kept[1])
    if not transform.geometric:
        np.testing.assert_array_equal(moved, mask)
        assert not np.shares_memory(moved, mask)


@pytest.mark.parametrize(
    "case",
    [t for t in (*PAPER21, *IMAGENET_C) if t.geometric],
    ids=lambda transform: str(transform.name),
)
def test_a_mask_moves_as_the_image_that_shows_it(case: Transform) -> None:
    rows, columns = np.mgrid[0:90, 0:120]
    disc = (rows - 40) ** 2 + (columns - 45) ** 2 < 30**2
    image = np.repeat(disc[..., None] * np.uint8(255), 3, axis=2)
    moves = 0
    for seed in range(6):
        severity = case.available()[-1]
        changed, moved = case.apply_with_mask(image, disc, seed=seed, severity=severity)
        inside = _same_around(changed[..., 0] == 255)
        outside = _same_around(changed[..., 0] == 0)
        assert moved[inside].all()
        assert not moved[outside].any()
        assert inside.mean() + outside.mean() > 0.8
        moves += bool((moved != disc).any())
    assert moves == 6


@pytest.mark.parametrize(
    "case", [t for t in (*PAPER21, *IMAGENET_C) if t.geometric], ids=lambda chosen: str(chosen.name)
)
def test_each_class_of_a_mask_moves_as_it_would_alone(case: Transform) -> None:
    """No index is interpolated: class 2 is where a mask of class 2 alone would be."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)
    mask = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (6, 8)).repeat(6, 0).repeat(6, 1)
    for severity in case.available()[-2:]:
        _, moved = case.apply_with_mask(image, mask, seed=5, severity=severity)
        for number in (1, 2, 3, 255):
            _, alone = case.apply_with_mask(image, mask == number, seed=5, severity=severity)
            np.testing.assert_array_equal(moved == number, alone)


@pytest.mark.parametrize("name", ["crop", "crop_and_pad", "perspective"])
def test_a_resized_mask_is_not_shifted_against_its_image(name: str) -> None:
    """Half a pixel more to one side than to the other would overstate a segmenter's loss."""
    item = next(t for t in PAPER21 if t.name == name)
    mask = np.zeros((256, 256), bool)
    mask[50:130, 60:150] = True
    image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    shifts = []
    for seed in range(8):
        changed, moved = item.apply_with_mask(image, mask, seed=seed, severity=0)
        shown = changed[..., 0] >= 128
        shifts.append(np.argwhere(shown).mean(0) - np.argwhere(moved).mean(0))
        assert (shown & moved).sum() / (shown | moved).sum() > 0.98
    assert np.abs(np.mean(shifts, 0)).max() < 0.2


def _same_around(holds: NDArray[np.bool_]) -> NDArray[np.bool_]:
    around = [np.roll(holds, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return np.logical_and.reduce(around)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16, np.int32, np.int64])
def test_a_mask_keeps_its_dtype_and_large_labels(dtype: type, picture: NDArray[np.uint8]) -> None:
    label = {np.bool_: 1, np.uint8: 255, np.uint16: 65535}.get(dtype, 2_000_000_000)
    mask = np.full(picture.shape[:2], label, dtype)
    for cell in resolve_transforms(
        ["affine", "piecewise_affine", "crop_and_pad", "perspective"], None
    )[1:]:
        _, moved = cell.transform.apply_with_mask(picture, mask, seed=4, severity=0)
        assert moved.dtype == dtype
        assert set(np.unique(moved)) <= {0, mask.flat[0]}
        assert mask.flat[0] in moved


@pytest.mark.parametrize("mask", [np.zeros((48, 63), np.uint8), np.zeros((48, 64), np.float32)])
def test_a_mask_that_does_not_fit_is_refused(
    mask: NDArray[np.uint8], picture: NDArray[np.uint8]
) -> None:
    with pytest.raises(UsageError, match=r"`mask` does not fit `image`"):
        PAPER21[1].apply_with_mask(picture, mask, seed=0, severity=0)


@pytest.mark.parametrize(
    ("span", "severities", "expected"),
    [
        (Span(0, 51.0, mild=0), range(1, 6), [10.2, 20.4, 30.6, 40.8, 51.0]),
        (Span(0.01, 0.05, mild=0.01), range(1, 6), [0.018, 0.026, 0.034, 0.042, 0.05]),
        (Span(100, 255, mild=100, integer=True), range(1, 6), [131, 162, 193, 224, 255]),
        (Span(0.4, 1.6, mild=1), (2, 5), [{"one_of": [0.76, 1.24]}, {"one_of": [0.4, 1.6]}]),
        (Span(-25, 25, mild=0), (0,), [{"range": [-25, 25]}]),
    ],
)
def test_a_range_goes_from_mild_to_its_far_ends(span: Span, severities, expected) -> None:
    values = [span.at(severity) for severity in severities]
    assert values == expected
    assert not span.integer or all(isinstance(value, int) for value in values)


@pytest.mark.parametrize(
    ("settings", "expected"), [({"p": 1.0}, False), ({"scale": {"x": Span(0, 1, mild=0)}}, True)]
)
def test_a_range_is_found_at_any_depth(settings: dict[str, object], expected: bool) -> None:
    assert has_span(settings) is expected


def test_settings_keep_what_has_no_range() -> None:
    settings = {"mul": {"x": Span(0, 1, mild=0)}, "per_channel": True}
    assert settings_at(settings, 5) == {"mul": {"x": 1}, "per_channel": True}

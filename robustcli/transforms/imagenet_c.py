"""The 19 corruptions of the preset `imagenet-c`.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019 (arXiv 1903.12261): 15 corruptions of the benchmark, then the 4 extra
corruptions for validation. Names have the prefix `c_`, because `gaussian_blur` is also a transform
of paper21.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, lru_cache
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcli.core.compiled import import_compiled
from robustcli.transforms import exact_kernels
from robustcli.transforms.base import SEVERITIES, Image, Mask, Transform

# The corruptions draw from NumPy's global generator, which imgcorruptlike seeds and then restores;
# this is not thread-safe, so only one thread may run it.
ONE_AT_A_TIME = threading.Lock()
SMALLEST_SIDE = 32  # `imgcorruptlike` refuses smaller images


@dataclass(frozen=True, kw_only=True)
class Corruption(Transform):
    """One of the 19 corruptions.

    An image with a side below 32 pixels is padded to 32 by mirroring, corrupted and cropped back.
    """

    corruption: str

    def _parameters(self, severity: int) -> dict[str, Any]:
        return {"severity": severity}

    def _changed(self, image: Image, *, seed: int, severity: int) -> Image:
        height, width = image.shape[:2]
        with ONE_AT_A_TIME:
            changed = _corrupted(self.corruption, _framed(image), severity, _narrow(seed))
        return changed[:height, :width]

    def _moved(self, image: Image, mask: Mask, *, seed: int, severity: int) -> tuple[Image, Mask]:
        changed = self._changed(image, seed=seed, severity=severity)
        if not self.geometric:
            return changed, mask
        height, width = mask.shape
        return changed, _elastically(_framed(mask), seed, severity)[:height, :width]


def _corrupted(corruption: str, image: Image, severity: int, seed: int) -> Image:
    """Corrupts `image` (H, W, 3), at least 32 x 32 pixels, as `imgcorruptlike` does, or faster."""
    imgcorruptlike = import_compiled("imgaug.augmenters.imgcorruptlike")
    function = _accelerated().get(corruption)
    if function is None:
        # `spatter` divides by zero where no drop falls on a small image, and makes it black.
        with np.errstate(invalid="ignore"):
            slow: Image = getattr(imgcorruptlike, f"apply_{corruption}")(image, severity, seed)
        return slow
    height, width = image.shape[:2]
    parts = _chunks(height, 3 * width) if corruption in _PIXELWISE else [slice(height)]
    changed = np.empty_like(image)
    with _numpy_seed(seed):
        for rows in parts:
            changed[rows] = np.uint8(function(image[rows], severity))
    return changed


_PIXELWISE = ("gaussian_noise", "shot_noise", "speckle_noise", "brightness", "saturate")
"""Corruptions whose pixels depend only on themselves and on draws in their order.

A few rows at once need less memory, and give the same pixels.
"""


def _numpy_seed(seed: int) -> AbstractContextManager[None]:
    """Seeds NumPy's global generator, and restores its state at the end."""
    context: AbstractContextManager[None] = import_compiled("imgaug.random").temporary_numpy_seed(
        seed
    )
    return context


@cache
def _accelerated() -> Mapping[str, Callable[[Image, int], NDArray[Any]]]:
    """Functions of `imagecorruptions` with faster helpers, bitwise identical.

    Each function uses the code of the package, with its constants and random draws; only the
    helpers that move, blend and convert pixels are replaced by `exact_kernels`. The package is not
    modified. `fog` is rewritten to need less memory.
    """
    from imagecorruptions import corruptions  # type: ignore[import-untyped]

    colours = SimpleNamespace(rgb2hsv=exact_kernels.hsv, hsv2rgb=exact_kernels.rgb)
    hsv = {"sk": SimpleNamespace(color=colours)}
    zoom = {"clipped_zoom": _clipped_zoom}
    blur = {"_motion_blur": _motion_blur}
    helpers: dict[str, dict[str, Any]] = {
        "gaussian_noise": {},
        "shot_noise": {},
        "speckle_noise": {},
        "zoom_blur": zoom,
        "motion_blur": blur,
        "snow": zoom | blur,
        "frost": {"cv2": _FrostPictures()},
        "brightness": hsv,
        "saturate": hsv,
        "elastic_transform": {"map_coordinates": _map_coordinates},
    }
    functions: dict[str, Callable[[Image, int], NDArray[Any]]] = {
        name: FunctionType(
            getattr(corruptions, name).__code__,
            {**vars(corruptions), **replacements},
            name,
            getattr(corruptions, name).__defaults__,
        )
        for name, replacements in helpers.items()
    }
    return {**functions, "fog": _fog}


_FOG = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))
"""Strength of the fog, and decay of its details, by severity."""
_AT_ONCE = 2**20  # values in a chunk of rows


def _fog(image: Image, severity: int) -> Image:
    """`fog` of imagecorruptions, which needs several times the memory for large or long images."""
    strength, decay = _FOG[severity - 1]
    height, width = image.shape[:2]
    side = 2 ** (max(height, width) - 1).bit_length()
    brightest, foggy = float(image.max()) / 255, np.empty_like(image)
    for rows, heights in _plasma_rows(side, decay, height):
        lit = image[rows] / 255.0
        lit += strength * heights[: len(lit), :width, None]
        foggy[rows] = np.clip(lit * brightest / (brightest + strength), 0, 1) * 255
    return foggy


def _plasma_rows(
    side: int, decay: float, height: int
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """The first `height` rows of `plasma_fractal` of imagecorruptions: diamond-square noise.

    Draws the same numbers from NumPy's global generator, for values in [0, 1] of (side, side). The
    last step of a large image, which adds three quarters of the values, is not stored: it is
    computed once for the range of all values, and again, with the same numbers, for the rows.

    Yields:
        Slices of rows, and the rows (n, side).
    """
    if side * side <= _AT_ONCE:
        heights, _ = _plasma(side, decay)
        heights -= heights.min()
        heights /= heights.max()
        yield slice(0, height), heights[:height]
        return
    half = side // 2
    corners, spread = _plasma(half, decay)
    centres = np.empty_like(corners)
    for rows in _chunks(half, half):
        centres[rows] = _displaced(_sums_of_corners(corners, rows), spread, np.random)
    states, ends = [], [*_range(corners), *_range(centres)]
    for sums in (_sums_above, _sums_left):
        states.append(np.random.get_state())  # noqa: NPY002  as the package
        for rows in _chunks(half, half):
            ends += _range(_displaced(sums(corners, centres, rows), spread, np.random))
    lowest = min(ends)
    extent = max(ends) - lowest
    above, left = (np.random.RandomState(0) for _ in states)
    above.set_state(states[0])
    left.set_state(states[1])
    for rows in _chunks((height + 1) // 2, 6 * side):  # two rows of three channels
        heights = np.empty((rows.stop - rows.start, 2, half, 2), np.float32)
        heights[:, 0, :, 0], heights[:, 1, :, 1] = corners[rows], centres[rows]
        heights[:, 0, :, 1] = _displaced(_sums_above(corners, centres, rows), spread, above)
        heights[:, 1, :, 0] = _displaced(_sums_left(corners, centres, rows), spread, left)
        heights -= lowest
        heights /= extent
        yield slice(2 * rows.start, 2 * rows.stop), heights.reshape(-1, side)


def _plasma(side: int, decay: float) -> tuple[NDArray[np.float32], float]:
    """The steps of diamond-square noise (side, side), and the spread of the next step."""
    heights = np.zeros((side, side), np.float32)
    step, spread = side, 100.0
    while step >= 2:
        half, cells = step // 2, side // step
        corners, centres = heights[::step, ::step], heights[half::step, half::step]
        for rows in _chunks(cells, cells):
            centres[rows] = _displaced(_sums_of_corners(corners, rows), spread, np.random)
        for sums, filled in (
            (_sums_above, heights[::step, half::step]), (_sums_left, heights[half::step, ::step]),
        ):  # fmt: skip
            for rows in _chunks(cells, cells):
                filled[rows] = _displaced(sums(corners, centres, rows), spread, np.random)
        step, spread = half, spread / decay
    return heights, spread


def _displaced(sums: NDArray[np.float32], spread: float, generator: Any) -> NDArray[np.float64]:
    moved: NDArray[np.float64] = sums / 4 + spread * generator.uniform(-spread, spread, sums.shape)
    return moved


def _range(values: NDArray[Any]) -> tuple[np.float32, np.float32]:
    return np.float32(values.min()), np.float32(values.max())


def _sums_of_corners(corners: NDArray[np.float32], rows: slice) -> NDArray[np.float32]:
    sums: NDArray[np.float32] = corners[rows] + _shifted(corners, rows, 1)
    sums += np.roll(sums, -1, axis=1)
    return sums


def _sums_above(
    corners: NDArray[np.float32], centres: NDArray[np.float32], rows: slice
) -> NDArray[np.float32]:
    """For each value between two corners of a row: the corners, and the centres below and above."""
    sums: NDArray[np.float32] = centres[rows] + _shifted(centres, rows, -1)
    sums += corners[rows] + np.roll(corners[rows], -1, axis=1)
    return sums


def _sums_left(
    corners: NDArray[np.float32], centres: NDArray[np.float32], rows: slice
) -> NDArray[np.float32]:
    """For each value between two corners of a column: the corners, and the centres beside it."""
    sums: NDArray[np.float32] = centres[rows] + np.roll(centres[rows], 1, axis=1)
    sums += corners[rows] + _shifted(corners, rows, 1)
    return sums


def _chunks(rows: int, values: int) -> Iterator[slice]:
    """Slices of `rows` rows with `values` values each; a slice has about `_AT_ONCE` values."""
    at_once = max(1, _AT_ONCE // values)
    for first in range(0, rows, at_once):
        yield slice(first, min(rows, first + at_once))


def _shifted(grid: NDArray[Any], rows: slice, by: int) -> NDArray[Any]:
    """The rows of `grid` that are `by` below `rows`; after the last row follows the first."""
    shifted: NDArray[Any] = grid[(np.arange(rows.start, rows.stop) + by) % len(grid)]
    return shifted


def _clipped_zoom(image: NDArray[Any], factor: float) -> NDArray[Any]:
    """The centre of `image` (H, W, C), enlarged to at least the size of `image`.

    Source: `clipped_zoom` of imagecorruptions.
    """
    sides = [math.ceil(side / float(factor)) for side in image.shape[:2]]
    top, left = ((side - crop) // 2 for side, crop in zip(image.shape[:2], sides, strict=True))
    return exact_kernels.zoomed(image[top : top + sides[0], left : left + sides[1]], factor)


def _motion_blur(
    image: NDArray[Any], radius: int, sigma: float, angle: float
) -> NDArray[np.float64]:
    """`image` (H, W) or (H, W, C) blurred along `angle` in degrees, edges repeated.

    Source: `_motion_blur` of imagecorruptions. The sum stops at the first shift that is as large as
    the image.
    """
    from imagecorruptions import corruptions

    width = corruptions.getOptimalKernelWidth1D(radius, sigma)
    weights = corruptions.getMotionBlurKernel(width, sigma)
    down, right = (width * turn(np.deg2rad(angle)) for turn in (np.sin, np.cos))
    length = math.hypot(down, right)
    rows = list[int]()
    columns = list[int]()
    for step in range(width):
        row, column = (-math.ceil(step * part / length - 0.5) for part in (down, right))
        if abs(row) >= image.shape[0] or abs(column) >= image.shape[1]:
            break
        rows.append(row)
        columns.append(column)
    return exact_kernels.motion_blurred(image, weights, rows, columns)


def _map_coordinates(
    image: NDArray[np.float32], coordinates: Any, *, order: int, mode: str
) -> NDArray[np.float32]:
    if (order, mode, image.ndim) == (1, "reflect", 3) and image.dtype == np.float32:
        return exact_kernels.sampled(image, coordinates)
    from scipy.ndimage import map_coordinates

    sampled: NDArray[np.float32] = map_coordinates(image, coordinates, order=order, mode=mode)
    return sampled


class _FrostPictures:
    """Replaces OpenCV in `frost`: caches the frost pictures instead of reading them per image.

    The caller holds `ONE_AT_A_TIME` and always calls `resize` after `imread`.
    """

    def __init__(self) -> None:
        import cv2

        self.INTER_CUBIC = cv2.INTER_CUBIC
        self._path = ""

    def imread(self, path: Any) -> NDArray[np.uint8]:
        """The picture at `path` (H, W, 3), BGR."""
        self._path = str(path)
        return _picture(self._path)

    def resize(
        self, _: NDArray[np.uint8], dsize: tuple[int, int], interpolation: int
    ) -> NDArray[np.uint8]:
        """The last picture that `imread` returned, resized to (width, height) `dsize`."""
        return _resized_picture(self._path, dsize, interpolation)


@lru_cache(maxsize=6)  # the number of frost pictures
def _picture(path: str) -> NDArray[np.uint8]:
    import cv2

    picture: NDArray[np.uint8] = cv2.imread(path)  # type: ignore[assignment]
    return picture


@lru_cache(maxsize=12)
def _resized_picture(path: str, size: tuple[int, int], interpolation: int) -> NDArray[np.uint8]:
    import cv2

    picture: NDArray[np.uint8] = cv2.resize(  # type: ignore[assignment]
        _picture(path), dsize=size, interpolation=interpolation
    )
    return picture


def _elastically(mask: Mask, seed: int, severity: int) -> Mask:
    """Applies to `mask` (H, W) the displacements of `elastic_transform` for the same size and seed.

    Applied to a picture of pixel coordinates, the corruption returns the coordinates that were
    sampled for each pixel, because it interpolates linearly.
    """
    from imagecorruptions.corruptions import elastic_transform  # type: ignore[import-untyped]

    rows, columns = np.indices(mask.shape, dtype=np.float64)
    last = max(mask.shape) - 1
    picture = np.stack([rows, columns, columns], axis=2) / last * 255
    with ONE_AT_A_TIME, _numpy_seed(_narrow(seed)):
        sampled = elastic_transform(picture, severity) / 255 * last
    row, column = np.rint(sampled[..., :2]).astype(int).transpose(2, 0, 1)
    moved: Mask = mask[row, column]
    return moved


def _framed(array: NDArray[Any]) -> NDArray[Any]:
    missing = [max(0, SMALLEST_SIDE - side) for side in array.shape[:2]]
    if not any(missing):
        return array
    width = [(0, padding) for padding in missing] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, width, mode="symmetric")


def _narrow(seed: int) -> int:
    return seed % 2**32  # NumPy's legacy generator takes 32 bits


NAME_PREFIX = "c_"
_SUMMARIES = {
    "gaussian_noise": "Gaussian noise",
    "shot_noise": "Poisson noise, as from too little light",
    "impulse_noise": "Salt-and-pepper noise",
    "defocus_blur": "Out-of-focus blur",
    "glass_blur": "Seen through frosted glass",
    "motion_blur": "Camera moved, at a random angle",
    "zoom_blur": "Camera moved towards the scene",
    "snow": "Falling snow",
    "frost": "Ice crystals on the lens",
    "fog": "Fog (diamond-square noise)",
    "brightness": "Brighter",
    "contrast": "Less contrast",
    "elastic_transform": "Small regions stretched",
    "pixelate": "Fewer, larger pixels",
    "jpeg_compression": "JPEG at quality 25 down to 7",
    "speckle_noise": "Noise that grows with the value",
    "gaussian_blur": "Gaussian blur",
    "spatter": "Water or mud on the lens",
    "saturate": "Less saturation (1, 2) or more (3 to 5)",
}

IMAGENET_C: tuple[Corruption, ...] = tuple(
    Corruption(
        name=NAME_PREFIX + corruption,
        family="imagenet-c",
        geometric=corruption == "elastic_transform",
        severities=SEVERITIES,
        ranged=False,
        summary=summary,
        corruption=corruption,
    )
    for corruption, summary in _SUMMARIES.items()
)

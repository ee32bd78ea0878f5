"""The 21 transforms of the preset `paper21`.

Source: the paper states 21 imgaug transforms, but only names 20 and has no parameters. The
parameters are those of the one-line examples in imgaug's documentation (`Affine`: in its README),
so they are marked as assumed. `flipud` is the 21st transform. The paper's "Multiply 0" is
implemented as `multiply_per_channel`: `Multiply(0)` would return a black image, which scores below
the lowest score of the paper. Flips and Invert are always applied (p = 1), else scores would mix
clean and changed images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcli.core.compiled import import_compiled
from robustcli.core.errors import RunError
from robustcli.transforms import exact_kernels
from robustcli.transforms.base import (
    SEVERITIES,
    Image,
    Mask,
    Span,
    Transform,
    has_span,
    settings_at,
)


@dataclass(frozen=True, kw_only=True)
class Augmented(Transform):
    """An imgaug augmenter with its settings, created again for each image.

    For the same seed, imgaug returns different pixels for a batch than for a single image with
    Affine, Cutout, PiecewiseAffine, FastSnowyLandscape and per-channel Multiply. Creating an
    augmenter takes 15 to 190 microseconds, and threads do not share augmenters.

    Args:
        augmenter: Name of the class in `imgaug.augmenters`.
        settings: Keyword arguments of the class; a `Span` represents a range.
    """

    augmenter: str
    settings: Mapping[str, Any] = field(hash=False)

    def _parameters(self, severity: int) -> dict[str, Any]:
        return settings_at(self.settings, severity)

    def _changed(self, image: Image, *, seed: int, severity: int) -> Image:
        with _opencv_errors(self.name, image):
            changed: Image = self._new_augmenter(seed, severity)(image=image)
        return changed

    def _moved(self, image: Image, mask: Mask, *, seed: int, severity: int) -> tuple[Image, Mask]:
        segmaps = import_compiled("imgaug.augmentables.segmaps")
        labels = segmaps.SegmentationMapsOnImage(mask.astype(np.int32), shape=image.shape)
        changed = self._changed(image, seed=seed, severity=severity)
        augmenter = self._new_augmenter(seed, severity)
        if hasattr(augmenter, "keep_size"):
            augmenter.keep_size = False
        with _opencv_errors(self.name, image):
            moved = augmenter(image=image, segmentation_maps=labels)[1].get_arr()
        return changed, _resized(moved, changed.shape[:2])

    def _new_augmenter(self, seed: int, severity: int) -> Any:
        iaa = import_compiled("imgaug.augmenters")
        settings = {
            name: _imgaug_value(value) for name, value in self._parameters(severity).items()
        }
        made = getattr(iaa, self.augmenter)(**settings, seed=seed)
        if self.augmenter == "PiecewiseAffine":
            made.__class__ = _quick_piecewise_affine()
        return made


@cache
def _quick_piecewise_affine() -> Any:
    """A subclass of `PiecewiseAffine` with a faster warp, and the same draws and pixels.

    For each image, imgaug constructs the map and its inverse, looks up the triangle of each pixel,
    and interpolates with SciPy, which takes four times as long.
    """
    import imgaug.augmenters as iaa

    class QuickPiecewiseAffine(iaa.PiecewiseAffine):  # type: ignore[misc]
        def _augment_images_by_samples(self, images: Any, samples: Any) -> Any:
            for number, image in enumerate(images):
                moved = self._moved_pixels(image.shape, samples, number)
                if moved is not None:
                    images[number] = exact_kernels.warped(image, *moved)
            return images

        def _augment_maps_by_samples(
            self, augmentables: Any, attribute: str, samples: Any, *options: Any
        ) -> Any:
            for number, augmentable in enumerate(augmentables):
                labels = getattr(augmentable, attribute)
                moved = self._moved_pixels(labels.shape, samples, number)
                if moved is not None:
                    setattr(augmentable, attribute, exact_kernels.picked(labels, *moved))
            return augmentables

        def _moved_pixels(
            self, shape: tuple[int, ...], samples: Any, number: int
        ) -> tuple[NDArray[np.int32], NDArray[np.float64]] | None:
            grid = int(samples.nb_rows[number]), int(samples.nb_cols[number])
            return _moved_pixels(shape[:2], grid, samples.jitter[number])

    return QuickPiecewiseAffine


def _moved_pixels(
    size: tuple[int, ...], grid: tuple[int, int], jitter: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.float64]] | None:
    """Pixels of an image, as rows and columns (2, N), and their sampled positions (N, 3).

    A position is column, row and 1. None if imgaug does not change the image.

    Args:
        size: Height and width of the image.
        grid: Numbers of rows and columns of grid points.
        jitter: (P, 2), the shift of each point down and to the right, as shares of the size.
    """
    height, width = size
    if not (jitter > 0).any() or min(size) <= 1:
        return None
    make_mesh = _mesh if height * width <= _CACHED_PIXELS else _mesh.__wrapped__
    mesh = make_mesh(height, width, *grid)
    moved = mesh.points.copy()
    moved[:, 0] += jitter[:, 1] * width
    moved[:, 1] += jitter[:, 0] * height
    moved = moved.clip(0, (width - 1, height - 1))
    grid_places = np.stack([*mesh.pixels[::-1], np.ones(mesh.pixels.shape[1])], axis=1)
    places = np.empty_like(grid_places)
    for number, corners in enumerate(mesh.triangles):
        part = slice(mesh.starts[number], mesh.starts[number + 1])
        matrix = _affine(mesh.points[corners], moved[corners])
        # The same matrix product as in scikit-image: another summation order changes positions by
        # 1e-15, which changes how values half-way between two integers are rounded.
        np.matmul(grid_places[part], matrix.T, out=places[part])
    places[np.isnan(places[:, 0])] = -1
    return mesh.pixels, places


def _affine(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine matrix (3, 3) of three point pairs, estimated by scikit-image; NaN without one."""
    from skimage import transform as geometry

    affine: Any = geometry.AffineTransform  # scikit-image is partly typed
    if not hasattr(affine, "from_estimate"):  # before scikit-image 0.26
        estimated = affine()
        return estimated.params if estimated.estimate(before, after) else np.full((3, 3), np.nan)
    estimated = affine.from_estimate(before, after)
    return estimated.params if estimated else np.full((3, 3), np.nan)


@dataclass(frozen=True)
class _Mesh:
    """A triangulated grid of points over the pixels of an image.

    Args:
        points: (P, 2), column and row.
        triangles: (T, 3), indices of points.
        pixels: (2, N), rows and columns, sorted by triangle.
        starts: (T + 1,), index of the first pixel of each triangle.
    """

    points: NDArray[np.float64]
    triangles: NDArray[np.int32]
    pixels: NDArray[np.int32]
    starts: NDArray[np.int64]


_CACHED_PIXELS = 2**18  # a mesh takes 8 bytes per pixel


@lru_cache(maxsize=18)  # imgaug draws one of nine grids
def _mesh(height: int, width: int, rows: int, columns: int) -> _Mesh:
    from scipy.spatial import Delaunay

    across, down = np.meshgrid(np.linspace(0, width, columns), np.linspace(0, height, rows))
    points = np.stack([across.ravel(), down.ravel()], axis=1)
    delaunay = Delaunay(points)
    # Column by column, as in scikit-image: the order decides about pixels on the edge of triangles.
    places = np.indices((width, height), np.int32).reshape(2, -1)
    triangle = delaunay.find_simplex(places.T.astype(np.float64)).astype(np.int16)
    order = np.argsort(triangle, kind="stable")
    starts = np.searchsorted(triangle[order], np.arange(len(delaunay.simplices) + 1))
    inside = order[starts[0] :]
    pixels = np.ascontiguousarray(places[::-1, inside])
    return _Mesh(points, delaunay.simplices, pixels, starts - starts[0])


def _resized(mask: Mask, shape: tuple[int, ...]) -> Mask:
    """Resizes `mask` to `shape` with the nearest pixel centre.

    imgaug would use OpenCV's INTER_NEAREST, which takes the pixel to the upper left and therefore
    shifts a mask by up to half a pixel relative to its image.
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(shape, mask.shape, strict=True)
    )
    return mask[rows[:, None], columns]


def _imgaug_value(value: Any) -> Any:
    """Converts `value` for imgaug: a range to a tuple, a choice to `Choice`."""
    if not isinstance(value, Mapping):
        return value
    if "range" in value:
        return tuple(value["range"])
    if "one_of" in value:
        return import_compiled("imgaug.parameters").Choice(list(value["one_of"]))
    return {name: _imgaug_value(part) for name, part in value.items()}


@contextmanager
def _opencv_errors(name: str, image: Image) -> Iterator[None]:
    import cv2

    try:
        yield
    except cv2.error as error:
        height, width = image.shape[:2]
        raise RunError(
            f"Transform `{name}` cannot be applied to an image of {width}x{height} pixels.",
            f"OpenCV reports: {error.err} (its limit is 32,766 pixels per side).",
            "Reduce the size of the image, or use `--apply-at crop`.",
        ) from error


def _row(
    name: str, augmenter: str, summary: str, *, geometric: bool = False, **settings: Any
) -> Augmented:
    return Augmented(
        name=name,
        family="paper21",
        geometric=geometric,
        severities=SEVERITIES if has_span(settings) else (),
        assumed=True,
        summary=summary,
        augmenter=augmenter,
        settings=settings,
    )


_SCALE, _SHIFT = Span(0.8, 1.2, mild=1), Span(-0.2, 0.2, mild=0)

PAPER21: tuple[Augmented, ...] = (
    _row(
        "additive_gaussian_noise",
        "AdditiveGaussianNoise",
        "Gaussian noise, standard deviation up to 51 of 255",
        scale=Span(0, 0.2 * 255, mild=0),
    ),
    _row(
        "affine",
        "Affine",
        "Scale 0.8 to 1.2, shift 20 % per axis, rotate 25 and shear 8 degrees",
        geometric=True,
        scale={"x": _SCALE, "y": _SCALE},
        translate_percent={"x": _SHIFT, "y": _SHIFT},
        rotate=Span(-25, 25, mild=0),
        shear=Span(-8, 8, mild=0),
    ),
    _row(
        "crop",
        "Crop",
        "Cut up to 10 % off each side, resize back",
        geometric=True,
        percent=Span(0, 0.1, mild=0),
    ),
    _row(
        "hue_and_saturation",
        "AddToHueAndSaturation",
        "Add up to +-50 to hue and to saturation, separately",
        value=Span(-50, 50, mild=0, integer=True),
        per_channel=True,
    ),
    _row(
        "crop_and_pad",
        "CropAndPad",
        "Cut off or pad with black up to 25 % on each side, resize back",
        geometric=True,
        percent=Span(-0.25, 0.25, mild=0),
    ),
    _row("cutout", "Cutout", "Two grey squares of 20 % of the side", nb_iterations=2),
    _row("dropout", "Dropout", "Up to 20 % of the pixels black", p=Span(0, 0.2, mild=0)),
    _row("edge_detect", "EdgeDetect", "Blend towards an edge image", alpha=Span(0, 1, mild=0)),
    _row(
        "emboss",
        "Emboss",
        "Blend towards an embossed image",
        alpha=Span(0, 1, mild=0),
        strength=Span(0.5, 1.5, mild=0.5),
    ),
    _row(
        "piecewise_affine",
        "PiecewiseAffine",
        "Move the points of a 4x4 grid by 1 to 5 % (standard deviation)",
        geometric=True,
        scale=Span(0.01, 0.05, mild=0.01),
    ),
    _row("salt", "Salt", "10 % of the pixels light grey to white", p=0.1),
    _row(
        "fast_snowy_landscape",
        "FastSnowyLandscape",
        "Brighten dark pixels up to fourfold, as if snow lay on them",
        lightness_threshold=Span(100, 255, mild=100, integer=True),
        lightness_multiplier=Span(1, 4, mild=1),
    ),
    _row("fliplr", "Fliplr", "Mirror left to right, always", geometric=True, p=1.0),
    _row("gaussian_blur", "GaussianBlur", "Gaussian blur, sigma up to 3", sigma=Span(0, 3, mild=0)),
    _row("grayscale", "Grayscale", "Blend towards greyscale", alpha=Span(0, 1, mild=0)),
    _row("invert", "Invert", "255 minus the value, always", p=1.0),
    _row(
        "linear_contrast",
        "LinearContrast",
        "Contrast 0.4 to 1.6 around 127",
        alpha=Span(0.4, 1.6, mild=1),
    ),
    _row("multiply", "Multiply", "Brightness 0.5 to 1.5", mul=Span(0.5, 1.5, mild=1)),
    _row(
        "multiply_per_channel",
        "Multiply",
        'Each colour channel times 0.5 to 1.5 (the paper\'s "Multiply 0")',
        mul=Span(0.5, 1.5, mild=1),
        per_channel=True,
    ),
    _row(
        "perspective",
        "PerspectiveTransform",
        "Move the corners by 1 to 15 % (standard deviation)",
        geometric=True,
        scale=Span(0.01, 0.15, mild=0.01),
    ),
    _row("flipud", "Flipud", "Mirror top to bottom, always", geometric=True, p=1.0),
)

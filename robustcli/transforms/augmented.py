"""A transform made by one imgaug augmenter.

Each image gets a fresh augmenter: with one seed, imgaug gives a batch and a single image different
pixels for Affine, Cutout, PiecewiseAffine, FastSnowyLandscape and per-channel Multiply. Making one
costs 15 to 190 microseconds, and threads share no augmenter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robustcli.core.errors import RunError
from robustcli.core.silence import silenced
from robustcli.transforms.base import Image, Mask, Transform
from robustcli.transforms.strength import settings_at


@dataclass(frozen=True, kw_only=True)
class Augmented(Transform):
    """An imgaug augmenter with its settings.

    Args:
        augmenter: Name of the class in `imgaug.augmenters`.
        settings: Its keyword arguments; a `Span` stands for a range.
    """

    augmenter: str
    settings: Mapping[str, Any] = field(hash=False)

    def _parameters(self, severity: int) -> dict[str, Any]:
        return settings_at(self.settings, severity)

    def _changed(self, image: Image, *, seed: int, severity: int) -> Image:
        with _no_trouble(self.name, image), _no_warning(self.augmenter):
            changed: Image = self._made(seed, severity)(image=image)
        return changed

    def _moved(self, image: Image, mask: Mask, *, seed: int, severity: int) -> tuple[Image, Mask]:
        from imgaug.augmentables.segmaps import SegmentationMapsOnImage

        labels = SegmentationMapsOnImage(mask.astype(np.int32), shape=image.shape)
        changed = self._changed(image, seed=seed, severity=severity)
        made = self._made(seed, severity)
        if hasattr(made, "keep_size"):
            made.keep_size = False
        with _no_trouble(self.name, image), _no_warning(self.augmenter):
            moved = made(image=image, segmentation_maps=labels)[1].get_arr()
        return changed, _resized(moved, changed.shape[:2])

    def _made(self, seed: int, severity: int) -> Any:
        import imgaug.augmenters as iaa

        settings = {name: _handed(value) for name, value in self._parameters(severity).items()}
        return getattr(iaa, self.augmenter)(**settings, seed=seed)


def _resized(mask: Mask, shape: tuple[int, ...]) -> Mask:
    """`mask` at `shape` by the nearest pixel centre.

    imgaug would resize it with OpenCV's INTER_NEAREST, which takes the pixel to the upper left and
    so shifts a mask by up to half a pixel against its image.
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(shape, mask.shape, strict=True)
    )
    return mask[rows[:, None], columns]


def _handed(value: Any) -> Any:
    """`value` as imgaug takes it: a range as a tuple, a choice as `Choice`."""
    from imgaug.parameters import Choice

    if not isinstance(value, Mapping):
        return value
    if "range" in value:
        return tuple(value["range"])
    if "one_of" in value:
        return Choice(list(value["one_of"]))
    return {name: _handed(part) for name, part in value.items()}


@contextmanager
def _no_warning(augmenter: str) -> Iterator[None]:
    if augmenter != "PiecewiseAffine":
        yield
        return
    # imgaug calls a method of scikit-image here that is deprecated from 0.26 until 2.2.
    with silenced("skimage._shared.utils"):
        yield


@contextmanager
def _no_trouble(name: str, image: Image) -> Iterator[None]:
    import cv2

    try:
        yield
    except cv2.error as error:
        height, width = image.shape[:2]
        raise RunError(
            f"Transform `{name}` cannot be applied to an image of {width}x{height} pixels.",
            f"OpenCV refuses: {error.err} (it warps at most 32,766 pixels on a side).",
            "Make the image smaller, or use `--apply-at crop`.",
        ) from error

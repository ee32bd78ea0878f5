"""The base class of transforms: functions of a uint8 image, a seed and a severity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robustcli.core.errors import RunError, UsageError

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Span:
    """The range of a parameter, and the mildest value in it, which changes an image least.

    Severity 0 draws from the complete range. Severity s uses the value at s/5 of the way from
    `mild` (the lower end, or a neutral value between the ends) to the far end. With a `mild`
    between the ends, one of the two sides is drawn per image with equal probability. `integer`
    parameters are rounded.
    """

    low: float
    high: float
    mild: float
    integer: bool = False

    def at(self, severity: int) -> Any:
        """`{"range": [low, high]}` at severity 0, else a number or `{"one_of": [below, above]}`."""
        if severity == 0:
            return {"range": [self.low, self.high]}
        above = self._part_way(self.high, severity)
        if self.mild == self.low:
            return above
        return {"one_of": [self._part_way(self.low, severity), above]}

    def _part_way(self, end: float, severity: int) -> float:
        value = self.mild + (end - self.mild) * severity / SEVERITIES[-1]
        # Ten digits remove binary rounding as in 0.1 * 3, and are much finer than any pixel.
        return round(value) if self.integer else round(value, 10)


def settings_at(settings: Mapping[str, Any], severity: int) -> dict[str, Any]:
    """`settings` with every `Span` replaced by its value at `severity`."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            value = settings_at(value, severity)
        values[name] = value.at(severity) if isinstance(value, Span) else value
    return values


def has_span(settings: Mapping[str, Any]) -> bool:
    """Whether any parameter in `settings` is a `Span`, so that the transform has severities."""
    return any(
        isinstance(value, Span) or (isinstance(value, Mapping) and has_span(value))
        for value in settings.values()
    )


Image: TypeAlias = NDArray[np.uint8]  # (H, W, 3) RGB
Mask: TypeAlias = NDArray[Any]  # (H, W) labels: bool or an integer type, values within int32
TransformFamily: TypeAlias = Literal["identity", "paper21", "imagenet-c", "plugin", "published"]


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """Base class of image transforms, deterministic for given image, seed and severity.

    Args:
        name: Registered name, valid as the name of a folder.
        family: Origin of the transform.
        geometric: Whether it moves pixels, so that masks must be moved too.
        severities: Fixed severities above 0, mild to strong; empty without any.
        ranged: Whether severity 0 exists: the full range, or the fixed parameters of a transform
            without severities.
        assumed: Whether the parameters are assumed, because the paper does not state them.
        summary: One line for listings.
        replaces: Whether it replaces the decoded image by another picture of the same scene, even
            if transforms are applied to crops.
        precropped: Whether that picture is already cropped, so that models do not resize it.
    """

    name: str
    family: TransformFamily
    geometric: bool = False
    severities: tuple[int, ...] = ()
    ranged: bool = True
    assumed: bool = False
    summary: str = ""
    replaces: bool = False
    precropped: bool = False

    def available(self) -> tuple[int, ...]:
        """All severities in ascending order, including 0 if it exists."""
        return (0, *self.severities) if self.ranged else self.severities

    def parameters(self, severity: int) -> dict[str, Any]:
        """The arguments of the underlying function, in JSON types; raises like `check_severity`."""
        self.check_severity(severity)
        return self._parameters(severity)

    def apply(self, image: Image, *, seed: int, severity: int) -> Image:
        """The transformed image, a new contiguous array; `image` is not modified.

        Args:
            image: (H, W, 3) RGB, at least 1x1.
            seed: In `[0, 2**64)`; the only source of randomness.
            severity: One of `available()`.

        Raises:
            UsageError: `image` is not as described, or the transform lacks this severity.
            RunError: The underlying function cannot handle this image.
        """
        self._check(image, severity)
        return _own_array(self._changed(image, seed=seed, severity=severity))

    def for_image(self, image: Image, *, image_id: str, seed: int, severity: int) -> Image:
        """Like `apply`, for the image `image_id`; only published pictures depend on the id."""
        return self.apply(image, seed=seed, severity=severity)

    def apply_with_mask(
        self, image: Image, mask: Mask, *, seed: int, severity: int
    ) -> tuple[Image, Mask]:
        """The image as `apply` returns it, and the transformed `mask`.

        Geometric transforms move the mask with the same parameters (nearest neighbour, 0 outside
        the image); other transforms return a copy of it. The dtype of the mask is kept.

        Raises:
            UsageError: As in `apply`, or `mask` is not a label map (H, W) of the image's size.
            RunError: As in `apply`, or the transform changes the size of the image alone.
        """
        self._check(image, severity)
        if mask.shape != image.shape[:2] or mask.dtype.kind not in "biu":
            raise UsageError(
                "`mask` does not fit `image`.",
                f"It must have an integer type or bool, and the shape {image.shape[:2]}; "
                f"it is {mask.dtype} of shape {mask.shape}.",
                "Pass one label per pixel of the image.",
            )
        changed, moved = self._moved(image, mask, seed=seed, severity=severity)
        if changed.shape[:2] != moved.shape:
            raise RunError(
                f"Transform `{self.name}` changes the size of the image, but not of its mask.",
                f"The mask has the shape {moved.shape}, the image {changed.shape[:2]}, so that "
                "their pixels cannot be compared.",
                "Mark its function with `@transform(geometric=True)`, so that masks are "
                "transformed too.",
            )
        return _own_array(changed), _own_array(moved.astype(mask.dtype))

    def check_severity(self, severity: int) -> None:
        """Raises UsageError, with the available severities, if the transform lacks this one."""
        if severity in self.available():
            return
        available = ", ".join(map(str, self.available()))
        raise UsageError(
            f"Transform `{self.name}` has no severity {severity}.",
            f"Its severities are {available}." if self.severities else "Its only severity is 0.",
            "Choose one of its severities with `--severity`, or omit the option.",
        )

    @abstractmethod
    def _parameters(self, severity: int) -> dict[str, Any]: ...

    @abstractmethod
    def _changed(self, image: Image, *, seed: int, severity: int) -> Image: ...

    def _moved(self, image: Image, mask: Mask, *, seed: int, severity: int) -> tuple[Image, Mask]:
        return self._changed(image, seed=seed, severity=severity), mask

    def _check(self, image: Image, severity: int) -> None:
        self.check_severity(severity)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UsageError(
                f"Transform `{self.name}` does not support this `image`.",
                f"It must be uint8 of shape (H, W, 3); it is {image.dtype} of shape {image.shape}.",
                "Convert it to 8-bit RGB; repeat the channel of a greyscale image three times.",
            )


def _own_array(array: NDArray[Any]) -> NDArray[Any]:
    # Flips return views, PIL returns read-only arrays; callers get a writable contiguous array.
    return np.require(array, requirements=["C", "O", "W"])


@dataclass(frozen=True)
class Cell:
    """One transform at one severity; severity 0 is the transform's full range."""

    transform: str
    severity: int


CLEAN = Cell("identity", 0)
"""The untransformed images, with which every other cell is compared."""

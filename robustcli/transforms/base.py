"""The base class of transforms: uint8 image in and out, a function of image, seed and severity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robustcli.core.errors import UsageError

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Span:
    """The range of a parameter, and the value in it that changes an image least.

    Severity 0 draws from the complete range. Severity s goes s/5 of the way from `mild` (the lower
    end, or the neutral value between the ends) to the far end; with a `mild` between the ends, one
    of the two sides is drawn per image with equal probability. `integer` parameters are rounded.
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
        # Ten digits hide the binary rounding of 0.1 * 3 and are far finer than any pixel.
        return round(value) if self.integer else round(value, 10)


def settings_at(settings: Mapping[str, Any], severity: int) -> dict[str, Any]:
    """`settings` with every `Span` in it replaced by its value at `severity`."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            value = settings_at(value, severity)
        values[name] = value.at(severity) if isinstance(value, Span) else value
    return values


def has_span(settings: Mapping[str, Any]) -> bool:
    """Whether any parameter in `settings` has a range, so that the transform has severities."""
    return any(
        isinstance(value, Span) or (isinstance(value, Mapping) and has_span(value))
        for value in settings.values()
    )


Image: TypeAlias = NDArray[np.uint8]  # (H, W, 3) RGB
Mask: TypeAlias = NDArray[Any]  # (H, W) labels: bool or an integer type, values within int32
TransformFamily: TypeAlias = Literal["identity", "paper21", "imagenet-c", "plugin", "published"]


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """A named change of an image; the same image, seed and severity give the same pixels.

    Args:
        name: Registered name, safe as the name of a folder.
        family: Its origin.
        geometric: Whether it moves pixels, and so a mask too.
        severities: Its fixed strengths besides 0, mild to strong; empty if it has none.
        ranged: Whether severity 0 exists: the full range, or the fixed parameters of a transform
            without strengths.
        assumed: Whether the parameters are assumed, because the paper gives none.
        summary: One line for a listing.
        replaces: Whether it replaces the decoded image by another picture of the same scene, even
            if transforms act on crops.
        precropped: Whether that picture is a crop already, so that models do not resize it.
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
        """All severities in rising order, including 0 if it exists."""
        return (0, *self.severities) if self.ranged else self.severities

    def parameters(self, severity: int) -> dict[str, Any]:
        """The arguments of the underlying function, in JSON types; raises as `check_severity`."""
        self.check_severity(severity)
        return self._parameters(severity)

    def apply(self, image: Image, *, seed: int, severity: int) -> Image:
        """The changed image, a new contiguous array; `image` stays as it is.

        Args:
            image: (H, W, 3) RGB, at least 1x1.
            seed: In `[0, 2**64)`; the only source of randomness.
            severity: One of `available()`.

        Raises:
            UsageError: `image` is not such an image, or the transform lacks this severity.
            RunError: The underlying function cannot handle this image.
        """
        self._check(image, severity)
        return _own_array(self._changed(image, seed=seed, severity=severity))

    def for_image(self, image: Image, *, image_id: str, seed: int, severity: int) -> Image:
        """`apply` to the image `image_id`; only published pictures depend on the id."""
        return self.apply(image, seed=seed, severity=severity)

    def apply_with_mask(
        self, image: Image, mask: Mask, *, seed: int, severity: int
    ) -> tuple[Image, Mask]:
        """The image as `apply` gives it, and `mask` moved along with it.

        Geometric transforms move the mask with the same parameters (nearest neighbour, 0 outside
        the image); the others return a copy. The dtype of the mask is kept.

        Raises:
            UsageError: As `apply`, or `mask` is not a (H, W) label map of the image's size.
            RunError: As `apply`.
        """
        self._check(image, severity)
        if mask.shape != image.shape[:2] or mask.dtype.kind not in "biu":
            raise UsageError(
                "`mask` does not fit its image.",
                f"Expected whole-number labels of shape {image.shape[:2]}, "
                f"came {mask.dtype} of shape {mask.shape}.",
                "Give one label per pixel of the image, as bool or an integer type.",
            )
        changed, moved = self._moved(image, mask, seed=seed, severity=severity)
        return _own_array(changed), _own_array(moved.astype(mask.dtype))

    def check_severity(self, severity: int) -> None:
        """Raises UsageError, with the available severities, if the transform lacks this one."""
        if severity in self.available():
            return
        available = ", ".join(map(str, self.available()))
        raise UsageError(
            f"Transform `{self.name}` has no severity {severity}.",
            f"It has {available}." if self.severities else "It has one strength only, severity 0.",
            "Choose a severity it has with `--severity`, or leave the option out.",
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
                f"`image` cannot be given to transform `{self.name}`.",
                f"Expected uint8 of shape (H, W, 3), came {image.dtype} of shape {image.shape}.",
                "Decode it as RGB first; a greyscale photo has three equal channels.",
            )


def _own_array(array: NDArray[Any]) -> NDArray[Any]:
    # Flips return views and PIL read-only arrays; the caller gets a writable contiguous array.
    return np.require(array, requirements=["C", "O", "W"])


@dataclass(frozen=True)
class Cell:
    """One transform at one severity; severity 0 is the transform's full range."""

    transform: str
    severity: int


CLEAN = Cell("identity", 0)
"""The untouched images, to which every other cell is compared."""

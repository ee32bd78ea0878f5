"""What every transform is: one uint8 image in, one out, a function of image, seed and severity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robustcli.core.errors import UsageError

# --- The one rule by which a parameter's range becomes severities 1 to 5 --------------------------


SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Span:
    """The range of a parameter, and the value in it that changes an image least.

    Severity 0 draws from the whole range. Severity s goes s/5 of the way from `mild` to the far
    end; a range that reaches to both sides of `mild` does so on either side, and which one is
    drawn per image with equal chance. So severity 5 is the far end of the range.

    Args:
        low: Lower end.
        high: Upper end.
        mild: Value of least effect: the lower end, or the neutral value between the ends.
        whole: Whether the parameter takes whole numbers only.
    """

    low: float
    high: float
    mild: float
    whole: bool = False

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
        return round(value) if self.whole else round(value, 10)


def settings_at(settings: Mapping[str, Any], severity: int) -> dict[str, Any]:
    """`settings` with every `Span` in it replaced by its value at `severity`."""
    return {name: _value_at(value, severity) for name, value in settings.items()}


def has_span(settings: Mapping[str, Any]) -> bool:
    """Whether any parameter in `settings` has a range, and so the transform has severities."""
    return any(
        isinstance(value, Span) or (isinstance(value, Mapping) and has_span(value))
        for value in settings.values()
    )


def _value_at(value: Any, severity: int) -> Any:
    if isinstance(value, Span):
        return value.at(severity)
    return settings_at(value, severity) if isinstance(value, Mapping) else value


Image: TypeAlias = NDArray[np.uint8]  # (H, W, 3) RGB
Mask: TypeAlias = NDArray[Any]  # (H, W) labels: bool or an integer type, values within int32
TransformFamily: TypeAlias = Literal["identity", "paper21", "imagenet-c", "plugin", "published"]


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """A named change of an image; the same image, seed and severity give the same pixels.

    Args:
        name: Registered name, safe as the name of a folder.
        family: Where it comes from.
        geometric: Whether it moves pixels, and so a mask too.
        severities: Its fixed strengths besides 0, mild to strong; empty if it has none.
        ranged: Whether severity 0 exists: the full range, or the fixed parameters of a transform
            that has no strength.
        assumed: Whether the parameters are assumed, because the paper gives none.
        summary: One line for a listing.
        replaces: Whether it gives another picture of the same scene, which takes the place of the
            decoded image even where transforms act on crops.
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
        """Every severity it has, 0 included where it exists, in rising order."""
        return (0, *self.severities) if self.ranged else self.severities

    def parameters(self, severity: int) -> dict[str, Any]:
        """What is handed to the function behind the transform, in types that JSON has.

        Raises:
            UsageError: The transform lacks this severity.
        """
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
            RunError: The function behind the transform cannot handle this image.
        """
        self._check(image, severity)
        return _owned(self._changed(image, seed=seed, severity=severity))

    def for_image(self, image: Image, *, image_id: str, seed: int, severity: int) -> Image:
        """`apply` to the image called `image_id`, on which only published pictures depend."""
        return self.apply(image, seed=seed, severity=severity)

    def apply_with_mask(
        self, image: Image, mask: Mask, *, seed: int, severity: int
    ) -> tuple[Image, Mask]:
        """The image as `apply` gives it, and `mask` moved along with it.

        Geometric transforms move the mask with the same parameters (nearest neighbour, 0 where
        nothing was); the others return a copy. Its dtype is kept.

        Raises:
            UsageError: As `apply`, or `mask` is not a (H, W) label map of the image's size.
            RunError: As `apply`.
        """
        self._check(image, severity)
        _check_mask(mask, image)
        changed, moved = self._moved(image, mask, seed=seed, severity=severity)
        return _owned(changed), _owned(moved.astype(mask.dtype))

    def check_severity(self, severity: int) -> None:
        """Nothing, if the transform has this severity.

        Raises:
            UsageError: It has not; the message lists what it has.
        """
        if severity in self.available():
            return
        has = ", ".join(str(one) for one in self.available())
        raise UsageError(
            f"Transform `{self.name}` has no severity {severity}.",
            f"It has {has}." if self.severities else "It has one strength only, severity 0.",
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


def _check_mask(mask: Mask, image: Image) -> None:
    if mask.shape == image.shape[:2] and mask.dtype.kind in "biu":
        return
    raise UsageError(
        "`mask` does not fit its image.",
        f"Expected whole-number labels of shape {image.shape[:2]}, "
        f"came {mask.dtype} of shape {mask.shape}.",
        "Give one label per pixel of the image, as bool or an integer type.",
    )


def _owned(array: NDArray[Any]) -> NDArray[Any]:
    # Flips come back as views, PIL's results read-only; the caller gets a plain array of its own.
    return np.require(array, requirements=["C", "O", "W"])


# A cell of a run: what a run computes for each model.


@dataclass(frozen=True)
class Cell:
    """One transform at one severity; severity 0 is the transform's full range."""

    transform: str
    severity: int


CLEAN = Cell("identity", 0)
"""The untouched images, to which every other cell is compared."""

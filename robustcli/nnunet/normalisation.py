"""nnU-Net's normalisation of images, and the settings of its inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from robustcli.core.errors import UsageError

# nnU-Net's normalisation of an image: shifts and scales the values of each channel, in training and
# inference. A patch is normalised with the statistics of its entire image, as in upstream's
# preprocessing: `fit` computes them once, `Normaliser` applies them to any part of the image.
#
# Source: nnU-Net v2.1.1, `default_normalization_schemes.py`, `create_nonzero_mask`.

Scheme = Literal["zscore", "ct", "rescale_0_1", "rgb_to_0_1", "none"]
Window = tuple[slice, slice]
WHOLE: Window = (slice(None), slice(None))
_SMALLEST = 1e-8  # upstream's lower limit for a standard deviation or a range


@dataclass(frozen=True)
class Intensities:
    """Statistics of a channel's foreground values over the entire data set, from a plan (CT)."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True)
class Channel:
    """The normalisation of one channel.

    Args:
        scheme: `zscore`, `ct`, `rescale_0_1`, `rgb_to_0_1` or `none`.
        inside_only: Whether to exclude the black border from the statistics and set it to 0 (a
            plan's `use_mask_for_norm`, for MR images with a black background).
        intensities: Statistics of the data set; only needed for `ct`.
    """

    scheme: Scheme = "zscore"
    inside_only: bool = False
    intensities: Intensities | None = None


@dataclass(frozen=True)
class _Line:
    """The function (clip(x, low, high) - shift) / scale."""

    shift: float = 0.0
    scale: float = 1.0
    low: float = -np.inf
    high: float = np.inf


def _line(values: NDArray[np.uint8], channel: Channel) -> _Line:
    """The normalisation of a channel with these `values`."""
    if channel.scheme == "zscore":
        return _Line(float(values.mean()), max(float(values.std()), _SMALLEST))
    if channel.scheme == "rescale_0_1":
        low, high = float(values.min()), float(values.max())
        return _Line(low, max(high - low, _SMALLEST))
    if channel.scheme == "rgb_to_0_1":
        return _Line(scale=255.0)
    if channel.scheme == "none":
        return _Line()
    intensities = channel.intensities
    if intensities is None:
        raise UsageError(
            "The plan's `CT` normalisation is not possible.",
            "It needs `foreground_intensity_properties_per_channel`, which is missing in the plan.",
            "Use the original plan of nnU-Net, or another scheme.",
        )
    return _Line(
        intensities.mean,
        max(intensities.std, _SMALLEST),
        intensities.percentile_00_5,
        intensities.percentile_99_5,
    )


@dataclass(frozen=True)
class Normaliser:
    """Normalises the image to which `fit` fitted it, or parts of that image."""

    lines: tuple[_Line, ...]
    inside_only: tuple[bool, ...]
    inside: NDArray[np.bool_] | None

    def __call__(self, image: NDArray[np.uint8], window: Window = WHOLE) -> NDArray[np.float32]:
        """The part `window` of `image`, normalised: (C, h, w).

        Args:
            image: The entire image that was passed to `fit`, (H, W, C).
            window: Rows and columns of the part.
        """
        part = np.moveaxis(image[window], -1, 0).astype(np.float32)  # (C, h, w)
        for values, line, masked in zip(part, self.lines, self.inside_only, strict=True):
            np.clip(values, line.low, line.high, out=values)
            values -= np.float32(line.shift)
            values /= np.float32(line.scale)
            if masked and self.inside is not None:
                values[~self.inside[window]] = 0
        return part


def fit(image: NDArray[np.uint8], channels: Sequence[Channel]) -> Normaliser:
    """Fits a normaliser to `image`.

    Args:
        image: (H, W, C), uint8.
        channels: The normalisation of each channel.

    Raises:
        UsageError: The number of channels differs, or `ct` lacks the intensities.
    """
    if image.shape[2] != len(channels):
        raise UsageError(
            f"The image has {image.shape[2]} channels.",
            f"The normalisation is for {len(channels)}.",
            "Use the plan and the `dataset.json` of images with the same number of channels.",
        )
    inside = _inside(image) if any(channel.inside_only for channel in channels) else None
    lines = tuple(
        _line(
            image[..., c] if inside is None or not channel.inside_only else image[inside, c],
            channel,
        )
        for c, channel in enumerate(channels)
    )
    return Normaliser(lines, tuple(channel.inside_only for channel in channels), inside)


def _inside(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels with a non-zero channel, with filled holes; all pixels for a black image."""
    from scipy.ndimage import binary_fill_holes

    shown: NDArray[np.bool_] = binary_fill_holes(image.any(axis=2))
    return shown if shown.any() else np.ones_like(shown)


# Inference settings of networks trained with nnU-Net. Source: nnU-Net v2.1.1,
# `predict_from_raw_data.py`: the entire image is normalised and padded with zeros, windows are
# flipped, and scores are averaged before they are converted to probabilities.


@dataclass(frozen=True)
class NnUNetInference:
    """The settings of nnU-Net's inference.

    Args:
        channels: The normalisation of each input channel, computed on the entire image.
        mirror_axes: Axes along which each window is flipped, 0 for height; the scores are averaged.
    """

    channels: tuple[Channel, ...]
    mirror_axes: tuple[int, ...] = (0, 1)

    def normalised(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalises `image`, uint8 (H, W, C); returns (H, W, C).

        Raises:
            UsageError: The image has another number of channels.
        """
        return np.moveaxis(fit(image, self.channels)(image), 0, -1)

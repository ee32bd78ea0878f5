"""Preprocessing of classifiers: resize and centre crop as in torchvision with PIL.

Pillow resizes the complete image and converts it to and from four bytes per pixel. Here only the
pixels of the crop are computed, with identical results, which takes a third of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustcli.core.compiled import compiled, reads
from robustcli.core.errors import UsageError

ChannelValues = tuple[float, ...]
_Values = TypeVar("_Values", bound=np.generic)
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
IMAGENET_MEAN: ChannelValues = (0.485, 0.456, 0.406)
IMAGENET_STD: ChannelValues = (0.229, 0.224, 0.225)
CHANNELS = ("in_chans", "in_channels")
"""Builder arguments for the number of input channels."""
_MOST_RESIZED = 178_956_970  # pixels, the limit of a decoded image; 1 x 5,000 becomes 256 x 1280000
_WHITE = 255
_DIGITS = 9  # so that 57.12 / 255 equals 0.224 and gives the same run
_LEAST_OF_255 = 10  # values between 1 and this are ambiguous


def check_side(side: int, name: str) -> None:
    """Raises UsageError if a square of `side` pixels is larger than a decoded image can be.

    Sizes come from the user, and from weights files, hubs and records.
    """
    if side * side > _MOST_RESIZED:
        raise UsageError(
            f"`{name}` is too large: {side:,} pixels.",
            f"Sides of the input of a network are limited to {math.isqrt(_MOST_RESIZED):,} pixels.",
            "Use a smaller size; if a file defines it, do not use the file.",
        )


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalisation of a model.

    Args:
        resize: Length in pixels of the shorter side after resizing; None keeps the size.
        crop: Side in pixels of the square centre crop.
        interpolation: A key of INTERPOLATIONS.
        mean: Mean per channel, for values in [0, 1]; one value for greyscale input.
        std: Standard deviation per channel, for values in [0, 1]; as long as `mean`.
        mode: `center` keeps the aspect ratio; `squash` resizes both sides to `resize`.
    """

    resize: int | None
    crop: int
    interpolation: str = "bicubic"
    mean: ChannelValues = IMAGENET_MEAN
    std: ChannelValues = IMAGENET_STD
    mode: Literal["center", "squash"] = "center"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"`--interpolation {self.interpolation}` is unknown.",
                f"Expected one of {', '.join(INTERPOLATIONS)}.",
            )
        if self.crop < 1 or (self.resize is not None and self.resize < 1):
            raise UsageError("`--resize` and `--crop` must be at least 1 pixel.")
        check_side(self.crop, "--crop")
        if self.mode == "squash":
            check_side(self.resize or 0, "--resize")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            raise UsageError(
                "`--mean` and `--std` must be numbers.", f"Got {self.mean}, {self.std}."
            )
        if min(self.std) <= 0:
            raise UsageError("`--std` must be above zero in every channel.", f"Got {self.std}.")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise UsageError(
                "`--mean` and `--std` need one number per channel.",
                f"Got {len(self.mean)} and {len(self.std)}.",
                "Pass three numbers each for colour images, one for a greyscale network.",
            )

    @property
    def channels(self) -> int:
        """Number of input channels: 3 for RGB, 1 for greyscale."""
        return len(self.mean)

    @property
    def view(self) -> str:
        """A name of resize and crop without normalisation: equal views have equal pixels."""
        size = "as-is" if self.resize is None else f"{self.mode}{self.resize}-{self.interpolation}"
        return f"{size}-crop{self.crop}{'-grey' if self.channels == 1 else ''}"

    def of_channels(self, channels: int) -> Preprocessing:
        """This preprocessing for a network with `channels` input channels.

        For greyscale without defined values, mean and standard deviation are averaged over the
        colours, as in timm (`timm.data.loader.adapt_to_chs`).
        """
        if channels == self.channels:
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return replace(self, mean=(mean,) * channels, std=(std,) * channels)

    def of_size(self, side: int) -> Preprocessing:
        """This preprocessing for square inputs of `side` pixels; `resize` scales with `crop`."""
        resize = None if self.resize is None else self.resize * side // self.crop
        return replace(self, resize=resize, crop=side)

    def changed(
        self, changes: Mapping[str, Any], channels: int
    ) -> tuple[Preprocessing, tuple[str, ...]]:
        """`overridden` for a network with `channels` input channels."""
        return overridden(self.of_channels(channels), changes)

    def coloured(self, view: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The result of `apply`, (H, W, 3), in the network's channels: (H, W, 3) or (H, W, 1)."""
        return grey(view) if self.channels == 1 else view

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The resized and cropped `image` (H, W, 3) in colour: (crop, crop, 3)."""
        height, width = image.shape[:2]
        size = self.resized(width, height)
        if size == (width, height):
            return np.array(centre_crop(image, self.crop))
        resampling = INTERPOLATIONS[self.interpolation]
        if self.mode == "center":
            view = resized_centre(image, size, self.crop, resampling)
            if view is not None:
                return view
            if math.prod(size) > _MOST_RESIZED:
                return centre_crop(_resized_part(image, size, self.crop, resampling), self.crop)
        return centre_crop(np.asarray(Image.fromarray(image).resize(size, resampling)), self.crop)

    def apply_to_crop(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Like `apply` for an `image` (H, W, 3) that is already a crop: (crop, crop, 3).

        Crops without resizing; only images smaller than the crop are enlarged to it.
        """
        large = min(image.shape[:2]) >= self.crop
        return replace(self, resize=None if large else self.crop, mode="center").apply(image)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image of `width` x `height` pixels after the resize."""
        if self.resize is None:
            return width, height
        if self.mode == "squash":
            return self.resize, self.resize
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize


CIFAR10 = Preprocessing(
    resize=32, crop=32, interpolation="bilinear",
    mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
)  # fmt: skip
"""For networks with 32 x 32 pixels: mean and deviation of CIFAR-10's training images."""


def centre_crop(image: NDArray[_Values], side: int) -> NDArray[_Values]:
    """The central square of an image (H, W) or (H, W, C).

    Smaller images are zero-padded, as in torchvision's CenterCrop.
    """
    height, width = image.shape[:2]
    down, across = max(0, side - height), max(0, side - width)
    if down or across:
        pads = [(down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0)]
        image = np.pad(image, pads[: image.ndim])
        height, width = image.shape[:2]
    top, left = round((height - side) / 2.0), round((width - side) / 2.0)
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def _resized_part(
    image: NDArray[np.uint8], size: tuple[int, int], side: int, resampling: Image.Resampling
) -> NDArray[np.uint8]:
    """The centre of `image` resized to `size`, at most `side` pixels wide and high.

    Only the centre is computed. Its pixels can differ from those of the complete image, because
    Pillow can resize the two axes in another order.
    """
    box = []
    for before, after in zip(image.shape[1::-1], size, strict=True):
        start = max(0, round((after - side) / 2.0))
        end = min(start + side, after)
        box.append((start * before / after, min(end * before / after, before), end - start))
    (left, right, width), (top, bottom, height) = box
    part = Image.fromarray(image).resize((width, height), resampling, (left, top, right, bottom))
    return np.asarray(part)


def grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The luma of the RGB `image` (H, W, 3), as (H, W, 1).

    Source: ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B, rounded as in Pillow's `convert("L")`.
    """
    return np.array(Image.fromarray(image).convert("L"))[:, :, None]  # a writable copy


def input_channels(arguments: Mapping[str, Any]) -> int:
    """Number of input channels of a network built with `arguments`: 3, or 1 for greyscale.

    Raises:
        UsageError: The number of channels is not supported.
    """
    for name in CHANNELS:
        count = arguments.get(name, 3)
        if isinstance(count, bool) or count not in (1, 3):
            raise UsageError(
                f"`--model-arg {name}={count}` is not supported.",
                "Images are read in colour (3 channels) or, for networks with one channel, as "
                "greyscale (1).",
                f"Use `{name}=3` or `{name}=1`, or omit it.",
            )
        if count == 1:
            return 1
    return 3


def overridden(
    base: Preprocessing, changes: Mapping[str, Any]
) -> tuple[Preprocessing, tuple[str, ...]]:
    """`base` with the user's `changes`, and the announcements about them.

    Args:
        base: Preprocessing of the model, for its number of channels.
        changes: Fields of `Preprocessing`.

    Raises:
        UsageError: A value is out of range, or its unit is ambiguous.
    """
    statistics = {
        name: tuple(map(float, changes[name])) for name in ("mean", "std") if name in changes
    }
    for name, values in statistics.items():
        _check_values(name, values, base.channels)
    units = {name: _unit(name, values) for name, values in statistics.items()}
    if _WHITE in units.values() and 1 in units.values():
        typed = ", ".join(f"`--{name} {_typed(values)}`" for name, values in statistics.items())
        raise UsageError(
            "`--mean` and `--std` are not in the same units.",
            f"{typed}: one refers to values from 0 to 255, the other to values from 0 to 1.",
            "Use units of [0, 1] for both: divide values in units of 0 to 255 by 255.",
        )
    notes = []
    if _WHITE in units.values():
        statistics = {
            name: tuple(round(v / _WHITE, _DIGITS) for v in values)
            for name, values in statistics.items()
        }
        notes = [
            f"`--{name}` is interpreted in units of 0 to 255: {_typed(values)} in units of [0, 1]."
            for name, values in statistics.items()
        ]
    return replace(base, **{**changes, **statistics}), tuple(notes)


def _check_values(name: str, values: ChannelValues, channels: int) -> None:
    if len(values) != channels:
        expected = (
            "colour images: three numbers" if channels == 3 else "greyscale images: one number"
        )
        raise UsageError(
            f"`--{name} {_typed(values)}` has {len(values)} numbers.",
            f"The network needs {expected}, one per channel.",
            f"Pass {channels}.",
        )
    if not all(math.isfinite(value) for value in values):
        raise UsageError(
            f"`--{name} {_typed(values)}` is not a number.", "", "Give finite numbers."
        )
    if name == "std" and min(values) <= 0:
        raise UsageError(
            f"`--std {_typed(values)}` must be above zero in every channel.",
            "Images are divided by it.",
            "Use the values of the model, for example `--std 0.229,0.224,0.225`.",
        )
    if min(values) < 0 or max(values) > _WHITE:
        raise UsageError(
            f"`--{name} {_typed(values)}` is out of range.",
            "It must be in units of [0, 1] or in units of 0 to 255.",
            "Use the values of the model, for example `--mean 0.485,0.456,0.406`.",
        )


def _unit(name: str, values: ChannelValues) -> int | None:
    """The pixel range of `values`: 1 or 255; None if both are possible.

    Raises:
        UsageError: The units are mixed or ambiguous.
    """
    nonzero = [value for value in values if value]
    if not nonzero:
        return None
    if max(nonzero) <= 1:
        return 1
    if min(nonzero) >= _LEAST_OF_255:
        return _WHITE
    raise UsageError(
        f"The units of `--{name} {_typed(values)}` are ambiguous.",
        "In units of [0, 1] no value is above 1; in units of 0 to 255 no value is this small.",
        "Pass it in units of [0, 1], for example `--mean 0.485,0.456,0.406`.",
    )


def _typed(values: ChannelValues) -> str:
    return ",".join(f"{value:g}" for value in values)


# Pillow's resize followed by a centre crop, in one step. Source: `src/libImaging/Resample.c` of
# Pillow: a horizontal pass, rounded to bytes, then a vertical pass, with fixed-point weights of 22
# fractional bits.

Bytes = NDArray[np.uint8]
_BITS = 22
# Pillow does the vertical pass first if that is less work: version 13.0 does so for images twice as
# high as wide, and if the height shrinks more than the width.
_MOST_ASPECT = 1.9


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic kernel with a = -0.5."""
    a = -0.5
    inner = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    outer = (((distance - 5) * distance + 8) * distance - 4) * a
    return np.where(distance < 1, inner, np.where(distance < 2, outer, 0))


_FILTERS: dict[
    Image.Resampling, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]
] = {
    Image.Resampling.BILINEAR: (lambda distance: np.where(distance < 1, 1 - distance, 0), 1.0),
    Image.Resampling.BICUBIC: (_cubic, 2.0),
}
"""Kernel of each filter, and its support: the distance from which the weight is 0."""


def resized_centre(
    image: Bytes, size: tuple[int, int], side: int, resampling: Image.Resampling
) -> Bytes | None:
    """The central square of `image` after Pillow's resize, (side, side, 3); None if not supported.

    Args:
        image: (H, W, 3).
        size: Width and height after the resize; both must differ from those of `image`, with the
            same aspect ratio except for rounding.
        side: Side of the square in pixels.
        resampling: Pillow's filter.
    """
    height, width = image.shape[:2]
    if (
        resampling not in _FILTERS
        or max(height, width) > _MOST_ASPECT * min(height, width)
        or (size[0] < width) != (size[1] < height)
        or side > min(size) or size[0] == width or size[1] == height
        or not _is_pillows(resampling)
    ):  # fmt: skip
        return None
    return _resized_centre(image, size, side, resampling)


@cache
def _is_pillows(resampling: Image.Resampling) -> bool:
    """Whether the installed Pillow computes the same pixels, for landscape and portrait images."""
    noise = np.random.default_rng(0).integers(0, 256, (57, 31, 3), np.uint8)
    for image, size in ((noise, (20, 37)), (np.rot90(noise), (37, 20)), (noise, (40, 74))):
        expected = np.asarray(Image.fromarray(image).resize(size, resampling))
        side = min(size)
        top, left = round((size[1] - side) / 2), round((size[0] - side) / 2)
        centre = expected[top : top + side, left : left + side]
        if not np.array_equal(_resized_centre(image, size, side, resampling), centre):
            return False
    return True


def _resized_centre(
    image: Bytes, size: tuple[int, int], side: int, resampling: Image.Resampling
) -> Bytes:
    columns, rows = (
        _taps(before, after, resampling)
        for before, after in zip(image.shape[1::-1], size, strict=True)
    )
    across, down = (
        slice(round((length - side) / 2), round((length - side) / 2) + side) for length in size
    )
    result = np.empty((side, side, 3), np.uint8)
    _resize(
        np.ascontiguousarray(image),
        columns[0][across], columns[1][across], columns[2][across],
        rows[0][down], rows[1][down], rows[2][down],
        result,
    )  # fmt: skip
    return result


@lru_cache(maxsize=64)
def _taps(
    before: int, after: int, resampling: Image.Resampling
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """First sample, number of samples and weights of each output pixel along one axis."""
    weight_at, support = _FILTERS[resampling]
    scale = before / after
    stretch = max(scale, 1.0)
    support *= stretch
    centres = (np.arange(after) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int32), 0)
    count = np.minimum((centres + support + 0.5).astype(np.int32), before) - first
    samples = np.arange(math.ceil(support) * 2 + 1)
    distances = (samples + first[:, None] - centres[:, None] + 0.5) * (1 / stretch)
    weights = np.where(samples < count[:, None], weight_at(np.abs(distances)), 0)
    total = np.zeros(after)
    for column in weights.T:  # in Pillow's order of summation
        total += column
    weights /= total[:, None]
    fixed = np.trunc(np.where(weights < 0, -0.5, 0.5) + weights * (1 << _BITS))
    return first, count, fixed.astype(np.int32)


@compiled(
    f"void({reads('u1', 3)}, i4[::1], i4[::1], i4[:,::1], i4[::1], i4[::1], i4[:,::1], u1[:,:,::1])"
)
def _resize(
    image: Bytes, first_columns: NDArray[Any], column_counts: NDArray[Any],
    column_weights: NDArray[Any], first_rows: NDArray[Any], row_counts: NDArray[Any],
    row_weights: NDArray[Any], result: Bytes,
) -> None:  # fmt: skip
    height, width = result.shape[:2]
    top = first_rows[0]
    needed = first_rows[height - 1] + row_counts[height - 1] - top
    half = np.int32(1 << (_BITS - 1))
    narrow = np.empty((needed, 3 * width), np.uint8)
    for i in range(needed):
        line = image[top + i]
        for j in range(width):
            samples = line[first_columns[j] : first_columns[j] + column_counts[j]]
            red = green = blue = half
            for k in range(samples.shape[0]):
                weight = column_weights[j, k]
                red += samples[k, 0] * weight
                green += samples[k, 1] * weight
                blue += samples[k, 2] * weight
            narrow[i, 3 * j] = min(max(red >> _BITS, 0), 255)
            narrow[i, 3 * j + 1] = min(max(green >> _BITS, 0), 255)
            narrow[i, 3 * j + 2] = min(max(blue >> _BITS, 0), 255)
    sums = np.empty(3 * width, np.int32)
    for i in range(height):
        sums[:] = half
        for k in range(row_counts[i]):
            weight = row_weights[i, k]
            line_bytes = narrow[first_rows[i] - top + k]
            for n in range(sums.size):
                sums[n] += np.int32(line_bytes[n]) * weight
        row = result[i].ravel()
        for n in range(sums.size):
            row[n] = min(max(sums[n] >> _BITS, 0), 255)

"""Mask files to foreground and background, exactly: what is not two classes is refused."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.data.decode import FORMATS, UnreadableImage, decode, decode_bytes, read_bytes
from robustcli.data.index import ImageRef
from robustcli.data.pairs import PairRef

_SHOWN = 6


def decode_mask(ref: ImageRef) -> NDArray[np.bool_]:
    """Where the foreground is: bool, shape (height, width).

    Background is 0. Foreground is 1 or the largest value that the file's type holds (255, or 65535
    for 16 bits), the two ways in which binary masks are written; a mask of zeros is empty. Any
    other number may be a class or an instance, and is not merged with the foreground by guess.
    A palette counts by its greys, or by its indices where it has colours; alpha does not count.

    Raises:
        UnreadableImage: The file is missing or damaged (see `decode`).
        UsageError: It has other values, or colours.
    """
    try:
        content = read_bytes(ref)
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error
    levels = _levels(ref, content)
    top = int(levels.max())
    foreground = levels > 0
    two_classes = top in (0, 1, np.iinfo(levels.dtype).max) and bool(
        (levels[foreground] == top).all()
    )
    if not two_classes:
        raise _not_two_classes(ref, levels)
    return foreground


def decode_pair(pair: PairRef) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The image, uint8 (height, width, 3) RGB, and its mask, bool (height, width).

    Raises:
        UnreadableImage: One of the files is missing or damaged.
        UsageError: The mask is not one of two classes, or of another size than the image.
    """
    image = decode(pair.image)
    try:
        mask = decode_mask(pair.mask)
    except UnreadableImage as error:
        raise UnreadableImage(f"its mask `{pair.mask.image_id}`: {error.reason}") from error
    check_pair(pair, image, mask)
    return image, mask


def check_pair(pair: PairRef, image: NDArray[Any], mask: NDArray[Any]) -> None:
    """Nothing, if image (height, width, ...) and mask (height, width) have one size.

    Raises:
        UsageError: They have not; both files are named.
    """
    if image.shape[:2] == mask.shape[:2]:
        return
    sizes = [f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in (image, mask)]
    raise UsageError(
        f"`{_place(pair.image)}` and its mask `{_place(pair.mask)}` differ in size.",
        f"The image is {sizes[0]} (width x height), the mask {sizes[1]}: which pixel belongs to "
        "which is not known.",
        "Make the mask anew from the image as it is, or leave the pair out (a CSV with the columns "
        "`image` and `mask` names those that count).",
    )


def _levels(ref: ImageRef, content: bytes) -> NDArray[Any]:
    """The values as the file means them, an unsigned integer type, shape (height, width)."""
    colours = decode_bytes(content)
    grey = bool((colours == colours[..., :1]).all())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `decode_bytes` has vouched for the file
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.mode.startswith("I"):  # of which `decode_bytes` keeps the high byte only
                return np.asarray(image).astype(np.uint16)
            if image.mode == "P" and not grey:
                return np.array(image)
    if not grey:
        raise _coloured(ref)
    return colours[..., 0]


def _not_two_classes(ref: ImageRef, levels: NDArray[Any]) -> UsageError:
    values = [str(value) for value in np.unique(levels)]
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return UsageError(
        f"The mask `{_place(ref)}` does not have two classes.",
        f"Its values are {', '.join(values[:_SHOWN])}{more}. Expected 0 for background and one of "
        f"1 and {np.iinfo(levels.dtype).max} for foreground; others may be classes or instances.",
        "Write the masks of what is to be found as PNG with 0 and 255 (JPEG blurs them).",
    )


def _coloured(ref: ImageRef) -> UsageError:
    return UsageError(
        f"The mask `{_place(ref)}` has colours.",
        "Expected grey values, 0 for background; which colour is the foreground is not known.",
        "Write the masks of what is to be found as PNG with 0 and 255.",
    )


def _place(ref: ImageRef) -> str:
    return str(ref.path) if ref.member is None else f"{ref.path}:{ref.member}"

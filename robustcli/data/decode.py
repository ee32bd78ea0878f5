"""Image files to RGB pixels, as torchvision's and timm's folder data sets decode them.

Both do `Image.open(file).convert("RGB")`: the EXIF orientation is not applied, an alpha channel is
dropped, CMYK goes through Pillow's own formula, greyscale is repeated three times.
Source: torchvision.datasets.folder.pil_loader, timm.data.dataset.ImageDataset.

Deviation: 16-bit greyscale keeps its high byte, as Pillow itself does for 16-bit colour; Pillow's
`convert` clips it, which turns the photo white.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from robustcli.data.index import ImageRef

# By content, whatever the suffix (ImageNet has a PNG named .JPEG). Others stay shut: a file that
# says it is PostScript would start Ghostscript.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_WIDE_GREY_FORMATS = ("PNG", "PPM")


class UnreadableImage(Exception):  # noqa: N818 - it is about the image, not about the program
    """An image that cannot be decoded whole.

    Args:
        reason: Why, in words, without the file's name.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def decode(ref: ImageRef) -> NDArray[np.uint8]:
    """The pixels of one image, uint8, shape (height, width, 3), RGB.

    Raises:
        UnreadableImage: The file is missing, truncated, corrupt, too large to be a photo, or of a
            kind that is not read.
    """
    try:
        content = read_bytes(ref)
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error
    return decode_bytes(content)


def read_bytes(ref: ImageRef) -> bytes:
    """The encoded file of one image, from the disk or out of its tar."""
    if ref.member is None:
        return ref.path.read_bytes()
    with ref.path.open("rb", buffering=0) as archive:
        archive.seek(ref.offset)
        return archive.read(ref.size)


def decode_bytes(content: bytes) -> NDArray[np.uint8]:
    """The pixels of an encoded image, uint8, shape (height, width, 3), RGB.

    Raises:
        UnreadableImage: See `decode`.
    """
    if not content:
        raise UnreadableImage("the file is empty")
    try:
        with _strictly(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return _rgb(image)
    except (UnreadableImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage("more pixels than a photo has (a decompression bomb?)") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"not an image of a known kind ({', '.join(FORMATS)})") from error
    # Pillow's readers answer a corrupt file with almost any exception (ValueError, SyntaxError,
    # IndexError, struct.error, zlib.error, ...); one bad file must not end a run of hours.
    except Exception as error:
        raise UnreadableImage(f"damaged: {error}") from error


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    wide = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in _WIDE_GREY_FORMATS
    )
    if wide:
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise UnreadableImage("32-bit greyscale, for which no value means white")
    return np.array(image.convert("RGB"))


@contextmanager
def _strictly() -> Iterator[None]:
    """Pillow without warnings, and refusing truncated files even where a library allowed them.

    Its warnings (odd EXIF, transparency dropped, large but not too large) change no pixel.
    """
    allowed, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = allowed

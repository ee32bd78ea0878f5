"""Decodes image files to RGB pixels, as the folder data sets of torchvision and timm do.

Both call `Image.open(file).convert("RGB")`: EXIF orientation is not applied, an alpha channel is
dropped, CMYK is converted by Pillow's formula, and greyscale is repeated three times.
Source: torchvision.datasets.folder.pil_loader, timm.data.dataset.ImageDataset.

Deviations: 16-bit greyscale is reduced to its high byte, as Pillow does for 16-bit colour; Pillow's
`convert` would clip it, which turns most photos white. An image with a single colour and a varying
alpha channel is refused: its content would be lost without the alpha channel.

Pillow's settings are global, but images are decoded in several threads: `_StrictLoading` and
`robustcli.core.silence` synchronise the changes.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from robustcli.core.io import check_readable
from robustcli.core.silence import silenced
from robustcli.core.watchdog import working_on
from robustcli.data.arrays import read_pixels
from robustcli.data.dataset import FileRef, RawPixels
from robustcli.data.dataset import UnreadableImage as UnreadableImage

# The format is detected from the content, not the suffix: ImageNet contains a PNG named .JPEG.
# Other formats are not opened: Pillow would run Ghostscript for PostScript.
IMAGE_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_WIDE_GREY_FORMATS = ("PNG", "PPM")
_MOST_PIXELS = 2 * 89_478_485  # Pillow's limit, which another library may have disabled
# Limit of scans of a JPEG. Encoders write at most some dozens. The decoder processes all pixels for
# each scan, and an empty scan has only 10 bytes.
_MOST_SCANS = 256
_START_OF_SCAN = b"\xff\xda"  # cannot occur inside a scan, where each byte 255 is followed by a 0
# Modules whose warnings (invalid EXIF, dropped transparency, large images) do not affect pixels.
_WARNING_MODULES = (
    *("PIL.Image", "PIL.JpegImagePlugin", "PIL.MpoImagePlugin", "PIL.PngImagePlugin"),
    *("PIL.PpmImagePlugin", "PIL.BmpImagePlugin", "PIL.TiffImagePlugin", "PIL.WebPImagePlugin"),
    *("PIL.GifImagePlugin", "PIL.ImageFile"),
)
ReadT = TypeVar("ReadT")


def decode(ref: FileRef) -> NDArray[np.uint8]:
    """The pixels of one image, uint8, shape (height, width, 3), RGB.

    With `ref.parts`, each part is a channel. Array files are read by `arrays.read_pixels`.

    Raises:
        UnreadableImage: The file is missing, truncated, corrupt, too large to be a photo, or of an
            unsupported format.
    """
    if ref.parts:
        return _stacked(ref)
    with working_on(f"decoding `{ref}`"):
        return _decoded(ref)


def _decoded(ref: FileRef) -> NDArray[np.uint8]:
    """The pixels of one file; see `decode`."""
    try:
        if ref.array is not None:
            return read_pixels(ref)
        content = ref.read()
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error
    pixels = decode_bytes(content) if ref.raw is None else _raw_pixels(content, ref.raw)
    if not ref.border:
        return pixels
    inside = pixels[ref.border : -ref.border, ref.border : -ref.border]
    if not inside.size:
        raise UnreadableImage(f"nothing remains inside its border of {ref.border} pixels")
    return np.ascontiguousarray(inside)


def _stacked(ref: FileRef) -> NDArray[np.uint8]:
    """Stacks greyscale files, one per channel, to one image."""
    channels = list[NDArray[np.uint8]]()
    for name, part in ref.parts:
        pixels = decode(part)
        if not (pixels == pixels[..., :1]).all():
            raise UnreadableImage(f"its channel `{name}` is in colour, expected greyscale")
        if channels and channels[0].shape != pixels.shape[:2]:
            raise UnreadableImage(f"its channel `{name}` differs in size from the first")
        channels.append(pixels[..., 0])
    return np.stack(channels, axis=-1)


def _raw_pixels(content: bytes, raw: RawPixels) -> NDArray[np.uint8]:
    expected = raw.height * raw.width * 3
    if len(content) != expected:
        raise UnreadableImage(f"it is truncated: {len(content)} of {expected} bytes")
    values = np.frombuffer(content, np.uint8)
    if raw.planar:
        return np.ascontiguousarray(values.reshape(3, raw.height, raw.width).transpose(1, 2, 0))
    return values.reshape(raw.height, raw.width, 3).copy()


def decode_bytes(content: bytes) -> NDArray[np.uint8]:
    """The pixels of an encoded image; see `decode`."""
    if not content:
        raise UnreadableImage("the file is empty")
    return read_image(io.BytesIO(content), _rgb)


def read_image(source: Path | io.BytesIO, read: Callable[[Image.Image], ReadT]) -> ReadT:
    """The result of `read` for the opened image in `source`.

    Raises:
        UnreadableImage: The image cannot be opened or loaded, or `read` raises this error.
    """
    try:
        with silenced(*_WARNING_MODULES):
            while True:
                with _STRICT, Image.open(source, formats=IMAGE_FORMATS) as image:
                    if image.width * image.height > _MOST_PIXELS:
                        raise Image.DecompressionBombError
                    _check_scans(image, source)
                    result = read(image)
                    if not ImageFile.LOAD_TRUNCATED_IMAGES:
                        return result
                # Another thread allowed truncated files meanwhile, so this image may be incomplete:
                # decode it again.
                if isinstance(source, io.BytesIO):
                    source.seek(0)
    except (UnreadableImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(
            "more pixels than a photo has (possibly a decompression bomb)"
        ) from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(
            f"not in a supported image format ({', '.join(IMAGE_FORMATS)})"
        ) from error
    # Pillow raises almost any exception for a corrupt file (ValueError, SyntaxError, IndexError,
    # struct.error, zlib.error, ...), and one bad file must not end a long run.
    except Exception as error:
        raise UnreadableImage(f"damaged: {error}") from error


def _check_scans(image: Image.Image, source: Path | io.BytesIO) -> None:
    """Raises UnreadableImage for a JPEG with so many scans that it would take hours to decode.

    A path is not checked, because only the header is read from it.
    """
    if not isinstance(source, io.BytesIO) or image.format not in ("JPEG", "MPO"):
        return
    scans = source.getvalue().count(_START_OF_SCAN)
    if scans > _MOST_SCANS:
        raise UnreadableImage(f"a JPEG of {scans:,} scans, which could take hours to decode")


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    has_wide_format = image.mode == "I" and image.format in _WIDE_GREY_FORMATS
    if has_wide_format or image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise UnreadableImage("32-bit greyscale, for which no value is defined as white")
    # `convert` copies even an RGB image, which takes a third of the decoding time.
    pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if image.has_transparency_data and bool((pixels == pixels[0, 0]).all()):
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if bool((alpha != alpha[0, 0]).any()):
            red, green, blue = pixels[0, 0]
            raise UnreadableImage(
                "its content is only in the alpha channel, which is dropped: every pixel has the "
                f"colour #{red:02x}{green:02x}{blue:02x} (composite it on a background and save "
                "the result)"
            )
    return pixels


class _StrictLoading:
    """Context in which Pillow refuses truncated files, even if another library allows them.

    `ImageFile.LOAD_TRUNCATED_IMAGES` is global. If it is set, the first thread that enters clears
    it and the last thread that leaves restores it. Saving and restoring the value in each thread
    would be wrong: a thread could save the value that another thread has cleared.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Resets the state in a forked process, which does not have the threads of its parent."""
        if getattr(self, "_allowed", False):
            ImageFile.LOAD_TRUNCATED_IMAGES = True
        self._lock, self._inside, self._allowed = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if ImageFile.LOAD_TRUNCATED_IMAGES:
                self._allowed, ImageFile.LOAD_TRUNCATED_IMAGES = True, False
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._allowed and not self._inside:
                self._allowed, ImageFile.LOAD_TRUNCATED_IMAGES = False, True


_STRICT = _StrictLoading()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_STRICT.forget)


def image_size(ref: FileRef) -> tuple[int, int]:
    """Height and width in pixels, read from the header; raises UnreadableImage like `decode`."""
    if ref.raw is not None:
        return ref.raw.height, ref.raw.width
    if ref.parts:
        return image_size(ref.parts[0][1])
    if ref.array is not None:
        height, width = decode(ref).shape[:2]
        return height, width
    try:
        is_file = ref.member is None and ref.rows is None
        if is_file:
            check_readable(ref.path)
        source = ref.path if is_file else io.BytesIO(ref.read())
        cut = 2 * ref.border
        return read_image(source, lambda image: (image.height - cut, image.width - cut))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnreadableImage(f"its size cannot be read: {reason}") from error
    except UnreadableImage as error:
        raise UnreadableImage(f"its size cannot be read: {error.reason}") from error

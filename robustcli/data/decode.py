"""Decodes image files and array files to RGB pixels.

Image files are decoded as the folder data sets of torchvision and timm do. Both call
`Image.open(file).convert("RGB")`: EXIF orientation is not applied, an alpha channel is dropped,
CMYK is converted by Pillow's formula, and greyscale is repeated three times.
Source: torchvision.datasets.folder.pil_loader, timm.data.dataset.ImageDataset.

Deviations: 16-bit greyscale is reduced to its high byte, as Pillow does for 16-bit colour; Pillow's
`convert` would clip it, which turns most photos white. An image with a single colour and a varying
alpha channel is refused: its content would be lost without the alpha channel.

Pillow's settings are global, but images are decoded in several threads: `_StrictLoading` and
`robustcli.core.silence` synchronise the changes.
"""

from __future__ import annotations

import importlib
import io
import logging
import math
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from robustcli.core.errors import UsageError, first_line
from robustcli.core.io import check_readable
from robustcli.core.silence import silenced
from robustcli.core.watchdog import working_on
from robustcli.data.dataset import FileRef, RawPixels, raise_if_transient
from robustcli.data.dataset import UnreadableImage as UnreadableImage
from robustcli.data.listing import HDF5_SUFFIXES, NIFTI_SUFFIXES

# The format is detected from the content, not the suffix: ImageNet contains a PNG named .JPEG.
# Other formats are not opened: Pillow would run Ghostscript for PostScript.
IMAGE_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_WIDE_GREY_FORMATS = ("PNG", "PPM")
_MOST_PIXELS = 2 * 89_478_485  # Pillow's limit, which another library may have disabled
# Limit of scans of a JPEG. Encoders write at most some dozens. The decoder processes all pixels for
# each scan, and an empty scan has only 10 bytes.
_MOST_SCANS = 256
_PART_PIXELS = 2**24
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_START_OF_SCAN = b"\xff\xda"  # cannot occur inside a scan, where each byte 255 is followed by a 0
# Modules whose warnings (invalid EXIF, dropped transparency, large images) do not affect pixels.
_WARNING_MODULES = (
    *("PIL.Image", "PIL.JpegImagePlugin", "PIL.MpoImagePlugin", "PIL.PngImagePlugin"),
    *("PIL.PpmImagePlugin", "PIL.BmpImagePlugin", "PIL.TiffImagePlugin", "PIL.WebPImagePlugin"),
    *("PIL.GifImagePlugin", "PIL.ImageFile"),
)
# Pillow logs an error for each TIFF of many channels, which Python would print to the terminal.
logging.getLogger("PIL.TiffImagePlugin").addHandler(logging.NullHandler())
ReadT = TypeVar("ReadT")


def decode(ref: FileRef) -> NDArray[np.uint8]:
    """The pixels of one image, uint8, shape (height, width, 3), RGB.

    With `ref.parts`, each part is a channel. Array files are read by `read_pixels`.

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
        raise_if_transient(ref, error)
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
        raise UnreadableImage(_unidentified(source)) from error
    # Pillow raises almost any exception for a corrupt file (ValueError, SyntaxError, IndexError,
    # struct.error, zlib.error, ...), and one bad file must not end a long run.
    except Exception as error:
        raise UnreadableImage(f"damaged: {error}") from error


def _unidentified(source: Path | io.BytesIO) -> str:
    """The reason why Pillow does not identify an image."""
    if isinstance(source, io.BytesIO):
        start = source.getvalue()[:4]
    else:
        with source.open("rb") as file:
            start = file.read(4)
    if start in _TIFF_STARTS:
        return (
            "a TIFF that is damaged or of an unsupported kind (more than three channels, 64-bit "
            "numbers, ...)"
        )
    return f"not in a supported image format ({', '.join(IMAGE_FORMATS)})"


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
    image.load()  # can change the size
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, part in _parts(image):
        # `convert` copies even an RGB image, which takes a third of the decoding time.
        converted = np.asarray(part if part.mode == "RGB" else part.convert("RGB"))
        pixels[top : top + part.height] = converted
    if image.has_transparency_data and _is_uniform(pixels):
        alphas = [np.asarray(part.convert("RGBA").getchannel("A")) for _, part in _parts(image)]
        if any(bool((alpha != alphas[0][0, 0]).any()) for alpha in alphas):
            red, green, blue = pixels[0, 0]
            raise UnreadableImage(
                "its content is only in the alpha channel, which is dropped: every pixel has the "
                f"colour #{red:02x}{green:02x}{blue:02x} (composite it on a background and save "
                "the result)"
            )
    return pixels


def _parts(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yields parts of a large image, from top to bottom, with the index of their first row.

    To convert an image and to copy its pixels, Pillow needs four times the memory of the pixels.
    """
    rows = max(1, _PART_PIXELS // image.width)
    if image.height <= rows:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _is_uniform(pixels: NDArray[np.uint8]) -> bool:
    rows = max(1, _PART_PIXELS // pixels.shape[1])
    parts = (pixels[top : top + rows] for top in range(0, len(pixels), rows))
    return all(bool((part == pixels[0, 0]).all()) for part in parts)


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
        raise_if_transient(ref, error)
        reason = error.strerror or str(error)
        raise UnreadableImage(f"its size cannot be read: {reason}") from error
    except UnreadableImage as error:
        raise UnreadableImage(f"its size cannot be read: {error.reason}") from error


# Array files: NumPy, HDF5 (with h5py) and NIfTI (with nibabel). Medical data sets are often
# published as one file per slice or volume with the arrays `image` and `label`, or as NIfTI
# volumes. h5py and nibabel are optional. Pickled arrays are refused.

ARRAY_SUFFIXES = frozenset({".npy", ".npz", *HDF5_SUFFIXES, *NIFTI_SUFFIXES})
VOLUME = "volume"
"""Name for the single array of a NIfTI file."""
_MOST_BYTES = 2**32  # limit of an array in memory; 1,500 slices of 512 x 512 in float64 have 3e9
_MOST_NUMBERS = 4 * 178_956_970  # limit of an image: four channels at the limit of `decode`
_LOW, _HIGH = 0.5, 99.5  # percentiles of a volume that are mapped to black and white
_MASK_KEYS = ("label", "labels", "mask", "masks", "seg", "gt")


def holds_array(ref: FileRef) -> bool:
    """Whether the file has the suffix of an array file."""
    return (ref.member or ref.path.name).lower().endswith(tuple(ARRAY_SUFFIXES))


def array_kind(ref: FileRef) -> str:
    """Description of the type of an array file, for announcements."""
    name = (ref.member or ref.path.name).lower()
    if name.endswith(HDF5_SUFFIXES):
        return "arrays of HDF5"
    return "volumes of NIfTI" if name.endswith(NIFTI_SUFFIXES) else "arrays of numpy"


def read_array(ref: FileRef) -> NDArray[Any]:
    """The array `ref.array` of a file; for a volume, its slice `ref.slice_index`.

    Without `ref.array`, the file must contain one array, or one array with the name of a mask.

    Raises:
        OSError: The file is missing, too large, or a pipe or a device.
        UnreadableImage: The file is damaged, the array is missing, too large or not numeric.
        UsageError: The library that reads the file (h5py or nibabel) is not installed.
    """
    name = (ref.member or ref.path.name).lower()
    check_readable(ref.path)
    if name.endswith(HDF5_SUFFIXES):
        array = _from_hdf5(ref)
    elif name.endswith(NIFTI_SUFFIXES):
        array = _nifti_slice(_nifti(ref.path, file_state(ref.path)), ref.slice_index)
    else:
        array = _from_numpy(ref)
        if ref.slice_index is not None:
            array = np.take(array, ref.slice_index, _slice_axis(array.shape))
    if array.dtype.kind not in "buif" or not array.size:
        raise UnreadableImage("not a numeric array")
    if array.size > _MOST_NUMBERS:
        raise UnreadableImage(
            f"an array of shape {array.shape}, which is larger than an image can be"
        )
    return array


def _check_bytes(size: int) -> None:
    """Raises UnreadableImage for an array of more than `_MOST_BYTES`, before it is allocated."""
    if size > _MOST_BYTES:
        raise UnreadableImage(f"its array would take {size:,} bytes; the limit is {_MOST_BYTES:,}")


def read_pixels(ref: FileRef) -> NDArray[np.uint8]:
    """The image in an array file, uint8 (H, W, 3); see `as_pixels`.

    The values of a NIfTI volume have no fixed range. They are scaled so that the 0.5th percentile
    of the volume becomes black and the 99.5th white.

    Raises:
        UnreadableImage: The file is damaged, or the array is not an image.
        UsageError: A library is missing, see `read_array`.
    """
    array = read_array(ref)
    if not ref.path.name.lower().endswith(NIFTI_SUFFIXES):
        return as_pixels(array)
    low, high = _grey_range(ref.path, file_state(ref.path))
    scaled = (array.astype(np.float64) - low) / ((high - low) or 1)
    return as_pixels(np.clip(scaled, 0, 1))


def file_state(path: Path) -> tuple[int, int]:
    """Size and modification time of a file, so that caches notice a changed file.

    Zeros for a missing file, which the reader reports.
    """
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns


def _nifti(path: Path, state: tuple[int, int]) -> NDArray[Any]:
    """The array (W, H) or (W, H, slices) of a NIfTI file, kept for reads of successive slices.

    An image of several channels reads a file per channel, and its mask another one, so that the
    volumes of a case are kept as long as they are not larger than `_MOST_KEPT` in total.
    """
    volume = _volumes.pop((path, state), None)
    if volume is None:
        volume = _read_nifti(path)
    _volumes[path, state] = volume  # last, as the one read most recently
    for oldest in list(_volumes)[:-2]:
        if sum(kept.nbytes for kept in list(_volumes.values())) <= _MOST_KEPT:
            break
        _volumes.pop(oldest, None)
    return volume


_MOST_KEPT = 2**29  # bytes: three channels and a mask of 512 x 512 x 200 int16 values are 420 MB
_volumes: dict[tuple[Path, tuple[int, int]], NDArray[Any]] = {}


_silenced = threading.local()


def _is_shown(record: logging.LogRecord) -> bool:
    return not getattr(_silenced, "now", False)


@contextmanager
def _without_messages() -> Iterator[None]:
    """Drops messages of nibabel in this thread, which do not name the file (repaired headers)."""
    logging.getLogger("nibabel.global").addFilter(_is_shown)
    _silenced.now = True
    try:
        yield
    finally:
        _silenced.now = False


def _read_nifti(path: Path) -> NDArray[Any]:
    nibabel = require("nibabel", path, "NIfTI")
    try:
        with _without_messages():
            image = nibabel.load(path)
        _check_bytes(math.prod(image.shape) * image.get_data_dtype().itemsize)
        return np.asanyarray(image.dataobj)
    except UnreadableImage:
        raise
    except Exception as error:  # nibabel raises various exceptions for a corrupt file
        raise UnreadableImage(f"damaged: {first_line(error)}") from error


@lru_cache(maxsize=64)
def _grey_range(path: Path, state: tuple[int, int]) -> tuple[float, float]:
    volume = _nifti(path, state)
    if volume.dtype.kind not in "buif" or not np.isfinite(volume).all():
        raise UnreadableImage("some of its values are not numbers")
    low, high = np.percentile(volume, (_LOW, _HIGH))
    return float(low), float(high)


def _nifti_slice(volume: NDArray[Any], index: int | None) -> NDArray[Any]:
    """A slice (H, W) of the array of a NIfTI file, whose first axis is horizontal."""
    if volume.ndim != (2 if index is None else 3):
        raise UnreadableImage(f"an array of shape {volume.shape}, expected (width, height, slices)")
    if index is None:
        return volume.T
    if index >= volume.shape[2]:
        raise UnreadableImage(f"it has {volume.shape[2]} slices, its mask has more")
    return volume[:, :, index].T


def array_names(ref: FileRef) -> list[str]:
    """The names of the arrays in an `.npz` or HDF5 file; empty for a damaged one.

    Raises:
        UsageError: The file is HDF5, and h5py is not installed.
    """
    try:
        check_readable(ref.path)
        if (ref.member or ref.path.name).lower().endswith(HDF5_SUFFIXES):
            h5py = require("h5py", ref.path, "HDF5")
            with h5py.File(ref.path if ref.member is None else io.BytesIO(ref.read()), "r") as file:
                return list(file)
        with np.load(io.BytesIO(ref.read()), allow_pickle=False) as arrays:
            return list(arrays.files)
    except UsageError:
        raise
    except Exception:  # both libraries raise various exceptions for a corrupt file
        return []


def _from_numpy(ref: FileRef) -> NDArray[Any]:
    content = ref.read()
    if not content:
        raise UnreadableImage("the file is empty")
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            key = _key(list(loaded.files), ref.array)
            _check_bytes(_unpacked_size(content, key))
            return np.asarray(loaded[key])
    except UnreadableImage:
        raise
    except Exception as error:  # numpy raises various exceptions for a corrupt file
        raise UnreadableImage(f"damaged: {first_line(error)}") from error


def _unpacked_size(content: bytes, key: str) -> int:
    """Unpacked size in bytes of the array `key` of an `.npz` file, from the zip directory."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [info for info in archive.infolist() if info.filename in (key, f"{key}.npy")]
        return max((info.file_size for info in members), default=0)


def _from_hdf5(ref: FileRef) -> NDArray[Any]:
    h5py = require("h5py", ref.path, "HDF5")
    source = ref.path if ref.member is None else io.BytesIO(ref.read())
    try:
        with h5py.File(source, "r") as file:
            array = _in_file(file, _key(list(file), ref.array))
            slices = 1 if ref.slice_index is None else array.shape[_slice_axis(array.shape)]
            _check_bytes(array.size * array.dtype.itemsize // max(1, slices))
            if ref.slice_index is None:
                return np.asarray(array)
            if _slice_axis(array.shape) == 2:
                return np.asarray(array[:, :, ref.slice_index])
            return np.asarray(array[ref.slice_index])
    except UnreadableImage:
        raise
    except Exception as error:  # h5py raises various exceptions for a corrupt file
        raise UnreadableImage(f"damaged: {first_line(error)}") from error


def _in_file(file: Any, key: str) -> Any:
    """The array `key` of an HDF5 file; links to other files are refused, never opened.

    Raises:
        UnreadableImage: `key` is a link or not an array, or data of the array are in other files.
    """
    h5py = importlib.import_module("h5py")
    if key in file and not isinstance(file.get(key, getlink=True), h5py.HardLink):
        raise UnreadableImage(f"its array `{key}` is a link, which may refer to another file")
    array = file[key]
    if not isinstance(array, h5py.Dataset):
        raise UnreadableImage(f"its `{key}` is not an array")
    if array.external or array.is_virtual:
        raise UnreadableImage(f"the values of its array `{key}` are stored in other files")
    return array


def _key(keys: list[str], name: str | None) -> str:
    if name is None:
        fitting = keys if len(keys) == 1 else [key for key in keys if key.lower() in _MASK_KEYS]
        if len(fitting) == 1:
            return fitting[0]
    elif name in keys:
        return name
    expected = "one array, or one named `label` or `mask`" if name is None else f"an array `{name}`"
    raise UnreadableImage(f"its arrays are {', '.join(sorted(keys)) or 'none'}, not {expected}")


def require(library: Literal["h5py", "nibabel"], path: Path, kind: str) -> Any:
    """Imports an optional module; raises UsageError, naming the file, if it is not installed."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise UsageError(
            f"`{path}` is {'an' if kind == 'HDF5' else 'a'} {kind} file, and {library} is not "
            "installed.",
            f"{kind} files are read with this library.",
            f"Install it: `pip install {library}` (or `pip install 'robustcli[medical]'`).",
        ) from error


def volume_slices(path: Path, key: str) -> int | None:
    """Number of slices of the volume `key` in an HDF5 or NIfTI file; None for a single slice.

    Raises:
        UsageError: The library is not installed, or the array cannot be read.
    """
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        return _nifti_slices(path)
    h5py = require("h5py", path, "HDF5")
    try:
        check_readable(path)
        with h5py.File(path, "r") as file:
            shape = tuple(_in_file(file, key).shape)
        return None if len(shape) == 2 else int(shape[_slice_axis(shape)])
    except Exception as error:  # h5py raises various exceptions for a corrupt file
        raise UsageError(
            f"`{path}` contains no readable array `{key}`.",
            f"The error is: {error}.",
            "Download the file again, or remove it.",
        ) from error


def _nifti_slices(path: Path) -> int | None:
    nibabel = require("nibabel", path, "NIfTI")
    try:
        check_readable(path)
        with _without_messages():
            shape = tuple(nibabel.load(path).shape)
    except Exception as error:  # nibabel raises various exceptions for a corrupt file
        raise UsageError(
            f"`{path}` cannot be read as a NIfTI file.",
            f"The error is: {error}.",
            "Download the file again, or remove it.",
        ) from error
    if len(shape) not in (2, 3):
        raise UsageError(
            f"`{path}` has {len(shape)} axes.",
            "Images with two axes and volumes with three axes are supported.",
            "Write each channel to a separate file: `NAME_0000.nii.gz`, `NAME_0001.nii.gz`.",
        )
    return None if len(shape) == 2 else int(shape[2])


def nifti_orientation(path: Path) -> str:
    """The directions of the axes of a NIfTI file, such as `RAS`; empty if they are not known.

    Raises:
        UsageError: nibabel is not installed.
    """
    nibabel = require("nibabel", path, "NIfTI")
    try:
        check_readable(path)
        with _without_messages():
            image = nibabel.load(path)
        is_stated = bool(image.header["sform_code"] or image.header["qform_code"])
        axes = nibabel.aff2axcodes(image.affine) if is_stated else [""]
        return "".join(axes)
    except Exception:  # nibabel raises various exceptions for a corrupt file or affine
        return ""


def _slice_axis(shape: tuple[int, ...]) -> int:
    """Axis of the slices: 2 if only the first two axes have equal length, else 0."""
    if len(shape) != 3:
        raise UnreadableImage(f"an array of shape {shape}, expected (slices, height, width)")
    return 2 if shape[0] == shape[1] != shape[2] else 0


def as_pixels(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Converts an array, (H, W) for greyscale or (H, W, 3), to an image, uint8 (H, W, 3).

    Of three axes, a first or last one of length 1 is dropped. Values of uint8 are not changed;
    floating-point values must be in [0, 1] and are rounded to 256 levels.

    Raises:
        UnreadableImage: The array has another shape, dtype or value range.
    """
    array = without_single_axis(array)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise UnreadableImage(f"an array of shape {array.shape}, expected (height, width)")
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise UnreadableImage(f"values from {low:g} to {high:g}, expected 0 to 1")
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise UnreadableImage(f"an array of {array.dtype}, expected bytes or numbers from 0 to 1")
    if array.ndim == 2:
        return np.repeat(array[:, :, None], 3, axis=2)
    return np.ascontiguousarray(array)


def without_single_axis(array: NDArray[Any]) -> NDArray[Any]:
    """`array` (H, W, ...); of three axes, a first or last one of length 1 is dropped."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        return array[0] if array.shape[0] == 1 else array[..., 0]
    return array

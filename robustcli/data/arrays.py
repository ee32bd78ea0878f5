"""Reads images and masks from array files: NumPy, HDF5 (with h5py) and NIfTI (with nibabel).

Medical data sets are often published as one file per slice or volume with the arrays `image` and
`label`, or as NIfTI volumes. h5py and nibabel are optional. Pickled arrays are refused.
"""

from __future__ import annotations

import importlib
import io
import math
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robustcli.core.errors import UsageError, first_line
from robustcli.core.io import check_readable
from robustcli.data.dataset import FileRef, UnreadableImage
from robustcli.data.listing import HDF5_SUFFIXES, NIFTI_SUFFIXES

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
        UnreadableImage: The file is damaged, the array is missing, too large or not numeric.
        UsageError: The library that reads the file (h5py or nibabel) is not installed.
    """
    name = (ref.member or ref.path.name).lower()
    _check_file(ref)
    if name.endswith(HDF5_SUFFIXES):
        array = _from_hdf5(ref)
    elif name.endswith(NIFTI_SUFFIXES):
        array = _nifti_slice(_nifti(ref.path), ref.slice_index)
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


def _check_file(ref: FileRef) -> None:
    """Raises UnreadableImage for pipes, devices and too large files, before they are opened."""
    try:
        check_readable(ref.path)
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error


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
    low, high = _grey_range(ref.path)
    scaled = (array.astype(np.float64) - low) / ((high - low) or 1)
    return as_pixels(np.clip(scaled, 0, 1))


@lru_cache(maxsize=2)
def _nifti(path: Path) -> NDArray[Any]:
    """The array (W, H) or (W, H, slices) of a NIfTI file, cached for reads of successive slices."""
    nibabel = require("nibabel", path, "NIfTI")
    try:
        image = nibabel.load(path)
        _check_bytes(math.prod(image.shape) * image.get_data_dtype().itemsize)
        return np.asanyarray(image.dataobj)
    except UnreadableImage:
        raise
    except Exception as error:  # nibabel raises various exceptions for a corrupt file
        raise UnreadableImage(f"damaged: {first_line(error)}") from error


@lru_cache(maxsize=64)
def _grey_range(path: Path) -> tuple[float, float]:
    volume = _nifti(path)
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
    except Exception as error:  # h5py raises various exceptions for a corrupt file
        raise UsageError(
            f"`{path}` contains no readable array `{key}`.",
            f"The error is: {error}.",
            "Download the file again, or remove it.",
        ) from error
    return None if len(shape) == 2 else int(shape[_slice_axis(shape)])


def _nifti_slices(path: Path) -> int | None:
    nibabel = require("nibabel", path, "NIfTI")
    try:
        check_readable(path)
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
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
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

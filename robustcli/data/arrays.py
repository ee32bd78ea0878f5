"""Images and masks in files of arrays: NumPy's `.npy` and `.npz`, and HDF5 where h5py is installed.

Medical slices are published so: an array `image` and an array `label` in one file, of a slice or of
a volume. Nothing is unpickled.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcli.core.errors import UsageError
from robustcli.data.dataset import FileRef, UnreadableImage
from robustcli.data.listing import HDF5_SUFFIXES

ARRAY_SUFFIXES = frozenset({".npy", ".npz", *HDF5_SUFFIXES})
_MASK_KEYS = ("label", "labels", "mask", "masks", "seg", "gt")


def holds_array(ref: FileRef) -> bool:
    """Whether the file is named like one of arrays."""
    return (ref.member or ref.path.name).lower().endswith(tuple(ARRAY_SUFFIXES))


def read_array(ref: FileRef) -> NDArray[Any]:
    """The array of the file, that `ref.array` names; of a volume the slice `ref.slice_index`.

    Without a name the file must hold one array, or one that is named like a mask.

    Raises:
        UnreadableImage: The file is damaged, has no such array, or one without numbers.
        UsageError: It is HDF5, and h5py is not installed.
    """
    name = (ref.member or ref.path.name).lower()
    if name.endswith(HDF5_SUFFIXES):
        array = _from_hdf5(ref)
    else:
        array = _from_numpy(ref)
        if ref.slice_index is not None:
            array = np.take(array, ref.slice_index, _slice_axis(array.shape))
    if array.dtype.kind not in "buif" or not array.size:
        raise UnreadableImage("no array of numbers")
    return array


def _from_numpy(ref: FileRef) -> NDArray[Any]:
    content = ref.read()
    if not content:
        raise UnreadableImage("the file is empty")
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return np.asarray(loaded[_key(list(loaded.files), ref.array)])
    except UnreadableImage:
        raise
    except Exception as error:  # numpy answers a corrupt file with several kinds of exception
        raise UnreadableImage(f"damaged: {error}") from error


def _from_hdf5(ref: FileRef) -> NDArray[Any]:
    h5py = require_h5py(ref.path)
    source = ref.path if ref.member is None else io.BytesIO(ref.read())
    try:
        with h5py.File(source, "r") as file:
            array = file[_key(list(file), ref.array)]
            if ref.slice_index is None:
                return np.asarray(array)
            if _slice_axis(array.shape) == 2:
                return np.asarray(array[:, :, ref.slice_index])
            return np.asarray(array[ref.slice_index])
    except UnreadableImage:
        raise
    except Exception as error:  # h5py answers a corrupt file with several kinds of exception
        raise UnreadableImage(f"damaged: {error}") from error


def _key(keys: list[str], name: str | None) -> str:
    if name is None:
        fitting = keys if len(keys) == 1 else [key for key in keys if key.lower() in _MASK_KEYS]
        if len(fitting) == 1:
            return fitting[0]
    elif name in keys:
        return name
    wanted = "one array, or one named `label` or `mask`" if name is None else f"an array `{name}`"
    raise UnreadableImage(f"its arrays are {', '.join(sorted(keys)) or 'none'}, not {wanted}")


def require_h5py(path: Path) -> Any:
    """The module h5py; raises UsageError, naming the file, where it is not installed."""
    try:
        import h5py  # an optional library, which only HDF5 files need
    except ImportError as error:
        raise UsageError(
            f"`{path}` is an HDF5 file, and h5py is not installed.",
            "HDF5 files (`.h5`) are read with that library.",
            "Install it: `pip install h5py` (or `pip install 'robustcli[hdf5]'`).",
        ) from error
    return h5py


def volume_slices(path: Path, key: str) -> int | None:
    """The number of slices of the volume `key` in an HDF5 file; None if it is a single slice.

    Raises:
        UsageError: h5py is not installed, or the file has no such array.
    """
    h5py = require_h5py(path)
    try:
        with h5py.File(path, "r") as file:
            shape = tuple(file[key].shape)
    except Exception as error:  # h5py answers a corrupt file with several kinds of exception
        raise UsageError(
            f"`{path}` holds no array `{key}` that can be read.",
            f"The error is: {error}.",
            "Download the file again, or take it out.",
        ) from error
    return None if len(shape) == 2 else int(shape[_slice_axis(shape)])


def _slice_axis(shape: tuple[int, ...]) -> int:
    """The first axis, unless the first two have one length and the last another."""
    if len(shape) != 3:
        raise UnreadableImage(f"an array of shape {shape}, expected (slices, height, width)")
    return 2 if shape[0] == shape[1] != shape[2] else 0


def as_pixels(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The image in an array as uint8 (H, W, 3).

    Bytes are taken as they are, (H, W) grey or (H, W, 3); floating-point numbers must lie in 0 to 1
    and are rounded to 256 levels.

    Raises:
        UnreadableImage: The array has another shape, or values of another range.
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

"""Damaged and hostile array files: NumPy's, and HDF5 and NIfTI if their libraries are installed."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SECRET = 114
"""A byte outside the data set that no reader may show."""
_MILLION = 10**6


def npy(description: str, body: bytes) -> bytes:
    """Returns a `.npy` file with the given header."""
    text = description.encode() + b"\n"
    return b"\x93NUMPY\x02\0" + struct.pack("<I", len(text)) + text + body


def _bytes_of(*shape: int) -> str:
    return f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}"


def write_hostile_arrays(folder: Path) -> list[Path]:
    """Writes files without a valid image or mask named `mask`."""
    objects = npy(
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([os.system])
    )
    contents = {
        "empty.npy": b"", "magic.npy": b"\x93NUMPY",
        "version.npy": b"\x93NUMPY\xff\xff" + bytes(80),
        "objects.npy": objects, "pickle.npy": pickle.dumps(os.system),
        "huge.npy": npy(_bytes_of(_MILLION, _MILLION), bytes(10)),
        "negative.npy": npy(_bytes_of(-1, 4), bytes(10)),
        "header.npy": b"\x93NUMPY\x02\0" + struct.pack("<I", 2**31) + bytes(100),
        "nested.npy": npy("(" * 9000 + ")" * 9000, b""),
        "call.npy": npy("__import__('os').system('touch ran')", b""),
        "text.npy": npy("{'descr': '<U9', 'fortran_order': False, 'shape': (1,)}", bytes(36)),
        "objects.npz": zipped({"mask.npy": objects}),
        "outside.npz": zipped({"../../mask.npy": npy(_bytes_of(2, 2), bytes(4))}),
        "text.npz": zipped({"mask": b"no array"}),
        "cut.npz": zipped({"mask.npy": bytes(900)})[:60],
        "bomb.npz": _zip_bomb(),
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    if importlib.util.find_spec("h5py"):
        _write_hdf5(folder)
    if importlib.util.find_spec("nibabel"):
        _write_nifti(folder)
    os.mkfifo(folder / "pipe.npy")
    (folder / "endless.npy").symlink_to("/dev/zero")
    return sorted(path for path in folder.iterdir() if path.is_symlink() or not path.is_dir())


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Returns a zip of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _zip_bomb() -> bytes:
    """Returns an archive whose directory declares a member of nearly 5 GiB."""
    members = {"mask.npy": npy(_bytes_of(70_000, 70_000), bytes(5_000_000))}
    content = bytearray(zipped(members, zipfile.ZIP_DEFLATED))
    # The size field holds at most 4 GiB; a larger member would need ZIP64.
    directory = content.index(b"PK\1\2")
    size = struct.pack("<Q", 4_900_000_000)
    extra_field = struct.pack("<HH", 1, 8) + size
    name_length = struct.unpack_from("<H", content, directory + 28)[0]
    struct.pack_into("<I", content, directory + 24, 0xFFFFFFFF)
    struct.pack_into("<H", content, directory + 30, len(extra_field))
    at = directory + 46 + name_length
    content[at:at] = extra_field
    end = content.index(b"PK\5\6")
    struct.pack_into("<I", content, end + 12, struct.unpack_from("<I", content, end + 12)[0] + 12)
    return bytes(content)


def _write_hdf5(folder: Path) -> None:
    import h5py

    external_folder = folder.parent / "outside"
    external_folder.mkdir(exist_ok=True)
    secret = np.full((8, 8), SECRET, np.uint8)
    (external_folder / "raw").write_bytes(secret.tobytes())
    with h5py.File(external_folder / "secret.h5", "w") as file:
        file["mask"] = secret
    with h5py.File(folder / "link.h5", "w") as file:
        file["mask"] = h5py.ExternalLink("../outside/secret.h5", "mask")
    with h5py.File(folder / "soft link.h5", "w") as file:
        file["inner"] = h5py.ExternalLink("../outside/secret.h5", "/")
        file["mask"] = h5py.SoftLink("/inner/mask")
    with h5py.File(folder / "loop.h5", "w") as file:
        file["mask"] = h5py.SoftLink("/mask")
    with h5py.File(folder / "raw.h5", "w") as file:
        file.create_dataset("mask", (8, 8), "u1", external=[(str(external_folder / "raw"), 0, 64)])
    with h5py.File(folder / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout(shape=(8, 8), dtype="u1")
        layout[:] = h5py.VirtualSource("../outside/secret.h5", "mask", shape=(8, 8))
        file.create_virtual_dataset("mask", layout)
    with h5py.File(folder / "fill.h5", "w") as file:
        file.create_dataset("mask", (_MILLION, _MILLION), "u1", chunks=(1000, 1000))
    with h5py.File(folder / "group.h5", "w") as file:
        file.create_group("mask")
    with h5py.File(folder / "text.h5", "w") as file:
        file["mask"] = ["a", "b"]
    (folder / "cut.h5").write_bytes((external_folder / "secret.h5").read_bytes()[:700])


def _write_nifti(folder: Path) -> None:
    import nibabel

    image = nibabel.Nifti1Image(np.zeros((4, 4), np.uint8), np.eye(4))
    header = bytearray(image.header.binaryblock)
    struct.pack_into("<8h", header, 40, 3, 30_000, 30_000, 30_000, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352.0)
    (folder / "huge.nii").write_bytes(bytes(header) + bytes(100))
    (folder / "bomb.nii.gz").write_bytes(gzip.compress(bytes(header) + bytes(30_000_000)))
    (folder / "noise.nii.gz").write_bytes(b"\x1f\x8b" + bytes(range(256)))
    (folder / "text.nii").write_bytes(b"no volume")
    os.mkfifo(folder / "pipe.nii")

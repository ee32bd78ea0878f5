"""Small data sets in the layouts in which their owners publish them, made for tests."""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def python2_pickle(value: object) -> bytes:
    """`value` as cPickle of Python 2 wrote it in protocol 2: what CIFAR's files are."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: object) -> bytes:
    if isinstance(value, str | bytes):
        text = value.encode("latin-1") if isinstance(value, str) else value
        head = b"U" + bytes([len(text)]) if len(text) < 256 else b"T" + struct.pack("<i", len(text))
        return head + text
    if isinstance(value, int):
        if 0 <= value < 256:
            return b"K" + bytes([value])
        return b"M" + struct.pack("<H", value) if value < 65536 else b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"]q\x05(" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, dict):
        pairs = (_opcodes(key) + _opcodes(item) for key, item in value.items())
        return b"}q\x01(" + b"".join(pairs) + b"u"
    assert isinstance(value, np.ndarray)
    assert value.dtype == np.uint8
    rows, columns = value.shape
    return b"".join(
        [
            b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87R",
            b"(K\x01" + _opcodes(rows) + _opcodes(columns) + b"\x86",
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89" + _opcodes(value.tobytes()) + b"tb",
        ]
    )


def cifar_images(count: int, seed: int = 0) -> np.ndarray:
    """Images (count, 32, 32, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def planar(images: np.ndarray) -> np.ndarray:
    """Images (n, 32, 32, 3) as the rows of CIFAR's `data` (n, 3072)."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def write_cifar10(folder: Path, test: np.ndarray, labels: list[int], per_batch: int = 2) -> Path:
    """`cifar-10-batches-py` in `folder`, with `test` images and 5 small training batches."""
    target = folder / "cifar-10-batches-py"
    target.mkdir(parents=True)
    for number in range(1, 6):
        images = cifar_images(per_batch, seed=number)
        batch = {
            "batch_label": f"training batch {number} of 5",
            "labels": [(number + i) % 10 for i in range(per_batch)],
            "data": planar(images),
            "filenames": [f"s_{i:06d}.png" for i in range(per_batch)],
        }
        (target / f"data_batch_{number}").write_bytes(python2_pickle(batch))
    batch = {"batch_label": "testing batch 1 of 1", "labels": labels, "data": planar(test)}
    (target / "test_batch").write_bytes(python2_pickle(batch))
    meta = {"num_cases_per_batch": 10000, "label_names": list(CIFAR10), "num_vis": 3072}
    (target / "batches.meta").write_bytes(python2_pickle(meta))
    (target / "readme.html").write_text("<html></html>")
    return target


def write_cifar10_binary(folder: Path, test: np.ndarray, labels: list[int]) -> Path:
    """`cifar-10-batches-bin` in `folder`, with test images only."""
    target = folder / "cifar-10-batches-bin"
    target.mkdir(parents=True)
    rows = np.hstack([np.array(labels, np.uint8)[:, None], planar(test)])
    (target / "test_batch.bin").write_bytes(rows.tobytes())
    (target / "batches.meta.txt").write_text("\n".join(CIFAR10) + "\n\n")
    return target


def write_cifar100(folder: Path, test: np.ndarray, fine: list[int]) -> Path:
    """`cifar-100-python` in `folder`, with as many training as test images."""
    target = folder / "cifar-100-python"
    target.mkdir(parents=True)
    for name in ("train", "test"):
        images = test if name == "test" else 255 - test
        content = {
            "filenames": [f"{i}.png" for i in range(len(fine))],
            "batch_label": "testing batch 1 of 1",
            "fine_labels": fine,
            "coarse_labels": [label // 5 for label in fine],
            "data": planar(images),
        }
        (target / name).write_bytes(python2_pickle(content))
    meta = {
        "fine_label_names": [f"fine_{i:02d}" for i in range(100)],
        "coarse_label_names": [f"coarse_{i:02d}" for i in range(20)],
    }
    (target / "meta").write_bytes(python2_pickle(meta))
    return target


def tar_of(folder: Path, target: Path, mode: str = "w:gz") -> Path:
    """A tar of `folder` under its own name, as downloads are."""
    with tarfile.open(target, mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, arcname=folder.name)
    return target


def write_tree(folder: Path, pictures: dict[tuple[str, int, str], np.ndarray]) -> Path:
    """A tree of PNGs: by corruption, severity and `CLASS/NAME`."""
    for (corruption, severity, name), pixels in pictures.items():
        target = folder / corruption / str(severity) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target, "PNG")
    return folder


def write_cifar_c(folder: Path, arrays: dict[str, np.ndarray], labels: list[int]) -> Path:
    """`CORRUPTION.npy` of (5 n, 32, 32, 3) and `labels.npy`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "labels.npy", np.tile(np.array(labels, np.uint8), 5))
    return folder

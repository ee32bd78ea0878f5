"""Cost of each transform: milliseconds per image, and as a multiple of decoding the same JPEG.

    python benchmarks/transforms.py [--photo FILE] [--repeat 5]

Times are processor time of one thread, which depends little on other load: the range, or the mean,
over the severities. Each call is made twice and the second one is timed, because overlay images and
meshes are cached after the first image. All numbers of a table are from one run, so the multiples
are comparable between machines even if the milliseconds are not.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tabulate import tabulate

from robustcli.transforms.registry import TransformCell, resolve_transforms

SIZES = ((224, 224), (500, 375))  # width, height


@dataclass(frozen=True)
class Photo:
    """The photo at one size: its JPEG (quality 90), its pixels, and milliseconds to decode it."""

    jpeg: bytes
    pixels: NDArray[np.uint8]
    decoding: float


def main() -> None:
    """Prints one table for all transforms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photo", type=Path, help="image file; default: a generated image")
    parser.add_argument("--repeat", type=int, default=5, help="timed calls per severity")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    photos = [_photo(options.photo, size, options.repeat) for size in SIZES]
    cells = resolve_transforms(["all"], None)[1:]
    rows = [
        _row(name, [cell for cell in cells if cell.transform.name == name], photos, options.repeat)
        for name in dict.fromkeys(cell.transform.name for cell in cells)
    ]
    sizes = [f"{width}x{height}" for width, height in SIZES]
    decode = ["decode the JPEG", *(part for photo in photos for part in (photo.decoding, 1.0))]
    headers = [
        "transform",
        *(part for size in sizes for part in (f"ms {size}", f"x decode {size}")),
    ]
    print(tabulate([decode, *rows], headers, tablefmt="github", floatfmt=".1f"))


def _row(
    name: str, cells: Sequence[TransformCell], photos: Sequence[Photo], repeat: int
) -> list[object]:
    row: list[object] = [name]
    for photo in photos:
        cost = statistics.mean(_cost(cell, photo.pixels, repeat) for cell in cells)
        row += [cost, cost / photo.decoding]
    return row


def _cost(cell: TransformCell, pixels: NDArray[np.uint8], repeat: int) -> float:
    apply, severity = cell.transform.apply, cell.severity
    return statistics.median(
        _milliseconds(lambda seed=seed: apply(pixels, seed=seed, severity=severity), 1)  # type: ignore[misc]
        for seed in range(repeat)
    )


def _milliseconds(work: Callable[[], object], repeat: int) -> float:
    work()
    times = []
    for _ in range(repeat):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return statistics.median(times) * 1e3


def _photo(file: Path | None, size: tuple[int, int], repeat: int) -> Photo:
    picture = Image.open(file).convert("RGB") if file else _made()
    stream = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    jpeg = stream.getvalue()
    return Photo(jpeg, _decoded(jpeg), _milliseconds(lambda: _decoded(jpeg), max(20, repeat)))


def _decoded(jpeg: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def _made() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((1000, 750), Image.Resampling.BICUBIC)


if __name__ == "__main__":
    main()

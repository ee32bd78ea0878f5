"""Images and masks, each decoded once: in memory where they fit, else in a mapped file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustcli.core.atomic import refused
from robustcli.core.errors import RunError
from robustcli.data.decode import UnreadableImage
from robustcli.data.masks import decode_pair
from robustcli.data.pairs import PairRef
from robustcli.training.memory import available_bytes

MEMORY_SHARE = 0.5
"""Of the available memory, what decoded images may take; the rest is for the network."""
_AT_ONCE = 64  # pairs decoded ahead of where they are stored

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Decoded:
    """One pair.

    Args:
        image: (H, W, 3), RGB.
        mask: (H, W), 0 or 1.
    """

    image: Pixels
    mask: Pixels

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.image.nbytes + self.mask.nbytes


@contextmanager
def decoded_once(
    pairs: Sequence[PairRef], folder: Path, *, budget: int | None = None, processes: int = 1
) -> Iterator[list[Decoded]]:
    """The pixels of every pair, in order, until the context is left.

    Args:
        pairs: What to decode.
        folder: Where the mapped file lies, if one is needed; removed on leaving.
        budget: Bytes that may lie in memory; None for half of what is available.
        processes: How many on this machine do the same and share what is available.

    Raises:
        RunError: A file cannot be decoded, or the disk is full.
    """
    if budget is None:
        budget = int(MEMORY_SHARE * available_bytes() / processes)
    with ExitStack() as stack:
        held: list[Decoded] = []
        taken = 0
        stream = _decoded(pairs)
        for one in stream:
            held.append(one)
            taken += one.nbytes
            if taken > budget:
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                held = _mapped(held, stream, folder / f"pixels-{os.getpid()}")
        yield held


def _decoded(pairs: Sequence[PairRef]) -> Iterator[Decoded]:
    """Pillow decodes without holding Python's lock, so threads share the work."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(pairs), _AT_ONCE):
            yield from pool.map(_decode, pairs[first : first + _AT_ONCE])


def _decode(pair: PairRef) -> Decoded:
    try:
        image, mask = decode_pair(pair)
    except UnreadableImage as error:
        raise RunError(
            f"The pair `{pair.image_id}` cannot be read.",
            f"{pair.image.path}: {error.reason}.",
            "Repair or remove both files, then repeat the command.",
        ) from error
    return Decoded(image, mask.view(np.uint8))


def _mapped(held: list[Decoded], rest: Iterator[Decoded], file: Path) -> list[Decoded]:
    """All of `held` and `rest` as views into a file: the system keeps of it in memory what fits."""
    shapes = []
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as out:
            for source in (held, rest):
                for one in source:
                    shapes.append(one.mask.shape)
                    out.write(one.image.tobytes())
                    out.write(one.mask.tobytes())
    except OSError as error:
        raise refused(file, error) from error
    return list(_views(np.memmap(file, np.uint8, mode="r"), shapes))


def _views(pixels: Pixels, shapes: Sequence[tuple[int, ...]]) -> Iterator[Decoded]:
    place = 0
    for height, width in shapes:
        size = height * width
        image = pixels[place : place + 3 * size].reshape(height, width, 3)
        mask = pixels[place + 3 * size : place + 4 * size].reshape(height, width)
        place += 4 * size
        yield Decoded(image, mask)

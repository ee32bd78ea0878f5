"""Decoded training samples: each is decoded once, into memory or a memory-mapped file."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustcli.core.errors import RunError
from robustcli.core.io import refused
from robustcli.core.machine import available_bytes, usable_cores
from robustcli.core.watchdog import decoding_pool
from robustcli.data.dataset import FileRef, Sample
from robustcli.data.decode import UnreadableImage, decode
from robustcli.data.masks import decode_pair

MEMORY_SHARE = 0.5
"""Share of the available memory for decoded samples; the rest is left for the network."""
_AHEAD = 64  # samples that threads decode ahead of the copy into storage

PixelArray = NDArray[np.uint8]


class Decoded(NamedTuple):
    """The decoded pixels of a sample.

    Args:
        image: (H, W, 3) uint8, RGB.
        mask: (H, W) uint8, 0 to K (1 for foreground) or `mask_values.IGNORED`; shape (0, 0) for
            classification samples.
    """

    image: PixelArray
    mask: PixelArray = np.empty((0, 0), np.uint8)


@dataclass(frozen=True)
class DecodedSubset:
    """Decoded samples with their ids and, for classification, their class indices."""

    ids: Sequence[str]
    decoded: Sequence[Decoded]
    targets: Sequence[int] = ()

    @classmethod
    def of(cls, samples: Sequence[Sample], decoded: Sequence[Decoded]) -> DecodedSubset:
        """The subset of `samples` with the pixels `decoded`."""
        targets = [sample.truth for sample in samples if isinstance(sample.truth, int)]
        return cls([sample.image_id for sample in samples], decoded, targets)


def decode_sample(sample: Sample) -> Decoded:
    """Decodes the image of `sample`, and its mask if it has one.

    Raises:
        RunError: A file cannot be decoded.
        UsageError: Image and mask differ in size, or the mask has unknown values.
    """
    masked = isinstance(sample.truth, FileRef)
    try:
        if not masked:
            return Decoded(decode(sample.image))
        image, mask = decode_pair(sample)
    except UnreadableImage as error:
        raise RunError(
            f"The {'pair' if masked else 'image'} `{sample.image_id}` cannot be read.",
            f"{sample.image.path}: {error.reason}.",
            f"Repair or remove {'both files' if masked else 'the file'}, then repeat the command.",
        ) from error
    return Decoded(image, mask.view(np.uint8))


@contextmanager
def decoded_once(
    samples: Sequence[Sample], folder: Path, *, budget: int | None = None, processes: int = 1
) -> Iterator[list[Decoded]]:
    """Decodes `samples` in order; the pixels are valid inside the context.

    Args:
        samples: Samples to decode.
        folder: Folder of the mapped file, if one is needed; the file is removed at the end.
        budget: Largest number of bytes in memory; None for half of the available memory.
        processes: Number of processes on this machine that share the available memory.

    Raises:
        RunError: A file cannot be decoded, or the disk is full.
    """
    if budget is None:
        budget = int(MEMORY_SHARE * available_bytes() / processes)
    with ExitStack() as stack:
        in_memory: list[Decoded] = []
        size = 0
        stream = _decoded(samples)
        for decoded in stream:
            in_memory.append(decoded)
            size += sum(array.nbytes for array in decoded)
            if size > budget:
                file = folder / f"pixels-{uuid.uuid4().hex}"  # processes can share the folder
                stack.callback(_remove, file)
                in_memory = _mapped(in_memory, stream, file)
        yield in_memory


def _remove(file: Path) -> None:
    """Removes `file`, and its folder if it is then empty."""
    with suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()


def _decoded(samples: Sequence[Sample]) -> Iterator[Decoded]:
    """Decodes in threads: Pillow releases the global interpreter lock."""
    with decoding_pool(usable_cores()) as pool:
        for first in range(0, len(samples), _AHEAD):
            yield from pool.map(decode_sample, samples[first : first + _AHEAD])


def _mapped(in_memory: list[Decoded], remaining: Iterator[Decoded], file: Path) -> list[Decoded]:
    """Copies `in_memory` and `remaining` into a mapped file; returns views into it.

    The operating system caches the parts of the file that fit into memory.
    """
    shapes = []
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as out:
            for source in (in_memory, remaining):
                for decoded in source:
                    shapes.append([array.shape for array in decoded])
                    for array in decoded:
                        out.write(array.tobytes())
    except OSError as error:
        raise refused(file, error) from error
    return list(_views(np.memmap(file, np.uint8, mode="r"), shapes))


def _views(pixels: PixelArray, shapes: Sequence[Sequence[tuple[int, ...]]]) -> Iterator[Decoded]:
    start = 0
    for shapes_of_sample in shapes:
        arrays = []
        for shape in shapes_of_sample:
            size = math.prod(shape)
            arrays.append(pixels[start : start + size].reshape(shape))
            start += size
        yield Decoded(*arrays)

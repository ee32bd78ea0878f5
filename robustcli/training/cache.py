"""Decoded samples, each decoded once: in memory where they fit, else in a mapped file."""

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
"""Of the available memory, what decoded samples may take; the rest is for the network."""
_AHEAD = 64  # samples decoded ahead of where they are stored

PixelArray = NDArray[np.uint8]


class Decoded(NamedTuple):
    """The pixels of a sample.

    Args:
        image: (H, W, 3), RGB.
        mask: (H, W), 0 to K (1 for foreground) or `mask_values.IGNORED`; (0, 0) for a sample with
            a class.
    """

    image: PixelArray
    mask: PixelArray = np.empty((0, 0), np.uint8)


@dataclass(frozen=True)
class DecodedSubset:
    """Decoded samples with their ids; of a classifier's also the indices of their classes."""

    ids: Sequence[str]
    decoded: Sequence[Decoded]
    targets: Sequence[int] = ()

    @classmethod
    def of(cls, samples: Sequence[Sample], decoded: Sequence[Decoded]) -> DecodedSubset:
        """The subset of `samples`, whose pixels are `decoded`."""
        targets = [sample.truth for sample in samples if isinstance(sample.truth, int)]
        return cls([sample.image_id for sample in samples], decoded, targets)


def decode_sample(sample: Sample) -> Decoded:
    """The pixels of `sample`, with its mask where it has one.

    Raises:
        RunError: A file cannot be decoded.
        UsageError: Image and mask differ in size, or the mask's values are not known.
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
    """Decodes `samples`, in order; the pixels are there until the context is left.

    Args:
        samples: What to decode.
        folder: Where the mapped file lies, if one is needed; the file is removed on leaving.
        budget: Bytes that may lie in memory; None for half of what is available.
        processes: How many on this machine do the same and share what is available.

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
                file = folder / f"pixels-{uuid.uuid4().hex}"  # processes may share the folder
                stack.callback(_remove, file)
                in_memory = _mapped(in_memory, stream, file)
        yield in_memory


def _remove(file: Path) -> None:
    """Removes `file`, and its folder unless another process has a file there."""
    with suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()


def _decoded(samples: Sequence[Sample]) -> Iterator[Decoded]:
    """Pillow decodes without holding Python's lock, so threads share the work."""
    with decoding_pool(usable_cores()) as pool:
        for first in range(0, len(samples), _AHEAD):
            yield from pool.map(decode_sample, samples[first : first + _AHEAD])


def _mapped(in_memory: list[Decoded], remaining: Iterator[Decoded], file: Path) -> list[Decoded]:
    """All of `kept` and `rest` as views into a file, of which the system caches what fits."""
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

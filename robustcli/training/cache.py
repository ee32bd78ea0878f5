"""Images, each decoded once: in memory where they fit, else in a mapped file."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from robustcli.core.errors import RunError
from robustcli.core.io import refused
from robustcli.core.machine import available_bytes, usable_cores
from robustcli.data.dataset import Sample
from robustcli.data.decode import UnreadableImage
from robustcli.data.masks import decode_pair

MEMORY_SHARE = 0.5
"""Of the available memory, what decoded images may take; the rest is for the network."""
_AT_ONCE = 64  # images decoded ahead of where they are stored

Pixels = NDArray[np.uint8]


class Stored(Protocol):
    """What is decoded of an image: arrays of bytes."""

    @property
    def arrays(self) -> tuple[Pixels, ...]:
        """What is kept of it."""

    @classmethod
    def of(cls, *arrays: Pixels) -> Self:
        """The same, of `arrays`."""


@dataclass(frozen=True)
class Decoded:
    """One pair.

    Args:
        image: (H, W, 3), RGB.
        mask: (H, W), 0, 1 or `mask_values.IGNORED`.
    """

    image: Pixels
    mask: Pixels

    @property
    def arrays(self) -> tuple[Pixels, Pixels]:
        """Image and mask."""
        return self.image, self.mask

    @classmethod
    def of(cls, *arrays: Pixels) -> Self:
        """The pair of `arrays`."""
        return cls(*arrays)


StoredT = TypeVar("StoredT", bound=Stored)
RefT = TypeVar("RefT")


def decode_masked(pair: Sample) -> Decoded:
    """The pixels of `pair`.

    Raises:
        RunError: A file cannot be decoded.
    """
    try:
        image, mask = decode_pair(pair)
    except UnreadableImage as error:
        raise RunError(
            f"The pair `{pair.image_id}` cannot be read.",
            f"{pair.image.path}: {error.reason}.",
            "Repair or remove both files, then repeat the command.",
        ) from error
    return Decoded(image, mask.view(np.uint8))


@contextmanager
def decoded_once(
    refs: Sequence[RefT], folder: Path, decode: Callable[[RefT], StoredT], *,
    budget: int | None = None, processes: int = 1,
) -> Iterator[list[StoredT]]:  # fmt: skip
    """What `decode` gives of every image, in order, until the context is left.

    Args:
        refs: What to decode.
        folder: Where the mapped file lies, if one is needed; the file is removed on leaving.
        decode: Decodes one.
        budget: Bytes that may lie in memory; None for half of what is available.
        processes: How many on this machine do the same and share what is available.

    Raises:
        RunError: A file cannot be decoded, or the disk is full.
    """
    if budget is None:
        budget = int(MEMORY_SHARE * available_bytes() / processes)
    with ExitStack() as stack:
        held: list[StoredT] = []
        taken = 0
        stream = _decoded(refs, decode)
        for one in stream:
            held.append(one)
            taken += sum(array.nbytes for array in one.arrays)
            if taken > budget:
                file = folder / f"pixels-{uuid.uuid4().hex}"  # processes may share the folder
                stack.callback(_remove, file)
                held = _mapped(held, stream, file)
        yield held


def _remove(file: Path) -> None:
    """Removes `file`, and its folder where nobody else has one there."""
    with suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()


def _decoded(refs: Sequence[RefT], decode: Callable[[RefT], StoredT]) -> Iterator[StoredT]:
    """Pillow decodes without holding Python's lock, so threads share the work."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        for first in range(0, len(refs), _AT_ONCE):
            yield from pool.map(decode, refs[first : first + _AT_ONCE])


def _mapped(held: list[StoredT], rest: Iterator[StoredT], file: Path) -> list[StoredT]:
    """All of `held` and `rest` as views into a file: the system keeps of it in memory what fits."""
    shapes = []
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as out:
            for source in (held, rest):
                for one in source:
                    shapes.append([array.shape for array in one.arrays])
                    for array in one.arrays:
                        out.write(array.tobytes())
    except OSError as error:
        raise refused(file, error) from error
    return list(_views(np.memmap(file, np.uint8, mode="r"), shapes, type(held[0])))


def _views(
    pixels: Pixels, shapes: Sequence[Sequence[tuple[int, ...]]], kind: type[StoredT]
) -> Iterator[StoredT]:
    place = 0
    for of_one in shapes:
        arrays = []
        for shape in of_one:
            size = math.prod(shape)
            arrays.append(pixels[place : place + size].reshape(shape))
            place += size
        yield kind.of(*arrays)

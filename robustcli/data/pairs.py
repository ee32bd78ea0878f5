"""The index of a segmentation data set: images, each with the mask of what is to be found in it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from robustcli.data.index import ImageRef

if TYPE_CHECKING:
    from robustcli.data.mask_values import MaskReading


@dataclass(frozen=True)
class PairRef:
    """One image with its mask.

    Args:
        image: The image; its `image_id` names the pair, its `target` is unused (0).
        mask: The mask's file.
        group: What is never split between training and test: a patient, a photo, or the image
            itself where nothing else is known.
        split: `train`, `val` or `test` where the data set says so itself; else None.
        reading: How the masks of its data set are read; None where none was decided, so that each
            mask is read by its own values.
    """

    image: ImageRef
    mask: ImageRef
    group: str
    split: str | None = None
    reading: MaskReading | None = None

    @property
    def image_id(self) -> str:
        """The id of the pair, the same on every machine."""
        return self.image.image_id


@dataclass(frozen=True)
class PairIndex:
    """The pairs of a data set, sorted by id.

    Args:
        name: What the data set is called in tables.
        location: Where it lies on this machine.
        pairs: The pairs to use.
        grouping: What a group is, in the singular: `patient`, `photo`, `image`.
        available: How many there were before a part was taken.
        subset: In words, which part was taken; None for all.
        demonstration: Whether it is a small set for trying, not for published numbers.
        tolerance: How far beside the truth a foreground pixel is still as good as right, in pixels,
            where the field counts this data set so; else None.
        notes: What the user should know of how the data were read, a line each.
        reading: How their masks are read.
    """

    name: str
    location: str
    pairs: tuple[PairRef, ...]
    grouping: str
    available: int = 0
    subset: str | None = None
    demonstration: bool = False
    tolerance: int | None = None
    notes: tuple[str, ...] = ()
    reading: MaskReading | None = None

    @property
    def digest(self) -> str:
        r"""SHA-256 (hex) over `image_id NUL group LF` of every pair, in order, as UTF-8."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            digest.update(f"{pair.image_id}\0{pair.group}\n".encode())
        return digest.hexdigest()

    @property
    def members(self) -> tuple[PairRef, ...]:
        """The pairs."""
        return self.pairs

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, each once, sorted."""
        return tuple(sorted({pair.group for pair in self.pairs}))

    def part(self, ids: frozenset[str], subset: str) -> PairIndex:
        """The pairs whose id is in `ids`, under the words `subset`."""
        kept = tuple(pair for pair in self.pairs if pair.image_id in ids)
        return replace(self, pairs=kept, subset=subset)

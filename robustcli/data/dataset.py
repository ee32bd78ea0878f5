"""The index of a data set: images with stable ids, and the class or mask of each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from robustcli.data.labels import LabelSpace

if TYPE_CHECKING:
    from robustcli.data.mask_values import MaskReading


# The index of a data set: which images there are and what each one shows.


@dataclass(frozen=True)
class ImageRef:
    """One image and its class.

    Args:
        image_id: The same on every machine: the path inside the data set, with `/`.
        target: Index of its class in the label space.
        path: The image file, or the uncompressed tar that holds it.
        member: Its name inside the tar at `path`; None for a file of its own.
        offset: First byte of the member in the tar.
        size: Length of the member in bytes.
        split: `train`, `val` or `test` where the data says so itself; else None.
    """

    image_id: str
    target: int
    path: Path
    member: str | None = None
    offset: int = 0
    size: int = 0
    split: str | None = None

    @property
    def group(self) -> str:
        """What is never in two parts: the image itself, for nothing else is known."""
        return self.image_id


@dataclass(frozen=True)
class ImageIndex:
    """The images of a data set, sorted by id.

    Args:
        name: What the data set is called in tables.
        location: Where it lies on this machine.
        label_space: The classes that targets index.
        images: The images to evaluate.
        available: How many there were before a subset was taken.
        subset: In words, which part was taken (`15 per class, seed 0`); None for all.
        demonstration: Whether it is a small set for trying, not for published numbers.
        notes: What the user should know of how the data were read, a line each.
    """

    name: str
    location: str
    label_space: LabelSpace
    images: tuple[ImageRef, ...]
    available: int = 0
    subset: str | None = None
    demonstration: bool = False
    notes: tuple[str, ...] = ()

    @property
    def grouping(self) -> str:
        """What a group is, in the singular."""
        return "image"

    @property
    def members(self) -> tuple[ImageRef, ...]:
        """The images."""
        return self.images

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, each once, sorted."""
        return tuple(sorted(image.group for image in self.images))

    @property
    def digest(self) -> str:
        r"""SHA-256 (hex) over `image_id NUL target LF` of every image, in order, as UTF-8."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(f"{image.image_id}\0{image.target}\n".encode())
        return digest.hexdigest()

    @cached_property
    def contents(self) -> str:
        """What the files hold, as `decode.contents_digest` tells it."""
        from robustcli.data.decode import contents_digest

        return contents_digest(self.images)

    def part(self, ids: frozenset[str], subset: str) -> ImageIndex:
        """The images whose id is in `ids`, under the words `subset`."""
        kept = tuple(image for image in self.images if image.image_id in ids)
        return replace(self, images=kept, subset=subset)


# What every index of a data set has, whatever is known of its images: masks or classes.


class Member(Protocol):
    """One image: what names it, what it belongs to, and the part that the data says it is in."""

    @property
    def image_id(self) -> str:
        """The same on every machine."""

    @property
    def group(self) -> str:
        """What is never in two parts."""

    @property
    def split(self) -> str | None:
        """`train`, `val` or `test` where the data says so itself; else None."""


class Indexed(Protocol):
    """The images of a data set, sorted by id; see `ImageIndex` and `PairIndex` for the words."""

    @property
    def name(self) -> str:
        """What the data set is called in tables."""

    @property
    def location(self) -> str:
        """Where it lies on this machine."""

    @property
    def subset(self) -> str | None:
        """In words, which part was taken; None for all."""

    @property
    def demonstration(self) -> bool:
        """Whether it is a small set for trying."""

    @property
    def grouping(self) -> str:
        """What a group is, in the singular."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what is known of every image."""

    @property
    def contents(self) -> str:
        """SHA-256 (hex) of what the files hold, as `decode.contents_digest` tells it."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know of how the data were read, a line each."""

    @property
    def members(self) -> Sequence[Member]:
        """The images."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, each once, sorted."""

    def part(self, ids: frozenset[str], subset: str) -> Indexed:
        """The images whose id is in `ids`, under the words `subset`."""


IndexT = TypeVar("IndexT", bound=Indexed)


# The index of a segmentation data set: images, each with the mask of what is to be found in it.


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

    @cached_property
    def contents(self) -> str:
        """What the files of images and masks hold, as `decode.contents_digest` tells it."""
        from robustcli.data.decode import contents_digest

        return contents_digest(file for pair in self.pairs for file in (pair.image, pair.mask))

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

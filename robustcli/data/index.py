"""The index of a data set: which images there are and what each one shows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from robustcli.data.labels import LabelSpace


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

    def part(self, ids: frozenset[str], subset: str) -> ImageIndex:
        """The images whose id is in `ids`, under the words `subset`."""
        kept = tuple(image for image in self.images if image.image_id in ids)
        return replace(self, images=kept, subset=subset)

"""Data sets: files, samples with a class or a mask, and the digests that identify them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from robustcli.core.io import check_readable
from robustcli.core.seeds import identity_seed
from robustcli.data.labels import LabelSpace

if TYPE_CHECKING:
    from robustcli.data.mask_values import MaskReading

CONTENTS_READ = 64 * 2**20  # bytes of a data set that the contents digest covers
_READ_AHEAD = 16


class UnreadableImage(Exception):  # noqa: N818 - it is about the image, not about the program
    """An image that cannot be decoded completely; `reason` does not contain the file's name."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class RawPixels:
    """The layout of unencoded uint8 pixels: (height, width, 3); (3, height, width) if planar."""

    height: int
    width: int
    planar: bool = False


class Rows(Protocol):
    """Images that are rows of a table elsewhere."""

    def read(self, row: int) -> bytes:
        """The encoded image in a row; raises OSError where it holds none."""

    def pin(self, row: int) -> str | None:
        """A permanent identifier of these bytes, which need no reading then; None without one."""

    def shown(self, row: int) -> str:
        """The name of the image in a row, for messages."""


@dataclass(frozen=True)
class FileRef:
    """An image or a mask: a file, or a range of bytes in one. Nothing is read yet.

    Args:
        relative: Its path inside the data set, with `/`: the same on every machine.
        path: The file, or the uncompressed archive or array that holds it.
        member: Its name in the file at `path`; None for a file of its own.
        offset: First byte of the member in that file.
        size: Length in bytes of the member, or of the row.
        unpacked: The decompressed length of a deflated zip member; else None.
        raw: The layout of its bytes if they are pixels, not an image file.
        rows: The table of which it is row number `offset`; else None.
        border: Pixels on each side that do not belong to the image.
        array: The name of its array in a file of arrays (`data.arrays`), or None.
        slice_index: Its slice of a volume; None for a file of one slice.
        parts: The files that it consists of, with what each is: the channels of an image, or of a
            mask the classes that have their own files. `path` is then that of the first.
    """

    relative: str
    path: Path
    member: str | None = None
    offset: int = 0
    size: int = 0
    unpacked: int | None = None
    raw: RawPixels | None = None
    rows: Rows | None = None
    border: int = 0
    array: str | None = None
    slice_index: int | None = None
    parts: tuple[tuple[str, FileRef], ...] = ()

    def __str__(self) -> str:
        if self.rows is not None:
            return self.rows.shown(self.offset)
        return str(self.path) if self.member is None else f"{self.path}:{self.member}"

    @property
    def folder(self) -> str | None:
        """The first folder of the relative path; None for a file beside the folders."""
        first, slash, _ = self.relative.partition("/")
        return first if slash else None

    @property
    def file_name(self) -> str:
        """The last part of the relative path."""
        return self.relative.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The relative path without its suffix."""
        folder, slash, name = self.relative.rpartition("/")
        return folder + slash + name.rpartition(".")[0]

    @property
    def length(self) -> int:
        """Its length in bytes; 0 for a missing file."""
        if self.parts:
            return sum(part.length for _, part in self.parts)
        if self.member is not None or self.rows is not None:
            return self.size if self.unpacked is None else self.unpacked
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def read(self) -> bytes:
        """Its bytes, from the disk, its archive or its table; raises OSError if unreadable.

        Of several parts the bytes of all.
        """
        if self.parts:
            return b"".join(part.read() for _, part in self.parts)
        if self.rows is not None:
            return self.rows.read(self.offset)
        if self.member is None:
            check_readable(self.path)
            return self.path.read_bytes()
        with self.path.open("rb", buffering=0) as archive:
            archive.seek(self.offset)
            content = archive.read(self.size)
        if self.unpacked is None:
            return content
        try:  # never inflates more than the listed length
            inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, self.unpacked + 1)
        except zlib.error as error:
            raise OSError(f"damaged in its archive: {error}") from error
        if len(inflated) != self.unpacked:
            raise OSError("damaged in its archive: its length differs")
        return inflated


def contents_digest(files: Iterable[FileRef]) -> str:
    r"""SHA-256 (hex) of files, which distinguishes data sets whose images have the same names.

    Over `relative NUL length LF` of every file, sorted, and then over `relative NUL SHA-256 LF` of
    as many files as it takes to read CONTENTS_READ bytes, in an order drawn from their paths. A
    small data set is read completely; in a large one, whose reading would take as long as an
    evaluation, an edited file of the same length can remain unnoticed. An unreadable file counts as
    empty. A row of a table counts by its pin instead of its length and bytes.
    """
    ordered = sorted(files, key=lambda file: file.relative)
    digest = hashlib.sha256()
    for file in ordered:
        pin = _pin(file)
        digest.update(f"{file.relative}\0{file.length if pin is None else pin}\n".encode())
    read, unpinned = 0, [file for file in ordered if _pin(file) is None]
    unpinned.sort(key=lambda file: identity_seed("contents", file.relative))
    for file, content in zip(unpinned, _contents(unpinned), strict=True):
        if read >= CONTENTS_READ:
            break
        read += len(content)
        digest.update(f"{file.relative}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def _pin(file: FileRef) -> str | None:
    return None if file.rows is None else file.rows.pin(file.offset)


def _contents(files: Sequence[FileRef]) -> Iterator[bytes]:
    """The bytes of `files`, read as they are asked for; rows elsewhere some ahead of that."""
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        for first in range(0, len(files), _READ_AHEAD):
            some = files[first : first + _READ_AHEAD]
            far = any(file.rows is not None for file in some)
            yield from pool.map(_content, some) if far else map(_content, some)


def _content(file: FileRef) -> bytes:
    try:
        return file.read()
    except OSError:
        return b""


@dataclass(frozen=True)
class Sample:
    """One image with its class or its mask.

    Args:
        image: The image's file; its relative path is the id of the sample.
        truth: Index of its class in the label space, or the file of its mask.
        group: A patient, a photo, or by default the image; never in two parts of a split.
        split: `train`, `val` or `test` if the data set has its own split; else None.
        reading: How the masks of its data set are read; None for classes, and if each mask is read
            by its own values.
        also: Indices of other true classes.
    """

    image: FileRef
    truth: int | FileRef
    group: str
    split: str | None = None
    reading: MaskReading | None = None
    also: tuple[int, ...] = ()

    @property
    def image_id(self) -> str:
        """The id of the sample, the same on every machine."""
        return self.image.relative

    @property
    def target(self) -> int:
        """Index of the image's class in the label space; raises TypeError for a mask."""
        if isinstance(self.truth, FileRef):
            raise TypeError(f"`{self.image_id}` has a mask, no class")
        return self.truth

    @property
    def mask(self) -> FileRef:
        """The file of the image's mask; raises TypeError for a class."""
        if not isinstance(self.truth, FileRef):
            raise TypeError(f"`{self.image_id}` has a class, no mask")
        return self.truth


@dataclass(frozen=True)
class Dataset:
    """The samples of a data set, sorted by id.

    Args:
        name: Its name in tables.
        location: Its path on this machine.
        samples: The images with their classes or masks.
        label_space: The classes that targets index; None for masks.
        grouping: The kind of a group, in the singular: `patient`, `photo`, `image`.
        available: The number of samples before a subset was drawn.
        subset: A description of the subset (`15 per class, seed 0`); None for all.
        demonstration: Whether it is a small set for trying, not for published numbers.
        evaluated: The split that its owners evaluate on; None without one.
        answers: The classes that a model may predict, None for all.
        members: For superclasses, the classes of the model that each consists of; else None.
        tolerance: The distance from the truth in pixels within which a foreground pixel counts as
            correct; None for data sets that are not scored so.
        notes: Notes for the user on how the data were read.
        reading: How their masks are read; None for classes, and if no mask was examined.
    """

    name: str
    location: str
    samples: tuple[Sample, ...]
    label_space: LabelSpace | None = None
    grouping: str = "image"
    available: int = 0
    subset: str | None = None
    demonstration: bool = False
    evaluated: Literal["val", "test"] | None = None
    answers: tuple[int, ...] | None = None
    members: tuple[tuple[int, ...], ...] | None = None
    tolerance: int | None = None
    notes: tuple[str, ...] = ()
    reading: MaskReading | None = None

    @property
    def classes(self) -> LabelSpace:
        """The label space; raises TypeError for images with masks."""
        if self.label_space is None:
            raise TypeError(f"`{self.name}` has masks, no classes")
        return self.label_space

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """The names of the classes 1 to K of masks; empty for foreground and background."""
        return () if self.reading is None else self.reading.classes

    @property
    def digest(self) -> str:
        r"""SHA-256 (hex) of `image_id NUL target LF` of every sample, in order, as UTF-8.

        For masks the group replaces the target; several true classes are joined by commas.
        """
        digest = hashlib.sha256()
        for sample in self.samples:
            label = sample.group if self.label_space is None else sample.target
            if sample.also:
                label = ",".join(map(str, (sample.target, *sample.also)))
            digest.update(f"{sample.image_id}\0{label}\n".encode())
        return digest.hexdigest()

    @cached_property
    def contents(self) -> str:
        """The `contents_digest` of the files of images and masks."""
        masks = [s.truth for s in self.samples if isinstance(s.truth, FileRef)]
        return contents_digest([*(sample.image for sample in self.samples), *masks])

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, each once, sorted."""
        return tuple(sorted({sample.group for sample in self.samples}))

    def part(self, ids: frozenset[str], subset: str) -> Dataset:
        """The samples whose id is in `ids`; `subset` describes them."""
        samples = tuple(sample for sample in self.samples if sample.image_id in ids)
        return replace(self, samples=samples, subset=subset)

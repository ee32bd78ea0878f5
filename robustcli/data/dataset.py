"""Data sets: file references, samples with a class or a mask, and digests of data sets."""

from __future__ import annotations

import errno
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from robustcli.core.errors import RunError
from robustcli.core.io import check_readable
from robustcli.core.names import printable
from robustcli.core.seeds import identity_seed
from robustcli.data.labels import LabelSpace

if TYPE_CHECKING:
    from robustcli.data.mask_values import MaskReading

CONTENTS_READ = 64 * 2**20  # bytes of a data set that `contents_digest` reads
_READ_AHEAD = 16


class UnreadableImage(Exception):  # noqa: N818 - describes the image, not a fault of the program
    """An image cannot be decoded completely; `reason` does not contain the name of the file."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


_REASONS_SHOWN = 20


def reasons_in_lines(unreadable: Mapping[str, str], location: str = "") -> str:
    """One indented line for each of the first 20 unreadable images; `location` says where all are.

    `unreadable` maps the id of each unreadable image to the reason.
    """
    shown = list(unreadable.items())[:_REASONS_SHOWN]
    lines = ["  " + printable(f"{name}: {why}").replace("\n", r"\n") for name, why in shown]
    if len(unreadable) > _REASONS_SHOWN:
        lines.append(f"  and {len(unreadable) - _REASONS_SHOWN:,} more{location}")
    return "\n".join(lines)


@dataclass(frozen=True)
class RawPixels:
    """Layout of unencoded uint8 pixels: (height, width, 3), or (3, height, width) if planar."""

    height: int
    width: int
    planar: bool = False


class Rows(Protocol):
    """Images in the rows of a remote table or object listing."""

    def read(self, row: int) -> bytes:
        """The encoded image in a row; raises OSError if the row has no image."""

    def pin(self, row: int) -> str | None:
        """A permanent identifier of the bytes of a row, usable without a read; None without one."""

    def shown(self, row: int) -> str:
        """The name of the image in a row, for messages."""


@dataclass(frozen=True)
class FileRef:
    """Reference to an image or a mask: a file, or a range of bytes in it; `read` returns them.

    Args:
        relative: Path inside the data set, separated by `/`: equal on all machines.
        path: The file, or the uncompressed archive or array file that contains the image.
        member: Name of the image in the file at `path`; None if `path` is the image file.
        offset: Offset in bytes of the member in the file at `path`; with `rows`, the row number.
        size: Length in bytes of the member or row.
        unpacked: Decompressed length of a deflated zip member; else None.
        raw: Layout of the pixels if the bytes are unencoded pixels; else None.
        rows: The table that contains the image in row `offset`; else None.
        border: Number of pixels on each side that are cut off.
        array: Name of the array in an array file (`decode.read_array`); else None.
        slice_index: Index of the slice in a volume; None for a file with one slice.
        parts: Pairs (name, file) of an image with one file per channel, or a mask with one file per
            class. `path` is then that of the first file.
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
        """First folder of the relative path; None for a file that is not in a folder."""
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
        """Length in bytes; 0 for a missing file."""
        if self.parts:
            return sum(part.length for _, part in self.parts)
        if self.member is not None or self.rows is not None:
            return self.size if self.unpacked is None else self.unpacked
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def read(self) -> bytes:
        """The bytes from the disk, the archive or the table; raises OSError if they are unreadable.

        With `parts`, the concatenated bytes of all parts.
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
    r"""SHA-256 (hex) of paths and contents, to distinguish data sets with equal file names.

    The hashed text is `relative NUL length LF` of every file, sorted by path, followed by
    `relative NUL SHA-256 LF` of files in a random order that depends only on their paths, until
    CONTENTS_READ bytes have been read. A small data set is read completely. A large one is not,
    because this would take as long as an evaluation: a changed file of equal length can remain
    undetected. An unreadable file counts as empty. For a row of a table with a pin (`Rows.pin`),
    the pin replaces length and contents.
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
    """Yields the bytes of `files`; blocks with rows of tables are read in parallel threads."""
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        for first in range(0, len(files), _READ_AHEAD):
            some = files[first : first + _READ_AHEAD]
            in_tables = any(file.rows is not None for file in some)
            yield from pool.map(_content, some) if in_tables else map(_content, some)


def _content(file: FileRef) -> bytes:
    try:
        return file.read()
    except OSError as error:
        raise_if_transient(file, error)
        return b""


_TRANSIENT = frozenset(
    getattr(errno, name)
    for name in ("ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "EMFILE", "ENFILE")
    if hasattr(errno, name)
)
"""Errors of network folders, and of processes with too many open files."""


def raise_if_transient(file: FileRef, error: OSError) -> None:
    """Raises RunError if `file` could not be read for a reason that is not in the file.

    Such an image must not count as unreadable, because it can be read later.
    """
    if error.errno in _TRANSIENT:
        raise RunError(
            f"`{file}` cannot be read.",
            f"The error of the file system is: {error.strerror}. Its cause is not the file.",
            "Repeat the command, which continues the run.",
        ) from error


@dataclass(frozen=True)
class Sample:
    """One image with its class or its mask.

    Args:
        image: File of the image; its relative path is the id of the sample.
        truth: Index of the class in the label space, or the file of the mask.
        group: Name of the patient or photo; by default the id of the image. Images of one group are
            not divided between splits, except by `splits.paper_splits`.
        split: `train`, `val` or `test` if the data set defines splits; else None.
        reading: Interpretation of the mask values of the data set; None for classes, and if each
            mask is interpreted separately.
        also: Indices of further true classes.
    """

    image: FileRef
    truth: int | FileRef
    group: str
    split: str | None = None
    reading: MaskReading | None = None
    also: tuple[int, ...] = ()

    @property
    def image_id(self) -> str:
        """Id of the sample, equal on all machines."""
        return self.image.relative

    @property
    def target(self) -> int:
        """Index of the image's class in the label space; raises TypeError for a mask."""
        if isinstance(self.truth, FileRef):
            raise TypeError(f"`{self.image_id}` has a mask, not a class")
        return self.truth

    @property
    def mask(self) -> FileRef:
        """The file of the image's mask; raises TypeError for a class."""
        if not isinstance(self.truth, FileRef):
            raise TypeError(f"`{self.image_id}` has a class, not a mask")
        return self.truth


@dataclass(frozen=True)
class Dataset:
    """The samples of a data set, sorted by id.

    Args:
        name: Name in tables of results.
        location: Path or address of the data set.
        samples: The images with their classes or masks.
        label_space: The classes that targets index; None for masks.
        grouping: Type of the groups, in the singular: `patient`, `photo`, `image`.
        available: Number of samples before a subset was selected.
        subset: Description of the subset (`15 per class, seed 0`); None for all samples.
        demonstration: Whether the data set is a small example, not suited for published numbers.
        evaluated: The split that the authors of the data evaluate on; None without one.
        answers: Indices of the classes that a model may predict; None for all.
        members: For superclasses, the indices of the model's classes in each; else None.
        tolerance: Distance in pixels from the true foreground within which a predicted foreground
            pixel counts as correct; None for data sets without tolerance.
        notes: Announcements for the user about how the data were read.
        reading: Interpretation of the mask values; None for classes, and if the masks were not
            surveyed.
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
            raise TypeError(f"`{self.name}` has masks, not classes")
        return self.label_space

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """Names of the classes 1 to K of masks; empty for foreground and background."""
        return () if self.reading is None else self.reading.classes

    @property
    def digest(self) -> str:
        r"""SHA-256 (hex) of `image_id NUL target LF` of every sample, in order, as UTF-8.

        For masks, the group replaces the target. Several true classes are joined by commas.
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
        """The sorted names of all groups."""
        return tuple(sorted({sample.group for sample in self.samples}))

    def part(self, ids: frozenset[str], subset: str) -> Dataset:
        """This data set with only the samples in `ids`; `subset` is the description."""
        samples = tuple(sample for sample in self.samples if sample.image_id in ids)
        return replace(self, samples=samples, subset=subset)

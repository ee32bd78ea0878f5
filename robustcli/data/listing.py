"""Lists the image files under a folder, each with an id that is the same on every machine."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from robustcli.core.errors import UsageError, shortened_text
from robustcli.data.dataset import FileRef

# Source: torchvision.datasets.folder.IMG_EXTENSIONS; and GIF, of which the first frame is used.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
)
HDF5_SUFFIXES, NIFTI_SUFFIXES = (".h5", ".hdf5"), (".nii", ".nii.gz")
MASK_SUFFIXES = IMAGE_SUFFIXES | {".npy", ".npz"}
_LEFTOVERS = frozenset(
    {
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),  # macOS, Windows
        *("@eadir", "#recycle", "#snapshot", "lost+found", "$recycle.bin"),  # servers, disks
        *("system volume information", "__pycache__"),
    }
)
"""Files and folders that other programs leave in a data set, in lower case. Hidden ones
(`.ipynb_checkpoints`, `._photo.jpg`, `.DS_Store`, `.git`) start with a dot."""
DEEPEST = 200
"""Folders in which a file may be: more than people make, fewer than Python's calls may nest."""
_MOST_VISITS = 1000  # of one folder through different links
_UNCOUNTED = frozenset({".git", ".svn", ".hg", ".snapshot", ".zfs", ".venv", "#snapshot"})
"""Folders that may hold a copy of everything; they are not even searched to count files."""


@dataclass(frozen=True)
class FileListing:
    """The images in a folder or an archive, and what was left out of them.

    `leftovers` are the sorted paths of files named like images that are hidden or were left by
    other programs (see `is_leftover`); `unreached` those of links that lead out of the archive or
    to nothing, and of members that are no plain files or would be unpacked outside.
    """

    files: list[FileRef]
    leftovers: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)

    def only(self, suffixes: frozenset[str]) -> FileListing:
        """The same files, with what was left out and is named with one of `suffixes`."""
        left = (
            [name for name in names if named_like_image(name, suffixes)]
            for names in (self.leftovers, self.unreached)
        )
        return FileListing(self.files, *left)

    def notes(self, location: Path | str) -> Iterator[str]:
        """A note for each kind of files that were left out."""
        for names, what in (
            (self.leftovers, "hidden or leftovers of other programs"),
            (self.unreached, "links that lead out of the archive or to nothing, or no plain files"),
        ):
            if names:
                count = f"{len(names)} files" if len(names) > 1 else "1 file"
                yield (
                    f"Left out of `{location}`: {count} named like images ({what}), such as "
                    f"`{shortened_text(names[0])}`."
                )


def is_leftover(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or was left by another program."""
    hidden = name.startswith(".") and name not in (".", "..")
    return hidden or name.lower() in _LEFTOVERS


def is_image(path: str, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> bool:
    """Whether `path` has an image's suffix and no part of it is a leftover."""
    return named_like_image(path, suffixes) and not any(map(is_leftover, path.split("/")))


def named_like_image(name: str, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> bool:
    """Whether a file name has an image's suffix."""
    return PurePosixPath(name).suffix.lower() in suffixes


def normalised_path(relative: str) -> str:
    """`relative` with composed characters (NFC) and escaped bytes that are not UTF-8.

    File systems differ in how they store accents, and a name need not be valid UTF-8.
    """
    if relative.isascii():
        return relative
    text = relative.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


class Node(Protocol):
    """A file or a folder, on a disk or in an archive, as `list_tree` visits it."""

    @property
    def name(self) -> str:
        """Its name in its folder."""

    @property
    def is_link(self) -> bool:
        """Whether it is a link."""

    def identity(self) -> str | None:
        """For a folder, an identity that all links to it share; for a file, None.

        Raises:
            LookupError: It is neither, or a link to nothing.
        """

    def children(self) -> Iterable[Node]:
        """The entries of a folder."""

    def file(self, relative: str) -> FileRef:
        """The file, with the path `relative`."""


def list_tree(root: Node, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> FileListing:
    """All files below the folder `root` with one of `suffixes`, for folders and archives alike.

    Leftovers and everything below them are left out. Links are followed, except those to a folder
    above them, which would make the walk endless.

    Raises:
        UsageError: Folders are nested too deeply, or so many links lead to one that they multiply.
    """
    listing = FileListing([])
    visits = Counter[str | None]()
    _walk(root, "", frozenset({root.identity()}), suffixes, listing, visits, left=False)
    listing.leftovers.sort()
    listing.unreached.sort()
    return listing


def _walk(
    folder: Node, prefix: str, above: frozenset[str | None], suffixes: frozenset[str],
    listing: FileListing, visits: Counter[str | None], *, left: bool,
) -> None:  # fmt: skip
    """Adds the files below `folder` to `listing`, as leftovers if the folder is `left` out."""
    visits[folder.identity()] += 1
    if len(above) > DEEPEST or visits[folder.identity()] > _MOST_VISITS:
        raise UsageError(
            f"The folder `{shortened_text(prefix)}` is not read.",
            f"It is nested in more than {DEEPEST} folders."
            if len(above) > DEEPEST
            else f"More than {_MOST_VISITS:,} links lead to it: its images would count each time.",
            "Take it out of the data, or name the folder with the images.",
        )
    for node in folder.children():
        relative, out = prefix + node.name, left or is_leftover(node.name)
        try:
            identity = node.identity()
        except LookupError:
            if named_like_image(node.name, suffixes):
                (listing.leftovers if out else listing.unreached).append(normalised_path(relative))
            continue
        if identity is None:
            if not named_like_image(node.name, suffixes):
                continue
            if out:
                listing.leftovers.append(normalised_path(relative))
            else:
                listing.files.append(node.file(relative))
        elif not out and identity not in above:
            _walk(node, relative + "/", above | {identity}, suffixes, listing, visits, left=False)
        elif out and not node.is_link and node.name.lower() not in _UNCOUNTED:
            with suppress(OSError):  # a `lost+found` that only root may read is nothing to report
                _walk(node, relative + "/", above, suffixes, listing, visits, left=True)


@dataclass(frozen=True)
class _OnDisk:
    """A file or folder of the file system; `real` is a folder's path without links."""

    path: str
    name: str
    is_link: bool
    real: str | None

    def identity(self) -> str | None:
        return self.real

    def children(self) -> Iterator[_OnDisk]:
        assert self.real is not None
        with os.scandir(self.path) as scan:
            entries = list(scan)
        for entry in entries:
            is_link, real = entry.is_symlink(), None
            if entry.is_dir():
                inside = f"{self.real}{os.sep}{entry.name}"
                real = os.path.realpath(entry.path) if is_link else inside
            yield _OnDisk(entry.path, entry.name, is_link, real)

    def file(self, relative: str) -> FileRef:
        return FileRef(normalised_path(relative), Path(self.path))


def list_folder(root: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> FileListing:
    """Every image file below `root`, see `list_tree`.

    Links to folders are followed, because data sets are often assembled from links. A link to
    nothing is listed as an image, which decoding then reports as unreadable.

    Raises:
        UsageError: A folder cannot be read.
    """
    try:
        return list_tree(_OnDisk(os.fspath(root), "", True, os.path.realpath(root)), suffixes)
    except OSError as error:
        raise UsageError(
            f"Cannot read the folder `{error.filename}`.",
            f"The file system says: {error.strerror or error}.",
            "Check its permissions, or move it out of the data folder.",
        ) from error
